"""Solutions whose steps are labelled: ProcessBench, PRMBench, and files of one's own."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from repirl.data.fields import as_scalar, as_text, as_texts, prompt_text, required, shown
from repirl.data.steps import join_steps
from repirl.data.tables import PlacedRows, read_table
from repirl.structs import WrittenSolution

PROCESS_BENCH = "Qwen/ProcessBench"
PROCESS_BENCH_PARTS = ("gsm8k", "math", "olympiadbench", "omnimath")
PRM_BENCH = "hitsmy/PRMBench_Preview"


@dataclass(frozen=True, slots=True)
class LabelledSolution:
    """A solution in steps that are known to be right or wrong.

    wrong_steps: indices from 0, ascending; empty where all steps are right. only_first: the first wrong step is known and
    what follows it is not labelled. category: what the set sorts it by, such as a kind of error; empty without one.
    soft_labels: of each step the probability that it is right, such as the share of completions from it that end right;
    empty where it is not known.
    """

    id: str
    solution: WrittenSolution
    wrong_steps: tuple[int, ...]
    only_first: bool = False
    category: str = ""
    soft_labels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.soft_labels and len(self.soft_labels) != len(self.solution.steps):
            raise ValueError(
                f"{len(self.soft_labels)} soft labels of {len(self.solution.steps)} steps; give one for each"
            )
        if outside := [one for one in self.soft_labels if not 0 <= one <= 1]:
            raise ValueError(f"soft label {outside[0]} is outside [0, 1]; it is the probability that a step is right")

    @classmethod
    def of_labels(
        cls, id: str, solution: WrittenSolution, labels: Sequence[bool], category: str = ""
    ) -> LabelledSolution:
        """A solution of which each step has a label, True = right. Raises ValueError where their numbers differ."""
        if len(labels) != len(solution.steps):
            raise ValueError(f"{len(labels)} labels of {len(solution.steps)} steps; give one for each")
        wrong = tuple(place for place, right in enumerate(labels) if not right)
        return cls(id, solution, wrong, category=category)

    @property
    def labels(self) -> tuple[bool, ...]:
        """True = right, of the steps that have a label."""
        return tuple(place not in self.wrong_steps for place in range(self.labelled_steps))

    @property
    def first_error(self) -> int:
        """Index of the first wrong step, -1 where all are right."""
        return self.wrong_steps[0] if self.wrong_steps else -1

    @property
    def labelled_steps(self) -> int:
        """How many steps, from the first, have a label."""
        return self.first_error + 1 if self.only_first and self.wrong_steps else len(self.solution.steps)


Read = Callable[[str, Mapping[str, Any]], LabelledSolution | None]
"""From a default id and a row to a solution, None where it has no label; raises ValueError naming the field."""


def read_process_bench(
    path: str = PROCESS_BENCH, part: str = "gsm8k", revision: str | None = None
) -> list[LabelledSolution]:
    """A part of ProcessBench, from the hub or a file of its rows.

    Fields: `id`, `problem`, `steps`, and `label` or `first_error`: the first wrong step from 0, -1 without one. `generator`
    becomes the category.

    Raises ValueError naming file, row and field.
    """
    return read_all(path, read_table(path, split=part, revision=revision), process_bench_row)


def read_prm_bench(path: str = PRM_BENCH, split: str = "train", revision: str | None = None) -> list[LabelledSolution]:
    """PRMBench, from the hub or a file of its rows, without the unmodified solutions.

    Fields: `idx`, `modified_question`, `modified_process` (steps), `error_steps` (from 1) and `classification`. A few rows of
    the published set name steps that are not there: as in its evaluation these are left out, with a warning. Of rows with
    the same classification and idx the first counts, as there.

    Raises ValueError naming file, row and field.
    """
    return read_all(path, read_table(path, split=split, revision=revision), _prm_bench_row, repeats=True)


def read_labelled_steps(path: str, split: str = "train") -> list[LabelledSolution]:
    """Solutions of one's own: a file, folder or hub data set.

    Fields: `problem`; `steps`, a list of texts; one of `labels`, true or false (1 or 0) for each step, and `first_error`, the
    first wrong step from 0, -1 without one; where wanted `soft_labels`, a number in [0, 1] for each step, `id` and
    `category`. Steps get a newline after each but the last, unless `solution`, the steps joined as they are, says otherwise.

    Raises ValueError naming file, row and field.
    """
    return read_all(path, read_table(path, split=split), own_row)


def ids_hash(ids: Iterable[str]) -> str:
    """SHA-256 of the ids in their order: two results with the same hash are of the same solutions."""
    joined = "".join(f"{one}\n" for one in ids)
    return hashlib.sha256(joined.encode("utf-8")).hexdigest()


def read_all(path: str, rows: PlacedRows, read: Read, *, repeats: bool = False) -> list[LabelledSolution]:
    """The solutions of a table. repeats: of rows with the same id the first counts; else that is an error.

    Raises ValueError naming file, row and field.
    """
    solutions: dict[str, LabelledSolution] = {}
    for number, (where, row) in enumerate(rows):
        try:
            one = read(f"row-{number}", row)
            if one is None:
                continue
            if one.id in solutions and not repeats:
                raise ValueError(f"id {one.id!r} stands in an earlier row; ids must differ")
        except ValueError as error:
            raise ValueError(f"{path}, {where}: {error}") from error
        solutions.setdefault(one.id, one)
    if not solutions:
        raise ValueError(f"{path}: no rows; give a file of solutions with labelled steps")
    return list(solutions.values())


def process_bench_row(default_id: str, row: Mapping[str, Any]) -> LabelledSolution:
    """A row of ProcessBench, or with its fields. Raises ValueError naming the field."""
    return LabelledSolution(
        id=_text_or(row, "id", default_id),
        solution=_solution(row, problem="problem", steps="steps"),
        wrong_steps=_from_first(row, "label" if "label" in row else "first_error", len(row["steps"])),
        only_first=True,
        category=_text_or(row, "generator", ""),
    )


def _prm_bench_row(default_id: str, row: Mapping[str, Any]) -> LabelledSolution:
    category = as_text(required(row, "classification", "classification"), "classification")
    name = f"{category}_{_text_or(row, 'idx', default_id)}"
    solution = _solution(row, problem="modified_question", steps="modified_process")
    named = _integers(row.get("error_steps"), "error_steps")
    there = sorted({step - 1 for step in named if 1 <= step <= len(solution.steps)})
    if len(there) < len(set(named)):
        warnings.warn(
            f"{name}: error_steps {named}, but the steps are 1 to {len(solution.steps)}; other numbers are left out",
            stacklevel=4,
        )
    return LabelledSolution(id=name, solution=solution, wrong_steps=tuple(there), category=category)


def own_row(default_id: str, row: Mapping[str, Any]) -> LabelledSolution:
    """A row of one's own, with the fields of `read_labelled_steps`. Raises ValueError naming the field."""
    solution = replace(_solution(row, problem="problem", steps="steps"), prompt=prompt_text(row))
    if row.get("solution") is not None:
        solution = replace(solution, steps=tuple(row["steps"]))
        if solution.text != row["solution"]:
            raise ValueError("field 'solution': it is not the steps joined as they are; leave it out, or cut it anew")
    if ("labels" in row) == ("first_error" in row):
        raise ValueError("give either `labels`, one for each step, or `first_error`, and not both")
    whole = "labels" in row
    steps = len(solution.steps)
    return LabelledSolution(
        id=_text_or(row, "id", default_id),
        solution=solution,
        wrong_steps=_from_labels(row["labels"], steps) if whole else _from_first(row, "first_error", steps),
        only_first=not whole,
        category=_text_or(row, "category", ""),
        soft_labels=_shares(row.get("soft_labels")),
    )


# ---- fields ----


def _solution(row: Mapping[str, Any], *, problem: str, steps: str) -> WrittenSolution:
    """Steps as the set has them, a newline after each but the last."""
    texts = as_texts(required(row, steps, "steps"), steps)
    return WrittenSolution(problem=as_text(required(row, problem, "problem"), problem), steps=join_steps(texts))


def _from_first(row: Mapping[str, Any], field: str, steps: int) -> tuple[int, ...]:
    value = required(row, field, "first_error")
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < steps:
        raise ValueError(
            f"field {field!r}: found {shown(value)}, expected the first wrong step, from 0 to {steps - 1}, or -1 without one"
        )
    return () if value < 0 else (value,)


def _from_labels(value: Any, steps: int) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(isinstance(one, bool | int) and one in (0, 1) for one in value):
        raise ValueError(f"field 'labels': found {shown(value)}, expected true or false for each step")
    if len(value) != steps:
        raise ValueError(f"field 'labels': {len(value)} labels of {steps} steps; give one for each")
    return tuple(place for place, right in enumerate(value) if not right)


def _shares(value: Any) -> tuple[float, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, int | float) for one in value):
        raise ValueError(f"field 'soft_labels': found {shown(value)}, expected a number in [0, 1] for each step")
    return tuple(float(one) for one in value)


def _integers(value: Any, field: str) -> Sequence[int]:
    if not isinstance(value, list) or not all(isinstance(one, int) and not isinstance(one, bool) for one in value):
        raise ValueError(
            f"field {field!r}: found {shown(value)}, expected a list of step numbers, empty without errors"
        )
    return value


def _text_or(row: Mapping[str, Any], field: str, default: str) -> str:
    return default if row.get(field) is None else as_scalar(row[field], field)
