"""Loaders of prompts, or of other records, for Lightning: sharded over ranks, exactly resumable."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

from repirl.data.prompts import PromptSampler

T = TypeVar("T")


class RecordBatch(Generic[T]):
    """The prompts of a batch, or other records, on their way to the step, which gets them as a list.

    Lightning's precision plugins walk through lists and fail on the frozen records in them; they leave this alone.
    """

    __slots__ = ("records",)

    def __init__(self, records: list[T]) -> None:
        self.records = records

    def __iter__(self) -> Iterator[T]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)


class TrainLoader(Generic[T]):
    """Batches from a sampler, without end of its own.

    One `iter()` yields as many batches as fit into one pass, starting from wherever the sampler stands; the only state
    is the sampler's, and it has moved on before a batch is yielded. So a resumed run always has batches to train on,
    at an epoch's boundary too, and an epoch cut short by `limit_train_batches` goes on where it stopped.
    """

    def __init__(
        self, prompts: Sequence[T], sampler: PromptSampler, batch_prompts: int, rank: int, world_size: int
    ) -> None:
        self._prompts, self._sampler, self._batch_prompts = prompts, sampler, batch_prompts
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        return len(self._prompts) // self._batch_prompts

    def __iter__(self) -> Iterator[RecordBatch[T]]:
        for _ in range(len(self)):
            positions = self._sampler.draw(self._batch_prompts)
            yield RecordBatch([self._prompts[index] for index in positions[self._rank :: self._world_size]])

    # Lightning takes a loader with these two methods for resumable. The state itself is the data module's.
    def state_dict(self) -> dict[str, Any]:
        """Nothing: see the data module."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: see the data module."""


class EvalLoader(Generic[T]):
    """Every prompt once, in order, in global batches of nearly equal size.

    All ranks see the same number of batches, so that collectives in a step cannot hang; with fewer prompts than ranks
    in a batch, some ranks get an empty one.
    """

    def __init__(self, prompts: Sequence[T], batch_prompts: int, rank: int, world_size: int) -> None:
        self._prompts, self._rank, self._world_size = prompts, rank, world_size
        self._count = math.ceil(len(prompts) / batch_prompts)

    def __len__(self) -> int:
        return self._count

    def problems_in(self, batches: int) -> int:
        """Number of problems in the first so many batches, those of all ranks."""
        return min(batches, self._count) * len(self._prompts) // max(self._count, 1)

    def __iter__(self) -> Iterator[RecordBatch[T]]:
        for batch in range(self._count):
            start, stop = self.problems_in(batch), self.problems_in(batch + 1)
            yield RecordBatch(list(self._prompts[start + self._rank : stop : self._world_size]))


def check_positive(**numbers: int) -> None:
    """Raises ValueError for a number below 1."""
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
