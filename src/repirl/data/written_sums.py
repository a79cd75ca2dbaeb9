r"""Two arithmetic tasks whose written solutions are not unique, with a known verdict on every written line.

`ParaphrasedSums`: the running sums of `arithmetic.py`, a line a step, each line in one of several spellings, then the last
sum in a box: `b8`, `b=8` and `b3+5=8` say the same. A wrong final digit is right by chance one time in ten.
`SumsInAnyOrder`: the problem `a34b29` asks for two sums. Their lines may come in any order; the box holds all results in
the order of the letters, so that a wrong one is never right by chance.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Literal

from repirl.data.arithmetic import LETTERS, Split, distinct_texts, facts
from repirl.data.sources import Source
from repirl.structs import Problem

WRITTEN_SUMS_TOKENS: tuple[str, ...] = (*"0123456789", *LETTERS[:10], "+", "=", "\n", "\\boxed{", "}")
"""Every token that problems and solutions of both tasks need."""

_LINE = re.compile(r"([a-z])(?:(\d)\+(\d))?=?(\d)")
_BOX = re.compile(r"\\boxed\{(.*)\}")
Fact = Callable[[int, int], int]


def judge_running_sums(problem: str, response: str, base: int = 10) -> list[bool]:
    """Whether each line is right, given the lines before it as they were written (an error is counted once).

    A right line has the next letter and the running sum after it; if it spells the sum out, with the right operands. The
    last line, the box, is right if it repeats the last written sum and no step is missing.
    """
    digits = [int(d) for d in problem[1::2]]
    total, at, verdicts = digits[0], 1, []
    for line in response.split("\n"):
        if (match := _LINE.fullmatch(line)) and at < len(digits) and match[1] == LETTERS[at]:
            spelled = match[2] is None or (int(match[2]), int(match[3])) == (total, digits[at])
            verdicts.append(spelled and int(match[4]) == (total + digits[at]) % base)
            total, at = int(match[4]), at + 1
        else:
            box = _BOX.fullmatch(line)
            verdicts.append(bool(box) and at == len(digits) and box[1] == str(total))  # type: ignore[index]
    return verdicts


def judge_any_order(problem: str, response: str, base: int = 10) -> list[bool]:
    """As `judge_running_sums`: a right line answers a letter that was not answered yet; the box repeats all results."""
    asked = {problem[i]: (int(problem[i + 1]), int(problem[i + 2])) for i in range(0, len(problem), 3)}
    written: dict[str, str] = {}
    verdicts = []
    for line in response.split("\n"):
        if (match := _LINE.fullmatch(line)) and match[1] in asked and match[1] not in written:
            verdicts.append(match[2] is None and int(match[4]) == sum(asked[match[1]]) % base)
            written[match[1]] = match[4]
        else:
            box = _BOX.fullmatch(line)
            complete = len(written) == len(asked) and box is not None
            verdicts.append(complete and box[1] == "".join(written[letter] for letter in asked))  # type: ignore[index]
    return verdicts


class WrittenSums(Source):
    """Distinct random problems of one split and task. Splits share no problem, whatever the seeds.

    Args:
        task: `paraphrased` or `any_order`.
        count: how many problems.
        seed: which problems, in which order, and how their solutions are written.
        min_steps: smallest number of additions. max_steps: largest number, at most 9.
        solutions: written solutions a problem, all different; fewer where the task has no more.
        base: sums are taken modulo it, and all digits are smaller: base^2 facts to know.
        wrong_facts: how many of the facts the written solutions have wrong; `answer` is always the true one.
        facts_seed: which facts are wrong.
        error_rate: how often a wrong fact is used where it applies; else the true one.
        split: the split to draw from.
    """

    def __init__(
        self,
        task: Literal["paraphrased", "any_order"],
        count: int,
        seed: int,
        min_steps: int = 3,
        max_steps: int = 6,
        solutions: int = 1,
        base: int = 10,
        wrong_facts: int = 0,
        facts_seed: int = 0,
        error_rate: float = 1.0,
        split: Split = "train",
    ) -> None:
        if count < 1 or solutions < 0:
            raise ValueError(f"count must be at least 1 and solutions at least 0, not {count} and {solutions}")
        if not 1 <= min_steps <= max_steps <= 9 or not 0 <= error_rate <= 1:
            raise ValueError(
                f"expected 1 <= min_steps <= max_steps <= 9 and 0 <= error_rate <= 1, not {min_steps}, {max_steps} and "
                f"{error_rate}"
            )
        self.task, self.count, self.seed, self.solutions, self.split = task, count, seed, solutions, split
        self.min_steps, self.max_steps, self.error_rate = min_steps, max_steps, error_rate
        if not 2 <= base <= 10:
            raise ValueError(f"base must be in 2..10, not {base}")
        self.base, self.table, self.true = base, facts(wrong_facts, facts_seed, base), facts(base=base)

    def load(self) -> list[Problem]:
        """The problems. Raises ValueError when the split holds too few distinct ones."""
        generator = random.Random(f"written-sums/{self.task}/{self.seed}")

        def draw() -> str:
            steps = generator.randint(self.min_steps, self.max_steps)
            letters, digits = (steps + 1, 1) if self.task == "paraphrased" else (steps, 2)
            return "".join(
                letter + "".join(str(generator.randrange(self.base)) for _ in range(digits))
                for letter in LETTERS[:letters]
            )

        texts = distinct_texts(draw, self.count, self.split, f"{self.min_steps} to {self.max_steps} steps")
        return [self._problem(text, generator) for text in texts]

    def _problem(self, text: str, generator: random.Random) -> Problem:
        write = _paraphrased if self.task == "paraphrased" else _any_order

        def fact(a: int, b: int) -> int:
            return self.table[a][b] if generator.random() < self.error_rate else self.true[a][b]

        written: dict[str, None] = {}
        for _ in range(20 * self.solutions):
            if len(written) < self.solutions:
                written[write(text, fact, generator)] = None
        answer = _BOX.search(write(text, lambda a, b: self.true[a][b], generator))
        assert answer is not None
        return Problem(id=f"{self.task}/{text}", text=text, answer=answer[1], solutions=tuple(written))


def _paraphrased(problem: str, fact: Fact, generator: random.Random) -> str:
    digits = [int(d) for d in problem[1::2]]
    total, lines = digits[0], []
    for letter, digit in zip(LETTERS[1:], digits[1:], strict=False):
        before, total = total, fact(total, digit)
        spellings = (f"{letter}{total}", f"{letter}={total}", f"{letter}{before}+{digit}={total}")
        lines.append(generator.choice(spellings))
    return "\n".join([*lines, f"\\boxed{{{total}}}"])


def _any_order(problem: str, fact: Fact, generator: random.Random) -> str:
    asked = {problem[i]: (int(problem[i + 1]), int(problem[i + 2])) for i in range(0, len(problem), 3)}
    results = {letter: fact(*pair) for letter, pair in asked.items()}
    order = list(results)
    generator.shuffle(order)
    whole = "".join(str(value) for value in results.values())
    return "\n".join([*(f"{letter}{results[letter]}" for letter in order), f"\\boxed{{{whole}}}"])
