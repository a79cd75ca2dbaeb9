r"""Whether two readings are one answer: yes, no, or a pair of texts for computer algebra.

Policies, where mathematics alone does not decide: docs/verifiers.md.
"""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

from repirl.verifiers.reading.clock import Clock
from repirl.verifiers.reading.kinds import Answer, Based, Expression, Kind, Members, Named, Ratio, Value, Words
from repirl.verifiers.reading.numbers import Number, read_number, same_number
from repirl.verifiers.reading.quantities import Quantity, with_letter_unit
from repirl.verifiers.reading.reals import Reals, as_reals

MAX_UNMATCHED = 50  # members of a list that are no equal numbers and are compared one by one
_RELATION = re.compile(r"[<>=]|\\(?:le|ge|ne|in|subset|approx|equiv)(?![a-zA-Z])")


class Pair(NamedTuple):
    """What computer algebra has to compare."""

    gold: str
    answer: str


Outcome = bool | Pair


def compare(gold: Answer, answer: Answer) -> list[Outcome]:
    """The outcomes, of which any equal one makes the answer right: `x%` is `x/100` and also `x`."""
    if gold.unit and answer.unit and not gold.unit & answer.unit:
        return [False]
    gold, answer = _with_letter_unit(gold, answer), _with_letter_unit(answer, gold)
    outcomes = [_compare(gold.kind, answer.kind)]
    if gold.percent != answer.percent:
        percent, plain = (gold, answer) if gold.percent else (answer, gold)
        hundredth = _hundredth(percent.kind)
        outcomes.append(_compare(hundredth, plain.kind) if gold.percent else _compare(plain.kind, hundredth))
    return outcomes


def _with_letter_unit(answer: Answer, other: Answer) -> Answer:
    if answer.unit is not None or not other.unit or not isinstance(answer.kind, Expression):
        return answer
    found = with_letter_unit(Quantity(answer.latex), other.unit)
    number = read_number(found.value)
    return Answer(Value(number, found.value), found.unit) if found.unit and number else answer


def _hundredth(kind: Kind) -> Kind:
    if isinstance(kind, Value):
        number = Number(kind.number.value / 100, None if kind.number.places is None else kind.number.places + 2)
        return Value(number, rf"\frac{{{kind.latex}}}{{100}}")
    return Expression(rf"\frac{{{kind.latex}}}{{100}}")


def _compare(gold: Kind, answer: Kind) -> Outcome:
    if gold.latex == answer.latex and type(gold) is type(answer) and not isinstance(gold, Reals):
        return True
    if isinstance(gold, Named) or isinstance(answer, Named):
        return _compare_named(gold, answer)
    if isinstance(gold, Words) or isinstance(answer, Words):
        return isinstance(gold, Words) and isinstance(answer, Words) and gold.key == answer.key
    if isinstance(gold, Value) and isinstance(answer, Value):
        return same_number(gold.number, answer.number)
    if isinstance(gold, Based) or isinstance(answer, Based):
        return _compare_based(gold, answer)
    if isinstance(gold, (Clock, Ratio)) or isinstance(answer, (Clock, Ratio)):
        return _compare_ratios(gold, answer)
    if isinstance(gold, Reals) or isinstance(answer, Reals):
        return _compare_reals(gold, answer)
    if isinstance(gold, Members) or isinstance(answer, Members):
        return _compare_members(gold, answer)
    return _compare_expressions(gold, answer)


def _compare_expressions(gold: Kind, answer: Kind) -> Outcome:
    for one, other in ((gold, answer), (answer, gold)):
        words = one.written if isinstance(one, Expression) else ""
        if words and not (isinstance(other, Expression) and other.written == words):
            return False
        # A bound is no value. An equation may be one: algebra looks whether it holds without letters (2 + 3 = 5).
        if isinstance(other, Value) and re.search(r"[<>]|\\(?:le|ge|ne)(?![a-zA-Z])", one.latex):
            return False
    return Pair(gold.latex, answer.latex)


def _compare_named(gold: Kind, answer: Kind) -> Outcome:
    if isinstance(gold, Named) and isinstance(answer, Named):
        if gold.name is None or answer.name is None or gold.name == answer.name:
            return _compare(gold.value.kind, answer.value.kind)
        plain = isinstance(gold.value.kind, Value) and isinstance(answer.value.kind, Value)
        return False if plain else Pair(gold.latex, answer.latex)
    one, other = (gold, answer) if isinstance(gold, Named) else (answer, gold)
    assert isinstance(one, Named)
    if isinstance(other, Expression) and _RELATION.search(other.latex):
        return Pair(gold.latex, answer.latex)
    return _compare(one.value.kind, other) if one is gold else _compare(other, one.value.kind)


def _compare_based(gold: Kind, answer: Kind) -> Outcome:
    if isinstance(gold, Based) and isinstance(answer, Based):
        return (gold.digits, gold.base) == (answer.digits, answer.base)
    one, other = (gold, answer) if isinstance(gold, Based) else (answer, gold)
    assert isinstance(one, Based)
    return other.latex.replace(" ", "") == one.digits


def _compare_ratios(gold: Kind, answer: Kind) -> Outcome:
    if isinstance(gold, Clock) and isinstance(answer, Clock):
        return gold.same(answer)
    for one, other in ((gold, answer), (answer, gold)):
        if isinstance(one, Clock) and not one.has_minutes and isinstance(other, Value):
            return read_number(re.match(r"\d*", one.latex)[0] or "0") == other.number  # type: ignore[index]
    left, right = _parts(gold), _parts(answer)
    if left is None or right is None or len(left) != len(right):
        return False
    numbers = [read_number(part) for part in (*left, *right)]
    if any(number is None for number in numbers):
        quotients = [", ".join(rf"\frac{{{part}}}{{{side[0]}}}" for part in side[1:]) for side in (left, right)]
        return Pair(*(text if len(left) == 2 else f"({text})" for text in quotients))
    values = [number.value for number in numbers if number is not None]
    first, second = values[: len(left)], values[len(left) :]
    return any(first) and any(second) and _proportional(first, second)


def _proportional(first: list[Fraction], second: list[Fraction]) -> bool:
    at = next(index for index, value in enumerate(first) if value)
    return bool(second[at]) and all(a * second[at] == b * first[at] for a, b in zip(first, second, strict=True))


def _parts(kind: Kind) -> tuple[str, ...] | None:
    """The parts of a ratio; a number is its own ratio to 1, a time without a.m. may be meant as a ratio."""
    if isinstance(kind, Ratio):
        return kind.parts
    if isinstance(kind, Clock):
        return tuple(kind.latex.split(":")) if re.fullmatch(r"\d+:\d+", kind.latex) else None
    if isinstance(kind, Value | Expression) and not (isinstance(kind, Expression) and kind.written):
        return (kind.latex, "1")
    return None


def _compare_reals(gold: Kind, answer: Kind) -> Outcome:
    sides = [_as_set(kind) for kind in (gold, answer)]
    left, right = sides
    if isinstance(left, Reals) and isinstance(right, Reals):
        if left.variable and right.variable and left.variable != right.variable:
            return False
        spans, others = left.spans(), right.spans()
        return Pair(left.latex, right.latex) if spans is None or others is None else spans == others
    if isinstance(gold, Value | Based | Ratio | Clock) or isinstance(answer, Value | Based | Ratio | Clock):
        return False
    return Pair(gold.latex, answer.latex)


def _as_set(kind: Kind) -> Kind:
    if isinstance(kind, Members) and kind.brackets in ("()", "[]"):
        return as_reals(kind.brackets[0], [item.latex for item in kind.items], kind.brackets[1]) or kind
    return kind


def _compare_members(gold: Kind, answer: Kind) -> Outcome:
    if not (isinstance(gold, Members) and isinstance(answer, Members)):
        one, other = (gold, answer) if isinstance(gold, Members) else (answer, gold)
        assert isinstance(one, Members)
        if isinstance(other, Value) and len(one.items) == 1 and one.brackets == r"\{\}":
            return _any_or_pair(compare(one.items[0], Answer(other)), gold, answer)
        return False if isinstance(other, Value) else Pair(gold.latex, answer.latex)
    if gold.brackets and answer.brackets and gold.brackets != answer.brackets:
        return False
    if len(gold.items) != len(answer.items):
        return False
    if "()" in (gold.brackets, answer.brackets):
        outcomes = [_all_or_none(compare(a, b)) for a, b in zip(gold.items, answer.items, strict=True)]
        if False in outcomes:
            return False
        return all(outcomes) or Pair(*(f"({', '.join(item.latex for item in side.items)})" for side in (gold, answer)))
    if "[]" in (gold.brackets, answer.brackets) and gold.brackets != answer.brackets:
        return Pair(gold.latex, answer.latex)
    if gold.brackets == "[]":
        outcomes = [_all_or_none(compare(a, b)) for a, b in zip(gold.items, answer.items, strict=True)]
        return False if False in outcomes else all(outcomes) or Pair(gold.latex, answer.latex)
    return _matched(gold, answer)


def _all_or_none(outcomes: list[Outcome]) -> bool | None:
    """True where an outcome is, False where all are, None where algebra must decide."""
    if True in outcomes:
        return True
    return False if all(outcome is False for outcome in outcomes) else None


def _any_or_pair(outcomes: list[Outcome], gold: Kind, answer: Kind) -> Outcome:
    settled = _all_or_none(outcomes)
    return Pair(gold.latex, answer.latex) if settled is None else settled


def _matched(gold: Members, answer: Members) -> Outcome:
    """Whether each gold has an answer of its own; a value given twice counts twice."""
    left, right = list(gold.items), list(answer.items)
    common = Counter(_exact(item) for item in left) & Counter(_exact(item) for item in right)
    del common[None]
    left, right = _without(left, Counter(common)), _without(right, Counter(common))
    if len(left) > MAX_UNMATCHED:
        return False if all(map(_is_number, (*left, *right))) else Pair(gold.latex, answer.latex)
    open_question = False
    for item in left:
        settled = [_all_or_none(compare(item, other)) for other in right]
        if True in settled:
            right.pop(settled.index(True))
        elif None in settled:
            open_question = True
        else:
            return False
    return Pair(gold.latex, answer.latex) if open_question else True


def _exact(item: Answer) -> Fraction | None:
    return item.kind.number.value if isinstance(item.kind, Value) and item.unit is None and not item.percent else None


def _is_number(item: Answer) -> bool:
    return isinstance(item.kind, Value)


def _without(items: list[Answer], common: Counter[Fraction | None]) -> list[Answer]:
    rest = []
    for item in items:
        value = _exact(item)
        if value is not None and common[value] > 0:
            common[value] -= 1
        else:
            rest.append(item)
    return rest
