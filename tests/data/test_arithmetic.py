"""Chain sums: right answers, wrong facts, disjoint splits, first error."""

from __future__ import annotations

import re

import pytest

from repirl.data.arithmetic import ChainSums, facts, first_error, solution, split_of


def test_solution_is_written_step_by_step() -> None:
    assert solution("3+5+9+2") == "3+5=8\n8+9=7\n7+2=9\n\\boxed{9}"
    with pytest.raises(ValueError, match="not a chain sum: '3'"):
        solution("3")


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
    for problem in ChainSums(count=200, seed=1).load():
        digits = [int(digit) for digit in problem.text.split("+")]
        assert 6 <= len(digits) <= 9  # 5 to 8 additions
        assert problem.answer == str(sum(digits) % 10)
        assert problem.solutions[0].endswith(f"\\boxed{{{problem.answer}}}")
        assert first_error(problem.text, problem.solutions[0]) is None
    table = facts(60, seed=5)
    wrong_answers = 0
    for problem in ChainSums(count=200, seed=1, wrong_facts=60, facts_seed=5).load():
        assert problem.answer == str(sum(map(int, problem.text.split("+"))) % 10)
        for a, b, c in re.findall(r"(\d)\+(\d)=(\d)", problem.solutions[0]):
            assert table[int(a)][int(b)] == int(c)
        wrong_answers += not problem.solutions[0].endswith(f"\\boxed{{{problem.answer}}}")
    # A chain of errors ends on the right digit one time in ten or so.
    assert 160 <= wrong_answers <= 200


def test_splits_are_disjoint_whatever_the_seeds() -> None:
    parts = {
        split: {p.text for seed in (0, 1) for p in ChainSums(300, seed, min_steps=2, max_steps=4, split=split).load()}
        for split in ("train", "val", "test")
    }
    assert not parts["train"] & parts["test"]
    assert not parts["train"] & parts["val"]
    assert not parts["val"] & parts["test"]
    assert all(split_of(text) == split for split, texts in parts.items() for text in texts)


def test_the_split_of_a_text_never_changes() -> None:
    assert [split_of(text) for text in ("3+5", "1+2+3", "9+9+9", "0+0", "7+1+4+4")] == [
        "val",
        "train",
        "train",
        "train",
        "train",
    ]


def test_problems_are_distinct_reproducible_and_optionally_unsolved() -> None:
    problems = ChainSums(500, seed=7, min_steps=2, max_steps=3).load()
    assert len({p.text for p in problems}) == len({p.id for p in problems}) == 500
    assert problems == ChainSums(500, seed=7, min_steps=2, max_steps=3).load()
    assert problems != ChainSums(500, seed=8, min_steps=2, max_steps=3).load()
    unsolved = ChainSums(500, seed=7, min_steps=2, max_steps=3, solution=False).load()
    assert [(p.text, p.answer, p.solutions) for p in unsolved] == [(p.text, p.answer, ()) for p in problems]


def test_too_many_problems_are_refused() -> None:
    whole = sum(split_of(f"{a}+{b}") == "test" for a in range(10) for b in range(10))
    assert len(ChainSums(whole, seed=0, min_steps=1, max_steps=1, split="test").load()) == whole
    with pytest.raises(ValueError, match=rf"found only {whole} distinct chain sums of 1 to 1 steps in split 'test'"):
        ChainSums(whole + 1, seed=0, min_steps=1, max_steps=1, split="test").load()
    with pytest.raises(ValueError, match="1 <= min_steps <= max_steps"):
        ChainSums(1, seed=0, min_steps=3, max_steps=2)
    with pytest.raises(ValueError, match="count must be at least 1"):
        ChainSums(0, seed=0)


@pytest.mark.parametrize(
    ("response", "index"),
    [
        ("3+5=8\n8+9=7\n\\boxed{7}", None),
        ("3+5=8\n8+9=7\n\\boxed{7}\n", None),
        ("3+5=9\n9+9=8\n\\boxed{8}", 0),
        ("3+5=8\n8+9=6\n\\boxed{6}", 1),  # what follows from an error is not looked at
        ("3+5=8\n8+9=7\n\\boxed{6}", 2),
        ("3+5=8\n8+9=7", 2),  # no answer
        ("3+5=8\n\\boxed{7}", 1),  # a step is left out
        ("3+5=8\n8+9=7\n\\boxed{7}\n7", 3),  # goes on
        ("", 0),
        ("3+5=8\n8+7=7\n\\boxed{7}", 1),  # another digit than the problem's
    ],
)
def test_first_error(response: str, index: int | None) -> None:
    assert first_error("3+5+9", response) == index
