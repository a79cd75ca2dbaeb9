"""A value and what follows or precedes it: a unit, a currency, a percent sign."""

from __future__ import annotations

import re
from dataclasses import dataclass

from repirl.verifiers.reading.units import PLAIN, SIGNS, SINGLE, Unit, currency, is_known, read_unit

_SIGN = f"[{re.escape(SIGNS)}]"
_SIGN_BEFORE = re.compile(rf"(?P<minus>[+-]?) ?(?P<sign>{_SIGN}) ?(?P<value>.+)")
_SIGN_AFTER = re.compile(rf"(?P<value>.+?) ?(?P<sign>{_SIGN})")
_CODE_BEFORE = re.compile(r"(?:\\text\{ ?([A-Za-z$.]{1,5}) ?\}|([A-Z]{3}|Rs\.?)) ?(?P<value>[+-]?[\d.].*)")
_DOLLARS = re.compile(r"(?P<country>(?<![A-Za-z\\])[A-Z]{1,3})?\\\$")
_TEXT_STARTS = re.compile(r" ?(?:\\(?:cdot|times) ?)?(?:\\frac\{(?:1\}\{)?|\\mu ?)?\\text\{|\^\\circ")
# Letters after a value without \text: units, nouns, or variables.
_LETTERS_AFTER = re.compile(
    r"(?P<value>(?:[A-Za-z]=)?(?:[^A-Za-z\\]|\\(?:frac|sqrt|pi|cdot|times|overline|dot)(?![a-zA-Z]))*[\d})])"
    r"(?P<gap> ?)(?P<unit>[^\W\d_][^\\=]*)"
)
_LETTER_UNIT = re.compile(r"(?P<value>[+-]?[\d.]+) ?(?P<unit>[A-Za-zµ\\].*)")
_ORDINAL = re.compile(r"(?P<value>\d+)(?:\^\{)?(?:\\text\{)?(?:st|nd|rd|th)\}{0,2}")
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True, slots=True)
class Quantity:
    """The text of a value. unit: None where absent, empty where a noun that is no unit; percent: a percent sign follows."""

    value: str
    unit: Unit | None = None
    percent: bool = False


def dollars_in(raw: str) -> Unit | None:
    r"""The dollars of an answer as it was written: `\$5`, `US\$5`, `$5`; a pair of plain signs encloses mathematics."""
    if match := _DOLLARS.search(raw):
        return currency(f"{match['country'] or ''}$") or currency("$")
    return currency("$") if raw.count("$") == 1 else None


def split_quantity(text: str) -> Quantity:
    """Splits a normalised text. What is read as a unit is at its end, or a currency at its start."""
    if text.endswith("%") and len(text) > 1:
        return Quantity(text[:-1].strip(), percent=True)
    if match := _SIGN_BEFORE.fullmatch(text) or _SIGN_AFTER.fullmatch(text):
        minus = match.groupdict().get("minus") or ""
        return Quantity(minus + match["value"].strip(), read_unit(match["sign"]))
    if (match := _CODE_BEFORE.fullmatch(text)) and (unit := read_unit(match[1] or match[2])):
        return Quantity(match["value"].strip(), unit)
    if match := _ORDINAL.fullmatch(text):
        return Quantity(match["value"], frozenset())
    return _in_text(text) or _in_letters(text) or Quantity(text)


def _in_text(text: str) -> Quantity | None:
    start = _TEXT_STARTS.search(text)
    if start is None:
        return None
    value, rest = text[: start.start()].strip(), text[start.start() :].strip()
    unit = read_unit(re.sub(r"^\\(?:cdot|times) ?", "", rest)) if value else None
    if unit is None or not re.search(r"[0-9})\]a-z']$", value) or value.count("{") != value.count("}"):
        return None
    return Quantity(value, unit)


def _in_letters(text: str) -> Quantity | None:
    match = _LETTERS_AFTER.fullmatch(text)
    if match is None or match["value"].count("{") != match["value"].count("}"):
        return None
    words = _WORD.findall(match["unit"])
    compound = len(words) > 1 and "/" in match["unit"]
    units = all(word in PLAIN or (compound and word in SINGLE) or (len(word) > 2 and is_known(word)) for word in words)
    nouns = bool(match["gap"]) and sum(map(len, words)) >= 4 and all(len(word) > 1 for word in words)
    if not units and (not nouns or re.search(r"[^\w '.,()-]", match["unit"])):
        return None
    unit = read_unit(match["unit"])
    return None if unit is None else Quantity(match["value"].strip(), unit)


def with_letter_unit(quantity: Quantity, other: Unit | None) -> Quantity:
    """`5 m` is five metres beside another length in metres, else 5 times m."""
    match = _LETTER_UNIT.fullmatch(quantity.value) if quantity.unit is None and other else None
    if match is None or other is None or not ((unit := read_unit(match["unit"])) and unit & other):
        return quantity
    return Quantity(match["value"], unit)
