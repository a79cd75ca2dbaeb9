"""Units and currencies by name, sign or code. Two units are the same where they measure the same; nothing is converted.

The tables are made by benchmarks/math_unit_tables.py from pint's definitions and from Unicode CLDR.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from itertools import product

from repirl.verifiers.reading.numbers import is_numeral
from repirl.verifiers.reading.structure import listed

Reading = tuple[str, tuple[tuple[str, int], ...]]
"""What a unit may mean: its size to eight digits, and its dimensions with their powers."""
Unit = frozenset[Reading]
"""All that a unit may mean: a pound is a weight or a currency. Two units differ where they have no meaning in common."""

MAX_READINGS = 64
SIGNS = "$¢£¤¥€₹₩₽₺₫₱₦₪₴₡₲₵₸₼₾₿฿"
_MINOR = {
    "¢": "cent",
    "cent": "cent",
    "cents": "cent",
    "penny": "cent",
    "pennies": "cent",
    "pence": "penny",
    "paise": "paisa",
}
_MORE = {"kmph": "kilometer_per_hour"}
_RUPEES = {"rs": "rupees", "re": "rupee"}
_DEGREES = {
    "": ("degree", "degree_Celsius", "degree_Fahrenheit"),
    "c": ("degree_Celsius",),
    "f": ("degree_Fahrenheit",),
}
# Abbreviations that are read without \text around them; other short runs of letters are products of variables.
PLAIN = frozenset(
    listed(
        "mm cm km ft yd mi in mg kg lb lbs oz ml mL sec min hr hrs yr deg rad mph kph kmph Hz kHz MHz Pa kPa "
        "kW kWh kJ eV cc USD EUR GBP INR JPY CNY"
    )
)
SINGLE = frozenset("msghlLNJWVK")  # parts of compounds such as m/s without \text
# Words that change a value or continue the sentence: a phrase with one of them is no unit.
_CLOSED_CLASS = frozenset(
    listed(
        "and or not no nor but if then than plus minus over squared cubed mod modulo less more fewer greater "
        "least most at from to by with without for where when in on is are was be either neither "
        "unless until between about approximately nearly almost exactly only such "
        "that as so factorial root infinity undefined pi i e am pm a.m p.m"
    )
)


@dataclass(slots=True)
class _Tables:
    units: dict[str, tuple[float, dict[str, int]]] = field(default_factory=dict)  # by full name
    names: dict[str, str] = field(default_factory=dict)  # spelling in small letters -> full name
    symbols: dict[str, str] = field(default_factory=dict)  # a symbol as written -> full name
    prefixes: dict[str, float] = field(default_factory=dict)
    symbol_prefixes: dict[str, float] = field(default_factory=dict)
    currencies: dict[str, frozenset[str]] = field(default_factory=dict)  # code, sign, name or last word of one -> codes


@lru_cache(maxsize=1)
def _tables() -> _Tables:
    tables = _Tables()
    folder = resources.files("repirl.verifiers.reading")
    for line in (folder / "units.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        name, spellings, factor, dimensions = line.split("\t")
        if name.endswith("-"):
            tables.prefixes[name[:-1]] = float(factor)
            tables.symbol_prefixes |= {symbol: float(factor) for symbol in spellings.split()}
            continue
        powers = {root: int(power) for root, _, power in (part.rpartition("^") for part in dimensions.split())}
        tables.units[name] = (float(factor), powers)
        for spelling in (name, *spellings.split()):
            if len(spelling) <= 2 or spelling.upper() == spelling or spelling in PLAIN:
                tables.symbols.setdefault(spelling, name)
            if len(spelling) > 1:
                tables.names.setdefault(spelling.lower().replace("_", " "), name)
    tables.names |= _MORE
    for line in (folder / "currencies.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        code, signs, names = line.split("\t")
        words = [name.lower() for name in names.split("; ")]
        for key in {code.lower(), *signs.split(), *words, *(word.split()[-1] for word in words)}:
            tables.currencies[key] = tables.currencies.get(key, frozenset()) | {code}
    return tables


def _reading(factor: float, powers: dict[str, int]) -> Reading:
    return f"{factor:.8g}", tuple(sorted((root, power) for root, power in powers.items() if power))


def _named(word: str) -> frozenset[tuple[float, tuple[tuple[str, int], ...]]]:
    """The meanings of one unit without a power."""
    tables = _tables()
    found: list[tuple[float, dict[str, int]]] = []
    low = word.lower().strip(". ")
    if word in _MINOR or low in _MINOR:
        found.append((1.0, {_MINOR.get(word) or _MINOR[low]: 1}))
    codes = tables.currencies.get(word) or tables.currencies.get(_RUPEES.get(low, low)) or frozenset()
    found += [(1.0, {code: 1}) for code in codes]
    if match := re.fullmatch(r"(?:\^?\\circ|°|deg(?:rees?)?)[ .]*(c|f|celsius|fahrenheit)?", low):
        found += [tables.units[name] for name in _DEGREES[(match[1] or "")[:1]]]
    elif name := tables.symbols.get(word.strip(". ")) or _full_name(low, tables.names):
        found.append(tables.units[name])
    elif not found and (scaled := _prefixed(word.strip(". "), tables)):
        found.append(scaled)
    return frozenset((factor, tuple(sorted(powers.items()))) for factor, powers in found)


def _full_name(low: str, names: dict[str, str]) -> str | None:
    for spelling in (low, low.replace(".", ""), low.removesuffix("s"), low.removesuffix("es")):
        if name := names.get(spelling):
            return name
    return None


def _prefixed(word: str, tables: _Tables) -> tuple[float, dict[str, int]] | None:
    for length in (1, 2):
        name = tables.symbols.get(word[length:])
        if name and (prefix := tables.symbol_prefixes.get(word[:length])):
            factor, powers = tables.units[name]
            return prefix * factor, powers
    low = word.lower()
    for prefix_name, prefix in tables.prefixes.items():
        rest = low.removeprefix(prefix_name)
        if rest != low and len(rest) > 2 and (name := _full_name(rest, tables.names)):
            factor, powers = tables.units[name]
            return prefix * factor, powers
    return None


def is_known(word: str) -> bool:
    """Whether the tables have the word."""
    return bool(_named(word))


def currency(sign: str) -> Unit:
    """The currencies that a sign such as $, US$ or € stands for."""
    return frozenset(_reading(1.0, {code: 1}) for code in _tables().currencies.get(sign, ()))


# ---- the grammar: factors, quotients, powers ----

_MICRO = re.compile(r"\\mu ?\\text\{")
_PIECE = re.compile(
    r"\\frac\{(?P<top>(?:[^{}]|\{[^{}]*\})*)\}\{(?P<bottom>(?:[^{}]|\{[^{}]*\})*)\}"
    r"|\\text\{(?P<text>[^{}]*)\}"
    r"|\^(?:\{(?P<long>[+-]?\d+)\}|(?P<short>\d))"
    r"|(?P<degree>\^\\circ(?: ?(?:\\text\{[CF]\}|[CF](?![a-zA-Z])))?)"
    r"|(?P<over>/)|(?P<times>\\cdot|\\times|\*|\\,)|(?P<word>[^\W\d_]+(?:[ .'-]+[^\W\d_]+)*\.?)|(?P<sign>["
    + re.escape(SIGNS)
    + r"])|[ ~{}()]"
)


def read_unit(text: str) -> Unit | None:
    r"""The unit that `\text{km}/\text{h}`, `\frac{\text{m}}{\text{s}^2}`, `miles per hour` or `€` is.

    An empty set where a part of it is a noun that is no unit (apples); None where the text is no unit at all.
    """
    text = _MICRO.sub(r"\\text{µ", text).replace(r"\Omega", r"\text{ohm}")
    factors: list[tuple[str, int]] | None = _factors(text, 1)
    if not factors:
        return None
    meanings = [_named(word) for word, _ in factors]
    if not all(meanings):
        return frozenset()
    readings: set[Reading] = set()
    for number, combination in enumerate(product(*meanings)):
        if number >= MAX_READINGS:
            break
        size, powers = 1.0, dict[str, int]()
        for (factor, roots), (_, power) in zip(combination, factors, strict=True):
            size *= factor**power
            for root, root_power in roots:
                powers[root] = powers.get(root, 0) + root_power * power
        readings.add(_reading(size, powers))
    return frozenset(readings)


def _factors(text: str, sign: int) -> list[tuple[str, int]] | None:
    """(name, power) in order; None where anything else than a unit or a noun is in the text."""
    found: list[tuple[str, int]] = []
    at, over = 0, 1
    while at < len(text):
        piece = _PIECE.match(text, at)
        if piece is None:
            return None
        at = piece.end()
        if piece["top"] is not None:
            top = _factors(piece["top"], sign * over) if piece["top"].strip() != "1" else []
            bottom = _factors(piece["bottom"], -sign * over)
            if top is None or bottom is None:
                return None
            found += top + bottom
        elif piece["text"] is not None or piece["word"]:
            words = _phrase(piece["text"] or piece["word"], sign * over)
            if words is None:
                return None
            factors, over = words
            found += factors
        elif piece["degree"]:
            found.append((re.sub(r"\\text|[{}^ ]", "", piece["degree"]), sign * over))
        elif piece["sign"]:
            found.append((piece["sign"], sign * over))
        elif piece["long"] or piece["short"]:
            if not found or abs(int(piece["long"] or piece["short"])) > 20:
                return None
            name, power = found.pop()
            found.append((name, power * int(piece["long"] or piece["short"])))
        elif piece["over"]:
            over = -1
        elif piece["times"]:
            over = 1 if piece["times"] == r"\times" else over
    return found


def _phrase(phrase: str, sign: int) -> tuple[list[tuple[str, int]], int] | None:
    """The factors of words such as `square inches`, `meters per second squared`, and the sign of powers that follow."""
    words = re.findall(r"/|[^\W\d_]+(?:[.'’][^\W\d_]+)*\.?", phrase.replace("-", " "))
    found: list[tuple[str, int]] = []
    over, power, at = 1, 1, 0
    while at < len(words):
        word = words[at].lower().strip(".")
        if word in ("per", "/"):
            over = -1
        elif word in ("square", "sq", "cubic", "cu") and at + 1 < len(words):
            power = 3 if word.startswith("cu") else 2
        elif word in ("squared", "cubed") and found:
            name, before = found.pop()
            found.append((name, before * (2 if word == "squared" else 3)))
        elif word == "of" and found and at + 1 < len(words):
            break  # 5 cm of rope
        elif is_numeral(word) or (word in _CLOSED_CLASS and not (word == "in" and len(words) == 1)):
            return None
        else:
            length = next((n for n in (3, 2) if len(words) >= at + n and _named(" ".join(words[at : at + n]))), 1)
            found.append((" ".join(words[at : at + length]), sign * over * power))
            power, at = 1, at + length - 1
        at += 1
    return found, over
