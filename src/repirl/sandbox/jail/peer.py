"""Both ends of the conversation between a program and its tests.

Each end may ask while it is being asked: a function of the tests that a program calls may call the program in turn. A frame
is a letter, `?` for a request or `=` for an answer, and values. Requests: [operation, ...]. Answers: the outcome, with its
length, and the changes of the request's containers. Outcomes: ["value", v], ["raise", lineage of its own classes, names of
built-in exceptions, message, in words, attributes], ["stop"], ["refused" | "large", why].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from repirl.sandbox.jail import decoding, encoding, inplace, values, wire

MAX_FRAME = values.MAX_BYTES + 5  # with its letter and a length


class Peer:
    """One end. classes: those whose instances go by value. named, known: types that go by name, out and in."""

    named: Mapping[str, type] = values.TYPES_BACK
    known: Mapping[str, type] = values.TYPES_BACK

    def __init__(self, incoming: int, outgoing: int, classes: Mapping[str, type]) -> None:
        self.incoming, self.outgoing, self.classes = incoming, outgoing, classes

    def export(self, value: Any) -> values.Reference | None:
        """The reference by which what is no value goes over; None where it cannot."""
        raise NotImplementedError

    def resolve(self, kind: str, number: int) -> Any:
        """The object behind a reference."""
        raise NotImplementedError

    def perform(self, operation: str, arguments: list[Any]) -> list[Any]:
        """The outcome of a request."""
        raise NotImplementedError

    def changed(self, lent: values.Lent, found: Any) -> None:
        """Takes over what the other end has done to what it was lent."""
        inplace.apply(lent, found)

    def request(self, operation: str, arguments: tuple[Any, ...]) -> Any:
        """The outcome at the other end, whose own requests are answered meanwhile. Raises CodecError, Closed."""
        lent = values.Lent()
        self.write(b"?" + self.packed([operation, *arguments], lent, lend=True))
        while True:
            frame = wire.read_frame(self.incoming, MAX_FRAME)
            if frame[:1] == b"?":
                self.write(b"=" + self.answer(frame[1:]))
                continue
            if frame[:1] != b"=" or len(frame) < 5:
                raise values.CodecError("no answer")
            end = 5 + int.from_bytes(frame[1:5], "big")
            outcome = self.unpacked(frame[5:end], lent, lend=False)
            self.changed(lent, self.unpacked(frame[end:], lent, lend=False))
            return outcome

    def answer(self, request: bytes) -> bytes:
        """What the other end asked for. Raises CodecError for what is no request."""
        lent = values.Lent()
        message = self.unpacked(request, lent, lend=True)
        if type(message) is not list or not message or type(message[0]) is not str:
            raise values.CodecError("no request")
        before = inplace.contents(lent)
        outcome = self.perform(message[0], message[1:])
        return self.packed_answer(outcome, lent, before)

    def packed_answer(self, outcome: list[Any], lent: values.Lent, before: list[Any]) -> bytes:
        """The bytes of an answer: the outcome with its length, the changes.

        Where something has changed, what the outcome has of it goes by value: the other end may see the changes later.
        """
        found = inplace.changes(lent, before)
        content = self.packed(outcome, values.Lent() if found else lent, lend=False)
        return len(content).to_bytes(4, "big") + content + self.packed(found, lent, lend=False)

    def write(self, frame: bytes) -> None:
        """Sends a frame. Raises Closed."""
        wire.write_frame(self.outgoing, frame)

    def packed(self, value: Any, lent: values.Lent, *, lend: bool) -> bytes:
        """Bytes of a value. Raises CodecError."""
        return encoding.encode(value, export=self.export, classes=self.classes, lent=lent, lend=lend, named=self.named)

    def unpacked(self, data: bytes, lent: values.Lent, *, lend: bool) -> Any:
        """The value of bytes. Raises CodecError."""
        return decoding.decode(data, resolve=self.resolve, classes=self.classes, lent=lent, lend=lend, named=self.known)
