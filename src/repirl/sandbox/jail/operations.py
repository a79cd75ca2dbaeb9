"""In the process of the program: what tests may ask of its objects, and its exceptions in words and built-in names."""

from __future__ import annotations

import builtins
import copy
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

from repirl.sandbox.jail.decoding import plain


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
    "plain": plain,
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


def builtin_names(kind: type) -> list[str]:
    """The built-in classes that an exception is, nearest first."""
    return [base.__name__ for base in kind.__mro__ if getattr(builtins, base.__name__, None) is base]
