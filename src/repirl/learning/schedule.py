"""Which update comes when: pure functions of the iteration."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """How often PRM and policy are updated in one iteration.

    Args:
        prm_updates: passes over the batch for the PRM, one to four per policy update; two in the study of the defaults.
        prm_mini_batches: optimiser steps a pass; each sees whole prompts.
        policy_updates, policy_mini_batches: the same for the policy.
        policy_starts: iterations of PRM training before the policy's first update.
        prm_stops: the iteration from which on the PRM is frozen; None = never.
        rollouts_ahead: 0 samples, then trains; 1 trains on the prompts of the iteration before, while a thread samples for
            this iteration's: generation hides behind training, and each rollout is one version of the policy old. The
            first iteration only samples. sampler_gap corrects or drops rollouts that have become too old.
    """

    prm_updates: int = 2
    prm_mini_batches: int = 1
    policy_updates: int = 1
    policy_mini_batches: int = 1
    policy_starts: int = 0
    prm_stops: int | None = None
    rollouts_ahead: Literal[0, 1] = 0

    def __post_init__(self) -> None:
        for name in ("prm_mini_batches", "policy_mini_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"schedule: {name} must be at least 1, not {getattr(self, name)}")
        for name in ("prm_updates", "policy_updates", "policy_starts", "prm_stops"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"schedule: {name} must not be negative, not {getattr(self, name)}")

    @property
    def policy_steps(self) -> int:
        """Optimiser steps of the policy in one iteration; beyond the first the policy is no longer the behaviour policy."""
        return self.policy_updates * self.policy_mini_batches


def prm_passes(schedule: Schedule, iteration: int) -> int:
    """Passes over the batch for the PRM in this iteration (0-based)."""
    stopped = schedule.prm_stops is not None and iteration >= schedule.prm_stops
    return 0 if stopped else schedule.prm_updates


def policy_passes(schedule: Schedule, iteration: int) -> int:
    """Passes over the batch for the policy in this iteration (0-based)."""
    return schedule.policy_updates if iteration >= schedule.policy_starts else 0


def parts(count: int, mini_batches: int) -> list[range]:
    """`count` prompts in `mini_batches` contiguous parts, as equal as can be; some are empty when there are too few."""
    edges = [count * k // mini_batches for k in range(mini_batches + 1)]
    return [range(a, b) for a, b in pairwise(edges)]
