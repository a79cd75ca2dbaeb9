"""The coding quick run's task: programs that pass their tests, wrong ones that do not, disjoint splits."""

from __future__ import annotations

import pytest

from repirl.data.functions import FUNCTION_TOKENS, Functions, program, value
from repirl.models.tokenizers import character_tokenizer


def passes(tests, written: str) -> bool:
    scope: dict = {}
    exec(written, scope)
    try:
        exec(tests.code, scope)
    except AssertionError:
        return False
    return True


def test_a_problem_and_its_program() -> None:
    assert program("p3t2m1") == "f=lambda x:((x+3)*2)-1"
    assert program("t9") == "f=lambda x:x*9"
    assert value("p3t2m1", 4) == 13  # (4 + 3) * 2 - 1
    with pytest.raises(ValueError, match="not a chain of operations: '3p'"):
        program("3p")


def test_solutions_pass_and_other_spellings_too() -> None:
    for problem in Functions(40, 0).load():
        assert passes(problem.tests, problem.solutions[0])
        assert not passes(problem.tests, problem.solutions[0] + "+1")
        assert not passes(problem.tests, "f=lambda x:None")
    (first,) = [problem for problem in Functions(300, 1, steps=2).load() if problem.text == "p3t2"]
    assert passes(first.tests, "f=lambda x:2*x+6")


def test_errors_come_as_often_as_asked() -> None:
    found = [passes(problem.tests, problem.solutions[0]) for problem in Functions(400, 2, error_rate=0.6).load()]
    assert 0.33 < sum(found) / 400 < 0.47  # .4, standard error .025


def test_splits_share_nothing_and_seeds_decide() -> None:
    texts = {split: {p.text for p in Functions(100, 5, split=split).load()} for split in ("train", "val", "test")}
    assert not texts["train"] & texts["val"]
    assert not texts["train"] & texts["test"]
    assert Functions(20, 5).load() == Functions(20, 5).load()
    assert Functions(20, 5).load() != Functions(20, 6).load()


def test_every_text_is_in_the_tokens() -> None:
    tokenizer = character_tokenizer(FUNCTION_TOKENS)
    for problem in Functions(50, 0).load():
        for text in (problem.text, problem.solutions[0]):
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_refusals() -> None:
    with pytest.raises(ValueError, match="found only 16 distinct problems of 1 steps"):
        Functions(27, 0, steps=1).load()
    with pytest.raises(ValueError, match="expected count and steps of at least 1"):
        Functions(0, 0)
