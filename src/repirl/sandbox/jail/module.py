"""A program, or a set-up, as a module of Python: as in an interpreter started for it alone."""

from __future__ import annotations

import functools
import os
import sys
import tempfile
import types
from collections.abc import Callable
from typing import Any

MODULE = "solution"
FILE = "solution.py"
RECURSION_LIMIT = 50_000  # where a set-up gives none: LiveCodeBench's


def start_as(name: str, setup: str) -> types.ModuleType:
    """The module of a program, registered, with the set-up's names: as in an interpreter started for this program alone."""
    sys.argv = [FILE]
    sys.orig_argv = [sys.executable, FILE]
    sys.set_int_max_str_digits(0)
    sys.setrecursionlimit(RECURSION_LIMIT)
    folder = os.path.realpath(os.getcwd())
    leave_modes_alone(folder)
    os.environ["TMPDIR"], tempfile.tempdir = folder, None
    module = types.ModuleType(name)
    module.__file__ = os.path.join(folder, FILE)
    sys.modules[name] = module
    run_in(module.__dict__, setup, "<setup>")
    return module


def leave_modes_alone(folder: str) -> None:
    """Makes changes of a file's mode or times do nothing in the working folder, where copies of files ask for them.

    Only for the program's comfort: the filter refuses the calls themselves, wherever the file is.
    """

    def within(refused: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(refused)
        def change(path: Any, *arguments: Any, **named: Any) -> None:
            if isinstance(path, int) or not os.path.realpath(os.fsdecode(path)).startswith(folder + os.sep):
                refused(path, *arguments, **named)
            os.stat(path)  # raises where there is none

        return change

    os.chmod, os.utime = within(os.chmod), within(os.utime)


def run_in(names: dict[str, Any], code: str, file: str) -> None:
    """Runs code in a namespace. The `__future__` flags of this file are not the code's."""
    exec(compile(code, file, "exec", dont_inherit=True), names)


def classes_of(names: dict[str, Any]) -> dict[str, type]:
    """The classes that a setup defines: their instances go by value."""
    return {
        name: value
        for name, value in names.items()
        if isinstance(value, type) and value.__module__ == names["__name__"] and not issubclass(value, BaseException)
    }
