"""Records that a long program has made so far, so that it goes on after a crash; the file it writes is whole or not there."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from repirl.config import ConfigError

FORMATS = (".jsonl", ".parquet")


class Journal:
    """A file of records beside the output, in JSON lines; the first line says what makes them.

    Args:
        output: the file that is to be, .jsonl or .parquet.
        description: what decides the records; another program's journal is refused.
        beside: further files that come with the output; none may be there before the first record is.

    Raises:
        ConfigError: the output exists or cannot be written, or its journal belongs to something else.
    """

    def __init__(self, output: Path, description: Mapping[str, Any], beside: Sequence[Path] = ()) -> None:
        if output.suffix not in FORMATS:
            raise ConfigError(
                f"--output: {str(output)!r} is no {' or '.join(FORMATS)} file", "name a file that ends in one of them"
            )
        if output.exists():
            raise ConfigError(f"--output: {str(output)!r} exists", "name another file, or remove this one")
        self.output, self.part = output, output.with_name(f".{output.name}.part")
        self.description = json.loads(json.dumps(description, default=str))
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            self.records = self._read()
        except OSError as error:
            raise ConfigError(
                f"--output: {str(output)!r} cannot be written: {error.strerror}", "name another file"
            ) from error
        if not self.records and (there := [path for path in beside if path.exists()]):  # it may be an input
            raise ConfigError(f"--output: {str(there[0])!r}, which goes with it, exists", "name another, or remove it")

    def _read(self) -> list[dict[str, Any]]:
        """The records of a program that was ended; what it was writing then is cut off."""
        content = self.part.read_bytes() if self.part.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole.count(b"\n") < 2:  # nothing was made yet: it belongs to whoever begins
            self.part.write_bytes(json.dumps(self.description).encode() + b"\n")
            return []
        first, *lines = whole.splitlines()
        if json.loads(first) != self.description:
            changed = [name for name, value in json.loads(first).items() if self.description.get(name) != value]
            raise ConfigError(
                f"--output: {str(self.part)!r} was begun with another {' and '.join(changed) or 'program'}",
                "name another output, or remove that file to begin anew",
            )
        if len(whole) < len(content):
            os.truncate(self.part, len(whole))
        return [json.loads(line) for line in lines]

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Adds records; when it returns they are on the disk."""
        lines = [json.dumps(record, ensure_ascii=False, default=str) for record in records]
        with self.part.open("ab") as file:
            file.write("".join(f"{line}\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())
        self.records += [json.loads(line) for line in lines]

    def finish(self, lines: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Writes the output and removes the journal.

        lines: what the output has, where that is not the records one by one.
        """
        records = self.records if lines is None else lines
        whole = self.output.with_name(f".{self.output.name}.whole")
        if self.output.suffix == ".parquet":
            _write_parquet(records, whole)
        else:
            texts = [json.dumps(record, ensure_ascii=False) for record in records]
            whole.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        whole.replace(self.output)
        self.part.unlink()


def refuse_unfit_for_parquet(records: Sequence[Mapping[str, Any]]) -> None:
    """Raises ConfigError where fields of records cannot stand in Parquet, before anything is computed for them."""
    with tempfile.TemporaryFile() as nowhere:  # a file, not a path: pyarrow removes a path at which it fails
        _write_parquet(records, nowhere)


def _write_parquet(records: Sequence[Mapping[str, Any]], to: Path | IO[bytes]) -> None:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    def write(names: Iterable[str], to: Path | IO[bytes]) -> None:
        parquet.write_table(pyarrow.table({name: [record.get(name) for record in records] for name in names}), to)

    names = dict.fromkeys(name for record in records for name in record)
    unfit = (pyarrow.ArrowException, OverflowError)
    try:
        write(names, to)
    except unfit:
        for name in names:  # which of them it is
            try:
                with tempfile.TemporaryFile() as nowhere:
                    write([name], nowhere)
            except unfit as error:
                raise ConfigError(
                    f"--output: the field {name!r} has values that Parquet does not take, such as of several kinds: {error}",
                    "name a .jsonl file, or leave the field out",
                ) from error
        raise
