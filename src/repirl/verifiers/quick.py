r"""Decisions on a (gold, answer) pair that need no computer algebra, and the guards before it. Pure.

Policies, where mathematics alone does not decide:
- plain numbers are compared exactly: 0.333 is not 0.3333, and 0.50 is 0.5; only a decimal of six places and more may be
  a rounded fraction: 0.333333 is 1/3, 0.333 is not;
- in a list the order does not matter, and a value given twice counts twice;
- `x%` equals `x/100`, and also `x`, since a question often implies the sign;
- a unit that one side omits is implied; two known units that differ (5 cm, 5 m) are unequal, nothing is converted; two
  unknown ones (apples, fruits) say nothing;
- a base (`52_8`) that one side omits is implied;
- `(1, 2)`, `[1, 2]` and `\{1, 2\}` are different things;
- words are compared as words, without regard to case and punctuation.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from repirl.structs import Verdict
from repirl.verifiers.answers import normalise

EQUAL = Verdict(correct=True, status="equal")
NOT_EQUAL = Verdict(correct=False, status="not_equal")
NO_ANSWER = Verdict(correct=False, status="no_answer")
GOLD_UNPARSED = Verdict(correct=None, status="gold_unparsed")

MAX_CHARS = 2_000  # of an answer; MATH's longest has 204
MAX_DIGITS = 1_000  # in one run
MAX_EXPONENT = 10_000  # MATH has 2^{4950}
MAX_FACTORIAL = 5_000  # MATH has 2004!
MAX_NESTING = 30  # powers of factorials of powers
ROUNDED_PLACES = 6  # of a decimal that may stand for a fraction
ROUNDED_SHARE = 10_000  # and it is off by one part of so many at most: 0.000001 is not 3/2000000
# Stands for any number too large to write: oversized as an exponent, harmless as a base. Spaces, since 9!9 is not 99.
_HUGE = " 9999999 "

_NUMBER = r"[+-]?\d+(?:\.\d+)?"
_CLOCK = r"\d+(?::\d\d)+"
_DECIMAL = re.compile(_NUMBER)
_RATIO = re.compile(rf"(?P<sign>-?)(?:\\frac\{{({_NUMBER})\}}\{{({_NUMBER})\}}|({_NUMBER})/({_NUMBER}))")
_MIXED = re.compile(r"(-?)(\d+) ?\\frac\{(\d+)\}\{(\d+)\}")
_REPEATING = re.compile(r"(-?)(\d+)\.(\d*)\\overline\{(\d+)\}")
_BASED = re.compile(r"([0-9A-Z]+)_(?:(\d)|\{(\d+)\})")
_WORDS = re.compile(r"[A-Za-z][A-Za-z .'()-]*")
_WORD_OF_4 = re.compile(r"[A-Za-z]{4}")
_OUTER = re.compile(r"(\\\{|\(|\[)[^()\[\]]*,[^()\[\]]*?(\\\}|\)|\])")

_POWER = re.compile(r"(\d+)\s*\^\s*(?:\{\s*[+-]?(\d+)\s*\}|[+-]?(\d+))(?!\s*[\^!\d])")
_ANY_POWER = re.compile(r"\^\s*(?:\{\s*[+-]?(\d+)\s*\}|[+-]?(\d+))")
_FACTORIAL = re.compile(r"(\d+)\s*!")
_ENCLOSED = re.compile(r"\(\s*(\d+)\s*\)")
_LONG_IN_EXPONENT = re.compile(r"\^\s*(?:\{[^{}]*|\([^()]*)\d{6,}")


def oversized(text: str) -> bool:
    """Whether computing with `text` could take a machine's time or memory: nothing is computed to find out."""
    if len(text) > MAX_CHARS or re.search(rf"\d{{{MAX_DIGITS + 1}}}", text):
        return True
    text = text.replace("**", "^")
    for _ in range(MAX_NESTING):
        if any(int(m[1] or m[2]) > MAX_EXPONENT for m in _ANY_POWER.finditer(text)):
            return True
        if any(int(m[1]) > MAX_FACTORIAL for m in _FACTORIAL.finditer(text)):
            return True
        # One kind a round, innermost first: each result must pass the checks above before it is used.
        for pattern, value in _REDUCTIONS:
            reduced = pattern.sub(value, text)
            if reduced != text:
                break
        else:
            return _LONG_IN_EXPONENT.search(text) is not None
        text = reduced
    return True


def _power_value(match: re.Match[str]) -> str:
    base, exponent = int(match[1]), int(match[2] or match[3])
    return f" {base**exponent} " if exponent * base.bit_length() <= 24 else _HUGE


def _factorial_value(match: re.Match[str]) -> str:
    n = int(match[1])
    return f" {math.factorial(n)} " if n <= 9 else _HUGE


def _enclosed_value(match: re.Match[str]) -> str:
    return f" {match[1]} "


_REDUCTIONS = ((_FACTORIAL, _factorial_value), (_ENCLOSED, _enclosed_value), (_POWER, _power_value))


_UNITS = {
    alias: name
    for name, aliases in {
        "millimetre": "mm millimeter",
        "centimetre": "cm centimeter",
        "metre": "m meter",
        "kilometre": "km kilometer",
        "inch": "in inche",
        "foot": "ft feet",
        "yard": "yd",
        "mile": "mi",
        "milligram": "mg",
        "gram": "g",
        "kilogram": "kg kilo",
        "pound": "lb",
        "ounce": "oz",
        "litre": "l liter",
        "millilitre": "ml milliliter",
        "second": "s sec",
        "minute": "min",
        "hour": "h hr",
        "day": "",
        "week": "",
        "month": "",
        "year": "yr",
        "dollar": "usd",
        "cent": "",
        "euro": "eur",
        "degree": "deg",
        "radian": "rad",
        "am": "a.m a.m.",
        "pm": "p.m p.m.",
    }.items()
    for alias in (name, *aliases.split())
}
# Words that change the value: never a unit.
_VALUE_WORD = re.compile(
    r"\b(?:hundred|thousand|million|billion|trillion|dozen|half|halves|thirds?|quarters?|fourths?|fifths?|tenths?|plus|minus|"
    r"times|over|squared|cubed|to|mod|pi|by|less|more|or|and|not|no)\b",
    re.IGNORECASE,
)
_POWER_OF_UNIT = r"(?:\^(?:\d|\{\d\}))?"
_TEXT_UNIT = re.compile(rf"(?P<value>.*?[0-9}})a-z])\s*\\text\{{(?P<unit>[A-Za-z ./]+)\}}(?P<power>{_POWER_OF_UNIT})")
_UNIT_WORDS = r"[A-Za-z./]{2,}(?: [A-Za-z]{2,})*"
_WORD_UNIT = re.compile(rf"(?P<value>{_NUMBER}|{_CLOCK}) (?P<unit>{_UNIT_WORDS})(?P<power>{_POWER_OF_UNIT})")
_GLUED_UNIT = re.compile(rf"(?P<value>{_NUMBER}) ?(?P<unit>[A-Za-z]{{1,6}})(?P<power>{_POWER_OF_UNIT})")
_DEGREE = re.compile(r"(?P<value>.*[0-9}])\^\\circ")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value and what follows it. unit: None where absent or unknown; percent: a percent sign follows."""

    value: str
    unit: str | None = None
    percent: bool = False


def read_quantity(text: str) -> Quantity:
    """Splits a normalised answer into value, unit and percent sign.

    A unit in plain letters needs a place in the table, or a space and four letters: `5 x`, `5 ab` and `5xy` are
    products, `5 a/b` is a fraction.
    """
    if text.endswith("%") and len(text) > 1:
        return Quantity(text[:-1].strip(), percent=True)
    if degrees := _DEGREE.fullmatch(text):
        return Quantity(degrees["value"], unit="degree")
    match = _TEXT_UNIT.fullmatch(text) or _WORD_UNIT.fullmatch(text)
    glued = _GLUED_UNIT.fullmatch(text)
    if match is None and glued is not None and len(glued["unit"]) > 1 and _known_unit(glued["unit"], ""):
        match = glued
    if match is not None and r"\text" not in text and not _known_unit(match["unit"], ""):
        plausible = "/" not in match["unit"] and len(match["unit"]) >= 4
        match = match if plausible else None
    if match is None or _VALUE_WORD.search(match["unit"]):
        return Quantity(text)
    return Quantity(match["value"].strip(), unit=_known_unit(match["unit"], match["power"]))


def _in_dollars(raw: str, quantity: Quantity) -> Quantity:
    """A dollar sign is a unit that stands before the value; a pair of plain ones encloses mathematics."""
    if quantity.unit is None and not quantity.percent and (r"\$" in raw or raw.count("$") == 1):
        return Quantity(quantity.value, unit="dollar")
    return quantity


def _with_letter_unit(quantity: Quantity, other_unit: str | None) -> Quantity:
    """`5 m` is five metres beside another length in metres, else 5 times m."""
    match = _GLUED_UNIT.fullmatch(quantity.value) if quantity.unit is None and other_unit else None
    if match is not None and _known_unit(match["unit"], match["power"]) == other_unit:
        return Quantity(match["value"], unit=other_unit)
    return quantity


def _known_unit(words: str, power: str) -> str | None:
    """`square inches` and `in^2` -> inch^2; None for a unit that is not in the table."""
    exponent = power.strip("^{}")
    word = words.strip().lower().rstrip(".")
    over = re.split(r"/| per ", word.replace("kmph", "km/hour").replace("mph", "mile/hour"))
    if len(over) > 1:
        parts = [_known_unit(part, "") for part in over]
        return "/".join(part for part in parts if part) if all(parts) else None
    for prefix, implied in (("square ", "2"), ("sq ", "2"), ("cubic ", "3")):
        if word.startswith(prefix):
            word, exponent = word.removeprefix(prefix), implied
    name = _UNITS.get(word) or _UNITS.get(word.removesuffix("s"))
    return f"{name}^{exponent}" if name and exponent else name


@dataclass(frozen=True, slots=True)
class Number:
    """A plain number. places: digits after the point, as far as written; None for a fraction, which is exact."""

    value: Fraction
    places: int | None


def _number(text: str) -> Number | None:
    """A plain number, a fraction of two, a mixed number or a repeating decimal; None for anything else."""
    if _DECIMAL.fullmatch(text):
        return Number(Fraction(text), len(text.partition(".")[2]))
    if match := _REPEATING.fullmatch(text):
        sign, whole, fixed, period = match.groups()
        ninths = Fraction(int(period), 10 ** len(period) - 1) / 10 ** len(fixed)
        return Number((-1 if sign else 1) * (Fraction(f"{whole}.{fixed}0") + ninths), None)
    if (match := _MIXED.fullmatch(text)) and int(match[4]):
        return Number((-1 if match[1] else 1) * (int(match[2]) + Fraction(int(match[3]), int(match[4]))), None)
    if match := _RATIO.fullmatch(text):
        top, bottom = Fraction(match[2] or match[4]), Fraction(match[3] or match[5])
        if bottom:
            return Number((-1 if match["sign"] else 1) * top / bottom, None)
    return None


def _same_number(left: Number, right: Number) -> bool:
    """Exactly; but a decimal of six places and more may be a fraction rounded or cut there, to four digits at least."""
    if left.value == right.value:
        return True
    if (left.places is None) == (right.places is None):
        return False
    places = max(left.places or 0, right.places or 0)
    apart = abs(left.value - right.value)
    largest = max(abs(left.value), abs(right.value))
    return places >= ROUNDED_PLACES and apart < Fraction(1, 10**places) and apart <= largest / ROUNDED_SHARE


def _is_words(text: str) -> bool:
    return _WORDS.fullmatch(text) is not None and _WORD_OF_4.search(text) is not None


def _words_key(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())


def _compare(gold: str, answer: str) -> bool | None:
    """True or False where plain reading settles it, None where algebra must."""
    if gold == answer:
        return True
    left, right = _number(gold), _number(answer)
    if left is not None and right is not None:
        return _same_number(left, right)
    if (base := _BASED.fullmatch(gold)) and (other := _BASED.fullmatch(answer)):
        return base.groups() == other.groups()
    if _is_words(gold):
        return _words_key(gold) == _words_key(answer.replace(r"\text", "")) and not re.search(r"\d", answer)
    if (outer := _OUTER.fullmatch(gold)) and (other := _OUTER.fullmatch(answer)) and outer.groups() != other.groups():
        return False
    if ", " in gold or ", " in answer:
        return _compare_lists(gold.split(", "), answer.split(", "))
    return None


def _compare_lists(golds: list[str], answers: list[str]) -> bool | None:
    """Two lists of plain numbers, in any order; a number written twice counts twice."""
    left, right = [_number(text) for text in golds], [_number(text) for text in answers]
    rest = [number for number in right if number is not None]
    if None in left or len(rest) < len(right):
        return None
    for gold in left:
        partner = next((number for number in rest if gold is not None and _same_number(gold, number)), None)
        if partner is None:
            return False
        rest.remove(partner)
    return not rest


def decide_gold(gold: str) -> bool | str:
    """Whether a gold answer can be read, or the part of it that computer algebra must read.

    A gold of words is readable: it is compared as words.
    """
    if not gold.strip() or len(gold) > MAX_CHARS:
        return False
    gold = normalise(gold)
    if not gold or oversized(gold):
        return False
    value = read_quantity(gold).value
    plain = _number(value) is not None or _BASED.fullmatch(value) or _is_words(value)
    return True if plain else value


def decide(gold: str, answer: str | None) -> Verdict | list[tuple[str, str]]:
    """The verdict, or the pairs left for computer algebra: the answer is right if any of them is equal."""
    if not gold.strip():
        return GOLD_UNPARSED
    if answer is None or not answer.strip():
        return NO_ANSWER
    if gold.strip() == answer.strip():
        return EQUAL
    if len(gold) > MAX_CHARS:
        return GOLD_UNPARSED
    if len(answer) > MAX_CHARS:
        return NOT_EQUAL
    raw_gold, raw_answer = gold, answer
    gold, answer = normalise(gold), normalise(answer)
    if not answer:
        return NO_ANSWER
    if gold == answer:
        return EQUAL
    if not gold or oversized(gold):
        return GOLD_UNPARSED
    if oversized(answer):
        return NOT_EQUAL
    left, right = _in_dollars(raw_gold, read_quantity(gold)), _in_dollars(raw_answer, read_quantity(answer))
    if left.unit and right.unit and left.unit != right.unit:
        return NOT_EQUAL
    left, right = _with_letter_unit(left, right.unit), _with_letter_unit(right, left.unit)
    pairs = [(left.value, right.value)]
    if left.percent != right.percent:
        hundredth = rf"\frac{{{(left if left.percent else right).value}}}{{100}}"
        pairs.append((hundredth, right.value) if left.percent else (left.value, hundredth))
    outcomes = [_compare(*pair) for pair in pairs]
    if True in outcomes:
        return EQUAL
    return [pair for pair, outcome in zip(pairs, outcomes, strict=True) if outcome is None] or NOT_EQUAL
