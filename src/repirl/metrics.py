"""Evaluation in numbers: pure functions of tensors."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def auroc(scores: Float[Tensor, " n"], positive: Bool[Tensor, " n"]) -> Float[Tensor, ""]:
    """Probability that a positive scores higher than a negative, ties counted half; NaN if either class is empty.

    By ranks (Mann-Whitney), so that scores of any size keep their order; a sigmoid first would tie the large ones.
    """
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    upper = counts.cumsum(0).double()
    ranks = (upper - (counts - 1) / 2)[place]  # 1-based midranks
    p, n = positive.sum().double(), (~positive).sum().double()
    area: Tensor = (ranks[positive].sum() - p * (p + 1) / 2) / (p * n)
    return area.to(scores.dtype)


def prm_diagnostics(
    *,
    mean_rewards: Float[Tensor, " rows"],
    lengths: Float[Tensor, " rows"],
    is_expert: Bool[Tensor, " rows"],
    outcome: Float[Tensor, " rows"],
) -> dict[str, Tensor]:
    """How the PRM's mean token reward Rbar separates experts, correct and failed rollouts.

    outcome: 1, 0, or NaN where unknown. A figure whose rows are missing is left out.
    `auroc_expert_correct` compares experts with *correct* rollouts: what is above .5 there is style, not correctness.
    """
    rollout = ~is_expert
    kinds = {
        "expert": is_expert,
        "policy": rollout,
        "correct": rollout & (outcome == 1),
        "failed": rollout & (outcome == 0),
    }
    found = {f"reward_{name}": mean_rewards[where].mean() for name, where in kinds.items() if where.any()}
    if is_expert.any() and rollout.any():
        found["margin"] = found["reward_expert"] - found["reward_policy"]
    for high, low in (("expert", "policy"), ("correct", "failed"), ("expert", "correct")):
        if kinds[high].any() and kinds[low].any():
            both = kinds[high] | kinds[low]
            found[f"auroc_{high}_{low}"] = auroc(mean_rewards[both], kinds[high][both])
    if rollout.any():
        found["length_correlation"] = correlation(mean_rewards[rollout], lengths[rollout])
    return found


def saturated_share(
    rewards: Float[Tensor, "rows time"], response_mask: Bool[Tensor, "rows time"], bound: float
) -> Float[Tensor, ""]:
    """Share of token rewards beyond .95 of a bounded head's limit."""
    values = rewards[response_mask]
    return (values.abs() > 0.95 * bound).to(rewards.dtype).mean() if len(values) else torch.zeros(())


def correlation(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Pearson correlation; 0 where either side is constant."""
    x, y = x - x.mean(), y - y.mean()
    scale = x.norm() * y.norm()
    return torch.where(scale > 0, (x * y).sum() / scale.clamp(min=torch.finfo(x.dtype).tiny), scale)
