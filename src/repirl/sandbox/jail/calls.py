"""In the process of the tests: calls with arguments and expected values in JSON."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_INTEGER = re.compile(r"-?\d{1,18}", re.ASCII)
_INTEGER_KEY = re.compile(rf'"{_INTEGER.pattern}"\s*:', re.ASCII)
_LONGEST_SHOWN = 4_300  # digits of an integer: more take long to write
Test = tuple[list[Any], list[Any]]  # readings of the arguments and of the expected value


def parsed(pairs: Sequence[tuple[str, str]]) -> list[Test]:
    """The tests. Raises ValueError where they are no JSON."""
    tests = [(readings(arguments), readings(expected)) for arguments, expected in pairs]
    if any(type(arguments[0]) is not list for arguments, _ in tests):
        raise ValueError("the arguments of a call are no JSON array")
    return tests


def readings(text: str) -> list[Any]:
    """What a JSON text may stand for.

    Keys of JSON objects are texts, whatever they were before. An object whose keys all are integers is read with numbers
    as keys: in the outermost objects, as APPS's judge does; throughout; and, last, with its texts.
    """
    depths = (2, -1, 0) if _INTEGER_KEY.search(text) else (0,)  # the arguments' outermost objects stand in an array
    return [_with_numbers(json.loads(text), depth) for depth in depths]


def _with_numbers(value: Any, depth: int) -> Any:
    """With numbers as keys in so many outermost levels; in all of them where it is negative."""
    if not depth:
        return value
    if isinstance(value, list):
        return [_with_numbers(item, depth - 1) for item in value]
    if not isinstance(value, dict):
        return value
    numbers = all(map(_INTEGER.fullmatch, value))
    return {int(key) if numbers else key: _with_numbers(item, depth - 1) for key, item in value.items()}


def head(entry_point: str) -> str:
    """The global name in `name`, `Class.name` and `Class().name`."""
    return entry_point.partition(".")[0].removesuffix("()")


def wanted(entry_point: str) -> set[str]:
    """Global names under which a program may define what is asked for."""
    return {head(entry_point), entry_point.rpartition(".")[2], "Solution"}


def entry(names: Mapping[str, Any], entry_point: str) -> Callable[..., Any]:
    """The function to call. As on the judges of APPS and LiveCodeBench it may be a method of `Solution` or none.

    Raises NameError.
    """
    name, method = head(entry_point), entry_point.partition(".")[2]
    if name in names:
        return getattr(names[name](), method) if method else names[name]  # type: ignore[no-any-return]
    if method in names:
        return names[method]  # type: ignore[no-any-return]
    if not method and "Solution" in names:
        with contextlib.suppress(AttributeError):
            return getattr(names["Solution"](), name)  # type: ignore[no-any-return]
    raise NameError(f"the program does not define {name!r}")


def compare(function: Callable[..., Any], tests: Sequence[Test]) -> None:
    """Calls it once for each test, once more for each other reading where that fails. Raises what the program raised.

    Raises AssertionError where it returned another value than expected.
    """
    for number, (arguments, expected) in enumerate(tests):
        failures = []
        for reading in arguments:
            try:
                found = _plain(function(*reading))
            except Exception as error:
                failures.append(error)
                continue
            if any(found == value for value in expected):
                break
            failures.append(AssertionError(f"call {number}: found {_shown(found)}, expected another value"))
        else:
            raise failures[0]


def _plain(value: Any) -> Any:
    """Tuples as lists, as in JSON."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _shown(value: Any) -> str:
    sys.set_int_max_str_digits(_LONGEST_SHOWN)
    try:
        return f"{value!r:.200}"
    except ValueError:
        return "an integer of many digits"
    finally:
        sys.set_int_max_str_digits(0)
