"""Tasks with solutions that are not unique: verdicts on lines, worked by hand, and what a source gives."""

from __future__ import annotations

import random

import pytest

from repirl.data.written_sums import WRITTEN_SUMS_TOKENS, WrittenSums, judge_any_order, judge_running_sums


@pytest.mark.parametrize(
    ("response", "verdicts"),
    [
        # a3b5c9: 3 + 5 = 8, 8 + 9 = 7 (mod 10)
        ("b8\nc7\n\\boxed{7}", [True, True, True]),
        ("b=8\nc8+9=7\n\\boxed{7}", [True, True, True]),
        ("b9\nc8\n\\boxed{8}", [False, True, True]),  # 9 + 9 = 8: consistent with the error before it
        ("b9\nc7\n\\boxed{7}", [False, False, True]),
        ("b3+5=8\nc7+9=7\n\\boxed{7}", [True, False, True]),  # the sum is right, its operand is not
        ("b8\nc7\n\\boxed{8}", [True, True, False]),
        ("b8\n\\boxed{8}", [True, False]),  # a step is missing
        ("c7\nb8\n\\boxed{7}", [False, True, False]),  # the letter that is next comes second, then one is missing
        ("b8\nc7\nd1\n\\boxed{7}", [True, True, False, True]),
        ("b8\nc7", [True, True]),
        ("", [False]),
    ],
)
def test_running_sums_are_judged_line_by_line(response: str, verdicts: list[bool]) -> None:
    assert judge_running_sums("a3b5c9", response) == verdicts


@pytest.mark.parametrize(
    ("response", "verdicts"),
    [
        # a34b29: 7 and 1
        ("a7\nb1\n\\boxed{71}", [True, True, True]),
        ("b1\na7\n\\boxed{71}", [True, True, True]),
        ("b2\na7\n\\boxed{72}", [False, True, True]),
        ("b1\na7\n\\boxed{17}", [True, True, False]),
        ("b1\nb1\na7\n\\boxed{71}", [True, False, True, True]),  # answered twice
        ("b1\n\\boxed{1}", [True, False]),
        ("c1\na7\n\\boxed{71}", [False, True, False]),
    ],
)
def test_sums_in_any_order_are_judged_line_by_line(response: str, verdicts: list[bool]) -> None:
    assert judge_any_order("a34b29", response) == verdicts


@pytest.mark.parametrize(("task", "judge"), [("paraphrased", judge_running_sums), ("any_order", judge_any_order)])
def test_experts_are_right_and_not_unique_and_a_wrong_table_is_not(task, judge) -> None:
    experts = WrittenSums(task, 50, seed=1, solutions=3).load()
    assert all(all(judge(p.text, s)) and s.endswith(f"\\boxed{{{p.answer}}}") for p in experts for s in p.solutions)
    assert all(len(set(p.solutions)) == 3 for p in experts)
    assert len({s.count("\n") for p in experts for s in p.solutions}) == 4  # three to six steps
    tokens = set(WRITTEN_SUMS_TOKENS)
    assert {c for p in experts for s in p.solutions for c in s.replace("\\boxed{", "")} <= tokens
    wrong = WrittenSums(task, 50, seed=1, solutions=1, wrong_facts=100).load()
    assert [p.text for p in wrong] == [p.text for p in experts]  # the problems do not depend on how they are solved
    assert [p.answer for p in wrong] == [p.answer for p in experts]
    assert not any(v for p in wrong for v in judge(p.text, p.solutions[0])[:-1])


def test_splits_share_no_problem_and_seeds_decide() -> None:
    first, again = (WrittenSums("any_order", 40, seed=5).load() for _ in range(2))
    assert first == again
    test = WrittenSums("any_order", 40, seed=5, split="test").load()
    assert not {p.text for p in test} & {p.text for p in WrittenSums("any_order", 2000, seed=6).load()}


def test_half_the_errors_where_the_rate_is_half() -> None:
    problems = WrittenSums("any_order", 200, seed=2, wrong_facts=100, error_rate=0.5).load()
    verdicts = [v for p in problems for v in judge_any_order(p.text, p.solutions[0])[:-1]]
    assert abs(sum(verdicts) / len(verdicts) - 0.5) < 0.06  # about 900 lines: three standard errors are .05


@pytest.mark.parametrize("arguments", [{"count": 0}, {"max_steps": 10}, {"min_steps": 0}, {"error_rate": 1.5}])
def test_bad_arguments_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"count must|expected 1 <= min_steps"):
        WrittenSums("paraphrased", **({"count": 1, "seed": random.randrange(9)} | arguments))
