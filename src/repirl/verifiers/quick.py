"""Decisions on a (gold, answer) pair that need no computer algebra, and the guards before it. Pure.

What is equal where mathematics alone does not decide is said in docs/verifiers.md.
"""

from __future__ import annotations

from repirl.structs import Verdict
from repirl.verifiers.guards import MAX_CHARS, oversized
from repirl.verifiers.reading.compare import compare
from repirl.verifiers.reading.kinds import Answer, Expression, Members, Named, Ratio, read
from repirl.verifiers.reading.latex import normalise
from repirl.verifiers.reading.numbers import read_number
from repirl.verifiers.reading.reals import Reals

EQUAL = Verdict(correct=True, status="equal")
NOT_EQUAL = Verdict(correct=False, status="not_equal")
NO_ANSWER = Verdict(correct=False, status="no_answer")
GOLD_UNPARSED = Verdict(correct=None, status="gold_unparsed")


def decide_gold(gold: str) -> bool | str:
    """Whether a gold answer can be read, or the part of it that computer algebra must read.

    A gold of words is readable: it is compared as words.
    """
    if not gold.strip() or len(gold) > MAX_CHARS:
        return False
    normal = normalise(gold)
    if not normal or oversized(normal):
        return False
    answer = read(gold)
    return True if _is_read(answer) else answer.latex


def _is_read(answer: Answer) -> bool:
    """Whether the reading is complete without computer algebra."""
    kind = answer.kind
    if isinstance(kind, Members):
        return bool(kind.items) and all(map(_is_read, kind.items))
    if isinstance(kind, Named):
        return _is_read(kind.value)
    if isinstance(kind, Ratio):
        return all(read_number(part) for part in kind.parts)
    if isinstance(kind, Reals):
        return kind.spans() is not None
    return not isinstance(kind, Expression)


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
    normal_gold, normal_answer = normalise(gold), normalise(answer)
    if not normal_answer:
        return NO_ANSWER
    if normal_gold == normal_answer and "$" not in gold + answer:  # the normal form has lost the currency
        return EQUAL
    if not normal_gold or oversized(normal_gold):
        return GOLD_UNPARSED
    if oversized(normal_answer):
        return NOT_EQUAL
    outcomes = compare(read(gold), read(answer))
    if True in outcomes:
        return EQUAL
    return [(pair.gold, pair.answer) for pair in outcomes if not isinstance(pair, bool)] or NOT_EQUAL
