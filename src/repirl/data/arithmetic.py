r"""Chain sums modulo 10, written step by step: a task with a known right answer to every step.

The problem `3+5+9` has the solution

    3+5=8
    8+9=7
    \boxed{7}
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from typing import Literal

from repirl.data.sources import Source
from repirl.structs import Problem

ARITHMETIC_TOKENS: tuple[str, ...] = (*"0123456789", "+", "=", "\n", "\\boxed{", "}")
"""Every token that problems, solutions and a plain prompt header need."""

Split = Literal["train", "val", "test"]
_PROBLEM = re.compile(r"[0-9](\+[0-9])+")


def facts(wrong: int = 0, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """The table [a][b] -> last digit of a + b, with `wrong` of its 100 entries replaced by another digit.

    With one seed, the wrong entries for a smaller `wrong` are among those for a larger one.
    """
    if not 0 <= wrong <= 100:
        raise ValueError(f"the number of wrong facts must be in 0..100, not {wrong}")
    generator = random.Random(f"facts/{seed}")
    shifts = [(entry, generator.randint(1, 9)) for entry in range(100)]
    generator.shuffle(shifts)
    shift = dict(shifts[:wrong])
    return tuple(tuple((a + b + shift.get(10 * a + b, 0)) % 10 for b in range(10)) for a in range(10))


_TRUE_FACTS = facts()


def solution(problem: str, table: Sequence[Sequence[int]] = _TRUE_FACTS) -> str:
    """The written solution of a problem like "3+5+9", by the facts of `table`."""
    if not _PROBLEM.fullmatch(problem):
        raise ValueError(f"not a chain sum: {problem!r}; expected single digits joined by '+'")
    total, *rest = map(int, problem.split("+"))
    lines = []
    for digit in rest:
        result = table[total][digit]
        lines.append(f"{total}+{digit}={result}")
        total = result
    return "\n".join([*lines, f"\\boxed{{{total}}}"])


def first_error(problem: str, response: str) -> int | None:
    """Index of the first line of the response that differs from the true solution; None if all lines are right.

    A missing or surplus line counts as wrong at its index, the boxed answer is the last line.
    """
    expected = solution(problem).split("\n")
    written = response.rstrip("\n").split("\n")
    for index in range(max(len(expected), len(written))):
        if expected[index : index + 1] != written[index : index + 1]:
            return index
    return None


def split_of(problem: str) -> Split:
    """The split to which a problem text belongs: by its hash, a fifth each for test and val, the rest train."""
    bucket = int.from_bytes(hashlib.blake2b(problem.encode(), digest_size=8).digest(), "big") % 5
    return "test" if bucket == 0 else "val" if bucket == 1 else "train"


class ChainSums(Source):
    """Distinct random chain sums of one split. Splits share no problem, whatever the seeds.

    Args:
        count: how many problems.
        seed: which problems, and in which order.
        min_steps: smallest number of additions.
        max_steps: largest number of additions.
        wrong_facts: how many of the 100 facts the written solutions have wrong; `answer` is always the true one.
        facts_seed: which facts are wrong.
        split: the split to draw from.
        solution: whether problems come with a written solution.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        min_steps: int = 5,
        max_steps: int = 8,
        wrong_facts: int = 0,
        facts_seed: int = 0,
        split: Split = "train",
        solution: bool = True,
    ) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
        if not 1 <= min_steps <= max_steps:
            raise ValueError(f"expected 1 <= min_steps <= max_steps, not {min_steps} and {max_steps}")
        self.table = facts(wrong_facts, facts_seed)
        self.count, self.seed, self.min_steps, self.max_steps = count, seed, min_steps, max_steps
        self.split, self.solution = split, solution

    def load(self) -> list[Problem]:
        """The problems. Raises ValueError when the split holds too few distinct ones."""
        generator = random.Random(f"chain-sums/{self.seed}")
        texts: dict[str, None] = {}  # a set that keeps its order
        # One draw in five lands in the smallest split, so the bound is met only where few distinct problems are left.
        draws_left = 1000 + 200 * self.count
        while len(texts) < self.count:
            if draws_left == 0:
                raise ValueError(
                    f"found only {len(texts)} distinct chain sums of {self.min_steps} to {self.max_steps} steps in "
                    f"split {self.split!r}, not {self.count}; lower count or raise max_steps"
                )
            draws_left -= 1
            length = generator.randint(self.min_steps, self.max_steps) + 1
            text = "+".join(str(generator.randrange(10)) for _ in range(length))
            if split_of(text) == self.split:
                texts[text] = None
        return [self._problem(text) for text in texts]

    def _problem(self, text: str) -> Problem:
        answer = str(sum(map(int, text.split("+"))) % 10)
        solutions = (solution(text, self.table),) if self.solution else ()
        return Problem(id=f"chain-sum/{text}", text=text, answer=answer, solutions=solutions)
