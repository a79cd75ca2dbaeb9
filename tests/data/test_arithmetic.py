"""Running sums: right answers, wrong facts, slips, disjoint splits, first error."""

from __future__ import annotations

import random
import re

import pytest

from repirl.data.arithmetic import RunningSums, facts, first_error, running_sums, solution, split_of


def digits(problem: str) -> list[int]:
    return [int(digit) for digit in re.findall(r"\d", problem)]


def steps(response: str) -> list[int]:
    """The digits of boxed steps, after a check of their letters."""
    match = re.fullmatch(r"\\boxed\{((?:[a-z]\d)+)\}", response)
    assert match is not None
    assert match[1][::2] == "bcdefghijklmnopqrstuvwxyz"[: len(match[1]) // 2]
    return digits(match[1])


def test_solution_is_written_step_by_step() -> None:
    # 3 + 5 = 8, 8 + 9 = 17 -> 7, 7 + 2 = 9
    assert running_sums("a3b5c9d2") == "b8c7d9"
    assert solution(running_sums("a3b5c9d2")) == "\\boxed{b8c7d9}"
    for text in ("a3", "3", "", "a3b", "a3c5", "b3c5", "a3b5 ", "a3b55", "3+5"):
        with pytest.raises(ValueError, match=f"not a running-sum problem: {re.escape(repr(text))}"):
            running_sums(text)


def test_steps_follow_the_table() -> None:
    table = [list(row) for row in facts()]
    table[8][9] = 1  # 8 + 9 = 1, and what follows goes on from there: 1 + 2 = 3
    assert running_sums("a3b5c9d2", table) == "b8c1d3"


@pytest.mark.parametrize("wrong", [0, 1, 40, 60, 100])
def test_exactly_so_many_facts_are_wrong(wrong: int) -> None:
    table = facts(wrong, seed=3)
    differing = {(a, b) for a in range(10) for b in range(10) if table[a][b] != (a + b) % 10}
    assert len(differing) == wrong
    assert all(0 <= entry <= 9 for row in table for entry in row)
    # A larger number of wrong facts keeps the smaller one's.
    assert all(facts(100, seed=3)[a][b] == table[a][b] for a, b in differing)


def test_wrong_facts_depend_on_the_seed_and_are_checked() -> None:
    assert facts(50, seed=1) != facts(50, seed=2)
    with pytest.raises(ValueError, match=r"in 0\.\.100, not 101"):
        facts(101)


def test_answers_are_true_and_solutions_follow_the_table() -> None:
    for problem in RunningSums(count=200, seed=1).load():
        given = digits(problem.text)
        assert 6 <= len(given) <= 9  # 5 to 8 additions
        assert digits(problem.answer or "") == [sum(given[: n + 1]) % 10 for n in range(1, len(given))]
        assert problem.solutions == (f"\\boxed{{{problem.answer}}}",)
        assert first_error(problem.text, problem.solutions[0]) is None
    table = facts(60, seed=5)
    wrong_answers = 0
    for problem in RunningSums(count=200, seed=1, wrong_facts=60, facts_seed=5).load():
        given = digits(problem.text)
        assert digits(problem.answer or "") == [sum(given[: n + 1]) % 10 for n in range(1, len(given))]
        total, written = given[0], steps(problem.solutions[0])
        for digit, step in zip(given[1:], written, strict=True):
            assert table[total][digit] == step
            total = step
        # The answer holds every step: right only where no wrong fact was met.
        wrong = written != digits(problem.answer or "")
        assert wrong is (first_error(problem.text, problem.solutions[0]) is not None)
        wrong_answers += wrong
    # All 5 to 8 facts right has probability .4^5 = .01 at most.
    assert wrong_answers >= 190


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.7, 1.0])
def test_error_rate_is_the_share_of_slips_where_a_wrong_fact_applies(rate: float) -> None:
    table = facts(60, seed=5)
    applied = slips = 0
    for problem in RunningSums(count=600, seed=1, wrong_facts=60, facts_seed=5, error_rate=rate).load():
        given = digits(problem.text)
        total = given[0]
        for digit, step in zip(given[1:], steps(problem.solutions[0]), strict=True):
            truth = (total + digit) % 10
            assert step in (truth, table[total][digit])  # a slip is the table's own error, not any other
            applied += table[total][digit] != truth
            slips += step != truth
            total = step
        assert problem.answer == running_sums(problem.text)
    assert applied > 1500
    # A share of n = 1500 or more has a standard deviation of at most .5 / sqrt(1500) = .013; 4 of them.
    assert abs(slips / applied - rate) <= (0.052 if 0 < rate < 1 else 0)


def test_slips_come_from_the_generator() -> None:
    table = facts(100, seed=0)
    text = "a3b5c9d2e1f7"

    def written(seed: int) -> str:
        return running_sums(text, table, 0.5, random.Random(seed))

    assert written(1) == written(1)
    assert len({written(seed) for seed in range(20)}) > 5
    arguments = {"wrong_facts": 60, "error_rate": 0.5}
    assert RunningSums(20, 3, **arguments).load() == RunningSums(20, 3, **arguments).load()
    for rate in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"0 <= error_rate <= 1, not 8 and {rate}"):
            RunningSums(1, 0, error_rate=rate)


def test_splits_are_disjoint_whatever_the_seeds() -> None:
    parts = {
        split: {p.text for seed in (0, 1) for p in RunningSums(300, seed, min_steps=2, max_steps=4, split=split).load()}
        for split in ("train", "val", "test")
    }
    assert not parts["train"] & parts["test"]
    assert not parts["train"] & parts["val"]
    assert not parts["val"] & parts["test"]
    assert all(split_of(text) == split for split, texts in parts.items() for text in texts)


def test_the_split_of_a_text_never_changes() -> None:
    texts = ("a3b5", "a1b2c3", "a9b9c9", "a0b0", "a7b1c4d4", "a2b4c6d8e0")
    assert [split_of(text) for text in texts] == ["train", "train", "train", "test", "train", "val"]


def test_problems_are_distinct_reproducible_and_optionally_unsolved() -> None:
    problems = RunningSums(500, seed=7, min_steps=2, max_steps=3).load()
    assert len({p.text for p in problems}) == len({p.id for p in problems}) == 500
    assert problems == RunningSums(500, seed=7, min_steps=2, max_steps=3).load()
    assert problems != RunningSums(500, seed=8, min_steps=2, max_steps=3).load()
    unsolved = RunningSums(500, seed=7, min_steps=2, max_steps=3, solution=False).load()
    assert [(p.text, p.answer, p.solutions) for p in unsolved] == [(p.text, p.answer, ()) for p in problems]


def test_too_many_problems_are_refused() -> None:
    whole = sum(split_of(f"a{a}b{b}") == "test" for a in range(10) for b in range(10))
    assert len(RunningSums(whole, seed=0, min_steps=1, max_steps=1, split="test").load()) == whole
    with pytest.raises(ValueError, match=rf"found only {whole} distinct problems of 1 to 1 steps in split 'test'"):
        RunningSums(whole + 1, seed=0, min_steps=1, max_steps=1, split="test").load()
    with pytest.raises(ValueError, match="1 <= min_steps <= max_steps"):
        RunningSums(1, seed=0, min_steps=3, max_steps=2)
    with pytest.raises(ValueError, match="count must be at least 1"):
        RunningSums(0, seed=0)
    with pytest.raises(ValueError, match="max_steps < 26"):
        RunningSums(1, seed=0, max_steps=26)
    (longest,) = RunningSums(1, seed=0, min_steps=25, max_steps=25).load()
    assert longest.text[::2] == "abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize(
    ("response", "index"),
    [
        ("\\boxed{b8c7}", None),
        ("\\boxed{b9c8}", 0),
        ("\\boxed{b9c7}", 0),
        ("\\boxed{b8c6}", 1),
        ("\\boxed{b8}", 1),  # a step is missing
        ("\\boxed{c7}", 0),  # the first step is left out
        ("\\boxed{b8c7d7}", 2),  # goes on
        ("\\boxed{b8c}", 1),  # half a step
        ("\\boxed{b8c7d}", 2),
        ("\\boxed{b8d7}", 1),  # another letter than the problem's
        ("\\boxed{}", 0),
        ("\\boxed{b8c7", 0),  # not boxed
        ("\\boxed{b8c7}\n", 0),
        ("b8c7", 0),
        ("", 0),
    ],
)
def test_first_error(response: str, index: int | None) -> None:
    assert first_error("a3b5c9", response) == index
