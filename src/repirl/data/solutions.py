"""Problems with written solutions from a table, cut into steps, each with its place."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repirl.data.fields import as_texts, optional, prompt_text
from repirl.data.sources import read_plain
from repirl.data.steps import By, join_steps, split_steps
from repirl.data.tables import read_table
from repirl.structs import WrittenSolution

FIELDS = ("problem", "solution", "solutions", "steps")


@dataclass(frozen=True)
class PlacedSolution:
    """A solution and where it stands.

    where: "line 3" or "row 3", for messages. row: the row's number, from 1. sample: the solution's in its row, from 0.
    others: the row's other fields.
    """

    where: str
    row: int
    sample: int
    solution: WrittenSolution
    others: Mapping[str, Any]


def read_solutions(
    path: str, *, columns: Mapping[str, str] | None = None, by: By | re.Pattern[str] = "newline"
) -> list[PlacedSolution]:
    """All solutions of a table, in order.

    A row has a `problem` (text) and one of `solution` (text), `solutions` (list of texts) and `steps` (list of texts, one
    solution; a newline is put after each but the last). In a row that `repirl score` or `search` has written, which has
    `step_rewards`, the steps are joined as they are; one without steps, a response without words, is left out, and
    one with `finished` false has no end token. A field `prompt_text` is what the policy read in the place of the problem.

    Args:
        path: a .jsonl, .jsonl.gz or .parquet file, a folder, or a hub data set.
        columns: our field names to the table's, such as {"problem": "question"}.
        by: how `solution` and `solutions` are cut (data/steps.py).

    Raises:
        ValueError: naming file, line and field.
    """
    columns = dict(columns or {})
    if unknown := sorted(set(columns) - set(FIELDS)):
        raise ValueError(f"columns: unknown field {unknown[0]!r}; there are {', '.join(FIELDS)}")
    placed: list[PlacedSolution] = []
    for number, (where, row) in enumerate(read_table(path), start=1):
        try:
            placed += _read_row(where, number, row, columns, by)
        except ValueError as error:
            raise ValueError(f"{path}, {where}: {error}") from error
    if not placed:
        raise ValueError(f"{path}: no rows, it is empty")
    return placed


def fingerprint(placed: Sequence[PlacedSolution]) -> str:
    """A digest of solutions, with their places and all fields of their rows."""
    digest = hashlib.sha256()
    for one in placed:
        content = [one.row, one.sample, one.solution.problem, one.solution.steps, dict(one.others)]
        digest.update(json.dumps(content, default=str).encode() + b"\n")
    return digest.hexdigest()


def _read_row(
    where: str, number: int, row: Mapping[str, Any], columns: Mapping[str, str], by: By | re.Pattern[str]
) -> Iterator[PlacedSolution]:
    names = [columns.get(field, field) for field in FIELDS]
    scored = "step_rewards" in row
    if scored and row.get(names[-1]) == []:
        return
    given = {name: value for name, value in row.items() if name != "answer" or name in names}  # any answer will do
    problem, texts, _ = read_plain(given, columns)
    if not texts:
        raise ValueError(f"no {', '.join(names[1:-1])} or {names[-1]} field, or null; there is {', '.join(row)}")
    steps = optional(row, names[-1], required=False)
    if steps is None:
        cut = [split_steps(text, by) for text in texts]
    else:
        given_steps = as_texts(steps, names[-1])
        cut = [given_steps if scored else join_steps(given_steps)]
    prompt, ended = prompt_text(row), not (scored and row.get("finished") is False)
    others = {name: value for name, value in row.items() if name not in names}
    for sample, parts in enumerate(cut):
        yield PlacedSolution(where, number, sample, WrittenSolution(problem, parts, ended, prompt), others)
