r"""Short word problems for a small language model, with solutions of written-out steps and a known verdict on every step.

    Mia has 46 stamps. Then she gets 27 more. Then she gives 18 away. How many stamps has she now?

    46 + 27 = 73
    73 minus 18 is 55.
    \boxed{55}

A step is a line in one of two wordings. How often experts use each is an argument: a policy that was taught its form by
another mixture has another style than they.
"""

from __future__ import annotations

import random
import re
from typing import Self

from benchmarks.worth.judged import JudgedProblems

from repirl.data.arithmetic import Split, distinct_texts
from repirl.structs import Problem

NAMES = ("Mia", "Ada", "Lea", "Nora", "Ruth", "Emma", "Lucy", "Anna")
THINGS = ("stamps", "apples", "coins", "books", "shells", "cards", "eggs", "pens")
_PROBLEM = re.compile(
    r"\w+ has (\d+) \w+\.((?: Then she (?:gets \d+ more|gives \d+ away)\.)+) How many \w+ has she now\?"
)
_CHANGES = re.compile(r"(gets|gives) (\d+)")
_LINES = (
    re.compile(r"(?P<held>\d+) (?P<sign>[+-]) (?P<by>\d+) = (?P<result>\d+)"),
    re.compile(r"(?P<held>\d+) (?P<sign>plus|minus) (?P<by>\d+) is (?P<result>\d+)\."),
)
_BOX = re.compile(r"\\boxed\{(\d+)\}")


def read(problem: str) -> tuple[int, list[int]]:
    """What she has at first, and the changes. Raises ValueError for another text."""
    match = _PROBLEM.fullmatch(problem)
    if match is None:
        raise ValueError(f"not a word problem of this task: {problem!r}")
    return int(match[1]), [int(n) * (1 if verb == "gets" else -1) for verb, n in _CHANGES.findall(match[2])]


def write(problem: str, symbols: float, generator: random.Random) -> str:
    """A right solution. symbols: probability of a step with + and =, not in words."""
    held, changes = read(problem)
    lines = []
    for change in changes:
        before, held, by = held, held + change, abs(change)
        if generator.random() < symbols:
            lines.append(f"{before} {'+' if change > 0 else '-'} {by} = {held}")
        else:
            lines.append(f"{before} {'plus' if change > 0 else 'minus'} {by} is {held}.")
    return "\n".join([*lines, f"\\boxed{{{held}}}"])


class WordProblems(JudgedProblems):
    """Distinct random problems of one split. Splits share no problem, whatever the seeds.

    Args:
        count: how many problems.
        seed: which problems, in which order, and how their solutions are written.
        min_steps: smallest number of changes. max_steps: largest number.
        largest: numbers in a problem are of 2 to this; nobody ever has less than nothing.
        with_solutions: how many of the problems, the first ones, come with a written solution; None = all.
        symbols: share of the written steps with + and =; the others are in words.
        split: the split to draw from.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        min_steps: int = 2,
        max_steps: int = 3,
        largest: int = 60,
        with_solutions: int | None = None,
        symbols: float = 0.5,
        split: Split = "train",
    ) -> None:
        self.count, self.seed, self.split, self.symbols = count, seed, split, symbols
        self.min_steps, self.max_steps, self.largest = min_steps, max_steps, largest
        self.with_solutions = count if with_solutions is None else with_solutions

    def load(self) -> list[Problem]:
        """The problems. Raises ValueError where the split holds too few distinct ones."""
        generator = random.Random(f"stories/{self.seed}")

        def draw() -> str:
            held = generator.randint(2, self.largest)
            name, thing, text = generator.choice(NAMES), generator.choice(THINGS), ""
            start = held
            for _ in range(generator.randint(self.min_steps, self.max_steps)):
                by = generator.randint(2, self.largest)
                gives = by <= held and generator.random() < 0.5
                held += -by if gives else by
                text += f" Then she {f'gives {by} away' if gives else f'gets {by} more'}."
            return f"{name} has {start} {thing}.{text} How many {thing} has she now?"

        texts = distinct_texts(draw, self.count, self.split, f"{self.min_steps} to {self.max_steps} steps")
        problems = []
        for number, text in enumerate(texts):
            held, changes = read(text)
            solutions = (write(text, self.symbols, generator),) if number < self.with_solutions else ()
            answer = str(held + sum(changes))
            problems.append(Problem(id=f"stories/{text}", text=text, answer=answer, solutions=solutions))
        return problems

    def written_like(self, other: Self) -> Self:
        """The other's style is its share of symbols."""
        return type(self)(
            self.count, self.seed, self.min_steps, self.max_steps, self.largest, symbols=other.symbols, split=self.split
        )

    def judge(self, problem: str, response: str) -> list[bool]:
        """A right line does the next change to the number written before it; the box repeats the last number."""
        held, changes = read(problem)
        done, verdicts = 0, []
        for line in response.split("\n"):
            match = next((m for pattern in _LINES if (m := pattern.fullmatch(line))), None)
            if match is not None and done < len(changes):
                by = int(match["by"]) * (1 if match["sign"] in ("+", "plus") else -1)
                right = int(match["held"]) == held and by == changes[done]
                verdicts.append(right and int(match["result"]) == held + changes[done])
                held, done = int(match["result"]), done + 1
            else:
                box = _BOX.fullmatch(line)
                verdicts.append(box is not None and done == len(changes) and int(box[1]) == held)
        return verdicts
