"""Batches with stated shares: parts of a mixture, prompts with experts beside those without."""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from repirl.data.prompts import PromptSampler


@dataclass(frozen=True)
class Stratum:
    """Prompts of which a batch has a stated share.

    share: of all prompts drawn; those of all strata sum to 1. positions: places of its prompts in the training set.
    """

    name: str
    share: Fraction
    positions: tuple[int, ...]


def next_stratum(shares: Sequence[Fraction], drawn: Sequence[int]) -> int:
    """The stratum that the next prompt comes from, where `drawn` have come from each so far.

    The quota method of apportionment (Balinski and Young, 1975): after n prompts each stratum has had its share of n,
    rounded up or down, whatever n is.
    """
    number = sum(drawn) + 1
    owed = [index for index, share in enumerate(shares) if drawn[index] < share * number]
    return min(owed, key=lambda index: (drawn[index] + 1) / shares[index])


def largest_part(share: Fraction, batch_prompts: int) -> int:
    """The largest number of prompts that a batch can have of a stratum."""
    whole, rest = divmod(share * batch_prompts, 1)
    return min(batch_prompts, int(whole) + (2 if rest else 0))


def check_sizes(strata: Sequence[Stratum], batch_prompts: int) -> None:
    """Raises ValueError where a stratum has fewer prompts than a batch may need: no prompt comes twice in one."""
    for stratum in strata:
        needed = largest_part(stratum.share, batch_prompts)
        if len(stratum.positions) < needed:
            raise ValueError(
                f"{stratum.name}: {len(stratum.positions)} usable prompts, but a batch of {batch_prompts} may need {needed} "
                f"for its share of {float(stratum.share):.3g}; lower batch_prompts or its share, or give it more problems"
            )


class StratifiedSampler(PromptSampler):
    """Each batch in the strata's shares, each stratum in an order of its own.

    Shares hold over all that has been drawn, not by chance: a stratum is never a whole prompt away from its share. Within
    a batch strata come mixed, so that mini-batches and ranks get some of each.

    Args:
        strata: of all prompts; no prompt is in two.
        order: the order within a stratum; each one gets a copy.
    """

    def __init__(self, strata: Sequence[Stratum], order: PromptSampler) -> None:
        self.strata = list(strata)
        self._shares = [stratum.share for stratum in strata]
        self._samplers = [copy.deepcopy(order) for _ in strata]

    def start(self, ids: Sequence[str], seed: int) -> None:
        """Begins anew in each stratum."""
        self._seed, self._drawn = seed, [0] * len(self.strata)
        self._stratum_of = {ids[place]: i for i, stratum in enumerate(self.strata) for place in stratum.positions}
        for stratum, sampler in zip(self.strata, self._samplers, strict=True):
            own_seed = random.Random(f"{seed}/{stratum.name}").randrange(2**32)
            sampler.start([ids[place] for place in stratum.positions], own_seed)

    def draw(self, count: int) -> list[int]:
        """The next `count` positions."""
        before = list(self._drawn)
        for _ in range(count):
            self._drawn[next_stratum(self._shares, self._drawn)] += 1
        drawn = [
            stratum.positions[place]
            for stratum, sampler, old, new in zip(self.strata, self._samplers, before, self._drawn, strict=True)
            if new > old
            for place in sampler.draw(new - old)
        ]
        random.Random(f"{self._seed}/{sum(before)}").shuffle(drawn)
        return drawn

    def update(self, ids: Sequence[str], accuracies: Sequence[float]) -> None:
        """Passes each accuracy on to its stratum. Raises ValueError for an unknown id."""
        told: defaultdict[int, list[tuple[str, float]]] = defaultdict(list)
        for prompt_id, accuracy in zip(ids, accuracies, strict=True):
            if prompt_id not in self._stratum_of:
                raise ValueError(f"accuracy {accuracy} of prompt {prompt_id!r}: unknown prompt")
            told[self._stratum_of[prompt_id]].append((prompt_id, accuracy))
        for index, pairs in told.items():
            self._samplers[index].update([name for name, _ in pairs], [accuracy for _, accuracy in pairs])

    def state_dict(self) -> dict[str, Any]:
        """Seed, and of each stratum the number drawn and the state of its order."""
        return {
            "seed": self._seed,
            "drawn": list(self._drawn),
            "strata": [sampler.state_dict() for sampler in self._samplers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to that state, seed included."""
        self._seed, self._drawn = state["seed"], list(state["drawn"])
        for sampler, own in zip(self._samplers, state["strata"], strict=True):
            sampler.load_state_dict(own)
