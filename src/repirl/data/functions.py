"""Small functions to write: the coding quick run's task. A problem is a chain of operations, the answer a program.

The problem "p3t2m1" asks for a function of x plus 3, times 2, minus 1: "f=lambda x:((x+3)*2)-1". Any program with the same
values passes, "f=lambda x:2*x+5" too.
"""

from __future__ import annotations

import random
import re

from repirl.data.arithmetic import Split, split_of
from repirl.data.sources import Source
from repirl.structs import CodeTests, Problem

FUNCTION_TOKENS = (*"0123456789", *"pmt", *"+-*()x", "f=lambda x:")
"""The tokens of problems and solutions."""

_PROBLEM = re.compile(r"(?:[pmt][1-9])+")
_OPERATORS = {"p": "+", "m": "-", "t": "*"}
_INPUTS = (-2, 0, 1, 7)


def program(problem: str) -> str:
    """The function that a problem like "p3t2m1" asks for, operation by operation."""
    if not _PROBLEM.fullmatch(problem):
        raise ValueError(f"not a chain of operations: {problem!r}; expected one like 'p3t2m1'")
    operations = [_OPERATORS[problem[start]] + problem[start + 1] for start in range(0, len(problem), 2)]
    body = "x"
    for number, operation in enumerate(operations):
        body = f"({body}){operation}" if number else f"{body}{operation}"
    return f"f=lambda x:{body}"


def value(problem: str, x: int) -> int:
    """What the function gives at x."""
    for start in range(0, len(problem), 2):
        operand = int(problem[start + 1])
        x = {"p": x + operand, "m": x - operand, "t": x * operand}[problem[start]]
    return x


class Functions(Source):
    """Distinct random function-writing problems of one split, with tests. Splits share no problem, whatever the seeds.

    Args:
        count: how many problems.
        seed: which problems, and in which order.
        steps: operations of each.
        error_rate: share of the written solutions in which one digit is wrong; the tests are always right.
        split: the split to draw from.
    """

    def __init__(self, count: int, seed: int, steps: int = 3, error_rate: float = 0.0, split: Split = "train") -> None:
        if count < 1 or steps < 1 or not 0 <= error_rate <= 1:
            raise ValueError(
                f"expected count and steps of at least 1 and 0 <= error_rate <= 1, not {count}, {steps}, {error_rate}"
            )
        self.count, self.seed, self.steps, self.error_rate, self.split = count, seed, steps, error_rate, split

    def load(self) -> list[Problem]:
        """The problems. Raises ValueError when the split holds too few distinct ones."""
        generator = random.Random(f"functions/{self.seed}")
        texts: dict[str, None] = {}  # a set that keeps its order
        for _ in range(1000 + 200 * self.count):
            if len(texts) == self.count:
                break
            text = "".join(f"{generator.choice('pmt')}{generator.randint(1, 9)}" for _ in range(self.steps))
            if split_of(text) == self.split:
                texts[text] = None
        if len(texts) < self.count:
            raise ValueError(
                f"found only {len(texts)} distinct problems of {self.steps} steps in split {self.split!r}, not "
                f"{self.count}; lower count or raise steps"
            )
        return [self._problem(text, generator) for text in texts]

    def _problem(self, text: str, generator: random.Random) -> Problem:
        written = program(text)
        if generator.random() < self.error_rate:
            place = generator.choice([index for index, character in enumerate(written) if character.isdigit()])
            others = [digit for digit in "123456789" if digit != written[place]]
            written = written[:place] + generator.choice(others) + written[place + 1 :]
        asserts = "\n".join(f"assert f({x}) == {value(text, x)}" for x in _INPUTS)
        return Problem(
            id=f"functions/{text}",
            text=text,
            solutions=(written,),
            tests=CodeTests("asserts", asserts, entry_point="f"),
        )
