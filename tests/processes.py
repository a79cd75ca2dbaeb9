"""What tests ask about processes."""

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from repirl.sandbox.jail.server import PR_SET_CHILD_SUBREAPER

GONE = (FileNotFoundError, ProcessLookupError)  # what reading /proc of a process or thread that has just ended raises


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def alive(pid: int) -> bool:
    """Neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except GONE:
        return False


def children(pid: int) -> list[int]:
    """Of all its threads. Where one of them is ending, its children may be missing for a moment."""
    found: list[int] = []
    with contextlib.suppress(*GONE):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(*GONE):
                found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


def below(pids: list[int]) -> list[int]:
    """All descendants."""
    found = [child for pid in pids for child in children(pid)]
    return found + below(found) if found else []


@contextlib.contextmanager
def orphans_adopted() -> Iterator[Callable[[], list[int]]]:
    """Orphans of processes started here become this process's children; gives all that live and are new."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = set(below([os.getpid()]))
    try:
        yield lambda: [pid for pid in below([os.getpid()]) if pid not in before and alive(pid)]
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        for pid in children(os.getpid()):
            if pid not in before:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


@contextlib.contextmanager
def limited(process: subprocess.Popen[Any], seconds: float = 300.0) -> Iterator[subprocess.Popen[Any]]:
    """The process, which is killed when its time is up and when the block is left, also by a failed assertion."""
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        with process:  # waits for it
            try:
                yield process
            finally:
                process.kill()
    finally:
        timer.cancel()
