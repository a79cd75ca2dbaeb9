"""Rewards of steps against labels of steps."""

import math

from jaxtyping import Bool, Float
from torch import Tensor

from repirl.metrics.ranking import auroc


def wrong_step_auroc(step_rewards: Float[Tensor, " steps"], is_wrong: Bool[Tensor, " steps"]) -> Float[Tensor, ""]:
    """Probability that a wrong step has a lower reward than a right one, over all traces pooled; NaN without either."""
    return auroc(-step_rewards, is_wrong)


def first_error_accuracy(
    *,
    step_rewards: Float[Tensor, "traces steps"],
    step_mask: Bool[Tensor, "traces steps"],
    is_wrong: Bool[Tensor, "traces steps"],
) -> Float[Tensor, ""]:
    """Share of the traces with a wrong step whose lowest-reward step is the first wrong one; NaN without such traces.

    step_mask: True at steps; other places are ignored, so that token positions with a mask of step ends serve as well.
    Of steps equally low the earliest counts.
    """
    wrong = is_wrong & step_mask
    flawed = wrong.any(-1)
    hit = _lowest(step_rewards, step_mask) == wrong.int().argmax(-1)
    return hit[flawed].double().mean()


def wrong_step_accuracy(
    *,
    step_rewards: Float[Tensor, "traces steps"],
    step_mask: Bool[Tensor, "traces steps"],
    is_wrong: Bool[Tensor, "traces steps"],
) -> Float[Tensor, ""]:
    """Share of the traces with a wrong step whose lowest-reward step is a wrong one, the first or a later."""
    wrong = is_wrong & step_mask
    hit = wrong.gather(-1, _lowest(step_rewards, step_mask)[:, None])[:, 0]
    return hit[wrong.any(-1)].double().mean()


def _lowest(step_rewards: Tensor, step_mask: Tensor) -> Tensor:
    return step_rewards.masked_fill(~step_mask, math.inf).argmin(-1)
