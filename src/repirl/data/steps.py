"""Solutions cut into steps: the one place where a text becomes steps, for scoring, search, evaluation and data."""

from __future__ import annotations

import ast
import re
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Literal, get_args

By = Literal["newline", "blank_line", "numbered", "statements"]
"""How a solution is cut.

newline: each line that has words; it is how training cuts a response (objectives/steps.py, step_ends).
blank_line: paragraphs. numbered: where a line begins with "Step 1:", "**Step 1.**" or "### Step 1". statements: those of a
Python program, the headers of compound ones too; lines where it is no Python.
"""

_ENDS: dict[str, re.Pattern[str]] = {
    "newline": re.compile(r"\n"),
    "blank_line": re.compile(r"\n(?:[^\S\n]*\n)+"),
    "numbered": re.compile(r"^(?=[ \t]*[#*]*[ \t]*step[ \t]*\d+)", re.IGNORECASE | re.MULTILINE),
}
_LINE_END = re.compile(r"\r\n|\r|\n")  # as Python's parser counts lines


def split_steps(text: str, by: By | re.Pattern[str] = "newline") -> tuple[str, ...]:
    """The steps of a solution; joined they are the text.

    What separates two steps belongs to the first. A piece of white space alone is no step: it belongs to the step before
    it, at the beginning to the one after it.

    Args:
        text: the solution.
        by: a name of `By`, or a pattern: a step ends where a match of it ends. A lookahead, such as `(?=Therefore)`, has
            steps begin at what it sees.

    Raises:
        ValueError: the text is blank, or there is no such way to cut it.
    """
    if not text.strip():
        raise ValueError("the solution is empty: it has no steps; leave it out")
    return _pieces(text, _statement_starts(text) if by == "statements" else _ends(text, _pattern(by)))


def join_steps(steps: Sequence[str]) -> tuple[str, ...]:
    """Steps given one by one as steps of one solution: a newline after each but the last, where it has none."""
    return (*(step if step.endswith("\n") else f"{step}\n" for step in steps[:-1]), *steps[-1:])


def step_of_tokens(spans: Sequence[tuple[int, int]], steps: Sequence[str]) -> tuple[int, ...]:
    """The step, counted from 0, of every token of a solution.

    A token belongs to the step in which its first visible character stands; white space alone to that in which it begins,
    so that a newline ends its line and an indentation begins the next, as in training.

    Args:
        spans: first character and the one after the last, of each token in the joined steps. A tokenizer may leave white
            space at either side of a token out of its span. An empty span begins where the one before it ends.
        steps: of the solution.
    """
    text, ends = "".join(steps), list(accumulate(map(len, steps)))
    places: list[int] = []
    before = 0
    for start, end in spans:
        begins = start if start < end else before
        begins = next((place for place in range(start, end) if not text[place].isspace()), begins)
        places.append(min(bisect_right(ends, begins), len(steps) - 1))
        before = end
    return tuple(places)


def _pattern(by: str | re.Pattern[str]) -> re.Pattern[str]:
    if isinstance(by, re.Pattern):
        return by
    if by not in _ENDS:
        raise ValueError(f"steps cannot be cut by {by!r}: give {', '.join(get_args(By))} or a compiled pattern")
    return _ENDS[by]


def _ends(text: str, pattern: re.Pattern[str]) -> list[int]:
    return [match.end() for match in pattern.finditer(text)]


def _pieces(text: str, ends: Iterable[int]) -> tuple[str, ...]:
    """The text cut at these places, blank pieces joined to a neighbour."""
    cuts = sorted({0, *ends, len(text)})
    pieces: list[str] = []
    for first, last in pairwise(cuts):
        piece = text[first:last]
        if pieces and (not piece.strip() or not pieces[-1].strip()):
            pieces[-1] += piece
        else:
            pieces.append(piece)
    return tuple(pieces)


def _statement_starts(text: str) -> list[int]:
    """Where the lines begin on which a statement begins; all lines where the text is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the program's author should know
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _ends(text, _ENDS["newline"])
    first = {
        min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt)
    }
    begins = [0, *_ends(text, _LINE_END)]
    return [begins[number - 1] for number in sorted(first)]
