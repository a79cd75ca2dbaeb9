"""The working folder of programs: how much is in it, and how it is emptied, whatever a program has built there."""

from __future__ import annotations

import contextlib
import os

MAX_FILES = 1_000  # folders included
MAX_PATH = 1_000  # characters below the folder: no place may be too deep for the server to look at
TOO_MUCH = 1 << 62


def size(folder: str) -> int:
    """Bytes in all its files; `TOO_MUCH` where there are too many of them or they lie too deep."""
    total = count = 0
    open_folders = [folder]
    while open_folders:
        place = open_folders.pop()
        if len(place) > len(folder) + MAX_PATH:
            return TOO_MUCH
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(place) as entries:  # just removed
            for entry in entries:
                count += 1
                if count > MAX_FILES:
                    return TOO_MUCH
                with contextlib.suppress(FileNotFoundError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        open_folders.append(entry.path)
    return total


def empty(folder: str) -> None:
    """Removes all that is in it. No path gets long, however deep folders lie: what is in them is moved up first."""
    number = 0
    while entries := list(os.scandir(folder)):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            for inner in list(os.scandir(entry.path)):
                number += 1
                if inner.is_dir(follow_symlinks=False):
                    os.chmod(inner.path, 0o700)  # whose `..` changes
                    os.rename(inner.path, os.path.join(folder, f".moved-{os.getpid()}-{number}"))
                else:
                    os.unlink(inner.path)
            os.rmdir(entry.path)
