r"""Running sums modulo 10, written step by step: a task with a known right answer to every step.

The problem `a3b5c9` gives digits their letters. Its solution writes the running sum at each further letter, a step
each: `\boxed{b8c7}`. The final answer holds every step, so that a wrong one is never right by chance.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from typing import Literal

from repirl.data.sources import Source
from repirl.structs import Problem

LETTERS = "abcdefghijklmnopqrstuvwxyz"
ARITHMETIC_TOKENS: tuple[str, ...] = (*"0123456789", *LETTERS, "\n", "\\boxed{", "}")
"""Every token that problems, solutions and a plain prompt header need."""

Split = Literal["train", "val", "test"]
_PROBLEM = re.compile(r"(?:[a-z][0-9]){2,}")


def facts(wrong: int = 0, seed: int = 0, base: int = 10) -> tuple[tuple[int, ...], ...]:
    """The table [a][b] -> last digit of a + b in `base`, with `wrong` of its base^2 entries replaced by another digit.

    With one seed, the wrong entries for a smaller `wrong` are among those for a larger one.
    """
    if not 0 <= wrong <= base**2:
        raise ValueError(f"the number of wrong facts must be in 0..{base**2}, not {wrong}")
    generator = random.Random(f"facts/{seed}")
    shifts = [(entry, generator.randint(1, base - 1)) for entry in range(base**2)]
    generator.shuffle(shifts)
    shift = dict(shifts[:wrong])
    return tuple(tuple((a + b + shift.get(base * a + b, 0)) % base for b in range(base)) for a in range(base))


_TRUE_FACTS = facts()


def _digits(problem: str) -> list[int]:
    if not _PROBLEM.fullmatch(problem) or problem[::2] != LETTERS[: len(problem) // 2]:
        raise ValueError(f"not a running-sum problem: {problem!r}; expected digits with their letters, like 'a3b5c9'")
    return [int(digit) for digit in problem[1::2]]


def running_sums(
    problem: str,
    table: Sequence[Sequence[int]] = _TRUE_FACTS,
    error_rate: float = 1.0,
    generator: random.Random | None = None,
) -> str:
    """The steps of a problem like "a3b5c9" by the facts of `table`: "b8c7".

    error_rate: probability with which a step uses `table`, else the true facts; needs `generator` below 1.
    """
    total, *rest = _digits(problem)
    steps = []
    for letter, digit in zip(LETTERS[1:], rest, strict=False):
        slipped = error_rate >= 1 or (generator is not None and generator.random() < error_rate)
        total = (table if slipped else _TRUE_FACTS)[total][digit]
        steps.append(f"{letter}{total}")
    return "".join(steps)


def solution(steps: str) -> str:
    """Written steps as a response."""
    return f"\\boxed{{{steps}}}"


def first_error(problem: str, response: str) -> int | None:
    """Index of the first step of the response that is wrong; None if all are right.

    A missing or surplus step counts as wrong at its index; so does anything else than boxed steps.
    """
    expected = running_sums(problem)
    match = re.fullmatch(r"\\boxed\{(.*)\}", response, re.DOTALL)
    written = match[1] if match else ""
    for index in range(max(len(expected), len(written) + 1) // 2):
        if expected[2 * index : 2 * index + 2] != written[2 * index : 2 * index + 2]:
            return index
    return None


def split_of(problem: str) -> Split:
    """The split to which a problem text belongs: by its hash, a fifth each for test and val, the rest train."""
    bucket = int.from_bytes(hashlib.blake2b(problem.encode(), digest_size=8).digest(), "big") % 5
    return "test" if bucket == 0 else "val" if bucket == 1 else "train"


def distinct_texts(draw: Callable[[], str], count: int, split: Split, what: str) -> list[str]:
    """`count` different problem texts of the split. Raises ValueError, naming `what`, where it holds too few."""
    texts: dict[str, None] = {}  # a set that keeps its order
    # One draw in five lands in the smallest split, so the bound is met only where few distinct problems are left.
    draws_left = 1000 + 200 * count
    while len(texts) < count:
        if draws_left == 0:
            raise ValueError(
                f"found only {len(texts)} distinct problems of {what} in split {split!r}, not {count}; "
                "lower count or raise max_steps"
            )
        draws_left -= 1
        text = draw()
        if split_of(text) == split:
            texts[text] = None
    return list(texts)


class RunningSums(Source):
    """Distinct random running-sum problems of one split. Splits share no problem, whatever the seeds.

    Args:
        count: how many problems.
        seed: which problems, and in which order.
        min_steps: smallest number of additions.
        max_steps: largest number of additions.
        wrong_facts: how many of the 100 facts the written solutions have wrong; `answer` is always the true one.
        facts_seed: which facts are wrong.
        error_rate: how often a wrong fact is used where it applies; else the true one.
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
        error_rate: float = 1.0,
        split: Split = "train",
        solution: bool = True,
    ) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
        if not 1 <= min_steps <= max_steps:
            raise ValueError(f"expected 1 <= min_steps <= max_steps, not {min_steps} and {max_steps}")
        if max_steps >= len(LETTERS) or not 0 <= error_rate <= 1:
            raise ValueError(
                f"expected max_steps < {len(LETTERS)} and 0 <= error_rate <= 1, not {max_steps} and {error_rate}"
            )
        self.table, self.error_rate = facts(wrong_facts, facts_seed), error_rate
        self.count, self.seed, self.min_steps, self.max_steps = count, seed, min_steps, max_steps
        self.split, self.solution = split, solution

    def load(self) -> list[Problem]:
        """The problems. Raises ValueError when the split holds too few distinct ones."""
        generator = random.Random(f"running-sums/{self.seed}")

        def draw() -> str:
            length = generator.randint(self.min_steps, self.max_steps) + 1
            return "".join(f"{letter}{generator.randrange(10)}" for letter in LETTERS[:length])

        texts = distinct_texts(draw, self.count, self.split, f"{self.min_steps} to {self.max_steps} steps")
        return [self._problem(text, generator) for text in texts]

    def _problem(self, text: str, generator: random.Random) -> Problem:
        written = running_sums(text, self.table, self.error_rate, generator)
        solutions = (solution(written),) if self.solution else ()
        return Problem(id=f"running-sums/{text}", text=text, answer=running_sums(text), solutions=solutions)
