r"""Plain numbers in any notation, exactly: 18, 1/2, 4 2/3, 0.1\overline{6}, 4.5\times 10^{33}, five thousand."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from repirl.verifiers.reading.structure import listed

ROUNDED_PLACES = 6  # of a decimal that may stand for a fraction
ROUNDED_SHARE = 10_000  # and it is off by one part of so many at most: 0.000001 is not 3/2000000
MAX_POWER_OF_TEN = 10_000

_PLAIN = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_TIMES = r"(?:\\times|\\cdot|\*|\\ast) ?"
_TEN = r"10\^(?:\{([+-]?\d{1,5})\}|([+-]?\d{1,5}))"
_DECIMAL = re.compile(_PLAIN)
_SCIENTIFIC = re.compile(rf"(?:({_PLAIN})(?:{_TIMES}))?([+-]?){_TEN}")
_QUOTIENT = re.compile(rf"(?P<sign>[+-]?)(?:\\frac\{{({_PLAIN})\}}\{{({_PLAIN})\}}|({_PLAIN})/({_PLAIN}))")
_MIXED = re.compile(r"([+-]?)(\d+) ?\\frac\{(\d+)\}\{(\d+)\}")
_REPEATING = re.compile(
    r"([+-]?)(\d*)\.(\d*)(?:\\(?:overline|bar)(?:\{(\d+)\}|(\d))|\((\d+)\)|(\\dot(?:\{\d\}|\d)\d*(?:\\dot(?:\{\d\}|\d))?))"
)


@dataclass(frozen=True, slots=True)
class Number:
    """A plain number. places: digits after the point, as far as written; None for a fraction, which is exact."""

    value: Fraction
    places: int | None = None


def read_number(text: str) -> Number | None:
    """The number that a normalised text is, None for anything else."""
    if _DECIMAL.fullmatch(text):
        return Number(Fraction(text), len(text.partition(".")[2]))
    if match := _SCIENTIFIC.fullmatch(text):
        return _scientific(match)
    if match := _REPEATING.fullmatch(text):
        sign, whole, fixed, *periods = match.groups()
        period = re.sub(r"\D", "", next(part for part in periods if part))
        ninths = Fraction(int(period), 10 ** len(period) - 1) / 10 ** len(fixed)
        return Number((-1 if sign == "-" else 1) * (Fraction(f"{whole or 0}.{fixed}0") + ninths))
    if (match := _MIXED.fullmatch(text)) and int(match[4]):
        return Number((-1 if match[1] == "-" else 1) * (int(match[2]) + Fraction(int(match[3]), int(match[4]))))
    if match := _QUOTIENT.fullmatch(text):
        top, bottom = Fraction(match[2] or match[4]), Fraction(match[3] or match[5])
        if bottom:
            return Number((-1 if match["sign"] == "-" else 1) * top / bottom)
    return None


def _scientific(match: re.Match[str]) -> Number | None:
    factor, sign, *powers = match.groups()
    power = int(powers[0] or powers[1])
    if abs(power) > MAX_POWER_OF_TEN or (factor and sign):
        return None
    decimals = len((factor or "").partition(".")[2])
    value = Fraction(factor or 1) * Fraction(10) ** power
    return Number(-value if sign == "-" else value, max(0, decimals - power))


def same_number(left: Number, right: Number) -> bool:
    """Exactly; but a decimal of six places and more may be a fraction rounded or cut there, to four digits at least."""
    if left.value == right.value:
        return True
    if (left.places is None) == (right.places is None):
        return False
    places = max(left.places or 0, right.places or 0)
    apart = abs(left.value - right.value)
    largest = max(abs(left.value), abs(right.value))
    return places >= ROUNDED_PLACES and apart < Fraction(1, 10**places) and apart <= largest / ROUNDED_SHARE


# ---- numbers in words ----

_ONES = {
    word: value
    for value, word in enumerate(
        listed(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
            "sixteen seventeen eighteen nineteen"
        )
    )
}
_TENS = {
    word: 10 * value
    for value, word in enumerate(listed("twenty thirty forty fifty sixty seventy eighty ninety"), start=2)
}
_SCALES = {"dozen": 12, "hundred": 100} | {
    word: 1000**power
    for power, word in enumerate(listed("thousand million billion trillion quadrillion quintillion"), start=1)
}
_IRREGULAR = {
    "half": 2, "halve": 2, "third": 3, "quarter": 4, "fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12,
}  # fmt: skip
_PARTS = _IRREGULAR | {
    f"{word.removesuffix('y')}{'ieth' if word.endswith('y') else 'th'}": value
    for word, value in (_ONES | _TENS | _SCALES).items()
    if value > 3 and word not in ("five", "eight", "nine", "twelve", "dozen")
}
_SIGN = {"minus": -1, "negative": -1}
NUMERALS = frozenset(_ONES) | frozenset(_TENS) | frozenset(_SCALES) | frozenset(_PARTS) | frozenset(_SIGN)


def is_numeral(word: str) -> bool:
    """Whether a word, or its plural, names a number, a multiple or a part: five, millions, eighths."""
    word = word.lower()
    return word in NUMERALS or (word.endswith("s") and word[:-1] in NUMERALS)


def read_numeral(words: list[str]) -> tuple[Number, int] | None:
    """The number at the start of the words, and how many of them say it: `5 million`, `two and a half`, `five eighths`.

    The first may be in digits. None where there is no number, or none that makes sense.
    """
    sign, start = (_SIGN.get(words[0].lower(), 1), 1) if words and words[0].lower() in _SIGN else (1, 0)
    found = _cardinal(words, start)
    if found is None:
        return None
    value, places, at = found
    if at < len(words) and (part := _part(words[at])):
        value, places, at = value / part, None, at + 1
    elif words[at : at + 1] == ["and"]:
        article = words[at + 1 : at + 2] in (["a"], ["an"])
        top = (Fraction(1), None, at + 2) if article else _cardinal(words, at + 1)
        if top and top[0] < 1 and top[1] is None:  # 5 and 1/2
            value, places, at = value + top[0], None, top[2]
        elif top and top[2] < len(words) and (part := _part(words[top[2]])) and top[0] < part:
            value, places, at = value + top[0] / part, None, top[2] + 1
    if at < len(words) and is_numeral(words[at]):
        return None
    return Number(sign * value, places), at


def _part(word: str) -> int | None:
    word = word.lower()
    return _PARTS.get(word) or (_PARTS.get(word[:-1]) if word.endswith("s") else None)


def _cardinal(words: list[str], start: int) -> tuple[Fraction, int | None, int] | None:
    """Value, decimal places and the index of the first word after it."""
    at = start
    total, group, last = Fraction(0), Fraction(0), 10**30
    places: int | None = 0
    began = False
    if at < len(words) and (number := read_number(words[at])):
        group, places, at, began, last = number.value, number.places, at + 1, True, 1
    while at < len(words):
        word = words[at].lower()
        scale = _SCALES.get(word) or (_SCALES.get(word[:-1]) if word.endswith("s") else None)
        if word in _ONES and last > 10 and (last >= 100 or 0 < _ONES[word] < 10):
            group, last = group + _ONES[word], 1
        elif word in _TENS and last >= 100:
            group, last = group + _TENS[word], 20
        elif scale is not None and (began or word in ("hundred", "thousand", "million", "billion", "trillion")):
            if scale <= 100:
                group, last = (group or 1) * scale, 100
            else:
                if total and total < scale:
                    return None
                total, group, last = total + (group or 1) * scale, Fraction(0), 1000
        elif word == "and" and began and last >= 100 and at + 1 < len(words) and _small(words[at + 1]):
            pass
        elif word in ("a", "an") and not began and at + 1 < len(words) and words[at + 1].lower() in {*_SCALES, *_PARTS}:
            group, last = Fraction(1), 1
        elif not began and word == "half":
            return Fraction(1, 2), None, at + 1
        else:
            break
        began, at = True, at + 1
    return (total + group, places, at) if began else None


def _small(word: str) -> bool:
    return word.lower() in _ONES or word.lower() in _TENS
