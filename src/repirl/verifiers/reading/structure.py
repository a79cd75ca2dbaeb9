r"""Where an answer comes apart: brackets, separators, both signs of `\pm`."""

from __future__ import annotations

import re
from itertools import product

MAX_SIGNS = 4  # of \pm in one value: sixteen values

_BRACKET = re.compile(r"\\[{}]|\\.|[()\[\]{}]")
_OPEN, _CLOSE = frozenset(("(", "[", "{", r"\{")), frozenset((")", "]", "}", r"\}"))
_SIGN = re.compile(r"\\[pm][pm](?![a-zA-Z]) ?")
_IDLE_PLUS = re.compile(r"(^|[=({\[,^] ?)\+ ?")


def listed(words: str) -> tuple[str, ...]:
    """Words between spaces."""
    return tuple(words.split())


def split(text: str, separator: re.Pattern[str]) -> list[str]:
    """Parts between separators outside all brackets, whose kinds need not match: `(1, 2]`. The separators are left out."""
    return split_with(text, separator)[::2]


def split_with(text: str, separator: re.Pattern[str]) -> list[str]:
    """As `split`, with the separators between the parts."""
    depth, free = 0, [True] * (len(text) + 1)
    at = 0
    while at < len(text):
        if (bracket := _BRACKET.match(text, at)) is None:
            free[at] = depth == 0
            at += 1
            continue
        depth += (bracket[0] in _OPEN) - (bracket[0] in _CLOSE)
        free[at : bracket.end()] = [depth == 0 and bracket[0] not in _CLOSE] * (bracket.end() - at)
        at = bracket.end()
    parts, start = [], 0
    for match in separator.finditer(text):
        if free[match.start()]:
            parts += [text[start : match.start()].strip(), match[0].strip()]
            start = match.end()
    return [*parts, text[start:].strip()]


def enclosed(text: str) -> tuple[str, str, str] | None:
    r"""(opening bracket, content, closing bracket) where one pair, matching or not, encloses the whole: `(1, 2]`, `\{3\}`."""
    opening = _BRACKET.match(text)
    if opening is None or opening[0] not in _OPEN:
        return None
    depth = 0
    for bracket in _BRACKET.finditer(text):
        depth += (bracket[0] in _OPEN) - (bracket[0] in _CLOSE)
        if depth == 0:
            whole = bracket.end() == len(text)
            return (opening[0], text[opening.end() : bracket.start()].strip(), bracket[0]) if whole else None
    return None


def both_signs(text: str) -> list[str]:
    r"""The values that `\pm` stands for, anywhere in the text; the text alone where there is none.

    Several `\pm` are independent of one another; beside a `\mp` all of them change together.
    """
    signs = _SIGN.findall(text)
    if not signs or len(signs) > MAX_SIGNS:
        return [text]
    linked = any(sign.startswith(r"\mp") for sign in signs)
    choices = [(True,) * len(signs), (False,) * len(signs)] if linked else product((True, False), repeat=len(signs))
    found = []
    for choice in choices:
        values = iter(choice)
        plus = _SIGN.sub(lambda sign, v=values: "+" if next(v) == sign[0].startswith(r"\pm") else "-", text)  # type: ignore[misc]
        found.append(_IDLE_PLUS.sub(r"\1", plus))
    return found
