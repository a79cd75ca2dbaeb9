"""In the process of a program of functions and classes: runs it, and answers calls from the process of the tests.

Nothing here is trusted by anybody else: the program shares this process and may change all of it. What is sent is decoded
and judged on the other side.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import re
import threading
import types
from collections.abc import Iterator
from typing import Any

from repirl.sandbox.jail import values, wire
from repirl.sandbox.jail.ending import describe, guarded, leave, over_a_limit
from repirl.sandbox.jail.module import MODULE, classes_of, run_in, start_as
from repirl.sandbox.jail.operations import OPERATIONS, built_in, builtin_names, message_of
from repirl.sandbox.jail.peer import MAX_FRAME, Peer

REQUESTS, REPLIES = 3, 4  # descriptors of the process

_EMPTY: tuple[Any, ...] = ([], (), {}, set(), "", b"", range(0), {}.items(), {}.values())
_ITERATORS = (
    types.GeneratorType, map, filter, zip, enumerate, reversed,
    *(kind for kind in vars(itertools).values() if isinstance(kind, type)),
    *(type(iter(empty)) for empty in _EMPTY),
)  # fmt: skip


def run_functions(setup: str, program: str) -> None:
    """The program as a module whose functions the tests call."""
    agent: Agent = guarded(lambda: Agent(setup, program))
    guarded(agent.serve)


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
            if over_a_limit(error):
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
