"""Where problems come from: files, folders, the dataset hub, the embedded sample."""

from __future__ import annotations

import difflib
import gzip
import json
import math
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from repirl.structs import Problem

_FIELDS = ("problem", "solution", "solutions", "steps", "answer", "id")
_SOLUTION_FIELDS = ("solution", "solutions", "steps")
_EXTENSIONS = (".jsonl", ".jsonl.gz", ".parquet")
# "name" or "owner/name", as the dataset hub writes it. A name with a file's extension is a path that does not exist.
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_FILE_LIKE = re.compile(r"\.(jsonl?|parquet|csv|tsv|txt|arrow|gz|zst|bz2|xz|zip)$", re.IGNORECASE)
_ANNOTATION = re.compile(r"<<[^<>]*>>")


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


class Rows(Source):
    """Problems from a table: .jsonl, .jsonl.gz or .parquet, a folder of data files, or a dataset hub id.

    Fields of a row: `problem` (text); one of `solution` (text), `solutions` (list of texts) and `steps` (list of texts,
    joined by newlines), or none; `answer` (text or number, may be missing); `id` (default "<name>/<row number>").
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
        for number, (where, row) in enumerate(islice(self._read(), stop)):
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

    def _read(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        path = Path(self.path).expanduser()
        if path.is_file():
            if self.name is not None or self.revision is not None:
                raise ValueError(f"{self.path}: `name` and `revision` are for hub data sets; this is a file")
            if path.name.endswith(".parquet"):
                return _read_parquet(path)
            if path.name.endswith((".jsonl", ".jsonl.gz")):
                return read_jsonl(path)
            raise ValueError(f"{self.path}: unknown kind of file; it must end in one of {', '.join(_EXTENSIONS)}")
        if path.is_dir() or (_HUB_ID.fullmatch(self.path) and not _FILE_LIKE.search(self.path)):
            return self._read_dataset(path)
        raise ValueError(_not_found(path, self.path))

    def _read_dataset(self, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
        import datasets  # slow to import

        try:
            if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
                saved = datasets.load_from_disk(str(path))
                table = saved[self.split] if isinstance(saved, datasets.DatasetDict) else saved
            else:
                source = str(path) if path.is_dir() else self.path
                table = datasets.load_dataset(source, self.name, split=self.split, revision=self.revision)
        except Exception as error:
            # The library raises a dozen unrelated classes here; the first line of its message is kept.
            found = f"{type(error).__name__}: {(str(error) or repr(error)).splitlines()[0]}"
            if path.is_dir():
                raise ValueError(f"{self.path}: cannot load split {self.split!r} of this folder ({found})") from error
            raise ValueError(
                f"{self.path}: no such file or folder here, and not loadable from the dataset hub "
                f"(split {self.split!r}, name {self.name!r}): {found}. Check the spelling; without network, download "
                "it elsewhere and give the path of the file or folder"
            ) from error
        return ((f"row {number}", row) for number, row in enumerate(table, start=1))

    def _entry(self, where: str, row: Mapping[str, Any]) -> _Entry:
        stem = Path(self.path).name
        for extension in _EXTENSIONS:
            stem = stem.removesuffix(extension)
        read = _read_gsm8k if self.format == "gsm8k" else read_plain
        text, solutions, answer = read(row, self.columns)
        id_column = self.columns.get("id", "id")
        identifier = _optional(row, id_column, required="id" in self.columns)
        return _Entry(
            where=where,
            id=f"{stem}/{where.split()[-1]}" if identifier is None else _scalar(identifier, id_column),
            text=text,
            answer=answer,
            solutions=solutions,
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
            return Rows(str(path), limit=self.limit, skip=self.skip).load()


def read_jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Place ("line 3") and object of every line that is not blank. Raises ValueError."""
    opened = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115 (closed below)
    # Bytes are split at b"\n" alone: a text may contain any other line separator, U+2028 included.
    with cast("BinaryIO", opened) as file:
        try:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield f"line {number}", _parse_line(line, f"{path}, line {number}")
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file ({error}); fetch it again") from error


def _parse_line(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON, {error.msg} at character {error.pos + 1}; one object a line") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: found {_shown(row)}, expected one JSON object a line")
    return row


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON; write null, or leave the field out")


def _read_parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a readable parquet file ({error})") from error


def _not_found(path: Path, given: str) -> str:
    if not path.parent.is_dir():
        return f"{given}: no such file; the folder {path.parent} does not exist either"
    names = sorted(entry.name for entry in path.parent.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4)
    return f"{given}: no such file" + (f"; nearest names there: {', '.join(near)}" if near else "")


def read_plain(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[str, tuple[str, ...], str | None]:
    """Problem, solutions and answer of a row, fields as in `Rows`. Raises ValueError naming the field."""
    text = _text(_required(row, columns.get("problem", "problem"), "problem"), columns.get("problem", "problem"))
    mapped = [field for field in _SOLUTION_FIELDS if field in columns]
    values = {
        field: value
        for field in mapped or _SOLUTION_FIELDS
        if (value := _optional(row, columns.get(field, field), required=field in columns)) is not None
    }
    if len(values) > 1:
        kinds = " and ".join(values)
        raise ValueError(f"fields {kinds} are all present; say which with columns={{{next(iter(values))!r}: ...}}")
    solutions: tuple[str, ...] = ()
    for field, value in values.items():
        column = columns.get(field, field)
        if field == "solution":
            solutions = (_text(value, column),)
        elif field == "solutions":
            solutions = _texts(value, column)
        else:
            solutions = ("\n".join(_texts(value, column)),)
    column = columns.get("answer", "answer")
    answer = _optional(row, column, required="answer" in columns)
    return text, solutions, None if answer is None else _scalar(answer, column)


def _read_gsm8k(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[str, tuple[str, ...], str | None]:
    question, column = columns.get("problem", "question"), columns.get("answer", "answer")
    text = _text(_required(row, question, "problem"), question)
    solution, mark, answer = _text(_required(row, column, "answer"), column).rpartition("####")
    solution, answer = _ANNOTATION.sub("", solution).strip(), answer.replace(",", "").strip()
    if not mark or not solution or not answer:
        raise ValueError(f'field {column!r}: expected "<solution> #### <answer>", found {_shown(row[column])}')
    return text, (solution,), answer


def _required(row: Mapping[str, Any], column: str, field: str) -> Any:
    if column not in row:
        raise ValueError(
            f"no field {column!r}; there is {', '.join(map(repr, row)) or 'none'}. "
            f"Name the right one with columns={{{field!r}: ...}}"
        )
    if row[column] is None:
        raise ValueError(f"field {column!r}: found null, expected a text")
    return row[column]


def _optional(row: Mapping[str, Any], column: str, *, required: bool) -> Any | None:
    if required and column not in row:
        raise ValueError(f"no field {column!r}, which `columns` names; there is {', '.join(map(repr, row)) or 'none'}")
    return row.get(column)


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"field {column!r}: found {_shown(value)}, expected a text")
    if not value.strip():
        raise ValueError(f"field {column!r}: found an empty text; write null or leave the row out")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        where = f"field {column!r}: character {error.start + 1}"
        raise ValueError(f"{where} is half a surrogate pair; repair the text") from error
    return value


def _texts(value: Any, column: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"field {column!r}: found {_shown(value)}, expected a non-empty list of texts")
    return tuple(_text(item, f"{column}[{number}]") for number, item in enumerate(value))


def _scalar(value: Any, column: str) -> str:
    """Text of a text or number; 72.0 is written 72."""
    if isinstance(value, str):
        return _text(value, column).strip()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"field {column!r}: found {_shown(value)}, expected a text or a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"field {column!r}: found {value}, expected a finite number; write it as text or null")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


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
                f"{path}: {first_where} and {entry.where} have the same id {entry.id!r} but different problems; "
                "give each problem its own id"
            )
        before = merged.get(key)
        answer = entry.answer
        if before is not None and before.answer is not None:
            if answer is not None and answer != before.answer:
                raise ValueError(
                    f"{path}: {answered[key]} and {entry.where} hold the same problem with different answers, "
                    f"{before.answer!r} and {answer!r}; keep one"
                )
            answer = before.answer
        elif answer is not None:
            answered[key] = entry.where
        solutions = (before.solutions if before else ()) + entry.solutions
        merged[key] = Problem(
            id=before.id if before else entry.id,
            text=before.text if before else entry.text,
            answer=answer,
            solutions=tuple(dict.fromkeys(solutions)),
        )
    return list(merged.values())
