"""Tables of rows: files, folders, the dataset hub, files by URL. Every row comes with its place, for messages."""

from __future__ import annotations

import difflib
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from repirl.data.fields import WrittenFloat, cut, shown

EXTENSIONS = (".jsonl", ".jsonl.gz", ".parquet")
# "name" or "owner/name", as the dataset hub writes it. A name with a file's extension is a path that does not exist.
LONGEST_PATH = 200  # characters of a path in a message
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_FILE_LIKE = re.compile(r"\.(jsonl?|parquet|csv|tsv|txt|arrow|gz|zst|bz2|xz|zip)$", re.IGNORECASE)

PlacedRows = Iterator[tuple[str, Mapping[str, Any]]]
"""Place ("line 3" or "row 3") and row."""


def read_table(path: str, *, split: str = "train", name: str | None = None, revision: str | None = None) -> PlacedRows:
    """The rows of a .jsonl, .jsonl.gz or .parquet file, of a folder, or of a hub data set. Raises ValueError.

    split: of a folder or hub data set. name, revision: configuration and commit of a hub data set; refused for a file.
    """
    place = Path(path).expanduser()
    try:
        kind = "file" if place.is_file() else "folder" if place.is_dir() else "loop" if place.is_symlink() else None
    except OSError as error:
        raise ValueError(f"{cut(path, LONGEST_PATH)}: cannot be opened ({error.strerror}); check the path") from error
    if kind == "loop":
        raise ValueError(f"{path}: a symbolic link that leads to no file; point it at the data")
    if kind == "file":
        if name is not None or revision is not None:
            raise ValueError(f"{path}: `name` and `revision` are for hub data sets; this is a file")
        return read_file(place)
    if kind == "folder" or (_HUB_ID.fullmatch(path) and not _FILE_LIKE.search(path)):
        return _read_dataset(path, split, name, revision)
    raise ValueError(_not_found(place, path))


def read_file(path: Path) -> PlacedRows:
    """The rows of one file, by its ending in large or small letters. Raises ValueError."""
    name = path.name.lower()
    if name.endswith(".parquet"):
        return _read_parquet(path)
    if name.endswith((".jsonl", ".jsonl.gz")):
        return read_jsonl(path)
    raise ValueError(f"{path}: unknown kind of file; it must end in one of {', '.join(EXTENSIONS)}")


def read_urls(urls: Sequence[str]) -> PlacedRows:
    """The rows of JSONL files by URL (https://, hf://), one after another, kept in the datasets cache. Raises ValueError."""
    import datasets  # slow to import

    try:
        table = datasets.load_dataset("json", data_files=list(urls), split="train")
    except Exception as error:
        raise ValueError(
            f"{urls[0]}{' and others' if len(urls) > 1 else ''}: cannot be fetched ({_first_line(error)}); without "
            "network, download it elsewhere and give the path of the file"
        ) from error
    return ((f"row {number}", row) for number, row in enumerate(table, start=1))


def _read_dataset(path: str, split: str, name: str | None, revision: str | None) -> PlacedRows:
    import datasets  # slow to import

    place = Path(path).expanduser()
    try:
        if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            saved = datasets.load_from_disk(str(place))
            table = saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        else:
            builder = datasets.load_dataset_builder(str(place) if place.is_dir() else path, name, revision=revision)
            files = _own_files(builder, split) if place.is_dir() else []
            if files:  # by our own readers, so that a folder means what its files mean: no dates, no rounded numbers
                return _in_turn(files)
            table = datasets.load_dataset(str(place) if place.is_dir() else path, name, split=split, revision=revision)
    except Exception as error:
        if place.is_dir():
            raise ValueError(f"{path}: cannot load split {split!r} of this folder ({_first_line(error)})") from error
        raise ValueError(
            f"{path}: no such file or folder here, and not loadable from the dataset hub "
            f"(split {split!r}, name {name!r}): {_first_line(error)}. Check the spelling; without network, download "
            "it elsewhere and give the path of the file or folder"
        ) from error
    return ((f"row {number}", _shortest(row, table.features)) for number, row in enumerate(table, start=1))


def _own_files(builder: Any, split: str) -> list[Path]:
    """The files of a split of a folder, where all of them are of a kind that is read here."""
    paths = [Path(path) for path in (builder.config.data_files or {}).get(split, ())]
    return paths if all(path.name.lower().endswith(EXTENSIONS) and path.is_file() for path in paths) else []


def _in_turn(files: Sequence[Path]) -> PlacedRows:
    number = 0
    for file in files:
        for where, row in read_file(file):
            number += 1
            yield f"{file.name}, {where}, row {number}", row


def _shortest(row: Mapping[str, Any], features: Mapping[str, Any]) -> Mapping[str, Any]:
    """With numbers of fewer than 64 bits as short as they were before they were widened: 0.1, not 0.10000000149011612."""
    narrow = [name for name, feature in features.items() if getattr(feature, "dtype", None) in ("float32", "float16")]
    return {**row, **{name: _narrowed(row[name], features[name].dtype) for name in narrow}} if narrow else row


def _narrowed(value: float | None, kind: str) -> float | None:
    import numpy as np

    return None if value is None else float(str(np.dtype(kind).type(value)))


def _first_line(error: Exception) -> str:
    """Class and first line of a message; the datasets library raises a dozen unrelated classes."""
    return f"{type(error).__name__}: {cut((str(error) or repr(error)).splitlines()[0], 300)}"


def read_jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Place ("line 3") and object of every line that is not blank. Raises ValueError."""
    opened = gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # noqa: SIM115 (closed below)
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
        row = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant, parse_float=WrittenFloat)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON, {error.msg} at character {error.pos + 1}; one object a line") from error
    except RecursionError as error:
        raise ValueError(
            f"{where}: nested too deeply to be read; a row is one object of texts, numbers and lists"
        ) from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: found {shown(row)}, expected one JSON object a line")
    return row


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON; write null, or leave the field out")


def _read_parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                kinds = {
                    field.name: field.type.bit_width for field in batch.schema if pyarrow.types.is_floating(field.type)
                }
                narrow = {name: f"float{bits}" for name, bits in kinds.items() if bits < 64}
                for row in _rows(batch, path, number):
                    number += 1
                    yield f"row {number}", row | {name: _narrowed(row[name], kind) for name, kind in narrow.items()}
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a readable parquet file ({cut(str(error), 300)})") from error


def _rows(batch: Any, path: Path, before: int) -> list[dict[str, Any]]:
    """The rows of a batch. Raises ValueError with row and field where a text is not UTF-8."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError as error:
        for number in range(batch.num_rows):
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                try:
                    column[number].as_py()
                except UnicodeDecodeError as place:
                    raise ValueError(
                        f"{path}, row {before + number + 1}: field {cut(name)!r}: byte {place.start + 1} is not UTF-8; "
                        "write the file from text in UTF-8"
                    ) from error
        raise
    return rows


def _not_found(path: Path, given: str) -> str:
    given = cut(given, LONGEST_PATH)
    if not path.parent.is_dir():
        return f"{given}: no such file; the folder {cut(str(path.parent), LONGEST_PATH)} does not exist either"
    names = sorted(entry.name for entry in path.parent.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4)
    return f"{given}: no such file" + (f"; nearest names there: {', '.join(near)}" if near else "")
