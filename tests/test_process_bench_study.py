"""The study of a PRM on ProcessBench: its training set, and F1 computed again, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks import process_bench

from repirl.structs import WrittenSolution


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_steps_are_lines_or_sentences_of_the_wanted_rows(tmp_path: Path) -> None:
    rows = [
        {"id": "math/train/1", "problem": "p", "solution": "We have $x = 1.5$. Then $y = 2$. $z$ is 3."},
        {"id": "math/test/1", "problem": "q", "solution": "One. Two."},
        {"id": "math/train/2", "problem": "r", "solution": "Only one sentence, $1.5$ of them."},
        {"id": "math/train/3", "problem": "s", "solution": "Long. " * 200},
    ]
    (found,) = process_bench.solutions(lines(tmp_path / "math.jsonl", rows), "math/train")
    assert found.steps == ("We have $x = 1.5$.\n", "Then $y = 2$.\n", "$z$ is 3.")
    rows = [{"id": "gsm8k/train/1", "problem": "p", "solution": "Half. 1 + 1 = 2\n\n2 + 2 = 4"}]
    (found,) = process_bench.solutions(lines(tmp_path / "gsm8k.jsonl", rows), "gsm8k")
    assert found.steps == ("Half. 1 + 1 = 2\n", "2 + 2 = 4")


def test_every_other_solution_is_a_twin_wrong_where_it_says() -> None:
    given = [WrittenSolution(f"p{n}", (f"{n} + 1 = {n + 1}\n", f"{n + 1} * 2 = {2 * n + 2}")) for n in range(20)]
    found = process_bench.labelled(given, seed=3)
    assert [row["first_error"] >= 0 for row in found] == [False, True] * 10
    for solution, row in zip(given, found, strict=True):
        kept = [step.rstrip("\n") for step in solution.steps]
        assert row["problem"] == solution.problem
        assert [a == b for a, b in zip(kept, row["steps"], strict=True)] == [n != row["first_error"] for n in (0, 1)]


def test_f1_again(tmp_path: Path) -> None:
    """Below 0: told at 1 (right), at 0 (too early), nothing (right), at 1 of a right solution: 1 of 2 and 1 of 2."""
    rows = [{"id": str(n), "first_error": error} for n, error in enumerate([1, 1, -1, -1])]
    rewards = [[1, -1, -2], [-1, -2], [0, 2], [1, -0.1]]
    scored = [{"id": str(n), "step_rewards": values} for n, values in enumerate(rewards)]
    paths = lines(tmp_path / "part.jsonl", rows), lines(tmp_path / "report.jsonl", scored)
    assert process_bench.plain_f1(*paths, threshold=0.0) == pytest.approx(0.5)
    # above all: every first step is told: none of the errors, none of the right ones
    assert process_bench.plain_f1(*paths, threshold=9.0) == 0
    # below -1: the errors at 2 and at 1, and no right one: 1 of 2 and 2 of 2
    assert process_bench.plain_f1(*paths, threshold=-1.0) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="1 stands where 0 should"):
        process_bench.plain_f1(paths[0], lines(tmp_path / "moved.jsonl", scored[1:]), threshold=0.0)
