"""Where the final answer of a response is. Pure string work."""

from __future__ import annotations

import re
from collections.abc import Sequence

from repirl.verifiers.reading.latex import normalise

__all__ = ["EXTRACTION", "WINDOW", "extract_answer", "extract_box", "normalise"]

EXTRACTION = ("box", "####")  # where the final answer is looked for, in order
WINDOW = 20_000  # characters: the answer stands at the end of a response

_BOX_TOKENS = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)

def extract_box(response: str) -> str | None:
    r"""Content of the last balanced, non-empty `\boxed{}` or `\fbox{}` of the last 20,000 characters.

    One pass with a stack, so that ten thousand unclosed boxes cost no more than one.
    """
    tail = response[-WINDOW:]
    stack: list[tuple[int, bool]] = []  # (where the content begins, is it a box)
    best_start, best = -1, None
    for token in _BOX_TOKENS.finditer(tail):
        if token.lastgroup == "close":
            if stack:
                start, is_box = stack.pop()
                content = tail[start : token.start()].strip()
                if is_box and start > best_start and content:
                    best_start, best = start, content
        elif token.lastgroup is not None:  # an escaped character, \{ among them, opens and closes nothing
            stack.append((token.end(), token.lastgroup == "box"))
    return best


def extract_answer(response: str, *, extraction: Sequence[str] = EXTRACTION) -> str | None:
    """The final answer by the first way of `extraction` that finds one in the last 20,000 characters.

    `box`: content of the last balanced box. Any other text is a marker: the rest of the line after its last occurrence.
    """
    for way in extraction:
        if found := extract_box(response) if way == "box" else _after_marker(response, way):
            return found
    return None


def _after_marker(response: str, marker: str) -> str | None:
    _, found, after = response[-WINDOW:].rpartition(marker)
    return after.strip().split("\n", 1)[0].strip() or None if found else None
