"""Labelled steps: rows as the public sets have them, one's own, and what a malformed row says."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repirl.data.step_labelled import (
    LabelledSolution,
    ids_hash,
    read_labelled_steps,
    read_prm_bench,
    read_process_bench,
)
from tests.shared_data import shared_file

OWN = {"problem": "What is 2 + 3 times 2?", "steps": ["2 + 3 = 6", "6 x 2 = 12"]}
PROCESS = OWN | {"id": "gsm8k-7", "generator": "a model", "label": 0, "final_answer_correct": False}
MODIFIED = {
    "idx": "p1_303",
    "original_question": "What is 5 x 2?",
    "modified_question": "What is 2 + 3 times 2?",
    "original_process": ["5 x 2 = 10"],
    "modified_process": ["2 + 3 = 6", "6 x 2 = 12"],
    "error_steps": [2, 1],
    "classification": "counterfactual",
}


@pytest.fixture
def file_of(tmp_path: Path) -> Callable[..., str]:
    def write(*rows: dict[str, Any]) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


def test_a_row_of_process_bench(file_of: Callable[..., str]):
    (one,) = read_process_bench(file_of(PROCESS))
    assert (one.id, one.category, one.first_error, one.wrong_steps) == ("gsm8k-7", "a model", 0, (0,))
    assert one.solution.steps == ("2 + 3 = 6\n", "6 x 2 = 12")
    assert one.labelled_steps == 1  # what follows the first wrong step has no label


def test_steps_of_prm_bench_count_from_one(file_of: Callable[..., str]):
    again = MODIFIED | {"error_steps": [1]}  # the first of a repeated idx counts
    (one,) = read_prm_bench(file_of(MODIFIED, again))
    assert (one.id, one.wrong_steps, one.first_error) == ("counterfactual_p1_303", (0, 1), 0)
    assert (one.solution.problem, one.labelled_steps) == ("What is 2 + 3 times 2?", 2)


def test_steps_that_are_not_there_are_left_out_with_a_warning(file_of: Callable[..., str]):
    with pytest.warns(UserWarning, match=r"p1_303: error_steps \[2, 9\], but the steps are 1 to 2"):
        (one,) = read_prm_bench(file_of(MODIFIED | {"error_steps": [2, 9]}))
    assert one.wrong_steps == (1,)


def test_rows_of_ones_own(file_of: Callable[..., str]):
    first, second, third = read_labelled_steps(
        file_of(
            OWN | {"labels": [True, False]},
            OWN | {"labels": [0, 0], "id": 4},
            OWN | {"first_error": -1, "category": "sums"},
        )
    )
    assert (first.id, first.wrong_steps, first.labelled_steps) == ("row-0", (1,), 2)
    assert (second.id, second.wrong_steps, second.labelled_steps) == ("4", (0, 1), 2)
    assert (third.wrong_steps, third.first_error, third.labelled_steps, third.category) == ((), -1, 2, "sums")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [True]}, r"line 2: field 'labels': 1 labels of 2 steps"),
        ({"labels": "yes"}, r"line 2: field 'labels': found str 'yes', expected true or false"),
        ({"labels": [True, 0.5]}, r"line 2: field 'labels'"),
        ({}, r"line 2: give either `labels`, one for each step, or `first_error`"),
        ({"labels": [1, 1], "first_error": 0}, r"line 2: give either"),
        ({"first_error": 2}, r"line 2: field 'first_error': found int 2, expected the first wrong step, from 0 to 1"),
        ({"first_error": True}, r"line 2: field 'first_error': found bool True"),
        ({"first_error": None}, r"line 2: field 'first_error': found null"),
        ({"first_error": 0, "steps": ["a", " "]}, r"line 2: field 'steps\[1\]': found an empty text"),
        ({"first_error": 0, "steps": []}, r"line 2: field 'steps': found list \[\]"),
        ({"first_error": 0, "problem": 3}, r"line 2: field 'problem': found int 3, expected a text"),
        ({"first_error": 0, "id": "good"}, r"line 2: id 'good' stands in an earlier row"),
    ],
)
def test_a_malformed_row_is_named(file_of: Callable[..., str], change: dict[str, Any], message: str):
    path = file_of(OWN | {"id": "good", "first_error": 0}, OWN | change)
    with pytest.raises(ValueError, match=message) as error:
        read_labelled_steps(path)
    assert path in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"error_steps": None}, "field 'error_steps': found NoneType None"),
        ({"error_steps": [True]}, "field 'error_steps'"),
        ({"classification": None}, "field 'classification'"),
    ],
)
def test_a_malformed_row_of_prm_bench_is_named(file_of: Callable[..., str], change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=f"line 1: {message}"):
        read_prm_bench(file_of(MODIFIED | change))


def test_a_file_without_rows_is_refused(file_of: Callable[..., str]):
    with pytest.raises(ValueError, match="no rows"):
        read_labelled_steps(file_of())


@pytest.mark.parametrize(
    ("name", "rows"), [("gsm8k", 400), ("math", 1000), ("olympiadbench_part", 200), ("omnimath_part", 200)]
)
def test_the_real_parts_are_read_whole(name: str, rows: int):
    path = shared_file(f"prm/processbench_{name}.jsonl")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solutions: list[LabelledSolution] = read_process_bench(str(path))
    texts = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    assert len(solutions) == rows
    for solution, row in zip(solutions, texts, strict=True):
        assert solution.first_error == row["first_error"]
        assert [step.rstrip("\n") for step in solution.solution.steps] == [step.rstrip("\n") for step in row["steps"]]


def test_the_hash_knows_the_order():
    assert ids_hash(["a", "b"]) != ids_hash(["b", "a"]) != ids_hash(["ba"])
    # printf 'a\nb\n' | sha256sum
    assert ids_hash(["a", "b"]) == "911169ddaaf146aff539f58c26c489af3b892dff0fe283c1c264c65ae5aa59a2"
