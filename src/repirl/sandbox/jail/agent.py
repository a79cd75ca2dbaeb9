"""In the process of the program: runs it, and answers calls from the process of the tests.

Nothing here is trusted by anybody else: the program shares this process and may change all of it. What is sent is decoded
and judged on the other side.
"""

from __future__ import annotations

import atexit
import builtins
import collections
import contextlib
import copy
import errno
import functools
import io
import itertools
import math
import operator
import os
import re
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from repirl.sandbox.jail import values, wire
from repirl.sandbox.jail.peer import MAX_FRAME, Peer

REQUESTS, REPLIES, NOTES = 3, 4, 5  # descriptors of the process
RAISED, OUT_OF_MEMORY, TOO_MUCH_WRITTEN = 81, 82, 83  # exit statuses

_EMPTY: tuple[Any, ...] = ([], (), {}, set(), "", b"", range(0), {}.items(), {}.values())
_ITERATORS = (
    types.GeneratorType, map, filter, zip, enumerate, reversed,
    *(kind for kind in vars(itertools).values() if isinstance(kind, type)),
    *(type(iter(empty)) for empty in _EMPTY),
)  # fmt: skip
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


class Agent(Peer):
    """Answers requests: names, calls, attributes and operators. Objects that are no values stay here, by number."""

    known = values.TYPES_GIVEN

    def __init__(self, setup: str, program: str) -> None:
        super().__init__(REQUESTS, REPLIES, {})
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}  # of objects, by identity
        self.lock = threading.RLock()  # any thread of the program may call functions of the tests, one at a time
        self.names = start_as(MODULE, setup).__dict__
        self.classes = classes_of(self.names)
        run_in(self.names, program, "<program>")

    def export(self, value: Any) -> values.Reference | None:
        """Functions, classes, iterators, matches, and objects of the program's classes go by reference."""
        if isinstance(value, Lent):
            return value.kind, value.number
        known = self.numbers.get(id(value))
        kind = "v" if known is not None and isinstance(value, _VALUES) else _kind(value)
        if kind is None or (type(value).__name__ in self.classes and not isinstance(value, type)):
            return None
        return kind, self.keep(value)

    def keep(self, value: Any) -> int:
        """The number of an object, which stays the same."""
        number = self.numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)
        return number

    def resolve(self, kind: str, number: int) -> Any:
        """The object behind a reference; a stub for what is of the tests."""
        if kind == "o":
            return self.objects[number]
        stub = Lent(self, kind, number)
        return stub.items() if kind == "n" else stub

    def serve(self) -> None:
        """Until the tests hang up."""
        while True:
            try:
                frame = wire.read_frame(self.incoming, MAX_FRAME)
            except wire.Closed:
                leave(0, "")
            self.write(b"=" + self.answer(frame[1:]))

    def packed_answer(self, outcome: list[Any], lent: values.Lent, before: list[Any]) -> bytes:
        """The bytes of an answer, or of why it cannot be sent."""
        try:
            return super().packed_answer(outcome, lent, before)
        except values.TooLarge as error:
            outcome = ["large", str(error)]
        except values.CodecError as error:
            outcome = ["refused", str(error)]
        except MemoryError:
            raise
        except Exception as error:  # an object whose own methods raise
            outcome = ["refused", describe(error)]
        return super().packed_answer(outcome, values.Lent(), [])

    def perform(self, operation: str, arguments: list[Any]) -> list[Any]:
        """The outcome of a request."""
        try:
            found = self.done(operation, arguments)
        except Exception as error:
            if operation == "next" and isinstance(error, StopIteration):
                return ["stop"]
            if _over_a_limit(error):
                raise
            lineage, names = self.lineage(type(error))
            return ["raise", lineage, names, message_of(error), describe(error), self.details(error)]
        return ["value", found]

    def lineage(self, kind: type) -> tuple[list[Any], list[str]]:
        """The program's own classes that an exception is, bases first: [number, name, bases]. The built-in ones by name."""
        own = [base for base in reversed(kind.__mro__) if base.__module__ == MODULE]
        return [
            [
                self.keep(base),
                base.__name__,
                [self.keep(parent) if parent in own else parent.__name__ for parent in base.__bases__],
            ]
            for base in own
        ], builtin_names(kind)

    def details(self, error: Exception) -> dict[str, Any]:
        """Attributes of an exception that are values."""
        found = {}
        for name, value in list(getattr(error, "__dict__", {}).items())[:20]:
            try:
                self.packed(value, values.Lent(), lend=False)
            except Exception:  # it is no value
                continue
            found[name] = value
        return found

    def sendable(self, name: str) -> bool:
        """Whether tests can have what the program calls by this name: not so a module."""
        try:
            self.packed(self.names[name], values.Lent(), lend=False)
        except values.CodecError:
            return False
        return True

    def done(self, operation: str, arguments: list[Any]) -> Any:
        """What the request asks for."""
        if operation == "bind":
            return {name: self.names[name] for name in arguments[0] if name in self.names and self.sendable(name)}
        target, *rest = arguments
        if operation == "lineage":
            return self.lineage(target)
        if operation == "call":
            found = target(*rest[0], **rest[1])
            holder = getattr(target, "__self__", None)
            made = isinstance(target, type) and isinstance(found, target)
            again = id(holder) in self.numbers and type(found) is type(holder)
            if (made or again) and type(found).__module__ == MODULE:
                self.keep(found)  # an object that the tests have asked for, also of a class of lists or numbers
            return found
        return OPERATIONS[operation](target, *rest)

    def call_tests(self, number: int, arguments: tuple[Any, ...], named: dict[str, Any], operation: str) -> Any:
        """What a function of the tests returns. Raises what it raised, as a built-in exception."""
        with self.lock:
            outcome = self.request(operation, (number, arguments, named))
        if outcome[0] == "value":
            return outcome[1]
        if outcome[0] == "stop":
            raise StopIteration
        raise built_in(outcome[2], outcome[3])


_VALUES = (int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, collections.deque)


def _kind(value: Any) -> str | None:
    if isinstance(value, type):
        return "x" if issubclass(value, Exception) else "c"
    if isinstance(value, _ITERATORS):
        return "g"
    if type(value).__module__ == MODULE and not isinstance(value, _VALUES):
        return "o"
    if callable(value):
        return "f"
    if isinstance(value, re.Match | re.Pattern):
        return "m"
    return "o" if isinstance(value, contextlib.AbstractContextManager) else None


class Lent:
    """In the place of a function, an iterator or an object of the tests."""

    def __init__(self, agent: Agent, kind: str, number: int) -> None:
        self.agent, self.kind, self.number = agent, kind, number

    def __call__(self, *arguments: Any, **named: Any) -> Any:  # noqa: D102
        return self.agent.call_tests(self.number, arguments, named, "call")

    def items(self) -> Iterator[Any]:
        """Of an iterator."""
        while True:
            try:
                yield self.agent.call_tests(self.number, (), {}, "next")
            except StopIteration:
                return

    def __get__(self, holder: Any, kind: Any = None) -> Any:  # a function that becomes a method
        return self if holder is None else types.MethodType(self, holder)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lent) and self.number == other.number

    def __hash__(self) -> int:
        return hash(self.number)

    @property
    def __name__(self) -> str:
        return "function"


def _iterate(holder: Any) -> Iterator[Any]:
    return (item for item in holder)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "attribute": getattr,
    "set_attribute": setattr,
    "delete_attribute": delattr,
    "length": len,
    "item": operator.getitem,
    "set_item": operator.setitem,
    "delete_item": operator.delitem,
    "contains": operator.contains,
    "iterate": _iterate,
    "reversed": lambda holder: _iterate(reversed(holder)),
    "next": next,
    "text": str,
    "form": repr,
    "format": format,
    "hash": hash,
    "truth": bool,
    "plain": values.plain,
    "isinstance": isinstance,
    "issubclass": issubclass,
    "binary": lambda left, name, right: getattr(operator, name)(left, right),
    "unary": lambda value, name, *more: _UNARY[name](value, *more),
    "enter": lambda manager: type(manager).__enter__(manager),
    "exit": lambda manager, names, text: _left(manager, names, text),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
_UNARY: dict[str, Callable[..., Any]] = {
    "abs": abs, "neg": operator.neg, "pos": operator.pos, "invert": operator.invert, "round": round, "int": int,
    "float": float, "complex": complex, "index": operator.index, "trunc": math.trunc, "floor": math.floor, "ceil": math.ceil,
}  # fmt: skip


def _left(manager: Any, names: list[str], text: str) -> bool:
    if not names:
        return bool(type(manager).__exit__(manager, None, None, None))
    error = built_in(names, text)
    return bool(type(manager).__exit__(manager, type(error), error, None))


def built_in(names: list[str], text: str) -> Exception:
    """An exception of the nearest of these built-in types."""
    for name in names:
        kind = getattr(builtins, name, None) if type(name) is str else None
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(text)
            except TypeError:  # UnicodeDecodeError and its like want more; the next is their base
                continue
    return RuntimeError(text)


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


def builtin_names(kind: type) -> list[str]:
    """The built-in classes that an exception is, nearest first."""
    return [base.__name__ for base in kind.__mro__ if getattr(builtins, base.__name__, None) is base]


def run_functions(setup: str, program: str) -> None:
    """The program as a module whose functions the tests call."""
    agent: Agent = _guarded(lambda: Agent(setup, program))
    _guarded(agent.serve)
