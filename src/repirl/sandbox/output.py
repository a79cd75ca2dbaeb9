"""Is what a program printed what it should have printed?"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation


def same_output(found: str, expected: str) -> bool:
    """Line by line, outer white space aside: equal texts, or lines of equal numbers (`1.50` is `1.5`).

    The rule of LiveCodeBench's checker.
    """
    left, right = _lines(found), _lines(expected)
    return len(left) == len(right) and all(a == b or _same_numbers(a, b) for a, b in zip(left, right, strict=True))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_numbers(found: str, expected: str) -> bool:
    left, right = found.split(), expected.split()
    if len(left) != len(right):
        return False
    if not all(word.isascii() and "_" not in word for word in left):  # Decimal reads these, other languages do not
        return False
    try:
        return all(Decimal(a) == Decimal(b) for a, b in zip(left, right, strict=True))
    except InvalidOperation:
        return False
