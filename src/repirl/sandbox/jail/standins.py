"""In the process of the tests: what stands there for functions, classes and objects of the program.

Whatever they are asked goes to the program and comes back as a value or as another stand-in. The rule for all of it: no
code of the program decides on a value that the tests hold. A stand-in is not equal to any value. Of two stand-ins the
program says whether they are equal, as of its own objects. An operator between a stand-in and a value gives a stand-in, and
one that has met a value of the tests so, perhaps the expected one, is no number, text or truth by itself any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from repirl.sandbox.jail.values import Reference

_READABLE = {"__name__", "__qualname__", "__dict__", "__annotations__", "__wrapped__", "__members__"}
_PARTS = {"real", "imag", "numerator", "denominator"}


class Asks(Protocol):
    """The tests' end of the conversation."""

    def ask(self, operation: str, *arguments: Any) -> Any:
        """The value of a request."""

    def may_swallow(self, error: BaseException | None) -> bool:
        """Whether a context manager of the program may end this exception of the tests."""


class Refused(TypeError):
    """A stand-in is asked for what only a value could be trusted with."""


class RemoteIterator:
    """An iterator of the program, read item by item."""

    __slots__ = ("_client", "_number")

    def __init__(self, client: Asks, number: int) -> None:
        self._client, self._number = client, number

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._client.ask("next", self)


def _asked(stand_in: Remote, operation: str, *arguments: Any) -> Any:
    """What an object does by itself. That it does not do so is no error of the program, which returned the wrong object."""
    try:
        return stand_in._client.ask(operation, *arguments)
    except TypeError as error:
        raise Refused(str(error)) from None


def _binary(name: str, *, reflected: bool = False) -> Callable[[Remote, Any], Any]:
    def operate(self: Remote, other: Any) -> Any:
        left, right = (other, self) if reflected else (self, other)
        if isinstance(other, Remote):
            return _asked(self, "binary", left, name, right)
        if self._kind == "v":  # as the number, text or list that it is
            plain = self._plain()
            return _OPERATORS[name](other, plain) if reflected else _OPERATORS[name](plain, other)
        found = _asked(self, "binary", left, name, right)
        if not isinstance(found, Remote):
            raise Refused("an operator between an object of the program's and a value gives no value")
        if not (reflected and name == "add" and other == 0):  # the start of `sum`
            object.__setattr__(found, "_met", True)
        return found

    return operate


def _ordered(name: str) -> Callable[[Remote, Any], bool]:
    def compare(self: Remote, other: Any) -> bool:
        if isinstance(other, Remote):
            return _asked(self, "binary", self, name, other) is True
        if self._kind == "v":
            return bool(_OPERATORS[name](self._plain(), other))
        raise Refused("an object of the program's own class is not compared with a value")

    return compare


def _own(operation: str, *more: Any, kind: type | None = None) -> Callable[..., Any]:
    """What an object gives by itself. Refused to one that has met a value of the tests."""

    def give(self: Remote, *arguments: Any) -> Any:
        self._has_met_none()
        found = _asked(self, operation, self, *more, *arguments)
        if kind is not None and type(found) is not kind:
            raise Refused(f"an object of the program's gives no {kind.__name__}")
        return found

    return give


class Remote:
    """A function, class or object of the program. kind: as in `agent.py`; `v`: of a subclass of a value's type, as of list.

    _met: whether it came from an operator with a value of the tests.
    """

    __slots__ = ("_client", "_kind", "_met", "_number")

    def __init__(self, client: Asks, number: int, kind: str) -> None:
        for slot, value in zip(self.__slots__, (client, kind, False, number), strict=True):
            object.__setattr__(self, slot, value)

    def _plain(self) -> Any:
        return self._client.ask("plain", self)

    def _has_met_none(self) -> None:
        if self._met:
            raise Refused("an object of the program's that has met a value of the tests is none itself")

    def __call__(self, *arguments: Any, **named: Any) -> Any:  # noqa: D102
        return self._client.ask("call", self, arguments, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in _READABLE:
            raise AttributeError(name)
        if name in _PARTS:
            self._has_met_none()
        return self._client.ask("attribute", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._client.ask("set_attribute", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._client.ask("delete_attribute", self, name)

    def __getitem__(self, key: Any) -> Any:
        return self._client.ask("item", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._client.ask("set_item", self, key, value)

    def __delitem__(self, key: Any) -> None:
        self._client.ask("delete_item", self, key)

    def __contains__(self, item: Any) -> bool:
        if self._kind == "v":
            return item in self._plain()
        return self._client.ask("contains", self, item) is True

    __iter__ = _own("iterate", kind=RemoteIterator)
    __reversed__ = _own("reversed", kind=RemoteIterator)
    __len__ = _own("length", kind=int)
    __str__ = _own("text", kind=str)
    __repr__ = _own("form", kind=str)
    __format__ = _own("format", kind=str)
    __abs__ = _own("unary", "abs")
    __round__ = _own("unary", "round")
    __int__ = _own("unary", "int", kind=int)
    __float__ = _own("unary", "float", kind=float)
    __complex__ = _own("unary", "complex", kind=complex)
    __index__ = _own("unary", "index", kind=int)
    __trunc__ = _own("unary", "trunc")
    __floor__ = _own("unary", "floor")
    __ceil__ = _own("unary", "ceil")
    __neg__ = _own("unary", "neg")
    __pos__ = _own("unary", "pos")
    __invert__ = _own("unary", "invert")
    __copy__ = _own("copy")

    def __deepcopy__(self, _: Any) -> Any:
        return self._client.ask("deepcopy", self)

    def __next__(self) -> Any:
        self._has_met_none()
        return self._client.ask("next", self)

    def __bool__(self) -> bool:
        if self._kind in "ov":
            self._has_met_none()
            return self._client.ask("truth", self) is True
        return True  # as every function, class and match

    def __hash__(self) -> int:
        found = hash(self._plain()) if self._kind == "v" else self._client.ask("hash", self)
        return found if type(found) is int else 0

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if isinstance(other, Remote):
            return self._client.ask("binary", self, "eq", other) is True
        return self._kind == "v" and bool(self._plain() == other)

    def __ne__(self, other: object) -> bool:
        if isinstance(other, Remote) and self is not other:
            return self._client.ask("binary", self, "ne", other) is True
        return not self == other

    __lt__, __le__, __gt__, __ge__ = (_ordered(name) for name in ("lt", "le", "gt", "ge"))
    __array_ufunc__ = None  # numpy leaves operators to this class

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise Refused("an object of the program's is no array")  # an empty one would be close to anything

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self._client.ask("isinstance", value, self) is True

    def __subclasscheck__(self, kind: Any) -> bool:
        return isinstance(kind, Remote) and self._client.ask("issubclass", kind, self) is True

    def __enter__(self) -> Any:
        return self._client.ask("enter", self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        names = [] if kind is None else [base.__name__ for base in kind.__mro__ if base.__module__ == "builtins"]
        ends = self._client.ask("exit", self, names, "" if error is None else str(error)[:1000])
        return ends is True and self._client.may_swallow(error)


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {}


def _add_operators() -> None:
    import operator

    names = (
        "add",
        "sub",
        "mul",
        "matmul",
        "truediv",
        "floordiv",
        "mod",
        "pow",
        "lshift",
        "rshift",
        "and_",
        "or_",
        "xor",
    )
    for name in names:
        method = name.strip("_")
        _OPERATORS[name] = getattr(operator, name)
        _OPERATORS[f"i{method}"] = getattr(operator, f"i{method}")
        setattr(Remote, f"__{method}__", _binary(name))
        setattr(Remote, f"__r{method}__", _binary(name, reflected=True))
        setattr(Remote, f"__i{method}__", _binary(f"i{method}"))
    for name in ("lt", "le", "gt", "ge"):
        _OPERATORS[name] = getattr(operator, name)


_add_operators()


def reference_of(value: Any) -> Reference | None:
    """Of a stand-in: what it stands for."""
    return ("o", value._number) if isinstance(value, Remote | RemoteIterator) else None
