"""The codec: what goes over comes back as it was, and no bytes at all can do more than be refused."""

import collections
import contextlib
import datetime
import decimal
import fractions
import math
import os
import random
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repirl.sandbox.jail import decoding, encoding, values
from repirl.sandbox.jail.decoding import decode
from repirl.sandbox.jail.encoding import encode
from repirl.sandbox.jail.values import CodecError, TooLarge

FUZZ = int(os.environ.get("REPIRL_FUZZ", "1"))  # how many times the usual number of examples
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**300), max_value=2**300)
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters(codec=None), max_size=8)  # surrogates too
    | st.binary(max_size=8)
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.dates()
    | st.datetimes()
    | st.times()
    | st.timedeltas()
)
HASHABLE = st.recursive(LEAVES, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.sets(HASHABLE, max_size=3)
        | st.dictionaries(HASHABLE, inner, max_size=3)
        | st.lists(inner, max_size=3).map(collections.deque)
        | st.dictionaries(HASHABLE, inner, max_size=3).map(collections.OrderedDict)
    ),
    max_leaves=8,
)


def same(left: Any, right: Any) -> bool:
    """Equal in type and content, all the way down; 1, 1.0 and True differ."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list | tuple | collections.deque):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return len(left) == len(right) and all(map(same, left.items(), right.items()))
    if isinstance(left, set | frozenset):
        return len(left) == len(right) and all(any(same(a, b) for b in right) for a in left)
    if isinstance(left, float):
        return struct.pack(">d", left) == struct.pack(">d", right)
    return bool(left == right)


@settings(max_examples=60 * FUZZ, deadline=None)
@given(VALUES)
def test_a_value_comes_back_as_it_was(value):
    assert same(decode(encode(value)), value)


@settings(max_examples=200 * FUZZ, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_refused(data):
    with contextlib.suppress(CodecError):
        decode(data)


@settings(max_examples=100 * FUZZ, deadline=None)
@given(VALUES, st.randoms(use_true_random=False))
def test_damaged_bytes_are_a_value_or_refused(value, chance: random.Random):
    data = bytearray(encode(value))
    for _ in range(chance.randint(1, 4)):
        position = chance.randrange(len(data))
        action = chance.randrange(3)
        if action == 0:
            data[position] = chance.choice(b"NTFfisbltezqdOCKVMcBrSkQYyxXPAGIR1\x00\xff")
        elif action == 1 and len(data) > 1:
            del data[position]
        else:
            data[position:position] = bytes([chance.randrange(256)])
    try:
        found = decode(bytes(data), resolve=lambda kind, number: (kind, number), classes={})
    except CodecError:
        return
    assert type(found).__module__ in ("builtins", "collections", "decimal", "fractions", "datetime", "numpy")


ALPHABET = [b"N", b"T", b"f" + bytes(8), b"i\0\0\0\1\5", b"s\0\0\0\1a", b"b\0\0\0\2<i"]
ALPHABET += [
    bytes([tag]) + struct.pack(">I", count) for tag in b"ltezqdOCKVMcBrSkQYyxXPAGI1" for count in (0, 1, 2, 3, 4, 7)
]


@settings(max_examples=200 * FUZZ, deadline=None)
@given(st.lists(st.sampled_from(ALPHABET), max_size=12))
def test_well_formed_nonsense_is_a_value_or_refused(parts):
    for more in (b"", b"N" * 8):
        with contextlib.suppress(CodecError):
            decode(b"".join(parts) + more)


def test_bytes_by_hand():
    # A list of two: the integer 258 = 0x0102 (two bytes) and the text "é" (0xC3A9 in UTF-8).
    data = b"l\0\0\0\2" + b"i\0\0\0\2\1\2" + b"s\0\0\0\2\xc3\xa9"
    assert encode([258, "é"]) == data
    assert decode(data) == [258, "é"]
    # -1 is one byte of ones; 128 needs a leading zero byte to stay positive.
    assert encode(-1) == b"i\0\0\0\1\xff"
    assert encode(128) == b"i\0\0\0\2\0\x80"


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        bytearray(b"a"),
        range(1, 10, 3),
        slice(None, 3),
        {1: 2}.keys(),
        {1: 2}.items(),
        collections.Counter("aab"),
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.zeros((0, 3)),
        np.array(2.5),
        np.float32(0.1),
        np.bool_(True),
        np.array(["a", "bc"]),
        [int, str, type(None)],
        decimal.Decimal("-0.10"),
        fractions.Fraction(-1, 3),
        datetime.timedelta(-1, 3, 5),
    ],
)
def test_other_types_come_back(value):
    found = decode(encode(value))
    assert type(found) is type(value)
    assert repr(found) == repr(value)
    assert getattr(found, "dtype", None) == getattr(value, "dtype", None)


class Liar(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


class Words(str):
    def __str__(self) -> str:
        return "other"


class Row(list):
    def __iter__(self):
        return iter([9])


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Liar(3), 3),
        ([Liar(3)], [3]),
        (Row([1, 2]), [1, 2]),
        (collections.namedtuple("P", "x y")(1, 2), (1, 2)),
        (collections.defaultdict(list, {1: [2]}), {1: [2]}),
        (type("D", (dict,), {})({1: 2}), {1: 2}),
        (type("F", (float,), {})(0.5), 0.5),
    ],
)
def test_subclasses_go_as_the_type_below(value, plain):
    assert same(decode(encode(value)), plain)


def test_a_text_that_lies_about_itself_is_a_plain_text():
    assert type(decode(encode(Words("a")))) is str


@pytest.mark.parametrize(
    "value",
    [
        object(),
        lambda: 0,
        Liar,
        [object()],
        {1: object()},
        np.array([object()]),
        datetime.datetime.now(datetime.UTC),
        compile("1", "", "eval"),
    ],
)
def test_what_is_no_value_is_refused(value):
    with pytest.raises(CodecError):
        encode(value)


def test_caps(monkeypatch):
    max_bytes = 1 << 20
    for half in (encoding, decoding):
        monkeypatch.setattr(half, "MAX_ITEMS", 20_000)
        monkeypatch.setattr(half, "MAX_BYTES", max_bytes)
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    deep: Any = 0
    for _ in range(values.MAX_DEPTH + 2):
        deep = [deep]
    wide: Any = [0]
    for _ in range(40):
        wide = [wide, wide]
    for value in (cyclic, deep, wide, "x" * (max_bytes + 1), [b"x" * (1 << 16)] * 40):
        with pytest.raises(TooLarge):
            encode(value, max_bytes=max_bytes)
    nest = values.MAX_DEPTH + 2
    for data in (b"l\0\0\0\1" * nest + b"N", b"N" * (max_bytes + 1)):
        with pytest.raises(TooLarge):
            decode(data)
    lower = b"l\0\0\0\1" * (values.MAX_DEPTH - 1) + b"N"
    assert encode(decode(lower)) == lower


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"NN",
        b"?",
        b"l\xff\xff\xff\xff",  # four billion children in no bytes: nothing is allocated for them
        b"s\xff\xff\xff\xff",
        b"e\0\0\0\1" + b"l\0\0\0\0",  # a set of lists
        b"d\0\0\0\1N",  # a key without a value
        b"s\0\0\0\1\xff",  # no UTF-8
        b"k\0\0\0\1" + b"s\0\0\0\1x",  # no number
        b"Q\0\0\0\2" + b"i\0\0\0\1\1" + b"i\0\0\0\1\0",  # 1/0
        b"r\0\0\0\3" + b"i\0\0\0\1\0" * 3,  # a step of 0
        b"Y\0\0\0\7" + b"i\0\0\0\1\0" * 7,  # the year 0
        b"P\0\0\0\1" + b"s\0\0\0\4eval",
        b"A\0\0\0\3" + b"s\0\0\0\1O" + b"t\0\0\0\0" + b"b\0\0\0\x08" + bytes(8),  # an array of pointers
        b"A\0\0\0\3" + b"s\0\0\0\3<f8" + b"t\0\0\0\1i\0\0\0\4\x7f\xff\xff\xff" + b"b\0\0\0\1x",  # a shape without data
        b"I\0\0\0\2" + b"s\0\0\0\1A" + b"d\0\0\0\0",  # a class that nobody defines
        b"R" + b"f" + bytes(8),  # a reference where there is nobody to ask
    ],
)
def test_bad_bytes(data):
    with pytest.raises(CodecError):
        decode(data)


def test_references_are_resolved_by_the_reader():
    data = encode([len], export=lambda value: ("f", 7) if value is len else None)
    assert data == b"l\0\0\0\1" + b"Rf" + (7).to_bytes(8, "big")
    assert decode(data, resolve=lambda kind, number: (kind, number)) == [("f", 7)]


def test_numbers_that_are_none_stay_none():
    assert math.isnan(decode(encode(float("nan"))))
    assert math.copysign(1, decode(encode(-0.0))) == -1


class Slotted:
    __slots__ = ("v",)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slotted) and self.v == other.v

    __hash__ = None

    def double(self) -> int:
        return 2 * self.v


def test_instances_of_known_classes_go_by_value():
    one = Slotted()
    one.v = [1]
    assert decode(encode(one, classes={"Slotted": Slotted}), classes={"Slotted": Slotted}) == one
    for attributes in ({"double": 1}, {"__class__": int}, {1: 2}, {"other": 1}):
        data = b"I\0\0\0\2" + encode("Slotted") + encode(attributes)
        with pytest.raises(CodecError):
            decode(data, classes={"Slotted": Slotted})
