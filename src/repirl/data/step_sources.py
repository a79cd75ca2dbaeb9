"""Where solutions with labelled steps come from: files in several forms, and a task that labels itself."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from itertools import islice
from typing import Literal

from repirl.data.arithmetic import LETTERS, Split, distinct_texts
from repirl.data.mixture import check_names
from repirl.data.step_labelled import LabelledSolution, Read, own_row, process_bench_row, read_all
from repirl.data.step_labels import from_math_shepherd, from_prm800k, from_trl
from repirl.data.steps import join_steps
from repirl.data.tables import read_table
from repirl.structs import WrittenSolution

Format = Literal["labels", "trl", "math_shepherd", "prm800k", "process_bench"]

_READERS: dict[Format, Read] = {
    "labels": own_row,
    "trl": lambda id, row: from_trl(row, id),
    "math_shepherd": lambda id, row: from_math_shepherd(row, id),
    "prm800k": lambda id, row: from_prm800k(row, id),
    "process_bench": process_bench_row,
}


class StepSource(ABC):
    """A list of solutions with labelled steps."""

    @abstractmethod
    def load(self) -> list[LabelledSolution]:
        """All of them, in a fixed order, with unique ids. Raises ValueError, having loaded nothing."""


class LabelledSteps(StepSource):
    """Labelled solutions from a table: .jsonl, .jsonl.gz or .parquet, a folder of data files, or a dataset hub id.

    Args:
        path: the file, the folder, or the hub id.
        format: the form of a row. `labels`: that of `repirl label-steps` and of one's own (data/step_labelled.py). `trl`:
            prompt, completions and labels. `math_shepherd`: input and label with tags. `prm800k`, `process_bench`: rows of
            these sets; a row of PRM800K without a rating is left out.
        split: the split of a folder or hub data set; files have none.
        limit: how many rows to use, after `skip`; default all.
        skip: how many rows to leave out at the start.
        revision: the commit or tag of a hub data set.

    Raises (in `load`): ValueError naming file, row, field, what was found and what to do.
    """

    def __init__(
        self,
        path: str,
        format: Format = "labels",
        split: str = "train",
        limit: int | None = None,
        skip: int = 0,
        revision: str | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}; leave it out to use all rows")
        if skip < 0:
            raise ValueError(f"skip must not be negative, not {skip}")
        self.path, self.format, self.split = path, format, split
        self.limit, self.skip, self.revision = limit, skip, revision

    def load(self) -> list[LabelledSolution]:
        """The solutions."""
        rows = read_table(self.path, split=self.split, revision=self.revision)
        stop = None if self.limit is None else self.skip + self.limit
        return read_all(self.path, islice(rows, self.skip, stop), _READERS[self.format])


class LabelledSums(StepSource):
    r"""Running sums, a line a step, some lines wrong: a task in which the label of each step is known.

    The problem `a3b5c9` has the right solution `b3+5=8`, `c8+9=7`, `\boxed{7}`. A line goes on from the result of the one
    before it, right or wrong: an error counts once, and the box, which repeats the last result, is right.

    Args:
        count: how many solutions, each of another problem.
        seed: which problems, and which lines are wrong.
        error_rate: share of the additions that are wrong.
        base: sums are taken modulo it, and all digits are smaller.
        min_steps: smallest number of additions. max_steps: largest number, at most 9.
        split: the split to draw from; splits share no problem.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        error_rate: float = 0.2,
        base: int = 10,
        min_steps: int = 3,
        max_steps: int = 6,
        split: Split = "train",
    ) -> None:
        if count < 1 or not 0 <= error_rate <= 1:
            raise ValueError(f"expected count >= 1 and 0 <= error_rate <= 1, not {count} and {error_rate}")
        if not (1 <= min_steps <= max_steps <= 9 and 2 <= base <= 10):
            raise ValueError(
                f"expected 1 <= min_steps <= max_steps <= 9 and 2 <= base <= 10, not {min_steps}, {max_steps} and {base}"
            )
        self.count, self.seed, self.error_rate, self.base = count, seed, error_rate, base
        self.min_steps, self.max_steps, self.split = min_steps, max_steps, split

    def load(self) -> list[LabelledSolution]:
        """The solutions."""
        generator = random.Random(f"labelled-sums/{self.seed}")

        def draw() -> str:
            length = generator.randint(self.min_steps, self.max_steps) + 1
            return "".join(f"{letter}{generator.randrange(self.base)}" for letter in LETTERS[:length])

        steps = f"{self.min_steps} to {self.max_steps} steps"
        return [self._solution(t, generator) for t in distinct_texts(draw, self.count, self.split, steps)]

    def _solution(self, problem: str, generator: random.Random) -> LabelledSolution:
        total, *rest = (int(digit) for digit in problem[1::2])
        lines, labels = [], []
        for letter, digit in zip(problem[2::2], rest, strict=True):
            right = generator.random() >= self.error_rate
            result = (total + digit + (0 if right else generator.randrange(1, self.base))) % self.base
            lines.append(f"{letter}{total}+{digit}={result}")
            labels.append(right)
            total = result
        steps = join_steps([*lines, f"\\boxed{{{total}}}"])
        return LabelledSolution.of_labels(f"sums/{problem}", WrittenSolution(problem, steps), [*labels, True])


StepSets = StepSource | dict[str, StepSource | None]
"""A source, or sources by name: validation reports each name. A name with None, as an overlay may say, is left out."""


def named_sets(sets: StepSets | None) -> dict[str, StepSource]:
    """Sources by name; a single one has the empty name. Raises ValueError for a name that metrics cannot carry."""
    if isinstance(sets, StepSource):
        return {"": sets}
    given = dict(sets or {})
    check_names(given)
    return {name: source for name, source in given.items() if source is not None}
