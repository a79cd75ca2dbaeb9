"""Step labels in the formats of others, read and written."""

from __future__ import annotations

from typing import Any

import pytest

from repirl.data.step_labelled import LabelledSolution
from repirl.data.step_labels import (
    from_math_shepherd,
    from_prm800k,
    from_trl,
    to_math_shepherd,
    to_trl,
)
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
