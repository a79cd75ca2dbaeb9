"""Step labels in the formats of others, read and written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from repirl.data.step_labelled import LabelledSolution
from repirl.data.step_labels import (
    Export,
    from_math_shepherd,
    from_prm800k,
    from_trl,
    to_math_shepherd,
    to_prm800k,
    to_trl,
    write_labelled,
)
from repirl.data.step_sources import LabelledSteps
from repirl.structs import WrittenSolution

TRL = {"prompt": "What is 2 + 3?", "completions": ["Add 2 and 3.", "It is 6."], "labels": [True, False]}
SHEPHERD = {
    "input": "Ann has 2 + 3 - 1 pens. How many? Step 1: 2 + 3 = 5 ки\nStep 2: 5 - 1 = 3 ки\nStep 3: The answer is: 3 ки",
    "label": "Ann has 2 + 3 - 1 pens. How many? Step 1: 2 + 3 = 5 +\nStep 2: 5 - 1 = 3 -\nStep 3: The answer is: 3 -",
}


def test_trl() -> None:
    read = from_trl(TRL)
    assert read == LabelledSolution("", WrittenSolution("What is 2 + 3?", ("Add 2 and 3.\n", "It is 6.")), (1,))
    assert read.labels == (True, False)
    assert to_trl(read) == TRL
    assert from_trl(TRL | {"labels": [1, 0]}) == read


def test_what_has_no_label_is_not_written() -> None:
    """ProcessBench says nothing of what follows the first wrong step."""
    three = LabelledSolution("p", WrittenSolution("Why?", ("a\n", "b\n", "c")), (1,), only_first=True)
    assert to_trl(three) == {"prompt": "Why?", "completions": ["a", "b"], "labels": [True, False]}
    assert to_math_shepherd(three)["label"] == "Why? Step 1: a +\nStep 2: b -"


def test_math_shepherd() -> None:
    read = from_math_shepherd(SHEPHERD)
    assert read.solution.problem == "Ann has 2 + 3 - 1 pens. How many?"
    assert read.solution.steps == ("Step 1: 2 + 3 = 5\n", "Step 2: 5 - 1 = 3\n", "Step 3: The answer is: 3")
    assert read.labels == (True, False, False)
    assert to_math_shepherd(read) == SHEPHERD
    assert from_math_shepherd(to_math_shepherd(from_trl(TRL))).labels == (True, False)
    assert to_math_shepherd(from_trl(TRL))["label"] == "What is 2 + 3? Step 1: Add 2 and 3. +\nStep 2: It is 6. -"


def prm800k(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"question": {"problem": "What is 2 + 3?"}, "label": {"steps": list(steps), "finish_reason": "found_error"}}


def step(*ratings: int | None, chosen: int | None = None, human: str | None = None) -> dict[str, Any]:
    completions = [{"text": f"says {k}", "rating": rating, "flagged": False} for k, rating in enumerate(ratings)]
    written = None if human is None else {"text": human, "rating": None}
    return {"completions": completions, "chosen_completion": chosen, "human_completion": written}


def test_prm800k() -> None:
    read = from_prm800k(prm800k(step(-1, 1, chosen=1), step(0, chosen=0), step(-1, human="written"), step(None, -1, 1)))
    assert read is not None
    assert read.solution.steps == ("says 1\n", "says 0\n", "written\n", "says 1")
    assert read.labels == (True, True, True, False)
    assert read.only_first
    # What follows a step that none was chosen for was not seen with it.
    short = from_prm800k(prm800k(step(-1), step(1, chosen=0)))
    assert short is not None
    assert short.labels == (False,)
    assert from_prm800k(prm800k(step(None))) is None
    went_on = from_prm800k(prm800k(step(-1, chosen=0), step(1, chosen=0)))
    assert went_on is not None
    assert (went_on.labels, went_on.only_first) == ((False, True), False)


def test_prm800k_is_written_as_its_labellers_leave_it() -> None:
    """They choose what they follow, and stop at a wrong step without choosing it."""
    written = to_prm800k(from_trl(TRL))
    assert written["question"] == {"problem": "What is 2 + 3?"}
    assert written["label"]["finish_reason"] == "found_error"
    assert [one["chosen_completion"] for one in written["label"]["steps"]] == [0, None]
    assert [one["completions"] for one in written["label"]["steps"]] == [
        [{"text": "Add 2 and 3.", "rating": 1, "flagged": False}],
        [{"text": "It is 6.", "rating": -1, "flagged": False}],
    ]


SOLUTIONS = [
    LabelledSolution("right", WrittenSolution("Why?", ("a\n", "b")), ()),
    LabelledSolution("first", WrittenSolution("Why?\nSay.", ("  a\n", "b\n\n", "c\n")), (1,), only_first=True),
    LabelledSolution("whole", WrittenSolution("Why?", ("a +\n", "b -\nb\n", "c")), (0, 2)),
    LabelledSolution("prose", WrittenSolution("Why?", ("Step by step.\n", "Steps: b\n", "Step 3: c")), (0,)),
    LabelledSolution("dots", WrittenSolution("Step 2?", ("Step 1. a\n", "Step 2. b")), ()),
    LabelledSolution("later", WrittenSolution("Why?", ("Step 2: a\n", "As in Step 1: b")), (1,)),
]


def bare(step: str) -> str:
    return re.sub(r"^(Step \d+: )+", "", step.strip())


@pytest.mark.parametrize("format", get_args(Export))
@pytest.mark.parametrize("one", SOLUTIONS, ids=lambda one: one.id)
def test_what_is_written_is_read_back(one: LabelledSolution, format: Export, tmp_path: Path) -> None:
    """Steps may gain a number and lose white space at their ends; written again, the row is the same."""
    write_labelled(tmp_path / "one.jsonl", [one], format)
    (read,) = LabelledSteps(str(tmp_path / "one.jsonl"), format).load()
    assert read.labels == one.labels
    assert read.solution.problem == one.solution.problem
    assert [bare(step) for step in read.solution.steps] == [
        bare(step) for step in one.solution.steps[: one.labelled_steps]
    ]
    write_labelled(tmp_path / "again.jsonl", [read], format)
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("problem", "steps", "where"),
    [
        ("Где книжки?", ("a",), r"solution 'p', problem: 'Где книжки\?' holds 'ки'"),
        ("Why?", ("a\n", "руки"), "solution 'p', step 2: 'руки' holds 'ки'"),
        ("Continue. Step 1: a", ("b",), "problem: 'Continue. Step 1: a' holds 'Step 1:'"),
    ],
)
def test_what_math_shepherd_could_not_tell_apart_is_refused(
    problem: str, steps: tuple[str, ...], where: str, tmp_path: Path
) -> None:
    one = LabelledSolution("p", WrittenSolution(problem, steps), ())
    with pytest.raises(ValueError, match=where):
        write_labelled(tmp_path / "out.jsonl", [SOLUTIONS[0], one], "math_shepherd")
    assert not (tmp_path / "out.jsonl").exists()
    write_labelled(tmp_path / "out.jsonl", [one], "trl")
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))["prompt"] == problem
    with pytest.raises(ValueError, match="format 'openai' is none of trl, math_shepherd, prm800k"):
        write_labelled(tmp_path / "out.jsonl", [one], "openai")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("read", "row", "message"),
    [
        (from_trl, TRL | {"labels": [True]}, "1 labels of 2 steps"),
        (from_trl, TRL | {"labels": ["+", "-"]}, "field 'labels': found list"),
        (from_trl, {"prompt": "a", "labels": []}, "no field 'completions'"),
        (from_math_shepherd, {"input": "no steps", "label": "no steps"}, "found no problem before 'Step 1:'"),
        (from_math_shepherd, {"input": "Step 1: a ки", "label": "Step 1: a +"}, "found no problem before 'Step 1:'"),
        (from_math_shepherd, SHEPHERD | {"label": SHEPHERD["label"].replace("= 5 +", "= 5 ?")}, "more than the tags"),
        (from_math_shepherd, SHEPHERD | {"label": SHEPHERD["label"].replace("= 3", "= 4")}, "more than the tags"),
        (from_prm800k, {"question": {}}, "not a row of PRM800K: KeyError 'problem'"),
        (from_prm800k, prm800k({"completions": []}), "not a row of PRM800K: KeyError 'chosen_completion'"),
    ],
)
def test_what_is_malformed_is_named(read: Any, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(row)
