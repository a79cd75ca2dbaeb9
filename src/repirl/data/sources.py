"""Where problems come from: files, folders, the dataset hub, the embedded sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from repirl.data.code import TEST_FIELDS, read_tests
from repirl.data.fields import as_scalar, as_text, as_texts, cut, optional, prompt_text, required
from repirl.data.math import split_gsm8k
from repirl.data.tables import EXTENSIONS, read_table
from repirl.structs import CodeTests, Problem

_FIELDS = ("problem", "solution", "solutions", "steps", "answer", "id", *TEST_FIELDS)
_SOLUTION_FIELDS = ("solution", "solutions", "steps")


class Source(ABC):
    """A list of problems."""

    @abstractmethod
    def load(self) -> list[Problem]:
        """All problems, in a fixed order, with unique ids. Raises ValueError, having loaded nothing."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One valid row of a file. where: "line 3" or "row 3", for messages."""

    where: str
    id: str
    text: str
    answer: str | None
    solutions: tuple[str, ...]
    tests: CodeTests | None
    prompt: str | None


class Table(Source):
    """Problems from a table: .jsonl, .jsonl.gz or .parquet, a folder of data files, or a dataset hub id.

    Fields of a row: `problem` (text); one of `solution` (text), `solutions` (list of texts) and `steps` (list of texts,
    joined by newlines), or none; `answer` (text or number, may be missing); `id` (default "<name>/<row number>").
    `prompt_text` is what the policy reads in the place of `problem`, as a search writes it; may be missing.
    For programs `tests`, with `setup`, `entry_point` and `prefix` (repirl/data/code.py, read_tests).
    Rows with the same problem text become one Problem with all their solutions. Blank lines are skipped.

    Args:
        path: the file, the folder, or the hub id.
        split: the split of a folder or hub data set; files have none.
        name: the configuration of a hub data set.
        revision: the commit or tag of a hub data set.
        columns: our field names to the table's, e.g. {"problem": "question"}. A mapped field must exist.
        limit: how many rows to use, after `skip`; default all.
        skip: how many rows to leave out at the start.
        format: "gsm8k" for rows of `question` and `answer`, where the answer is a solution with <<calculator>> marks
            (removed) and ends with "#### <answer>" (thousands commas removed).

    Raises (in `load`): ValueError naming file, row, field, what was found and what to do.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        name: str | None = None,
        revision: str | None = None,
        columns: dict[str, str] | None = None,
        limit: int | None = None,
        skip: int = 0,
        format: Literal["plain", "gsm8k"] = "plain",
    ) -> None:
        columns = dict(columns or {})
        allowed = ("problem", "answer", "id") if format == "gsm8k" else _FIELDS
        if unknown := sorted(set(columns) - set(allowed)):
            raise ValueError(f"columns: unknown field {unknown[0]!r}; format {format!r} has {', '.join(allowed)}")
        if len(chosen := [field for field in _SOLUTION_FIELDS if field in columns]) > 1:
            raise ValueError(f"columns: {' and '.join(chosen)} exclude one another; map one of them")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}; leave it out to use all rows")
        if skip < 0:
            raise ValueError(f"skip must not be negative, not {skip}")
        self.path, self.split, self.name, self.revision = path, split, name, revision
        self.columns, self.limit, self.skip, self.format = columns, limit, skip, format

    def load(self) -> list[Problem]:
        """Reads, checks and merges all rows. Raises ValueError."""
        stop = None if self.limit is None else self.skip + self.limit
        entries: list[_Entry] = []
        total = 0
        for number, (where, row) in enumerate(
            islice(read_table(self.path, split=self.split, name=self.name, revision=self.revision), stop)
        ):
            total = number + 1
            if number >= self.skip:
                try:
                    entries.append(self._entry(where, row))
                except ValueError as error:
                    raise ValueError(f"{self.path}, {where}: {error}") from error
        if not entries:
            why = f"skip={self.skip} leaves none of {total}" if total else "it is empty"
            raise ValueError(f"{self.path}: no rows, {why}")
        return _merge(self.path, entries)

    def _entry(self, where: str, row: Mapping[str, Any]) -> _Entry:
        stem = Path(self.path).name
        for extension in EXTENSIONS:
            stem = stem[: -len(extension)] if stem.lower().endswith(extension) else stem
        read = _read_gsm8k if self.format == "gsm8k" else read_plain
        text, solutions, answer = read(row, self.columns)
        id_column = self.columns.get("id", "id")
        identifier = optional(row, id_column, required="id" in self.columns)
        return _Entry(
            where=where,
            id=f"{stem}/{where.split()[-1]}" if identifier is None else as_scalar(identifier, id_column),
            text=text,
            answer=answer,
            solutions=solutions,
            tests=read_tests(row, self.columns),
            prompt=prompt_text(row),
        )


class Sample(Source):
    """64 problems of GSM8K's training split (MIT licence), part of the package.

    Args:
        limit: how many to use, after `skip`; default all.
        skip: how many to leave out at the start.
    """

    def __init__(self, limit: int | None = None, skip: int = 0) -> None:
        self.limit, self.skip = limit, skip

    def load(self) -> list[Problem]:
        """The problems."""
        with resources.as_file(resources.files("repirl.data") / "samples" / "gsm8k.jsonl") as path:
            return Table(str(path), limit=self.limit, skip=self.skip).load()


def read_plain(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[str, tuple[str, ...], str | None]:
    """Problem, solutions and answer of a row, fields as in `Table`. Raises ValueError naming the field."""
    text = as_text(required(row, columns.get("problem", "problem"), "problem"), columns.get("problem", "problem"))
    mapped = [field for field in _SOLUTION_FIELDS if field in columns]
    values = {
        field: value
        for field in mapped or _SOLUTION_FIELDS
        if (value := optional(row, columns.get(field, field), required=field in columns)) is not None
    }
    if len(values) > 1:
        kinds = " and ".join(values)
        raise ValueError(f"fields {kinds} are all present; say which with columns={{{next(iter(values))!r}: ...}}")
    solutions: tuple[str, ...] = ()
    for field, value in values.items():
        column = columns.get(field, field)
        if field == "solution":
            solutions = (as_text(value, column),)
        elif field == "solutions":
            solutions = as_texts(value, column)
        else:
            solutions = ("\n".join(as_texts(value, column)),)
    column = columns.get("answer", "answer")
    answer = optional(row, column, required="answer" in columns)
    return text, solutions, None if answer is None else as_scalar(answer, column)


def _read_gsm8k(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[str, tuple[str, ...], str | None]:
    question, column = columns.get("problem", "question"), columns.get("answer", "answer")
    text = as_text(required(row, question, "problem"), question)
    solution, answer = split_gsm8k(as_text(required(row, column, "answer"), column), column)
    return text, (solution,), answer


def _merge(path: str, entries: Iterable[_Entry]) -> list[Problem]:
    """One Problem per problem text; the first row gives its place and id. Raises ValueError on a conflict."""
    merged: dict[str, Problem] = {}
    answered: dict[str, str] = {}
    ids: dict[str, tuple[str, str]] = {}
    for entry in entries:
        key = entry.text.strip()
        first_text, first_where = ids.setdefault(entry.id, (key, entry.where))
        if first_text != key:
            raise ValueError(
                f"{path}: {first_where} and {entry.where} have the same id {cut(entry.id)!r} but different problems; "
                "give each problem its own id"
            )
        before = merged.get(key)
        answer = entry.answer
        if before is not None and before.answer is not None:
            if answer is not None and answer != before.answer:
                raise ValueError(
                    f"{path}: {answered[key]} and {entry.where} hold the same problem with different answers, "
                    f"{cut(before.answer)!r} and {cut(answer)!r}; keep one"
                )
            answer = before.answer
        elif answer is not None:
            answered[key] = entry.where
        if before is not None and entry.tests != before.tests:
            raise ValueError(
                f"{path}: {cut(before.id)!r} and {entry.where} hold the same problem with different tests; keep one"
            )
        prompt = entry.prompt if before is None or before.prompt is None else before.prompt
        if entry.prompt not in (None, prompt):
            raise ValueError(
                f"{path}: {entry.where} holds the problem of an earlier row with another prompt_text; keep one of them"
            )
        solutions = (before.solutions if before else ()) + entry.solutions
        merged[key] = Problem(
            id=before.id if before else entry.id,
            text=before.text if before else entry.text,
            answer=answer,
            solutions=tuple(dict.fromkeys(solutions)),
            tests=entry.tests,
            prompt=prompt,
        )
    return list(merged.values())
