"""Values as bytes, between the process of the program and the process of its tests.

Typed and by value, never pickle: decoding builds only the types listed here, from bytes that a hostile program may have
written. Neither direction recurses. Depth, number of items and size are capped.

A value is a tag and its content. Leaves: a tag, for most of them a length, then bytes. Everything else: a tag, the number
of children, the children. Numbers are big-endian. Containers of arguments are lent (`Lent`): one that came before is a
reference to it, so that what was one object arrives as one, and what the other side does to it comes back.
"""

from __future__ import annotations

import builtins
import collections
import datetime
import decimal
import fractions
import re
import struct
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

MAX_BYTES = 32 << 20
MAX_ITEMS = 4_000_000
MAX_DEPTH = 5_000

Reference = tuple[str, int]  # kind (one letter), number in the program's table

_NONE_TYPE: type = type(None)
_BUILTIN_TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (_NONE_TYPE, bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict, range)
}
_ITEM_TYPES: dict[type, bytes] = {list: b"l", tuple: b"t", set: b"e", frozenset: b"z", collections.deque: b"q"}
_PAIR_TYPES: dict[type, bytes] = {
    dict: b"d",
    collections.OrderedDict: b"O",
    collections.Counter: b"C",
    collections.defaultdict: b"d",
}
_VIEW_TYPES: dict[type, bytes] = {type({}.keys()): b"K", type({}.values()): b"V", type({}.items()): b"M"}
_DTYPE = re.compile(r"[<>|=]?(\?|[biufc]\d{1,2}|[US]\d{1,6})")


# Types that tests may hand to a program by name, beyond those that may come back.
_GIVEN_TYPES: dict[str, type] = {
    **{name: kind for name, kind in vars(builtins).items() if isinstance(kind, type)},
    **{kind.__name__: kind for kind in (collections.Counter, collections.OrderedDict, collections.defaultdict)},
    **{kind.__name__: kind for kind in (collections.deque, decimal.Decimal, fractions.Fraction)},
    **_BUILTIN_TYPES,
}
TYPES_BACK: Mapping[str, type] = types.MappingProxyType(_BUILTIN_TYPES)
TYPES_GIVEN: Mapping[str, type] = types.MappingProxyType(_GIVEN_TYPES)
_LENT_TAGS = b"leqdOCBAI"  # of what can be changed in place


class CodecError(ValueError):
    """A value that cannot be sent, or bytes that are none."""


class TooLarge(CodecError):
    """A value beyond the caps."""


class Lent:
    """The containers of one message, in their order. Both sides number them alike, and know them again in the answer."""

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self._places: dict[int, int] = {}  # by identity; `objects` keeps it valid

    def add(self, value: Any) -> None:
        """The next one."""
        self._places[id(value)] = len(self.objects)
        self.objects.append(value)

    def put(self, later: Any, value: Any) -> None:
        """The value in whose place something else was added."""
        place = self._places[id(later)]
        self.objects[place] = value
        self._places[id(value)] = place

    def place(self, value: Any) -> int | None:
        """Its number, if it is one of them."""
        return self._places.get(id(value))


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
        if lend and lent is not None and tag in _LENT_TAGS:
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
    if kind in _ITEM_TYPES:
        return _ITEM_TYPES[kind], list(value)
    if kind in _PAIR_TYPES:
        return _PAIR_TYPES[kind], [part for pair in dict.items(value) for part in pair]
    if kind in _VIEW_TYPES:
        return _VIEW_TYPES[kind], list(value)
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
    return _base_children(value)


def _base_children(value: Any) -> tuple[bytes, list[Any]]:
    """An instance of a subclass of a built-in type as that type, read by the type's own methods."""
    if isinstance(value, int):
        return b"1", [int.__add__(value, 0)]
    if isinstance(value, float):
        return b"1", [float.__add__(value, 0.0)]
    if isinstance(value, str):
        return b"1", [str.__str__(value) if type(str.__str__(value)) is str else str.__getitem__(value, slice(None))]
    if isinstance(value, bytes):
        return b"1", [bytes.__getitem__(value, slice(None))]
    for kind, tag in _ITEM_TYPES.items():
        if isinstance(value, kind):
            return tag, list(kind.__iter__(value))  # type: ignore[attr-defined]
    if isinstance(value, dict):
        return b"d", [part for pair in dict.items(value) for part in pair]
    raise CodecError(f"an object of type {type(value).__name__!r} is no value that tests can compare")


def plain(value: Any) -> Any:
    """An instance of a subclass of a built-in type as that type. Raises CodecError for any other."""
    tag, children = _base_children(value)
    return _BUILDERS[tag](children)


def attributes(value: Any) -> dict[str, Any]:
    """Those of an instance, slots included."""
    found = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                found[name] = getattr(value, name)
    return found


def _numpy_children(value: Any) -> tuple[bytes, list[Any]]:
    import numpy

    if not isinstance(value, numpy.ndarray | numpy.generic) or not _DTYPE.fullmatch(value.dtype.str):
        raise CodecError(f"a numpy {type(value).__name__} of this dtype is no value that tests can compare")
    tag = b"A" if isinstance(value, numpy.ndarray) else b"G"
    return tag, [value.dtype.str, tuple(map(int, value.shape)), value.tobytes()]


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
            if resolve is None:
                raise CodecError("a reference where only values are allowed")
            kind, number = struct.unpack_from(">cQ", data, position)
            position += 9
            into.append(resolve(kind.decode("latin-1"), number))
        elif tag == b"#":
            (place,) = struct.unpack_from(">I", data, position)
            position += 4
            into.append(lent.objects[place])
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
            if lend and tag in _LENT_TAGS:
                begun = _begun(tag, data, position, classes)
                lent.add(begun)
            stack.append((tag, count, [], begun))


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


def set_attributes(made: Any, found: Mapping[Any, Any]) -> None:
    """Raises CodecError for what is no plain attribute of an instance."""
    for key, value in found.items():
        # A program must not put a function of its own in the place of a method that the tests will call.
        if type(key) is not str or key.startswith("__") or callable(getattr(type(made), key, None)):
            raise CodecError(f"an instance of {type(made).__name__!r} with the attribute {key!r:.100}")
        object.__setattr__(made, key, value)


def _array(items: list[Any]) -> Any:
    dtype, shape, content = _only(items, str, tuple, bytes)
    if not _DTYPE.fullmatch(dtype) or any(type(size) is not int for size in shape):
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
