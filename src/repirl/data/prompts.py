"""The order in which training prompts come: uniform, or a curriculum by recent rollout accuracy."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any


class PromptSampler(ABC):
    """Chooses the prompts of each iteration.

    Deterministic: the draws depend only on the ids, the seed and the updates, so that all ranks agree as long as they
    are given the same updates.
    """

    @abstractmethod
    def start(self, ids: Sequence[str], seed: int) -> None:
        """Begins anew over the prompts of these ids."""

    @abstractmethod
    def draw(self, count: int) -> list[int]:
        """Positions of the next `count` prompts, all different; `count` is at most the number of prompts."""

    def update(self, ids: Sequence[str], accuracies: Sequence[float]) -> None:
        """Takes the share of correct rollouts of each prompt. On every rank, with the values of all ranks."""
        return None  # only a curriculum wants to know

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that later draws depend on besides the ids."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to that state."""


class UniformSampler(PromptSampler):
    """A fresh permutation for each pass over the prompts.

    Every prompt comes exactly once a pass: what is left of a pass when it is too little for a batch opens the next
    batch, which is filled up from the next pass (without repeating a prompt within the batch).
    """

    def start(self, ids: Sequence[str], seed: int) -> None:
        """Begins with pass 0."""
        self._size, self._seed, self._pass = len(ids), seed, 0
        self._queue = self._permutation()

    def draw(self, count: int) -> list[int]:
        """The next `count` positions."""
        drawn, self._queue = self._queue[:count], self._queue[count:]
        if len(drawn) < count:
            self._pass += 1
            fresh = self._permutation()
            present = set(drawn)
            added = [index for index in fresh if index not in present][: count - len(drawn)]
            taken = set(added)
            drawn += added
            self._queue = [index for index in fresh if index not in taken]
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """Seed, pass, and the positions still to come in it."""
        return {"seed": self._seed, "pass": self._pass, "queue": list(self._queue)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to that state, seed included."""
        self._seed, self._pass, self._queue = state["seed"], state["pass"], list(state["queue"])

    def _permutation(self) -> list[int]:
        order = list(range(self._size))
        random.Random(f"{self._seed}/{self._pass}").shuffle(order)
        return order


class CurriculumSampler(PromptSampler):
    """Prompts never drawn come first, then those whose recent accuracy is near `target`.

    A prompt's accuracy is an exponential average of its updates. Drawn prompts are sampled without replacement with
    weights exp(-|accuracy - target| / temperature); one that was drawn but never rated counts as on target.

    Args:
        target: the accuracy that is preferred, in [0, 1].
        decay: weight of the old average at an update, in [0, 1).
        temperature: how soft the preference is; large means uniform.
    """

    def __init__(self, target: float = 0.5, decay: float = 0.7, temperature: float = 0.1) -> None:
        if not (0 <= target <= 1 and 0 <= decay < 1 and temperature > 0):
            raise ValueError(
                f"expected 0 <= target <= 1, 0 <= decay < 1, temperature > 0, not {target}, {decay}, {temperature}"
            )
        self.target, self.decay, self.temperature = target, decay, temperature

    def start(self, ids: Sequence[str], seed: int) -> None:
        """Begins with no prompt drawn."""
        self._ids, self._known, self._seed, self._draws = list(ids), set(ids), seed, 0
        self._accuracy: dict[str, float | None] = {}  # of the prompts drawn; None: not rated yet

    def draw(self, count: int) -> list[int]:
        """The next `count` positions."""
        generator = random.Random(f"{self._seed}/{self._draws}")
        # The largest of "log weight + Gumbel noise" are a weighted sample without replacement.
        keys = []
        for prompt_id in self._ids:
            noise = -math.log(-math.log(generator.random() or 0.5))
            keys.append((prompt_id not in self._accuracy, noise + self._log_weight(prompt_id)))
        drawn = sorted(range(len(keys)), key=keys.__getitem__, reverse=True)[:count]
        self._draws += 1
        for index in drawn:
            self._accuracy.setdefault(self._ids[index], None)
        return drawn

    def update(self, ids: Sequence[str], accuracies: Sequence[float]) -> None:
        """Averages the accuracies in. Raises ValueError for an unknown id or a value outside [0, 1]."""
        for prompt_id, accuracy in zip(ids, accuracies, strict=True):
            if prompt_id not in self._known or not 0 <= accuracy <= 1:
                raise ValueError(f"accuracy {accuracy} of prompt {prompt_id!r}: unknown prompt, or not in [0, 1]")
            old = self._accuracy.get(prompt_id)
            new = accuracy if old is None else self.decay * old + (1 - self.decay) * accuracy
            self._accuracy[prompt_id] = new

    def state_dict(self) -> dict[str, Any]:
        """Seed, number of draws, and the average accuracies."""
        return {"seed": self._seed, "draws": self._draws, "accuracy": dict(self._accuracy)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to that state, seed included."""
        self._seed, self._draws, self._accuracy = state["seed"], state["draws"], dict(state["accuracy"])

    def _log_weight(self, prompt_id: str) -> float:
        accuracy = self._accuracy.get(prompt_id)
        return 0.0 if accuracy is None else -abs(accuracy - self.target) / self.temperature
