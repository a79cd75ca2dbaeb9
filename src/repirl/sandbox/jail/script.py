"""In the process of a program that is a script: standard input and output are its tests."""

from __future__ import annotations

import atexit
import io
import sys
import threading

from repirl.sandbox.jail.ending import guarded, leave
from repirl.sandbox.jail.module import run_in, start_as


def run_script(setup: str, program: str) -> None:
    """The program as a script: standard input and output are its tests."""
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), "utf-8", "surrogateescape")
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", "surrogateescape")
    sys.__stdin__, sys.__stdout__ = sys.stdin, sys.stdout  # type: ignore[misc]

    def whole() -> None:
        try:
            module = start_as("__main__", setup)
            run_in(module.__dict__, program, "<program>")
        except SystemExit as error:
            if error.code not in (None, 0):
                raise
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()
        sys.stdout.flush()

    guarded(whole)
    leave(0, "")
