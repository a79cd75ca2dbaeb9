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

from repirl.data.fields import shown

EXTENSIONS = (".jsonl", ".jsonl.gz", ".parquet")
# "name" or "owner/name", as the dataset hub writes it. A name with a file's extension is a path that does not exist.
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_FILE_LIKE = re.compile(r"\.(jsonl?|parquet|csv|tsv|txt|arrow|gz|zst|bz2|xz|zip)$", re.IGNORECASE)

PlacedRows = Iterator[tuple[str, Mapping[str, Any]]]
"""Place ("line 3" or "row 3") and row."""


def read_table(path: str, *, split: str = "train", name: str | None = None, revision: str | None = None) -> PlacedRows:
    """The rows of a .jsonl, .jsonl.gz or .parquet file, of a folder, or of a hub data set. Raises ValueError.

    split: of a folder or hub data set. name, revision: configuration and commit of a hub data set; refused for a file.
    """
    place = Path(path).expanduser()
    if place.is_file():
        if name is not None or revision is not None:
            raise ValueError(f"{path}: `name` and `revision` are for hub data sets; this is a file")
        if place.name.endswith(".parquet"):
            return _read_parquet(place)
        if place.name.endswith((".jsonl", ".jsonl.gz")):
            return read_jsonl(place)
        raise ValueError(f"{path}: unknown kind of file; it must end in one of {', '.join(EXTENSIONS)}")
    if place.is_dir() or (_HUB_ID.fullmatch(path) and not _FILE_LIKE.search(path)):
        return _read_dataset(path, split, name, revision)
    raise ValueError(_not_found(place, path))


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
            source = str(place) if place.is_dir() else path
            table = datasets.load_dataset(source, name, split=split, revision=revision)
    except Exception as error:
        if place.is_dir():
            raise ValueError(f"{path}: cannot load split {split!r} of this folder ({_first_line(error)})") from error
        raise ValueError(
            f"{path}: no such file or folder here, and not loadable from the dataset hub "
            f"(split {split!r}, name {name!r}): {_first_line(error)}. Check the spelling; without network, download "
            "it elsewhere and give the path of the file or folder"
        ) from error
    return ((f"row {number}", row) for number, row in enumerate(table, start=1))


def _first_line(error: Exception) -> str:
    """Class and first line of a message; the datasets library raises a dozen unrelated classes."""
    return f"{type(error).__name__}: {(str(error) or repr(error)).splitlines()[0]}"


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
        raise ValueError(f"{where}: found {shown(row)}, expected one JSON object a line")
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
