"""What a PRM's rewards separate, and what fools them."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from repirl.metrics.ranking import auroc, correlation


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


def probe_figures(
    *,
    means: Float[Tensor, "prompts kinds"],
    totals: Float[Tensor, "prompts kinds"],
    lengths: Float[Tensor, "prompts kinds"],
    kinds: Sequence[str],
) -> dict[str, Tensor]:
    """How a PRM scores hollow responses (columns 1 .., named `kinds`) against a real one of the same prompt (column 0).

    means: Rbar. totals: R. `<kind>_wins` and `<kind>_wins_total` are shares of prompts, ties counted half.
    """
    found = {"real": means[:, 0].mean(), "real_total": totals[:, 0].mean()}
    for column, kind in enumerate(kinds, start=1):
        found[kind], found[f"{kind}_total"] = means[:, column].mean(), totals[:, column].mean()
        for suffix, values in (("wins", means), ("wins_total", totals)):
            gap = (values[:, column] - values[:, 0]).sign()
            found[f"{kind}_{suffix}"] = (1 + gap).mean() / 2
    return found | {"length_correlation": correlation(means[:, 0], lengths[:, 0])}
