"""Flawed twins: expert solutions with one place made wrong and every other character kept.

An expert against its twin asks a PRM for correctness alone: both have the same author, length and layout. Which step is
the first wrong one is known. What is changed:

- number: one digit, by another, so that the length stays. In a line with an equation it is one of a result, right after
  an equals sign, which makes the equation false; in a line without one it is any number.
- operator: + and -, * and / of an equation, for each other; of a program also // and %, < and >, == and !=, and so on.
- constant: of a program, an integer by its neighbour.
- step: a step of another solution in the place of this one's.

What the twin says is false where an equation is changed. A number changed in prose contradicts the text around it, and a
changed program may still do what it should, though rarely: `accept` can ask a verifier.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from repirl.data.flawed_code import program_edits
from repirl.structs import WrittenSolution

Domain = Literal["arithmetic", "prose", "code"]
"""arithmetic: the toy tasks' lines, in which digits follow letters. prose: solutions in words. code: Python programs."""

Edit = tuple[int, int, str]
"""First character, the one after the last, and what is put there."""

_RESULT = re.compile(r"=[ \t]*[$€£]?[ \t]*(\d[\d,]*(?:\.\d+)?)")
_NUMBER = {
    "arithmetic": re.compile(r"(\d+)"),
    "prose": re.compile(r"(?<![A-Za-z\d.,_])(\d[\d,]*(?:\.\d+)?)(?![\d])"),
}
_MARKER = re.compile(r"[ \t]*(?:[#*]*[ \t]*step[ \t]*)?\d+[.):](?=\s)", re.IGNORECASE)  # "1. ", "Step 2: "
_OPERATION = re.compile(r"(\d%?\)?[ \t]*)([-+*/x×÷−])(?=[ \t]*[$€£]?(\d+(?:[.,]\d+)*)[^=\n;A-Za-wyz]*=)")
_OTHER = {"+": "-", "-": "+", "−": "+", "*": "/", "x": "/", "×": "÷", "÷": "×", "/": "*"}


@dataclass(frozen=True, slots=True)
class FlawedTwin:
    """A solution made wrong. kind: what was changed. first_wrong: the first wrong step, from 0."""

    solution: WrittenSolution
    first_wrong: int
    kind: str


def flawed_twin(
    solution: WrittenSolution,
    domain: Domain,
    *,
    seed: int | str = 0,
    kinds: Sequence[str] = ("number", "operator", "constant"),
    others: Sequence[WrittenSolution] = (),
    accept: Callable[[WrittenSolution], bool] = lambda flawed: True,
) -> FlawedTwin | None:
    """A twin of a right solution; None where nothing in it can be changed.

    Args:
        solution: a right one.
        domain: what its text is.
        seed: of the choice of a kind, each equally likely, and of a place, which is that of the same solution again.
        kinds: those wanted; a domain has some of them.
        others: solutions from which a step is taken, for the kind "step".
        accept: says of a twin whether it is wrong; one that is refused gives way to the next.
    """
    generator = random.Random(f"flawed/{seed}/{solution.problem}/{solution.text}")
    edits = _edits(solution, domain, others, generator)
    chosen = [kind for kind in kinds if edits.get(kind)]
    generator.shuffle(chosen)
    for kind in chosen:
        generator.shuffle(edits[kind])
        for edit in edits[kind]:
            twin = _edited(solution, edit, kind)
            if twin is not None and accept(twin.solution):
                return twin
    return None


def _edits(
    solution: WrittenSolution, domain: Domain, others: Sequence[WrittenSolution], generator: random.Random
) -> dict[str, list[Edit]]:
    if domain == "code":
        edits = program_edits(solution.text)
    else:
        edits = {"number": list(_numbers(solution.text, domain, generator))}
        if domain == "prose":  # the toy tasks have no token for another operator
            edits["operator"] = list(_operators(solution.text))
    return edits | {"step": list(_steps(solution, others, generator))}


def _edited(solution: WrittenSolution, edit: Edit, kind: str) -> FlawedTwin | None:
    """The twin with this change; None where it would cross from one step to the next."""
    start, end, text = edit
    ends = list(accumulate(map(len, solution.steps)))
    place = bisect_right(ends, start)
    begin = ends[place] - len(solution.steps[place])
    if end > ends[place]:
        return None
    step = solution.steps[place]
    changed = step[: start - begin] + text + step[end - begin :]
    steps = (*solution.steps[:place], changed, *solution.steps[place + 1 :])
    assert changed != step, f"a change that changes nothing: {edit}"
    return FlawedTwin(replace(solution, steps=steps), first_wrong=place, kind=kind)


def _numbers(text: str, domain: Domain, generator: random.Random) -> Iterator[Edit]:
    for line in re.finditer(r"[^\n]+", text):
        marker = _MARKER.match(text, line.start(), line.end()) if domain == "prose" else None
        begin = marker.end() if marker else line.start()
        results = list(_RESULT.finditer(text, begin, line.end()))
        for number in results or _NUMBER[domain].finditer(text, begin, line.end()):
            yield _other_digit(number[1], number.start(1), generator)


def _other_digit(number: str, start: int, generator: random.Random) -> Edit:
    """Another digit in one place of a number, none that would leave a leading zero."""
    place = generator.choice([place for place, letter in enumerate(number) if letter.isdigit()])
    leads = place == 0 and number[1:2].isdigit()
    digits = [digit for digit in "0123456789"[leads:] if digit != number[place]]
    return start + place, start + place + 1, generator.choice(digits)


def _operators(text: str) -> Iterator[Edit]:
    for operation in _OPERATION.finditer(text):
        sign, right = operation[2], operation[3].replace(",", "")
        neutral = 0 if sign in "+-−" else 1
        if float(right if right.count(".") < 2 else "nan") != neutral and operation[1][0] != "0":
            yield operation.start(2), operation.end(2), _OTHER[sign]


def _steps(solution: WrittenSolution, others: Sequence[WrittenSolution], generator: random.Random) -> Iterator[Edit]:
    """For each step one of another problem, the white space at its end kept."""
    theirs = [step.rstrip() for other in others if other.problem != solution.problem for step in other.steps]
    start = 0
    for step in solution.steps:
        kept = step.rstrip()
        if theirs and (chosen := generator.choice(theirs)) != kept:
            yield start, start + len(kept), chosen
        start += len(step)
