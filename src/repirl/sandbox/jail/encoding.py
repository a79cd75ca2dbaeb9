"""Values as bytes, never pickle: by value, or by a reference to what is no value. The sender's half of the codec.

The format is in `values.py`. Nothing here recurses. Depth, number of items and size are capped.
"""

from __future__ import annotations

import datetime
import decimal
import fractions
import struct
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

from repirl.sandbox.jail.values import (
    DTYPE,
    ITEM_TAGS,
    LENT_TAGS,
    MAX_BYTES,
    MAX_DEPTH,
    MAX_ITEMS,
    PAIR_TAGS,
    TYPES_BACK,
    VIEW_TAGS,
    CodecError,
    Lent,
    Reference,
    TooLarge,
    attributes,
)  # fmt: skip


def encode(
    value: Any,
    *,
    export: Callable[[Any], Reference | None] = lambda _: None,
    classes: Mapping[str, type] = types.MappingProxyType({}),
    max_bytes: int = MAX_BYTES,
    lent: Lent | None = None,
    lend: bool = False,
    named: Mapping[str, type] = TYPES_BACK,
) -> bytes:
    """Bytes of a value.

    export: turns an object that is no value into a reference, or None. classes: those whose instances go by value, by
    name. lent: containers that the other side knows by number; with `lend` those of this value are added. named: types
    that go by their name. Subclasses of built-in types go as the built-in type. Raises CodecError, TooLarge.
    """
    out = bytearray()
    stack = [(value, 0)]
    items = 0
    while stack:
        value, depth = stack.pop()
        items += 1
        if depth > MAX_DEPTH:
            raise TooLarge(f"a value nested deeper than {MAX_DEPTH} levels, or one that contains itself")
        if items > MAX_ITEMS or len(out) > max_bytes:
            raise TooLarge(f"a value of more than {max_bytes >> 20} MiB or {MAX_ITEMS} items")
        leaf = _leaf(value)
        if leaf is not None:
            out += leaf
            continue
        place = None if lent is None else lent.place(value)
        if place is not None:
            out += b"#" + struct.pack(">I", place)
            continue
        tag, children = _children(value, export, classes, named)
        if lend and lent is not None and tag in LENT_TAGS:
            lent.add(value)
        if isinstance(children, bytes):
            out += tag + children
            continue
        out += tag + struct.pack(">I", len(children))
        stack.extend((child, depth + 1) for child in reversed(children))
    if len(out) > max_bytes:
        raise TooLarge(f"a value of more than {max_bytes >> 20} MiB")
    return bytes(out)


def _sized(tag: bytes, content: bytes) -> bytes:
    if len(content) > MAX_BYTES:
        raise TooLarge(f"a value of more than {MAX_BYTES >> 20} MiB")
    return tag + struct.pack(">I", len(content)) + content


def _leaf(value: Any) -> bytes | None:
    kind = type(value)
    if value is None:
        return b"N"
    if kind is bool:
        return b"T" if value else b"F"
    if kind is int:
        return _sized(b"i", value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
    if kind is float:
        return b"f" + struct.pack(">d", value)
    if kind is str:
        return _sized(b"s", value.encode("utf-8", "surrogatepass"))
    if kind is bytes:
        return _sized(b"b", value)
    return None


def _children(
    value: Any, export: Callable[[Any], Reference | None], classes: Mapping[str, type], named: Mapping[str, type]
) -> tuple[bytes, list[Any] | bytes]:
    """Tag and children of what is no leaf; or tag and bytes of a reference."""
    kind = type(value)
    if kind in ITEM_TAGS:
        return ITEM_TAGS[kind], list(value)
    if kind in PAIR_TAGS:
        return PAIR_TAGS[kind], [part for pair in dict.items(value) for part in pair]
    if kind in VIEW_TAGS:
        return VIEW_TAGS[kind], list(value)
    if kind is complex:
        return b"c", [value.real, value.imag]
    if kind is bytearray:
        return b"B", [bytes(value)]
    if kind is range:
        return b"r", [value.start, value.stop, value.step]
    if kind is slice:
        return b"S", [value.start, value.stop, value.step]
    if kind is decimal.Decimal:
        return b"k", [str(value)]
    if kind is fractions.Fraction:
        return b"Q", [value.numerator, value.denominator]
    if kind is datetime.datetime and value.tzinfo is None:
        return b"Y", [*value.timetuple()[:6], value.microsecond]
    if kind is datetime.date:
        return b"y", [value.year, value.month, value.day]
    if kind is datetime.time and value.tzinfo is None:
        return b"x", [value.hour, value.minute, value.second, value.microsecond]
    if kind is datetime.timedelta:
        return b"X", [value.days, value.seconds, value.microseconds]
    if isinstance(value, type) and named.get(value.__name__) is value:
        return b"P", [value.__name__]
    reference = export(value) if kind.__module__ != "numpy" else None
    if reference is None and kind.__module__ == "numpy" and "numpy" in sys.modules:
        return _numpy_children(value)
    if reference is None and kind.__name__ in classes:
        return b"I", [kind.__name__, attributes(value)]
    if reference is not None:
        return b"R", reference[0].encode() + struct.pack(">Q", reference[1])
    return base_children(value)


def base_children(value: Any) -> tuple[bytes, list[Any]]:
    """An instance of a subclass of a built-in type as that type, read by the type's own methods."""
    if isinstance(value, int):
        return b"1", [int.__add__(value, 0)]
    if isinstance(value, float):
        return b"1", [float.__add__(value, 0.0)]
    if isinstance(value, str):
        return b"1", [str.__str__(value) if type(str.__str__(value)) is str else str.__getitem__(value, slice(None))]
    if isinstance(value, bytes):
        return b"1", [bytes.__getitem__(value, slice(None))]
    for kind, tag in ITEM_TAGS.items():
        if isinstance(value, kind):
            return tag, list(kind.__iter__(value))  # type: ignore[attr-defined]
    if isinstance(value, dict):
        return b"d", [part for pair in dict.items(value) for part in pair]
    raise CodecError(f"an object of type {type(value).__name__!r} is no value that tests can compare")


def _numpy_children(value: Any) -> tuple[bytes, list[Any]]:
    import numpy

    if not isinstance(value, numpy.ndarray | numpy.generic) or not DTYPE.fullmatch(value.dtype.str):
        raise CodecError(f"a numpy {type(value).__name__} of this dtype is no value that tests can compare")
    tag = b"A" if isinstance(value, numpy.ndarray) else b"G"
    return tag, [value.dtype.str, tuple(map(int, value.shape)), value.tobytes()]
