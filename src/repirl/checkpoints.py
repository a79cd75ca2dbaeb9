"""Checkpoint files: written so that a crash leaves a whole file, read so that damage and foreign code are refused."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

DESCRIPTION = "repirl"
"""Key of what a checkpoint says of its weights: each part's description, and how they came about (modules/saving.py)."""
PARTS = "repirl_parts"
"""Key of what a checkpoint says of files beside it that hold parts of its tensors: their `folder` and `count`."""
_PART = "repirl_part"
_CHUNK = 1 << 20


class Damaged(ValueError):
    """A file is not as it was written, or is gone: its message says which and how."""


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint whole or not at all: beside the target, flushed to the disk, then renamed over it.

    A process killed meanwhile leaves the target as it was, and a `.part` file that the next save replaces. The temporary
    file is never in TMPDIR: a rename between disks is a copy, which a kill would cut.

    Raises:
        OSError: the disk is full, read-only or gone; the target is as it was and the temporary file is removed.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer tells of a full disk by RuntimeError
        with contextlib.suppress(OSError):  # the folder itself may be the trouble
            part.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or _os_reason(error)
        if reason is None:
            raise
        kept = "the one before it is as it was" if path.exists() else "nothing is there"
        raise OSError(
            f"checkpoint {str(path)!r} could not be written: {reason}; {kept}. Free some space, or name another folder"
        ) from error


def _os_reason(error: BaseException) -> str | None:
    """What the operating system said, below an error of torch's writer; None where it said nothing."""
    below = error.__cause__ or error.__context__
    if below is None:
        return None
    return below.strerror if isinstance(below, OSError) else _os_reason(below)


def _flush_folder(folder: Path) -> None:
    """Makes the rename itself outlast a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's content on the CPU: tensors and plain values, nothing else is unpickled.

    Each record's CRC-32, which torch writes and does not read, is checked: a flipped bit in the weights is found.

    Raises:
        ValueError: the file is missing, no checkpoint, damaged, or holds objects of Python classes.
    """
    if not path.is_file():
        raise ValueError(f"checkpoint {str(path)!r}: no such file; give the path of an existing checkpoint")
    try:
        content = _content(path)
        if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
            raise ValueError(
                f"checkpoint {str(path)!r} has no state_dict: it was not written by a run; give a .ckpt file of `repirl fit`"
            )
        return _joined(content, path) if PARTS in content else content
    except Damaged as error:
        before = _newest_whole(path)
        instead = (
            "use another one" if before is None else f"the newest whole one beside it is {str(before)!r}: use that"
        )
        raise ValueError(f"{error}; {instead}, or copy the file again") from error


def require_undamaged(path: Path) -> None:
    """Raises Damaged where a record of the file is not as it was written."""
    if damage := _damage(path):
        raise Damaged(f"checkpoint {str(path)!r} {damage}")


def _newest_whole(beside: Path) -> Path | None:
    """The newest other checkpoint in the folder of this one that is whole, its parts too."""
    others = [path for path in beside.parent.glob("*.ckpt") if path.is_file() and path != beside]
    return next((path for path in sorted(others, key=_written, reverse=True) if _is_whole(path)), None)


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns


def _is_whole(path: Path) -> bool:
    try:
        content = _content(path, mmap=True)
        files = _part_files(content, path) if isinstance(content, dict) and PARTS in content else []
        return all(_damage(file) is None for file in files)
    except ValueError:
        return False


def _content(path: Path, *, mmap: bool = False) -> Any:
    require_undamaged(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint {str(path)!r} holds more than tensors and plain values, and could run foreign code: it is not "
            "read. Save its state_dict alone, or write it with repirl"
        ) from error
    except (RuntimeError, EOFError, KeyError, OSError) as error:
        raise Damaged(f"checkpoint {str(path)!r} cannot be read: {_first_line(error)}") from error


# ---- checkpoints in parts ----
# Each process writes its parts of sharded tensors into a file of a new folder beside the checkpoint. The checkpoint itself,
# written last, names the folder: until then it is the one before, with parts of its own.


def parted(checkpoint: dict[str, Any]) -> tuple[dict[str, Any], list[Tensor]]:
    """A checkpoint with a mark in the place of each sharded tensor, and this process's parts of those, in one order."""
    parts: dict[int, tuple[DTensor, int]] = {}

    def marked(tree: Any) -> Any:
        if isinstance(tree, DTensor):
            assert tree.placements == (Shard(0),), "only tensors spread over one dimension of processes, by their first"
            return {_PART: parts.setdefault(id(tree), (tree, len(parts)))[1]}
        if isinstance(tree, dict):
            return type(tree)((key, marked(value)) for key, value in tree.items())
        return type(tree)(map(marked, tree)) if type(tree) in (list, tuple) else tree

    sharded: dict[str, Any] = {
        key: marked(checkpoint[key]) for key in ("state_dict", "optimizer_states") if key in checkpoint
    }
    # A part is a view of a larger buffer, which torch would write whole.
    return {**checkpoint, **sharded}, [tensor.to_local().detach().cpu().clone() for tensor, _ in parts.values()]


def _part_file(path: Path, folder: str, rank: int) -> Path:
    return path.with_name(f"{path.name}.parts") / folder / f"{rank}.ckpt"


def write_parts(parts: list[Tensor], path: Path, folder: str, rank: int) -> None:
    """Writes a process's parts for the checkpoint `path`, and reads the file again for damage.

    Raises: OSError as `write`; Damaged where the file is not as it was written.
    """
    file = _part_file(path, folder, rank)
    write({"parts": parts, "folder": folder}, file)
    require_undamaged(file)


def remove_unused_parts(path: Path, folder: str) -> None:
    """Removes the parts of a save that came to nothing: on a full disk the next save needs their room."""
    shutil.rmtree(path.with_name(f"{path.name}.parts") / folder, ignore_errors=True)


def remove_parts(path: Path, keep: str | None = None) -> None:
    """Removes files of parts beside a checkpoint, but for those of the folder `keep`."""
    above = path.with_name(f"{path.name}.parts")
    for folder in above.iterdir() if above.is_dir() else ():
        if folder.name != keep:
            shutil.rmtree(folder, ignore_errors=True)
    if keep is None and above.is_dir():
        shutil.rmtree(above, ignore_errors=True)


def _part_files(checkpoint: dict[str, Any], path: Path) -> list[Path]:
    """The files of all parts, by rank. Raises Damaged where one is gone."""
    folder, count = checkpoint[PARTS]["folder"], checkpoint[PARTS]["count"]
    files = [_part_file(path, folder, rank) for rank in range(count)]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise Damaged(
            f"checkpoint {str(path)!r} was saved in {count} parts, of which {missing[0]!r} is missing: copy the folder "
            f"{path.name}.parts with it"
        )
    return files


def _parts_of(file: Path, folder: str) -> list[Tensor]:
    """One process's parts. Raises Damaged where they are those of another save."""
    content = _content(file)
    if content["folder"] != folder:
        raise Damaged(f"checkpoint {str(file)!r} is of another save than the checkpoint that names it")
    parts: list[Tensor] = content["parts"]
    return parts


def _joined(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """The checkpoint with whole tensors, by the files beside it."""
    folder = checkpoint[PARTS]["folder"]
    columns = zip(*[_parts_of(file, folder) for file in _part_files(checkpoint, path)], strict=True)
    tensors = [torch.cat(column) for column in columns]

    def whole(tree: Any) -> Any:
        if isinstance(tree, dict):
            if tree.keys() == {_PART}:
                return tensors[tree[_PART]]
            return type(tree)((key, whole(value)) for key, value in tree.items())
        return type(tree)(map(whole, tree)) if type(tree) in (list, tuple) else tree

    content: dict[str, Any] = whole({key: value for key, value in checkpoint.items() if key != PARTS})
    return content


# ---- trained models in a checkpoint ----


def read_part(path: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a checkpoint says of a part, `policy` or `prm`, and the weights of that part by their names in it.

    Raises:
        ValueError: as `read`; or the checkpoint has no such part, or does not describe it.
    """
    return part_of(read(path), path, name)


def part_of(content: dict[str, Any], path: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """As `read_part`, of a checkpoint that is read already; `path` names it in messages.

    Raises:
        ValueError: the checkpoint has no such part, or does not describe it.
    """
    weights = {
        key.removeprefix(f"{name}."): value
        for key, value in content["state_dict"].items()
        if key.startswith(f"{name}.")
    }
    if not weights:
        raise ValueError(f"checkpoint {str(path)!r} holds no {name}: give the checkpoint of a run that trained one")
    described = (content.get(DESCRIPTION) or {}).get(name) or {}
    if "stored" not in described.get("backbone", described):
        raise ValueError(
            f"checkpoint {str(path)!r} does not describe its {name}: an older repirl or another program wrote it. Go on from "
            "it with `repirl fit` and its configuration, which writes one that does"
        )
    return described, weights


def _damage(path: Path) -> str | None:
    """What is wrong with the file as an archive; None where every record is as it was written."""
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                with archive.open(info) as record:
                    while record.read(_CHUNK):  # the CRC-32 is compared at a record's end
                        pass
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        with path.open("rb") as file:
            start = file.read(4)
        return f"is damaged: {_first_line(error)}" if start == b"PK\x03\x04" else "is damaged, or no checkpoint at all"
    return None


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0][:200]
