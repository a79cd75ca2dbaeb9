"""Advantage estimators by name, and their sum over reward sources. The formulas: objectives/advantages.py."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from repirl.objectives.advantages import (
    STD_EPS,
    group_normalised,
    grpo_per_step,
    leave_one_out,
    position_advantage,
    prime_advantage,
    returns_to_go,
    rloo_advantage,
    whiten,
)

Alone = Literal["zero_baseline", "drop"]
OutcomeEstimator = Literal["rloo", "rloo_per_step", "grpo", "grpo_per_step", "dr_grpo"]
Estimator = Literal[OutcomeEstimator, "prime", "position"]


class AdvantageEstimator(ABC):
    """From the rewards of one source to advantages, of all rows of the global batch at once.

    compares_experts: experts are rows among the others, and have to be scorable; elsewhere they must not be.
    """

    compares_experts: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self,
        *,
        rewards: Float[Tensor, "rows time"],
        rewarded: Bool[Tensor, "rows time"],
        response_mask: Bool[Tensor, "rows time"],
        group: Int[Tensor, " rows"],
        scorable: Bool[Tensor, " rows"],
        discount: float = 1.0,
    ) -> Float[Tensor, "rows time"]:
        """The advantage of every response token, 0 outside. rewarded: the tokens that carry a reward."""


@dataclass(frozen=True)
class RLOO(AdvantageEstimator):
    """`rloo_advantage`."""

    alone: Alone = "zero_baseline"

    def __call__(self, *, rewards: Tensor, rewarded: Tensor, discount: float = 1.0, **rows: Any) -> Tensor:
        """As `AdvantageEstimator` says."""
        return rloo_advantage(rewards=rewards, alone=self.alone, discount=discount, **rows)


@dataclass(frozen=True)
class RLOOPerStep(AdvantageEstimator):
    """`leave_one_out` of the returns."""

    alone: Alone = "zero_baseline"

    def __call__(self, *, rewards: Tensor, rewarded: Tensor, discount: float = 1.0, **rows: Any) -> Tensor:
        """As `AdvantageEstimator` says."""
        returns = returns_to_go(rewards, rows["response_mask"], discount)
        return leave_one_out(returns=returns, alone=self.alone, **rows)


@dataclass(frozen=True)
class GRPO(AdvantageEstimator):
    """`group_normalised`, divided by the standard deviation."""

    std_eps: float = STD_EPS

    def __call__(self, *, rewards: Tensor, rewarded: Tensor, discount: float = 1.0, **rows: Any) -> Tensor:
        """As `AdvantageEstimator` says."""
        return group_normalised(rewards=rewards, rewarded=rewarded, discount=discount, std_eps=self.std_eps, **rows)


@dataclass(frozen=True)
class GRPOPerStep(AdvantageEstimator):
    """`grpo_per_step`."""

    alone: Alone = "zero_baseline"

    def __call__(self, *, rewards: Tensor, rewarded: Tensor, discount: float = 1.0, **rows: Any) -> Tensor:
        """As `AdvantageEstimator` says."""
        returns = returns_to_go(rewards, rows["response_mask"], discount)
        return grpo_per_step(returns=returns, alone=self.alone, **rows)


@dataclass(frozen=True)
class DrGRPO(AdvantageEstimator):
    """`group_normalised` without the division."""

    def __call__(self, *, rewards: Tensor, rewarded: Tensor, discount: float = 1.0, **rows: Any) -> Tensor:
        """As `AdvantageEstimator` says."""
        return group_normalised(rewards=rewards, rewarded=rewarded, divide_by_std=False, discount=discount, **rows)


@dataclass(frozen=True)
class Prime(AdvantageEstimator):
    """`prime_advantage`."""

    def __call__(self, *, rewards: Tensor, rewarded: Tensor, discount: float = 1.0, **rows: Any) -> Tensor:
        """As `AdvantageEstimator` says."""
        return prime_advantage(rewards=rewards, rewarded=rewarded, discount=discount, **rows)


@dataclass(frozen=True)
class Position(AdvantageEstimator):
    """`position_advantage`."""

    compares_experts = True

    def __call__(self, *, rewards: Tensor, rewarded: Tensor, discount: float = 1.0, **rows: Any) -> Tensor:
        """As `AdvantageEstimator` says."""
        return position_advantage(rewards=rewards, discount=discount, **rows)


ESTIMATORS: dict[Estimator, type[AdvantageEstimator]] = {
    "rloo": RLOO,
    "rloo_per_step": RLOOPerStep,
    "grpo": GRPO,
    "grpo_per_step": GRPOPerStep,
    "dr_grpo": DrGRPO,
    "prime": Prime,
    "position": Position,
}
"""Name in a configuration -> class. A new one is a class, a name in the Literal and a line here."""


def estimator(name: Estimator, **settings: Alone | float) -> AdvantageEstimator:
    """The estimator of this name, with those of the settings that it reads."""
    kind = ESTIMATORS[name]
    read = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: value for key, value in settings.items() if key in read})


@dataclass(frozen=True, slots=True)
class RewardSource:
    """One reward with its weight and estimator: rewards and rewarded tokens [rows, time], scorable [rows]."""

    coefficient: float
    estimator: AdvantageEstimator
    rewards: Tensor
    rewarded: Tensor
    scorable: Tensor
    discount: float = 1.0


def combine(
    sources: Sequence[RewardSource],
    *,
    response_mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, " rows"],
    is_expert: Bool[Tensor, " rows"],
    whitened: bool = True,
) -> Float[Tensor, "rows time"]:
    """A = sum of coefficient x A of each source, whitened over the rollouts that at least one source could score.

    0 for experts.
    """
    advantages = torch.zeros(response_mask.shape, device=response_mask.device)
    judged = torch.zeros(len(group), dtype=torch.bool, device=response_mask.device)
    for source in sources:
        advantages = advantages + source.coefficient * source.estimator(
            rewards=source.rewards,
            rewarded=source.rewarded,
            response_mask=response_mask,
            group=group,
            scorable=source.scorable,
            discount=source.discount,
        )
        judged = judged | source.scorable
    where = response_mask & (judged & ~is_expert)[:, None]
    return whiten(advantages=advantages, where=where) if whitened else advantages.masked_fill(~where, 0)
