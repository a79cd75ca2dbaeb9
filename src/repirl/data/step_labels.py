"""Solutions with a label of each step, from and to the formats in which they are published."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from repirl.data.fields import as_text, as_texts, cut, required, shown
from repirl.data.step_labelled import LabelledSolution
from repirl.data.steps import join_steps
from repirl.structs import WrittenSolution

TAG = "ки"
"""What stands after each step in Math-Shepherd's texts."""
_FIRST_STEP = re.compile(r"\s*(?=Step 1:)")
_NUMBERED = re.compile(r"Step \d+:")

Export = Literal["trl", "math_shepherd", "prm800k"]
"""The formats of others that are written."""


def from_trl(row: Mapping[str, Any], id: str = "") -> LabelledSolution:
    """A row of `prompt`, `completions` and `labels`, as TRL's PRMTrainer reads. Raises ValueError naming the field."""
    labels = required(row, "labels", "labels")
    if not isinstance(labels, list) or not all(label in (True, False) for label in labels):
        raise ValueError(f"field 'labels': found {shown(labels)}, expected a list of true and false")
    steps = join_steps(as_texts(required(row, "completions", "steps"), "completions"))
    problem = as_text(required(row, "prompt", "problem"), "prompt")
    return LabelledSolution.of_labels(id, WrittenSolution(problem, steps), [bool(label) for label in labels])


def to_trl(labelled: LabelledSolution) -> dict[str, Any]:
    """The row that TRL's PRMTrainer reads, of the steps that have a label; it puts a separator of its own after each."""
    return {
        "prompt": labelled.solution.problem,
        "completions": _labelled_texts(labelled),
        "labels": list(labelled.labels),
    }


def from_math_shepherd(row: Mapping[str, Any], id: str = "") -> LabelledSolution:
    """A row of `input`, "problem Step 1: ... ки", and `label`, the same text with + or - in the tags' places.

    Raises ValueError naming the field.
    """
    text = as_text(required(row, "input", "input"), "input")
    signs = as_text(required(row, "label", "label"), "label")
    first, *others = text.split(TAG)
    begin = _FIRST_STEP.search(first)
    if begin is None or not others or not first[: begin.start()].strip():
        raise ValueError(
            f"field 'input': found no problem before 'Step 1:', or no tag {TAG!r} after it; it is {text[:60]!r}"
        )
    labels, place, pieces = [], 0, [first, *others]
    for piece in pieces[:-1]:
        place += len(piece)
        sign = signs[place : place + 1]
        if signs[place - len(piece) : place] != piece or sign not in ("+", "-"):
            raise ValueError(
                f"field 'label': differs from 'input' in more than the tags, before {signs[place:][:30]!r}"
            )
        labels.append(sign == "+")
        place += 1
    steps = [first[begin.end() :], *others[:-1]]
    solution = WrittenSolution(first[: begin.start()], join_steps([step.strip() for step in steps]))
    return LabelledSolution.of_labels(id, solution, labels)


def to_math_shepherd(labelled: LabelledSolution) -> dict[str, Any]:
    """The row of `input` and `label`, of the steps that have one; a step that does not say its number gets it.

    Raises ValueError naming the text, where it holds what the format tells its parts by: it could not be read back.
    """
    steps = [text.strip() for text in _labelled_texts(labelled)]
    _refuse_marks(labelled.id, labelled.solution.problem, steps)
    numbered = [step if _says_number(step, k) else f"Step {k}: {step}" for k, step in enumerate(steps, start=1)]
    signs = ["+" if label else "-" for label in labelled.labels]
    return {
        "input": f"{labelled.solution.problem} " + "\n".join(f"{step} {TAG}" for step in numbered),
        "label": f"{labelled.solution.problem} "
        + "\n".join(f"{step} {sign}" for step, sign in zip(numbered, signs, strict=True)),
    }


def _says_number(step: str, place: int) -> bool:
    """Whether it begins as steps of Math-Shepherd do; the problem ends where the first says that it is the first."""
    return step.startswith("Step 1:") if place == 1 else _NUMBERED.match(step) is not None


def _refuse_marks(id: str, problem: str, steps: Iterable[str]) -> None:
    for where, text in (("problem", problem), *((f"step {k}", step) for k, step in enumerate(steps, start=1))):
        marks = (TAG, "Step 1:") if where == "problem" else (TAG,)
        if found := [mark for mark in marks if mark in text]:
            raise ValueError(
                f"solution {id!r}, {where}: {cut(text)!r} holds {found[0]!r}, by which Math-Shepherd's format tells where "
                "a step begins or ends; reword it, leave the solution out, or write another format"
            )


def _labelled_texts(labelled: LabelledSolution) -> list[str]:
    """The steps that have a label, without the newlines that join them."""
    return [step.rstrip() for step in labelled.solution.steps[: labelled.labelled_steps]]


def from_prm800k(row: Mapping[str, Any], id: str = "") -> LabelledSolution | None:
    """A row of PRM800K: the solution that its labeller followed; None where no step was rated.

    Each step is the completion that was chosen, or the one a person wrote in its place, which is right. Where none was
    chosen the solution ends with the first that was rated. -1 is wrong, 0 and 1 are right. An unrated step ends it.

    Raises:
        ValueError: the row has not PRM800K's fields.
    """
    steps: list[str] = []
    labels: list[bool] = []
    try:
        problem = as_text(row["question"]["problem"], "question.problem")
        for step in row["label"]["steps"]:
            chosen, human = step["chosen_completion"], step["human_completion"]
            rated = [one for one in step["completions"] or () if one["rating"] is not None]
            if chosen is not None:
                said, rating = step["completions"][chosen]["text"], step["completions"][chosen]["rating"]
            elif human is not None:
                said, rating = human["text"], 1
            elif rated:
                said, rating = rated[0]["text"], rated[0]["rating"]
            else:
                break
            if rating is None or not said.strip():
                break
            steps.append(said)
            labels.append(rating >= 0)
            if chosen is None and human is None:
                break
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"not a row of PRM800K: {type(error).__name__} {error}") from error
    if not steps:
        return None
    wrong = tuple(place for place, right in enumerate(labels) if not right)
    ends_wrong = wrong == (len(steps) - 1,)  # labellers stop there, so that nothing after it has a label
    return LabelledSolution(id, WrittenSolution(problem, join_steps(steps)), wrong, only_first=ends_wrong)


def to_prm800k(labelled: LabelledSolution) -> dict[str, Any]:
    """The row of PRM800K, with the fields that `from_prm800k` reads, of the steps that have a label.

    Each step is the one completion, rated 1 or -1, and chosen, but for a wrong one at the end: labellers stop at it.
    """
    *labels, last = labelled.labels
    chosen = [0] * len(labels) + [0 if last else None]
    steps = [
        {
            "completions": [{"text": text, "rating": 1 if label else -1, "flagged": False}],
            "human_completion": None,
            "chosen_completion": place,
        }
        for text, label, place in zip(_labelled_texts(labelled), labelled.labels, chosen, strict=True)
    ]
    return {
        "question": {"problem": labelled.solution.problem},
        "label": {"steps": steps, "finish_reason": "solution" if last else "found_error"},
    }


_TO: dict[Export, Callable[[LabelledSolution], dict[str, Any]]] = {
    "trl": to_trl,
    "math_shepherd": to_math_shepherd,
    "prm800k": to_prm800k,
}


def exported_rows(solutions: Iterable[LabelledSolution], format: Export) -> list[dict[str, Any]]:
    """The rows of a format, one a solution. Raises ValueError naming the solution that it cannot hold."""
    if format not in _TO:
        raise ValueError(f"format {format!r} is none of {', '.join(_TO)}")
    return [_TO[format](one) for one in solutions]


def write_labelled(path: str | Path, solutions: Iterable[LabelledSolution], format: Export) -> None:
    """Writes labelled solutions as JSON lines in a format of others; a file that is there is written anew.

    Raises ValueError as `exported_rows`, having written nothing.
    """
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in exported_rows(solutions, format)]
    Path(path).write_text("".join(lines), encoding="utf-8")
