"""One run a folder: two that write into the same one would mix their files."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


class FolderInUse(ValueError):
    """Another process writes into a folder."""

    def __init__(self, folder: Path, holder: str) -> None:
        self.what = f"another run (process {holder}) is writing into {str(folder)!r}"
        self.todo = "wait until it ends, or give this one another folder"
        super().__init__(f"{self.what}; {self.todo}")


@contextmanager
def claimed(folders: Iterable[Path]) -> Iterator[None]:
    """Holds the folders for this process until the block is left or the process ends, however it ends.

    The lock is a hidden file beside each folder, with the number of the process that holds it.

    Raises:
        FolderInUse: another process holds one of them.
    """
    with ExitStack() as held:
        for folder in sorted({folder.absolute() for folder in folders}):
            held.enter_context(_claim(folder))
        yield


@contextmanager
def _claim(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f".{folder.name}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            raise FolderInUse(folder, holder or "of unknown number") from error
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)  # which lets go of the lock
