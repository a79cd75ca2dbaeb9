r"""What an answer is: a number, a ratio, a time, words, a set of reals, a list, tuple or set, an equation, an expression.

One reading per text, decided by its form. What two of them are to each other: `compare.py`, and computer algebra.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from repirl.verifiers.reading.clock import Clock, read_clock
from repirl.verifiers.reading.equations import named, sides_of
from repirl.verifiers.reading.latex import respelled, tightened
from repirl.verifiers.reading.numbers import Number, is_numeral, read_number, read_numeral
from repirl.verifiers.reading.quantities import dollars_in, split_quantity
from repirl.verifiers.reading.reals import Reals, read_reals
from repirl.verifiers.reading.structure import both_signs, enclosed, split
from repirl.verifiers.reading.units import Unit, read_unit
from repirl.verifiers.reading.words import is_words, words_key

MAX_DEPTH = 8  # of lists in lists

_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_WHOLE_TEXT = re.compile(r"\\text\{([^{}]*)\}\.?")
_LISTED = re.compile(r" (?:and|or) ")
_SEPARATOR = re.compile(r", |;|,$")
_COLON = re.compile(r":|\\text\{ ?to ?\}| to ")
_BASED = re.compile(r"([0-9A-Z]+)_(?:(\d)|\{(\d+)\})")
_SPOKEN = re.compile(r"(?:[^\W_]|[ .,'’/+-])+")
_SPOKEN_WORD = re.compile(
    r"(?:(?<![\w.])[+-])?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?|[^\W\d_]+(?:['’.][^\W\d_]+)*|[^\s.,'’-]"
)
_NUMBERED = re.compile(r"(?:\\text\{[^\W\d_]{3,}\}|[^\W\d_]{3,})(?: (?:\\text\{[^\W\d_]+\}|[^\W\d_]+|\d+),?)+")
_PRIMED = re.compile(r"([A-Za-z])(?:_(?:\{([^{}]*)\}|(\w)))?('+)")
_FACTOR_BEFORE_BINOMIAL = re.compile(r"([0-9)}]) ?(?=\\binom(?![a-zA-Z]))")
_SIGN_IN_INDEX = re.compile(r"_\{? ?\\(odot|oplus|star|ast|bullet|parallel|perp)(?![a-zA-Z]) ?\}?")
_INDEXED_E = re.compile(r"(?<![\\a-zA-Z])E_(?:\{(\w+)\}|(\w))")
_WRITTEN = re.compile(r"\\text\{[^{}]*[^\W\d_][^{}]*\}|[\d}]'")
_ALL_REALS = frozenset(("allrealnumbers", "realnumbers", "allreals", "thereals", "therealnumbers", "allrealnumbersx"))


@dataclass(frozen=True, slots=True)
class Value:
    """A plain number. written: as it stood, by which a numeral in a base is compared."""

    number: Number
    latex: str


@dataclass(frozen=True, slots=True)
class Based:
    """A numeral in a base."""

    digits: str
    base: str
    latex: str


@dataclass(frozen=True, slots=True)
class Ratio:
    """a : b : c, two parts at least."""

    parts: tuple[str, ...]
    latex: str


@dataclass(frozen=True, slots=True)
class Words:
    """Letters and digits of an answer in words."""

    key: str
    latex: str


@dataclass(frozen=True, slots=True)
class Members:
    r"""Several values. brackets: "" for a bare list, else `()`, `[]` or `\{\}`."""

    brackets: str
    items: tuple[Answer, ...]

    @property
    def latex(self) -> str:
        """With its brackets."""
        inside = ", ".join(item.latex for item in self.items)
        opening, closing = self.brackets[: len(self.brackets) // 2], self.brackets[len(self.brackets) // 2 :]
        return f"{opening}{inside}{closing}"


@dataclass(frozen=True, slots=True)
class Named:
    """An equation that names a value. name: None for a label in words."""

    name: str | None
    value: Answer
    latex: str


@dataclass(frozen=True, slots=True)
class Expression:
    """Anything else: left to computer algebra. written: the words in it, in small letters."""

    latex: str
    written: str = ""


Kind = Value | Based | Ratio | Clock | Words | Reals | Members | Named | Expression


@dataclass(frozen=True, slots=True)
class Answer:
    """A kind with its unit (None: absent, empty: a noun that is no unit) and whether a percent sign follows."""

    kind: Kind
    unit: Unit | None = None
    percent: bool = False

    @property
    def latex(self) -> str:
        """The value without its unit, as computer algebra reads it."""
        return self.kind.latex


def read(answer: str) -> Answer:
    """The reading of an answer as it was written."""
    text = respelled(answer)
    unit = dollars_in(answer)
    if (spoken := _spoken(text)) is not None:
        found = spoken
    elif (clock := read_clock(text)) is not None:
        found = Answer(clock)
    elif (
        (whole := _WHOLE_TEXT.fullmatch(text)) and len(whole[1]) > 1 and is_words(text) and not _LISTED.search(whole[1])
    ):
        found = Answer(_words(whole[1]))
    else:
        found = _read(tightened(text), 0)
    return _in_unit(found, unit) if unit else found


def _in_unit(answer: Answer, unit: Unit) -> Answer:
    """With a unit where it has none of its own, or one that is just a noun."""
    if isinstance(answer.kind, Members):
        return Answer(Members(answer.kind.brackets, tuple(_in_unit(item, unit) for item in answer.kind.items)))
    return answer if answer.unit or answer.percent else Answer(answer.kind, unit)


def _words(text: str) -> Words | Reals:
    key = words_key(text)
    if key in _ALL_REALS and (reals := read_reals(r"\mathbb{R}")):
        return reals
    return Words(key, text)


def _spoken(text: str) -> Answer | None:
    """A number in words or with words of number, and what it counts: `five`, `5 million dollars`, `two and a half`."""
    plain = _TEXT.sub(r" \1 ", text).strip().rstrip(".")
    if len(plain) > 200 or _SPOKEN.fullmatch(plain) is None:
        return None
    words = _SPOKEN_WORD.findall(plain)
    if not any(is_numeral(word) for word in words):
        return None
    found = read_numeral([word.replace(",", "") for word in words])
    if found is None:
        return None
    number, length = found
    unit = read_unit(" ".join(words[length:])) if words[length:] else None
    if words[length:] and unit is None:
        return None
    return Answer(Value(number, _latex(number)), unit)


def _latex(number: Number) -> str:
    value = number.value
    sign = "-" if value < 0 else ""
    return str(value) if value.denominator == 1 else rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def _read(text: str, depth: int) -> Answer:
    if (whole := _WHOLE_TEXT.fullmatch(text)) and len(whole[1]) == 1:
        text = whole[1]  # a choice: A
    if (number := read_number(text)) is not None:
        return Answer(Value(number, text))
    if depth >= MAX_DEPTH:
        return Answer(_expression(text))
    if (clock := read_clock(text)) is not None:
        return Answer(clock)
    if (reals := read_reals(text)) is not None:
        return Answer(reals)
    if len(items := _items(text)) > 1:
        return Answer(Members("", tuple(_read(item, depth + 1) for item in items)))
    if (spoken := _spoken(text)) is not None:
        return spoken
    if is_words(text):
        return Answer(_words(text))
    quantity = split_quantity(text)
    if quantity.value != text:
        inner = _read(quantity.value, depth + 1)
        # Of two units the one at the end is the outer one: `\$5 million` has one, `5 cm m` has none.
        return (
            Answer(inner.kind, quantity.unit, quantity.percent) if inner.unit is None and not inner.percent else inner
        )
    return _structured(text, depth)


def _items(text: str) -> list[str]:
    r"""The values of a list without brackets, both signs of `\pm` written out."""
    items = [item for item in split(text, _SEPARATOR) if item]
    return [value for item in items for value in ([item] if item.startswith(r"\{") else both_signs(item))] or [text]


def _structured(text: str, depth: int) -> Answer:
    if _NUMBERED.fullmatch(text):  # October 30
        return Answer(_words(text))
    if (whole := enclosed(text)) is not None and (brackets := whole[0] + whole[2]) in ("()", "[]", r"\{\}"):
        items = split(whole[1], _SEPARATOR) if brackets != r"\{\}" else _items(whole[1])
        if brackets == r"\{\}" and not whole[1]:
            return Answer(Members(brackets, ()))
        if len(items) > 1 or brackets == r"\{\}":
            return Answer(Members(brackets, tuple(_read(tightened(item), depth + 1) for item in items)))
        if brackets == "()":
            return _read(whole[1], depth + 1)
    if text == r"\emptyset":
        return Answer(Members(r"\{\}", ()))
    if match := _BASED.fullmatch(text):
        return Answer(Based(match[1], match[2] or match[3], text))
    sides = sides_of(text)
    if len(sides) > 1:
        return _equation(text, sides, depth)
    parts = split(text, _COLON)
    if len(parts) > 1 and all(parts) and not any(is_words(part) for part in parts):
        return Answer(Ratio(tuple(parts), ":".join(parts)))
    return Answer(_expression(text))


def _equation(text: str, sides: list[str], depth: int) -> Answer:
    found = named(sides)
    if found is None:
        return Answer(_expression(text))
    name, rest = found
    if len(rest) > 1:  # a chain: algebra looks whether it holds
        return Answer(_expression("=".join(["x", *rest])))
    value = _read(tightened(rest[0]), depth + 1)
    return Answer(Named(name, Answer(value.kind), _algebra(text)), value.unit, value.percent)


def _expression(text: str) -> Expression:
    words = _WRITTEN.findall(text)
    return Expression(_algebra(text), words_key(" ".join(words)) or ("'" if words else ""))


def _algebra(text: str) -> str:
    r"""As computer algebra reads it, to which `2\binom{4}{2}` is a mixed number, `E_0` and `L_{\odot}` nothing, y' y."""
    text = _FACTOR_BEFORE_BINOMIAL.sub(r"\1\\cdot ", text)
    text = _SIGN_IN_INDEX.sub(r"_{\1}", text)
    text = _INDEXED_E.sub(lambda m: f"A_{{E{m[1] or m[2]}}}", text)
    return _PRIMED.sub(lambda m: f"{m[1]}_{{{m[2] or m[3] or ''}{'p' * len(m[4])}}}", text) if "'" in text else text
