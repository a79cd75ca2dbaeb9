"""The study of a PRM on ProcessBench: its training set, and F1 computed again, by hand."""

from __future__ import annotations

import gzip
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


def test_a_shorter_part_has_solutions_of_both_kinds(tmp_path: Path) -> None:
    whole = lines(
        tmp_path / "part.jsonl", [{"id": str(n), "first_error": error} for n, error in enumerate([1, 0, 2, -1, -1, -1])]
    )
    output = tmp_path / "output"
    output.mkdir()
    shorter = process_bench.part(whole, output, 2)
    assert [row["id"] for row in process_bench.rows(shorter)] == ["0", "1", "3", "4"]
    assert process_bench.part(whole, output, None) == whole


def test_experts_are_the_training_solutions_before_the_errors(tmp_path: Path) -> None:
    (tmp_path / "math").mkdir()
    for file, name in (("gsm8k_train.jsonl.gz", "gsm8k/train"), ("math_train12k.jsonl.gz", "math/train")):
        made = [
            {"id": f"{name}/{n}", "problem": f"{name} {n}", "solution": f"{n} + 1 = {n + 1}\n{n} * 2 = {2 * n}"}
            for n in range(12)
        ]
        if name == "math/train":
            made = [row | {"solution": row["solution"].replace("\n", ". Then ")} for row in made]
        with gzip.open(tmp_path / "math" / file, "wt") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in made)
    process_bench.made_rows(tmp_path, tmp_path, {"gsm8k": 4, "math": 4, "held_out": 8})
    parts = {name: list(process_bench.rows(tmp_path / f"{name}.jsonl")) for name in ("train", "val", "experts")}
    experts = {row["problem"]: row["solution"] for row in parts["experts"]}
    assert len(experts) == 8
    assert not experts.keys() & {row["problem"] for row in parts["val"]}
    shown = {row["problem"]: "\n".join(row["steps"]) for row in parts["train"]}
    assert shown.keys() <= experts.keys()
    for row in parts["train"]:
        assert (shown[row["problem"]] == experts[row["problem"]]) == (row["first_error"] < 0)
