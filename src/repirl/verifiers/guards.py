"""What could take a machine's time or memory in computer algebra, told without computing it."""

from __future__ import annotations

import math
import re

MAX_CHARS = 2_000  # of an answer; MATH's longest has 204
MAX_DIGITS = 1_000  # in one run
MAX_EXPONENT = 10_000  # MATH has 2^{4950}
MAX_FACTORIAL = 5_000  # MATH has 2004!
MAX_NESTING = 30  # powers of factorials of powers
# Stands for any number too large to write: oversized as an exponent, harmless as a base. Spaces, since 9!9 is not 99.
_HUGE = " 9999999 "

_POWER = re.compile(r"(\d+)\s*\^\s*(?:\{\s*[+-]?(\d+)\s*\}|[+-]?(\d+))(?!\s*[\^!\d])")
_ANY_POWER = re.compile(r"\^\s*(?:\{\s*[+-]?(\d+)\s*\}|[+-]?(\d+))")
_FACTORIAL = re.compile(r"(\d+)\s*!")
_ENCLOSED = re.compile(r"\(\s*(\d+)\s*\)")
_LONG_IN_EXPONENT = re.compile(r"\^\s*(?:\{[^{}]*|\([^()]*)(?<![\d.])\d{6,}")


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
