r"""Word problems about the hand of a dial, with solutions of written-out steps and a known verdict on every step.

    The hand of a dial points at 7. Turn it 4 right. Turn it 5 left.

    7 + 4 = 11
    Now it points at 6.
    \boxed{11, 6}

The box repeats every mark that the hand stops at, so that a wrong solution is right by chance almost never. A step is a
line in one of three wordings, chosen at random, so that good solutions of a problem are many. The dial has `marks` marks,
so that turns are additions and subtractions modulo `marks`: (mark, turn) -> mark are the facts to know.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import Self

from benchmarks.worth.judged import JudgedProblems

from repirl.data.arithmetic import Split, distinct_texts
from repirl.structs import Problem

Fact = Callable[[int, int], int]
"""(mark, turn) -> mark; turns to the left are negative."""

_START, _TURN = "The hand of a dial points at ", " Turn it "
_PROBLEM = re.compile(r"The hand of a dial points at (\d+)\.((?: Turn it \d+ (?:right|left)\.)+)")
_TURNS = re.compile(r" Turn it (\d+) (right|left)\.")
_LINES = (
    re.compile(r"(?P<mark>\d+) (?P<sign>[+-]) (?P<by>\d+) = (?P<result>\d+)"),
    re.compile(r"From (?P<mark>\d+), (?P<by>\d+) (?P<way>right|left) is (?P<result>\d+)\."),
    re.compile(r"Now it points at (?P<result>\d+)\."),
)
_BOX = re.compile(r"\\boxed\{([\d, ]+)\}")


def tokens(marks: int) -> list[str]:
    """Every token that problems and solutions need; a number is one token."""
    numbers = [str(n) for n in range(max(marks, 10))]
    words = [_START, _TURN, " right.", " left.", ".", " + ", " - ", " = ", "From ", ", ", " right is ", " left is "]
    return [*numbers, *words, "Now it points at ", "\n", "\\boxed{", "}"]


def read(problem: str) -> tuple[int, list[int]]:
    """The first mark, and the turns, those to the left negative. Raises ValueError for another text."""
    match = _PROBLEM.fullmatch(problem)
    if match is None:
        raise ValueError(f"not a problem about a dial: {problem!r}")
    return int(match[1]), [int(by) * (1 if way == "right" else -1) for by, way in _TURNS.findall(match[2])]


def judge(problem: str, response: str, marks: int) -> list[bool]:
    """Whether each line is right, given the lines before it as they were written: an error is counted once.

    A right line does the next turn from the mark written before it. The last line, the box, is right if it repeats the
    marks that were written and no turn is missing.
    """
    mark, turns = read(problem)
    marks_written: list[str] = []
    verdicts = []
    for line in response.split("\n"):
        match = next((m for pattern in _LINES if (m := pattern.fullmatch(line))), None)
        done = len(marks_written)
        if match is not None and done < len(turns):
            right = (mark + turns[done]) % marks
            verdicts.append(_spelled_right(match, mark, turns[done]) and int(match["result"]) == right)
            mark = int(match["result"])
            marks_written.append(match["result"])
        else:
            box = _BOX.fullmatch(line)
            verdicts.append(box is not None and done == len(turns) and box[1] == ", ".join(marks_written))
    return verdicts


def _spelled_right(match: re.Match[str], mark: int, turn: int) -> bool:
    parts = match.groupdict()
    if "mark" not in parts:
        return True
    forward = parts.get("sign", parts.get("way")) in ("+", "right")
    return int(parts["mark"]) == mark and int(parts["by"]) * (1 if forward else -1) == turn


def fact_table(marks: int, largest: int, wrong_share: float, seed: int) -> dict[tuple[int, int], int]:
    """(mark, turn) -> mark for turns of 1 to `largest` either way; a share of them, chosen by the seed, is wrong."""
    generator = random.Random(f"dial/facts/{seed}")
    entries = [(mark, turn * way) for mark in range(marks) for turn in range(1, largest + 1) for way in (1, -1)]
    table = {(mark, turn): (mark + turn) % marks for mark, turn in entries}
    for entry in generator.sample(entries, round(wrong_share * len(entries))):
        table[entry] = (table[entry] + generator.randint(1, marks - 1)) % marks
    return table


def write(problem: str, fact: Fact, generator: random.Random, wording: int | None = None) -> str:
    """A solution by these facts, each step in a wording chosen at random, or all in one, 0 to 2."""
    mark, turns = read(problem)
    lines, reached = [], []
    for turn in turns:
        before, mark = mark, fact(mark, turn)
        reached.append(str(mark))
        wordings = (
            f"{before} {'+' if turn > 0 else '-'} {abs(turn)} = {mark}",
            f"From {before}, {abs(turn)} {'right' if turn > 0 else 'left'} is {mark}.",
            f"Now it points at {mark}.",
        )
        lines.append(generator.choice(wordings if wording is None else wordings[wording : wording + 1]))
    return "\n".join([*lines, f"\\boxed{{{', '.join(reached)}}}"])


def write_flawed(problem: str, marks: int, generator: random.Random, wording: int | None = None) -> str:
    """A solution with one step wrong, at random, and the others right given what stands before them."""
    wrong, steps = generator.randrange(len(read(problem)[1])), 0

    def fact(mark: int, turn: int) -> int:
        nonlocal steps
        steps += 1
        return (mark + turn + (generator.randint(1, marks - 1) if steps - 1 == wrong else 0)) % marks

    return write(problem, fact, generator, wording)


class DialProblems(JudgedProblems):
    """Distinct random problems of one split. Splits share no problem, whatever the seeds.

    Args:
        count: how many problems.
        seed: which problems, in which order, and how their solutions are written.
        marks: of the dial. largest_turn: turns are of 1 to this many marks, either way.
        min_steps: smallest number of turns. max_steps: largest number.
        with_solutions: how many of the problems, the first ones, come with a written solution; None = all.
        skip_solutions: of these the first so many come without one after all.
        twins: so many flawed solutions stand beside each written one (`write_flawed`); a verifier has to tell them.
        wording: 0, 1 or 2: written solutions are in this wording alone.
        swapped: each solution is written for another of these problems: same writer, same form, wrong content.
        wrong_share: share of the facts that written solutions have wrong; `answer` is always the true one.
        facts_seed: which facts are wrong.
        error_rate: how often a wrong fact is used where it applies; else the true one.
        split: the split to draw from.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        marks: int = 12,
        largest_turn: int = 5,
        min_steps: int = 4,
        max_steps: int = 6,
        with_solutions: int | None = None,
        skip_solutions: int = 0,
        twins: int = 0,
        wording: int | None = None,
        swapped: bool = False,
        wrong_share: float = 0.0,
        facts_seed: int = 0,
        error_rate: float = 1.0,
        split: Split = "train",
    ) -> None:
        if count < 1 or not 1 <= min_steps <= max_steps or not 1 <= largest_turn < marks:
            raise ValueError(
                f"expected count >= 1, 1 <= min_steps <= max_steps and 1 <= largest_turn < marks, not {count}, "
                f"{min_steps}, {max_steps}, {largest_turn} and {marks}"
            )
        self.count, self.seed, self.marks, self.largest_turn = count, seed, marks, largest_turn
        self.min_steps, self.max_steps, self.split = min_steps, max_steps, split
        self.with_solutions, self.error_rate = count if with_solutions is None else with_solutions, error_rate
        self.swapped, self.skip_solutions, self.twins, self.wording = swapped, skip_solutions, twins, wording
        self.table = fact_table(marks, largest_turn, wrong_share, facts_seed)

    def load(self) -> list[Problem]:
        """The problems. Raises ValueError where the split holds too few distinct ones."""
        generator = random.Random(f"dial/problems/{self.seed}")

        def draw() -> str:
            turns = [
                f"{_TURN}{generator.randint(1, self.largest_turn)} {generator.choice(('right', 'left'))}."
                for _ in range(generator.randint(self.min_steps, self.max_steps))
            ]
            return f"{_START}{generator.randrange(self.marks)}." + "".join(turns)

        texts = distinct_texts(draw, self.count, self.split, f"{self.min_steps} to {self.max_steps} steps")
        problems = [self._problem(text, generator, number < self.with_solutions) for number, text in enumerate(texts)]
        skipped = [replace(problem, solutions=()) for problem in problems[: self.skip_solutions]]
        problems = [*skipped, *problems[self.skip_solutions :]]
        if not self.swapped:
            return problems
        solved = problems[: self.with_solutions]
        moved = [replace(p, solutions=q.solutions) for p, q in zip(solved, solved[1:] + solved[:1], strict=True)]
        return moved + problems[self.with_solutions :]

    def judge(self, problem: str, response: str) -> list[bool]:
        """Whether each line is right; see the function."""
        return judge(problem, response, self.marks)

    def written_like(self, other: Self) -> Self:
        """The other's style is its wording."""
        return type(self)(
            self.count, self.seed, self.marks, self.largest_turn, self.min_steps, self.max_steps,
            wording=other.wording, split=self.split,
        )  # fmt: skip

    def _problem(self, text: str, generator: random.Random, solved: bool) -> Problem:
        def fact(mark: int, turn: int) -> int:
            slips = generator.random() < self.error_rate
            return self.table[mark, turn] if slips else (mark + turn) % self.marks

        mark, turns = read(text)
        answer = ", ".join(str((mark + so_far) % self.marks) for so_far in accumulate(turns))
        written = (write(text, fact, generator, self.wording),) if solved else ()
        if solved:
            of_twins = random.Random(f"dial/twins/{self.seed}/{text}")
            written += tuple(write_flawed(text, self.marks, of_twins, self.wording) for _ in range(self.twins))
        return Problem(id=f"dial/{text}", text=text, answer=answer, solutions=written)
