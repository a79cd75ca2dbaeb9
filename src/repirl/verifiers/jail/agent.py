"""In the process of the program: runs it, and answers calls from the process of the tests.

Nothing here is trusted by anybody else: the program shares this process and may change all of it. What is sent is decoded
and judged on the other side.
"""

from __future__ import annotations

import atexit
import builtins
import errno
import functools
import io
import itertools
import os
import re
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any, NoReturn

from repirl.verifiers.jail import values, wire

REQUESTS, REPLIES, NOTES = 3, 4, 5  # descriptors of the process
RAISED, OUT_OF_MEMORY, TOO_MUCH_WRITTEN = 81, 82, 83  # exit statuses

_EMPTY: tuple[Any, ...] = ([], (), {}, set(), "", b"", range(0), {}.items(), {}.values())
_ITERATORS = (
    types.GeneratorType, map, filter, zip, enumerate, reversed,
    *(kind for kind in vars(itertools).values() if isinstance(kind, type)),
    *(type(iter(empty)) for empty in _EMPTY),
)  # fmt: skip
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)
MODULE = "solution"
FILE = "solution.py"
RECURSION_LIMIT = 50_000  # where a set-up gives none: LiveCodeBench's


def leave(status: int, note: str) -> NoReturn:
    """Ends the process with a word for the report."""
    try:
        os.write(NOTES, note[:2000].encode("utf-8", "replace"))
    finally:  # the program may have closed it, which is its own loss
        os._exit(status)


def describe(error: BaseException) -> str:
    """Type, message and line in the program."""
    try:
        text = f"{type(error).__name__}: {error}"[:1000]
        walked = traceback.walk_tb(error.__traceback__)
        lines = [line for frame, line in walked if frame.f_code.co_filename == "<program>"]
    except BaseException:  # an exception of the program's own making
        return type(error).__name__
    return f"{text} (line {lines[-1]} of the program)" if lines else text


def _guarded(action: Callable[[], Any]) -> Any:
    """Runs the program's code; whatever escapes from it ends the process."""
    try:
        return action()
    except BaseException as error:
        leave(_over_a_limit(error) or RAISED, describe(error))


def _over_a_limit(error: BaseException) -> int:
    """The exit status for an error that a limit has caused; 0 for any other."""
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    return TOO_MUCH_WRITTEN if isinstance(error, OSError) and error.errno == errno.EFBIG else 0


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

    _guarded(whole)
    leave(0, "")


class Agent:
    """Answers requests: names of the program, calls, attributes, items. Objects that are no values stay here, by number."""

    def __init__(self, setup: str, program: str) -> None:
        self.objects: list[Any] = []
        self.names = start_as(MODULE, setup).__dict__
        self.classes = classes_of(self.names)
        run_in(self.names, program, "<program>")

    def export(self, value: Any) -> values.Reference | None:
        """Functions, classes, iterators, matches, and objects of the program's classes go by reference."""
        if isinstance(value, type):
            kind = "c"
        elif isinstance(value, _ITERATORS):
            kind = "g"
        elif isinstance(value, _FUNCTIONS) or (callable(value) and not isinstance(value, type)):
            kind = "f"
        elif isinstance(value, re.Match | re.Pattern):
            kind = "m"
        elif type(value).__module__ == MODULE and not isinstance(
            value, int | float | str | bytes | list | tuple | dict | set | frozenset
        ):
            kind = "o"
        else:
            return None
        self.objects.append(value)
        return kind, len(self.objects) - 1

    def resolve(self, kind: str, number: int) -> Any:
        """The object behind a reference."""
        return self.objects[number]

    def serve(self) -> None:
        """Until the tests hang up."""
        while True:
            try:
                request = wire.read_frame(REQUESTS, values.MAX_BYTES)
            except wire.Closed:
                leave(0, "")
            wire.write_frame(REPLIES, self.answer(request))

    def answer(self, request: bytes) -> bytes:
        """One request, [operation, ...].

        Gives ["value", v], ["raise", names of built-in exceptions, message, in words], ["stop"], ["refused" | "large", why].
        """
        operation, *arguments = values.decode(request, resolve=self.resolve, classes=self.classes)
        try:
            found = self.perform(operation, arguments)
        except Exception as error:
            if operation == "next" and isinstance(error, StopIteration):
                return values.encode(["stop"])
            if _over_a_limit(error):
                raise
            return values.encode(["raise", builtin_names(error), message_of(error), describe(error)])
        try:
            return values.encode(["value", found], export=self.export, classes=self.classes)
        except values.TooLarge as error:
            return values.encode(["large", str(error)])
        except values.CodecError as error:
            return values.encode(["refused", str(error)])
        except MemoryError:
            raise
        except Exception as error:  # an object whose own methods raise
            return values.encode(["refused", describe(error)])

    def sendable(self, name: str) -> bool:
        """Whether tests can have what the program calls by this name: not so a module."""
        try:
            values.encode(self.names[name], export=self.export, classes=self.classes)
        except values.CodecError:
            return False
        return True

    def perform(self, operation: str, arguments: list[Any]) -> Any:
        """What the request asks for."""
        if operation == "bind":
            return {name: self.names[name] for name in arguments[0] if name in self.names and self.sendable(name)}
        target, *rest = arguments
        if operation == "call":
            return target(*rest[0], **rest[1])
        simple: dict[str, Callable[..., Any]] = {
            "attribute": getattr,
            "set_attribute": setattr,
            "length": len,
            "item": lambda holder, key: holder[key],
            "set_item": lambda holder, key, value: holder.__setitem__(key, value),
            "contains": lambda holder, item: item in holder,
            "iterate": iter,
            "next": next,
            "text": str,
            "form": repr,
        }
        return simple[operation](target, *rest)


def message_of(error: Exception) -> str:
    """What `str(error)` says, for tests that read it."""
    try:
        return (error.args[0] if len(error.args) == 1 and type(error.args[0]) is str else str(error))[:10_000]
    except Exception:  # an exception of the program's own making
        return ""


def classes_of(names: dict[str, Any]) -> dict[str, type]:
    """The classes that a setup defines: their instances go by value."""
    return {
        name: value
        for name, value in names.items()
        if isinstance(value, type) and value.__module__ == names["__name__"] and not issubclass(value, BaseException)
    }


def builtin_names(error: Exception) -> list[str]:
    """The built-in exceptions that an exception is, nearest first."""
    return [kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind]


def run_functions(setup: str, program: str) -> None:
    """The program as a module whose functions the tests call."""
    agent: Agent = _guarded(lambda: Agent(setup, program))
    _guarded(agent.serve)
