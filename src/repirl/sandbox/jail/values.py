"""What goes over between the process of the program and the process of its tests: which values, how large, by what tags.

`encoding.py` makes bytes of a value, `decoding.py` a value of bytes.

A value is a tag and its content. Leaves: a tag, for most of them a length, then bytes. Everything else: a tag, the number
of children, the children. Numbers are big-endian. Containers of arguments are lent (`Lent`): one that came before is a
reference to it, so that what was one object arrives as one, and what the other side does to it comes back.
"""

from __future__ import annotations

import builtins
import collections
import decimal
import fractions
import re
import types
from collections.abc import Mapping
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
ITEM_TAGS: dict[type, bytes] = {list: b"l", tuple: b"t", set: b"e", frozenset: b"z", collections.deque: b"q"}
PAIR_TAGS: dict[type, bytes] = {
    dict: b"d",
    collections.OrderedDict: b"O",
    collections.Counter: b"C",
    collections.defaultdict: b"d",
}
VIEW_TAGS: dict[type, bytes] = {type({}.keys()): b"K", type({}.values()): b"V", type({}.items()): b"M"}
DTYPE = re.compile(r"[<>|=]?(\?|[biufc]\d{1,2}|[US]\d{1,6})")


# Types that tests may hand to a program by name, beyond those that may come back.
_GIVEN_TYPES: dict[str, type] = {
    **{name: kind for name, kind in vars(builtins).items() if isinstance(kind, type)},
    **{kind.__name__: kind for kind in (collections.Counter, collections.OrderedDict, collections.defaultdict)},
    **{kind.__name__: kind for kind in (collections.deque, decimal.Decimal, fractions.Fraction)},
    **_BUILTIN_TYPES,
}
TYPES_BACK: Mapping[str, type] = types.MappingProxyType(_BUILTIN_TYPES)
TYPES_GIVEN: Mapping[str, type] = types.MappingProxyType(_GIVEN_TYPES)
LENT_TAGS = b"leqdOCBAI"  # of what can be changed in place


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


def attributes(value: Any) -> dict[str, Any]:
    """Those of an instance, slots included."""
    found = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                found[name] = getattr(value, name)
    return found


def set_attributes(made: Any, found: Mapping[Any, Any]) -> None:
    """Raises CodecError for what is no plain attribute of an instance."""
    for key, value in found.items():
        # A program must not put a function of its own in the place of a method that the tests will call.
        if type(key) is not str or key.startswith("__") or callable(getattr(type(made), key, None)):
            raise CodecError(f"an instance of {type(made).__name__!r} with the attribute {key!r:.100}")
        object.__setattr__(made, key, value)
