"""What one side has done to the containers that the other one lent it: found there, sent by value, done again here."""

from __future__ import annotations

import collections
import operator
import sys
from collections.abc import Sequence
from typing import Any

from repirl.sandbox.jail.values import CodecError, Lent, attributes, set_attributes

Change = list[Any]  # [number of the container, its new content]


def contents(lent: Lent) -> list[Any]:
    """What is in each container now."""
    return [_content(value) for value in lent.objects]


def _content(value: Any) -> Any:
    if isinstance(value, list | collections.deque):
        return list(value)
    if isinstance(value, dict):
        return dict.copy(value) if type(value) is dict else dict(dict.items(value))
    if isinstance(value, set):
        return set(value)
    if isinstance(value, bytearray):
        return bytes(value)
    if _is_array(value):
        return value.copy()
    return attributes(value)


def changes(lent: Lent, before: Sequence[Any]) -> list[Change]:
    """The containers that are not as before. The same objects in the same places are no change."""
    found = []
    for place, (value, old) in enumerate(zip(lent.objects, before, strict=True)):
        new = _content(value)
        if not _same(old, new):
            found.append([place, new])
    return found


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, list):
        return len(old) == len(new) and all(map(operator.is_, old, new))
    if isinstance(old, dict):
        return _same(list(old), list(new)) and _same(list(old.values()), list(new.values()))
    if isinstance(old, set):
        return len(old) == len(new) and {id(item) for item in old} == {id(item) for item in new}
    if isinstance(old, bytes):
        return bool(old == new)
    return bool(old.dtype == new.dtype and old.shape == new.shape and old.tobytes() == new.tobytes())


def apply(lent: Lent, found: Any) -> None:
    """Does the changes to the containers themselves. Raises CodecError for what is no change of one of them."""
    if type(found) is not list:
        raise CodecError("changes that are no list")
    for change in found:
        if type(change) is not list or len(change) != 2 or type(change[0]) is not int:
            raise CodecError("a change without a container")
        place, content = change
        if not 0 <= place < len(lent.objects):
            raise CodecError("a change of a container that was not lent")
        _fill(lent.objects[place], content)


def _fill(value: Any, content: Any) -> None:
    kind = type(content)
    if isinstance(value, list) and kind is list:
        list.__setitem__(value, slice(None), content)
    elif isinstance(value, collections.deque) and kind is list:
        collections.deque.clear(value)
        collections.deque.extend(value, content)
    elif isinstance(value, dict) and kind is dict:
        dict.clear(value)
        for key, item in content.items():
            dict.__setitem__(value, key, item)
    elif isinstance(value, set) and kind is set:
        set.clear(value)
        set.update(value, content)
    elif isinstance(value, bytearray) and kind is bytes:
        bytearray.__setitem__(value, slice(None), content)
    elif _is_array(value) and kind is type(value) and (content.dtype, content.shape) == (value.dtype, value.shape):
        value[...] = content
    elif type(value).__module__ not in ("builtins", "numpy", "collections") and kind is dict:
        set_attributes(value, content)
        for name in attributes(value).keys() - content.keys():
            object.__delattr__(value, name)
    else:
        raise CodecError("new content of another type than the container's")


def _is_array(value: Any) -> bool:
    return "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].ndarray)
