"""Where the final answer of a response is. Pure string work."""

from __future__ import annotations

import re
from collections.abc import Sequence

from repirl.verifiers.reading.latex import normalise

__all__ = ["EXTRACTION", "WINDOW", "extract_answer", "extract_box", "extract_boxes", "normalise"]

EXTRACTION = ("box", "####")  # where the final answer is looked for, in order
WINDOW = 20_000  # characters: the answer stands at the end of a response

# What may stand between boxes that are one answer: a conjunction, and mathematics that ends and begins.
_JOINT = re.compile(
    r"(?:[\s$~]|\\[\s()\[\],;]|\\q?quad)*(?:,|;|(?:,\s*)?(?:\\(?:text|mbox)\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b))"
    r"(?:[\s$~]|\\[\s()\[\],;]|\\q?quad)*"
)
_LONE_BACKSLASH = re.compile(r"(?<!\\)(?:\\\\)*\\$")
_BOX_TOKENS = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)


def extract_box(response: str) -> str | None:
    r"""Content of the last balanced, non-empty `\boxed{}` or `\fbox{}` of the last 20,000 characters."""
    boxes = _boxes(response[-WINDOW:])
    return boxes[-1][1] if boxes else None


def extract_boxes(response: str) -> str | None:
    r"""As `extract_box`, with the boxes before it that are joined to it by nothing but a comma, "and" or "or".

    `\boxed{5} and \boxed{6}` is the answer "5, 6". A box with other words after it is an intermediate result.
    """
    tail = response[-WINDOW:]
    boxes = _boxes(tail)
    if not boxes:
        return None
    contents, start = [boxes[-1][1]], boxes[-1][0].start
    for span, content in reversed(boxes[:-1]):
        if not _JOINT.fullmatch(tail[span.stop : start]):
            break
        contents, start = [content, *contents], span.start
    return ", ".join(contents)


def _boxes(tail: str) -> list[tuple[slice, str]]:
    """Place and content of the outermost non-empty boxes that come last, in order; one inside another counts alone.

    One pass with a stack, so that ten thousand unclosed boxes cost no more than one.
    """
    stack: list[tuple[int, int, bool]] = []  # (where it begins, where the content begins, is it a box)
    found: list[tuple[slice, str]] = []
    for token in _BOX_TOKENS.finditer(tail):
        if token.lastgroup == "close":
            if stack:
                begin, start, is_box = stack.pop()
                content = _stripped(tail[start : token.start()])
                inner_is_later = bool(found) and found[-1][0].start > begin
                if is_box and content and not inner_is_later:
                    found.append((slice(begin, token.end()), content))
        elif token.lastgroup is not None:  # an escaped character, \{ among them, opens and closes nothing
            stack.append((token.start(), token.end(), token.lastgroup == "box"))
    return found


def _stripped(content: str) -> str:
    r"""Without outer spaces, the escaped one of `\boxed{5\ }` among them."""
    content = content.strip()
    return content[:-1].strip() if _LONE_BACKSLASH.search(content) else content


def extract_answer(response: str, *, extraction: Sequence[str] = EXTRACTION) -> str | None:
    """The final answer by the first way of `extraction` that finds one in the last 20,000 characters.

    `box`: content of the last balanced box, with those joined to it (`extract_boxes`).
    Any other text is a marker: the rest of the line after its last occurrence.
    """
    for way in extraction:
        if found := extract_boxes(response) if way == "box" else _after_marker(response, way):
            return found
    return None


def _after_marker(response: str, marker: str) -> str | None:
    _, found, after = response[-WINDOW:].rpartition(marker)
    return after.strip().split("\n", 1)[0].strip() or None if found else None
