"""Bytes as values: builds only the types listed here, from bytes that a hostile program may have written.

The reader's half of the codec; the format is in `values.py`. Nothing here recurses. Depth, number of items and size are
capped.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import struct
import types
from collections.abc import Callable, Mapping
from typing import Any

from repirl.sandbox.jail.encoding import base_children
from repirl.sandbox.jail.values import (
    DTYPE,
    LENT_TAGS,
    MAX_BYTES,
    MAX_DEPTH,
    MAX_ITEMS,
    TYPES_BACK,
    CodecError,
    Lent,
    TooLarge,
    set_attributes,
)  # fmt: skip


def decode(
    data: bytes,
    *,
    resolve: Callable[[str, int], Any] | None = None,
    classes: Mapping[str, type] = types.MappingProxyType({}),
    lent: Lent | None = None,
    lend: bool = False,
    named: Mapping[str, type] = TYPES_BACK,
) -> Any:
    """The value of bytes; `resolve` makes an object of a reference, `lent`, `lend` and `named` are as in `encode`.

    Raises CodecError and nothing else for bad bytes.
    """
    try:
        return _decode(data, resolve, classes, lent or Lent(), lend, named)
    except CodecError:
        raise
    except MemoryError:
        raise TooLarge("a value too large for this process") from None
    except Exception as error:  # whatever a type's constructor makes of hostile bytes
        raise CodecError(f"bytes that hold no value: {error}") from None


def _decode(
    data: bytes,
    resolve: Callable[[str, int], Any] | None,
    classes: Mapping[str, type],
    lent: Lent,
    lend: bool,
    named: Mapping[str, type],
) -> Any:
    if len(data) > MAX_BYTES:
        raise TooLarge(f"a message of {len(data)} bytes")
    # Open containers: tag, number of children, children so far, and the object itself where it is lent before it is filled.
    stack: list[tuple[bytes, int, list[Any], Any]] = [(b"", 1, [], None)]
    position = items = 0
    while True:
        while len(stack[-1][2]) == stack[-1][1]:
            tag, _, children, begun = stack.pop()
            if not stack:
                if position != len(data):
                    raise CodecError("bytes after the value")
                return children[0]
            made = _built(tag, children, classes, begun, named)
            if type(begun) is _Later:
                lent.put(begun, made)
            stack[-1][2].append(made)
        if position >= len(data):
            raise CodecError("bytes end inside a value")
        items += 1
        if items > MAX_ITEMS or len(stack) > MAX_DEPTH + 1:
            raise TooLarge(f"a value of more than {MAX_ITEMS} items or {MAX_DEPTH} levels")
        tag = data[position : position + 1]
        position += 1
        into = stack[-1][2]
        if tag in b"NTF":
            into.append({b"N": None, b"T": True, b"F": False}[tag])
        elif tag == b"f":
            into.append(struct.unpack_from(">d", data, position)[0])
            position += 8
        elif tag == b"R":
            into.append(_referred(data, position, resolve))
            position += 9
        elif tag == b"#":
            into.append(lent.objects[struct.unpack_from(">I", data, position)[0]])
            position += 4
        else:
            (count,) = struct.unpack_from(">I", data, position)
            position += 4
            if count > len(data) - position:  # a child takes at least one byte
                raise CodecError("bytes end inside a value")
            if tag in b"isb":
                into.append(_text_or_number(tag, data[position : position + count]))
                position += count
                continue
            begun = None
            if lend and tag in LENT_TAGS:
                begun = _begun(tag, data, position, classes)
                lent.add(begun)
            stack.append((tag, count, [], begun))


def _referred(data: bytes, position: int, resolve: Callable[[str, int], Any] | None) -> Any:
    if resolve is None:
        raise CodecError("a reference where only values are allowed")
    kind, number = struct.unpack_from(">cQ", data, position)
    return resolve(kind.decode("latin-1"), number)


def _begun(tag: bytes, data: bytes, position: int, classes: Mapping[str, type]) -> Any:
    """A lent container before its content is known, so that what is in it can refer to it."""
    if tag == b"I":
        (size,) = struct.unpack_from(">I", data, position + 1)
        kind = classes[data[position + 5 : position + 5 + size].decode()]
        return object.__new__(kind)
    return {
        b"l": list,
        b"e": set,
        b"q": collections.deque,
        b"O": collections.OrderedDict,
        b"C": collections.Counter,
    }.get(tag, {b"B": bytearray, b"A": _Later}.get(tag, dict))()


class _Later:
    """In the place of an array, which is made at once."""


def _text_or_number(tag: bytes, content: bytes) -> Any:
    if tag == b"i":
        return int.from_bytes(content, "big", signed=True)
    return content if tag == b"b" else content.decode("utf-8", "surrogatepass")


def _only(items: list[Any], *kinds: type) -> list[Any]:
    """The items, if they are of these exact types."""
    if len(items) != len(kinds) or any(type(item) is not kind for item, kind in zip(items, kinds, strict=True)):
        raise CodecError("children of the wrong number or type")
    return items


def _integers(items: list[Any], count: int) -> list[int]:
    return _only(items, *(int,) * count)


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    if len(items) % 2:
        raise CodecError("a key without a value")
    return list(zip(items[::2], items[1::2], strict=True))


def _instance(items: list[Any], classes: Mapping[str, type], begun: Any) -> Any:
    name, found = _only(items, str, dict)
    if name not in classes:
        raise CodecError(f"an instance of {name!r}, which the tests do not define")
    made: Any = object.__new__(classes[name]) if begun is None else begun
    set_attributes(made, found)
    return made


def _array(items: list[Any]) -> Any:
    dtype, shape, content = _only(items, str, tuple, bytes)
    if not DTYPE.fullmatch(dtype) or any(type(size) is not int for size in shape):
        raise CodecError("an array without a plain dtype or shape")
    import numpy

    if not content:
        return numpy.zeros(shape, dtype) if 0 in shape else numpy.frombuffer(b"", dtype).reshape(shape)
    return numpy.frombuffer(content, dtype).reshape(shape).copy()


def _items_of(items: list[Any]) -> dict[Any, Any]:
    if any(type(item) is not tuple or len(item) != 2 for item in items):
        raise CodecError("items of a dictionary that are no pairs")
    return dict(items)


_BUILDERS: dict[bytes, Callable[[list[Any]], Any]] = {
    b"l": list,
    b"t": tuple,
    b"e": set,
    b"z": frozenset,
    b"q": collections.deque,
    b"1": lambda items: items[0] if len(items) == 1 else _only(items, object),
    b"d": lambda items: dict(_pairs(items)),
    b"O": lambda items: collections.OrderedDict(_pairs(items)),
    b"C": lambda items: collections.Counter(dict(_pairs(items))),
    b"K": lambda items: dict.fromkeys(items).keys(),
    b"V": lambda items: dict(enumerate(items)).values(),
    b"M": lambda items: _items_of(items).items(),
    b"c": lambda items: complex(*_only(items, float, float)),
    b"B": lambda items: bytearray(*_only(items, bytes)),
    b"r": lambda items: range(*_integers(items, 3)),
    b"S": lambda items: slice(*items) if len(items) == 3 else _only(items, object),
    b"k": lambda items: decimal.Decimal(*_only(items, str)),
    b"Q": lambda items: fractions.Fraction(*_integers(items, 2)),
    b"Y": lambda items: datetime.datetime(*_integers(items, 7)),  # type: ignore[arg-type]
    b"y": lambda items: datetime.date(*_integers(items, 3)),
    b"x": lambda items: datetime.time(*_integers(items, 4)),  # type: ignore[arg-type]
    b"X": lambda items: datetime.timedelta(*_integers(items, 3)),
    b"A": _array,
    b"G": lambda items: _array(items)[()],
}


def _built(tag: bytes, items: list[Any], classes: Mapping[str, type], begun: Any, named: Mapping[str, type]) -> Any:
    if tag == b"I":
        return _instance(items, classes, begun)
    if tag == b"P":
        return named[_only(items, str)[0]]
    if tag not in _BUILDERS:
        raise CodecError(f"unknown tag {tag!r}")
    made = _BUILDERS[tag](items)
    if begun is None:
        return made
    if isinstance(begun, dict | set):
        begun.update(made)
    elif isinstance(begun, _Later):
        return made
    else:
        begun.extend(made)
    return begun


def plain(value: Any) -> Any:
    """An instance of a subclass of a built-in type as that type. Raises CodecError for any other."""
    tag, children = base_children(value)
    return _BUILDERS[tag](children)
