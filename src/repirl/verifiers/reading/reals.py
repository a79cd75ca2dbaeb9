r"""Sets of real numbers: intervals, inequalities, unions of these, `\{x \mid x > 2\}`, `\mathbb{R} \setminus \{1\}`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from repirl.verifiers.reading.numbers import read_number
from repirl.verifiers.reading.structure import enclosed, split, split_with

VARIABLE = re.compile(r"(?:[A-Za-z]|\\(?!in)[a-z]{2,8})(?:_(?:\{[^{}]*\}|\w))?'*")
_OR = re.compile(r"\\(?:cup|lor)(?![a-zA-Z])")
_AND = re.compile(r"\\(?:cap|land)(?![a-zA-Z])")
_IN = re.compile(r"\\in(?![a-zA-Z])")
_RELATION = re.compile(r"[<>=]|\\(?:le|ge|ne)(?![a-zA-Z])")
_COMMA = re.compile(r", ?")
_WITHOUT = re.compile(r"\\(?:setminus|backslash)(?![a-zA-Z])|-|\\\\")
_SUCH_THAT = re.compile(r"\\(?:mid|vert)(?![a-zA-Z])|[|:]|\\text\{such that\}")
_FRENCH = re.compile(r"([\])\[(])(.*)([\])\[(])")
_HINT = re.compile(r"[<>\])]|\\(?:le|ge|ne|cup|in|infty|mathbb|mid)(?![a-zA-Z])")
_REALS = (r"\mathbb{R}", "R")
INFINITE = (r"\infty", r"+\infty")


class Piece(NamedTuple):
    """An interval; its ends as LaTeX."""

    lower: str
    lower_closed: bool
    upper: str
    upper_closed: bool


class Span(NamedTuple):
    """An interval in numbers. A float is an infinity."""

    lower: Fraction | float
    lower_closed: bool
    upper: Fraction | float
    upper_closed: bool


@dataclass(frozen=True, slots=True)
class Reals:
    """A union of intervals. variable: whose values they are, None where no name was given."""

    pieces: tuple[Piece, ...]
    variable: str | None = None

    @property
    def latex(self) -> str:
        """As intervals and points."""
        return r"\cup ".join(
            rf"\{{{piece.lower}\}}" if piece.lower == piece.upper else
            f"{'[' if piece.lower_closed else '('}{piece.lower}, {piece.upper}{']' if piece.upper_closed else ')'}"
            for piece in self.pieces
        )  # fmt: skip

    def spans(self) -> tuple[Span, ...] | None:
        """In numbers, joined and sorted; None where an end is no plain number."""
        spans = [_span(piece) for piece in self.pieces]
        return None if None in spans else _joined([span for span in spans if span is not None])


def read_reals(text: str) -> Reals | None:
    """The set that a normalised text describes, None for anything else, a lone `(1, 2)` or `[1, 2]` included."""
    if not _HINT.search(text):
        return None
    found = _read(text, None)
    if found is None or not found.pieces:
        return None
    if (whole := enclosed(text)) and whole[0] + whole[2] in ("()", "[]") and r"\infty" not in text:
        return None
    return found


def as_reals(opening: str, items: list[str], closing: str) -> Reals | None:
    """The interval that a pair in brackets may be."""
    if len(items) != 2 or opening not in "([" or closing not in ")]":
        return None
    return Reals((Piece(items[0], opening == "[", items[1], closing == "]"),))


def _read(text: str, variable: str | None) -> Reals | None:
    text = text.strip()
    if (whole := enclosed(text)) and whole[0] == r"\{" and len(parts := split(whole[1], _SUCH_THAT)) == 2:
        head = split(parts[0], _IN)
        if VARIABLE.fullmatch(head[0]) is None or (len(head) > 1 and head[1] not in _REALS):
            return None
        return _read(parts[1], head[0])
    if len(alternatives := split(text, _OR)) > 1:
        return _united([_read(part, variable) for part in alternatives])
    if len(conditions := split(text, _AND)) > 1:
        return _met([_read(part, variable) for part in conditions])
    if len(items := split(text, _COMMA)) > 1:
        return _listed([_inequality(item, variable) or _member(item) for item in items])
    return _member(text) or _inequality(text, variable) or _atom(text)


def _member(text: str) -> Reals | None:
    r"""`x \in S`."""
    sides = split(text, _IN)
    if len(sides) != 2 or VARIABLE.fullmatch(sides[0]) is None:
        return None
    inner = _read(sides[1], None)
    return None if inner is None else Reals(inner.pieces, sides[0])


def _atom(text: str) -> Reals | None:
    if text in _REALS[:1]:
        return Reals((Piece(r"-\infty", False, r"\infty", False),))
    if len(parts := split(text, _WITHOUT)) == 2 and parts[0] == _REALS[0]:
        points = enclosed(parts[1])
        excluded = split(points[1], _COMMA) if points and points[0] == r"\{" else []
        return _met([_other_than(point) for point in excluded]) if excluded else None
    if whole := enclosed(text):
        items = split(whole[1], _COMMA)
        if whole[0] == r"\{":
            return Reals(tuple(Piece(item, True, item, True) for item in items)) if all(items) else None
        return as_reals(whole[0], items, whole[2]) if all(items) else None
    if (
        (french := _FRENCH.fullmatch(text))
        and "]" in french[1] + french[3]
        and len(items := split(french[2], _COMMA)) == 2
    ):
        return Reals((Piece(items[0], french[1] == "[", items[1], french[3] == "]"),)) if all(items) else None
    return None


def _other_than(point: str) -> Reals:
    return Reals((Piece(r"-\infty", False, point, False), Piece(point, False, r"\infty", False)))


def _inequality(text: str, variable: str | None) -> Reals | None:
    r"""`x > 2`, `2 < x`, `-1 \le x < 3`, `x \ne 0`, and within a union `x = 3`."""
    parts = split_with(text, _RELATION)
    sides, signs = parts[::2], parts[1::2]
    if not all(sides) or len(sides) not in (2, 3):
        return None
    if len(sides) == 2 and not _is_name(sides[0]):
        sides, signs = sides[::-1], [_mirrored(signs[0])]
    at = len(sides) - 2
    name, others = sides[at], sides[:at] + sides[at + 1 :]
    if not _is_name(name) or (variable is not None and name != variable):
        return None
    if any(_is_name(side) or _mentions(side, name) for side in others):
        return None
    if len(sides) == 2:
        return _bounded(name, signs[0], sides[1])
    if all(sign in (">", r"\ge") for sign in signs):
        sides, signs = sides[::-1], [_mirrored(sign) for sign in signs[::-1]]
    if not all(sign in ("<", r"\le") for sign in signs):
        return None
    return Reals((Piece(sides[0], signs[0] == r"\le", sides[2], signs[1] == r"\le"),), name)


def _is_name(text: str) -> bool:
    return VARIABLE.fullmatch(text) is not None and text not in (r"\pi", "e", "i")


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"(?<![\\a-zA-Z]){re.escape(name)}(?![a-zA-Z])", text) is not None


def _mirrored(sign: str) -> str:
    return {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}.get(sign, sign)


def _bounded(name: str, sign: str, bound: str) -> Reals:
    closed = sign in (r"\le", r"\ge")
    if sign == r"\ne":
        return Reals(_other_than(bound).pieces, name)
    if sign == "=":
        return Reals((Piece(bound, True, bound, True),), name)
    if sign in (">", r"\ge"):
        return Reals((Piece(bound, closed, r"\infty", False),), name)
    return Reals((Piece(r"-\infty", False, bound, closed),), name)


def _united(parts: list[Reals | None]) -> Reals | None:
    found = [part for part in parts if part is not None]
    names = {part.variable for part in found if part.variable}
    if len(found) < len(parts) or len(names) > 1:
        return None
    return Reals(tuple(piece for part in found for piece in part.pieces), next(iter(names), None))


def _met(parts: list[Reals | None]) -> Reals | None:
    """What belongs to all parts. Ends that are no numbers: one lower and one upper bound only."""
    both = _united(parts)
    found = [part for part in parts if part is not None]
    if both is None:
        return None
    spans = [part.spans() for part in found]
    numeric = [span for span in spans if span is not None]
    if len(numeric) == len(spans):
        rest = numeric[0]
        for other in numeric[1:]:
            rest = _joined([common for a in rest for b in other if (common := _common(a, b))])
        return Reals(tuple(_piece(span) for span in rest), both.variable)
    if len(both.pieces) != 2 or len(found) != 2:
        return None
    lower, upper = sorted(both.pieces, key=lambda piece: piece.lower == r"-\infty")
    if lower.upper not in INFINITE or upper.lower != r"-\infty":
        return None
    return Reals((Piece(lower.lower, lower.lower_closed, upper.upper, upper.upper_closed),), both.variable)


def _listed(parts: list[Reals | None]) -> Reals | None:
    """Inequalities with commas between them: both must hold where they can, else either may."""
    if any(part is None or part.spans() is None or part.variable is None for part in parts):
        return None
    met = _met(parts)
    return met if met is not None and met.pieces else _united(parts)


# ---- in numbers ----


def _value(end: str) -> Fraction | float | None:
    if end in INFINITE:
        return float("inf")
    if end == r"-\infty":
        return float("-inf")
    number = read_number(end)
    return None if number is None else number.value


def _span(piece: Piece) -> Span | None:
    lower, upper = _value(piece.lower), _value(piece.upper)
    if lower is None or upper is None:
        return None
    return Span(lower, piece.lower_closed, upper, piece.upper_closed)


def _piece(span: Span) -> Piece:
    return Piece(_written(span.lower), span.lower_closed, _written(span.upper), span.upper_closed)


def _written(value: Fraction | float) -> str:
    if isinstance(value, float):
        return r"\infty" if value > 0 else r"-\infty"
    sign = "-" if value < 0 else ""
    whole = value.denominator == 1
    return str(value) if whole else rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def _is_empty(span: Span) -> bool:
    return span.lower > span.upper or (span.lower == span.upper and not (span.lower_closed and span.upper_closed))


def _common(left: Span, right: Span) -> Span | None:
    lower, open_lower = max((left.lower, not left.lower_closed), (right.lower, not right.lower_closed))
    upper, closed_upper = min((left.upper, left.upper_closed), (right.upper, right.upper_closed))
    span = Span(lower, not open_lower, upper, closed_upper)
    return None if _is_empty(span) else span


def _joined(spans: list[Span]) -> tuple[Span, ...]:
    """Sorted, empty ones left out, those that touch or overlap made one."""
    found: list[Span] = []
    for span in sorted((s for s in spans if not _is_empty(s)), key=lambda s: (s.lower, not s.lower_closed)):
        last = found[-1] if found else None
        touches = last is not None and (
            span.lower < last.upper or (span.lower == last.upper and (span.lower_closed or last.upper_closed))
        )
        if last is None or not touches:
            found.append(span)
            continue
        upper, closed = max((last.upper, last.upper_closed), (span.upper, span.upper_closed))
        found[-1] = Span(last.lower, last.lower_closed, upper, closed)
    return tuple(found)
