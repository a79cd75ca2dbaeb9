"""From token rewards to advantages: returns, baselines, scales. All rows of the global batch go in together.

A row whose reward is unknown (a verifier's failure) is not `scorable`: it takes no part in baselines or scales, and its
advantage is 0.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from repirl.objectives.reduce import group_sum

RewardScale = Literal["max_abs_return", "std", "none"]
EPS = 1e-8  # all-zero rewards (the Q-head's start) must give zero, not NaN
STD_EPS = 1e-6  # added to GRPO's standard deviation, as in verl
NOISE = 1e-5  # a spread below this share of the values' size is rounding, which a division by it would make signal


def returns_to_go(
    rewards: Float[Tensor, "rows time"], response_mask: Bool[Tensor, "rows time"], discount: float = 1.0
) -> Float[Tensor, "rows time"]:
    """G_t = sum_{l >= t} discount^(l - t) r_l, 0 outside the response. discount: 0 to 1."""
    rewards = rewards.masked_fill(~response_mask, 0)
    if discount == 1:
        return rewards.flip(-1).cumsum(-1).flip(-1).masked_fill(~response_mask, 0)
    returns = rewards.clone()
    for t in range(rewards.shape[1] - 2, -1, -1):
        returns[:, t] += discount * returns[:, t + 1]
    return returns.masked_fill(~response_mask, 0)


def scale_rewards(
    *, rewards: Float[Tensor, "rows time"], response_mask: Bool[Tensor, "rows time"], scale: RewardScale
) -> Float[Tensor, "rows time"]:
    """Rewards divided by the batch's largest |G_t|, by their standard deviation over tokens, or as they are.

    Rewards that are all equal have no standard deviation to divide by and stay as they are.
    """
    if not rewards.numel():
        return rewards
    if scale == "max_abs_return":
        return rewards / returns_to_go(rewards, response_mask).abs().amax().clamp(min=EPS)
    if scale == "std":
        values = rewards[response_mask]
        if not len(values):
            return rewards
        std = values.std(unbiased=False)
        return torch.where(std > _least_spread(values.abs().amax()), rewards / std.clamp(min=EPS), rewards)
    return rewards


def others_active(active: Bool[Tensor, "rows time"], group: Int[Tensor, " rows"]) -> Float[Tensor, "rows time"]:
    """How many other rows of the prompt are active at t; where it is 0, a leave-one-out baseline has nothing to go by."""
    groups = int(group.max()) + 1 if len(group) else 0
    return group_sum(active.float(), group, groups)[group] - active.float()


def leave_one_out(
    *,
    returns: Float[Tensor, "rows time"],
    response_mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, " rows"],
    scorable: Bool[Tensor, " rows"],
    alone: Literal["zero_baseline", "drop"] = "zero_baseline",
) -> Float[Tensor, "rows time"]:
    """A^k_t = G^k_t - b^k_t, b^k_t the mean of G_t over the *other* rows of the prompt still active at t (`rloo_per_step`).

    Where no other row is active b = 0 (`zero_baseline`) or the advantage is 0 (`drop`, biased). With a constant reward
    c per token and no whitening this is c (T_k - mean of the others' T): longer responses gain.
    """
    active = response_mask & scorable[:, None]
    counted = returns.masked_fill(~active, 0)
    groups = int(group.max()) + 1 if len(group) else 0
    others = others_active(active, group).to(returns.dtype)
    baseline = (group_sum(counted, group, groups)[group] - counted) / others.clamp(min=1)
    keep = active & (others > 0) if alone == "drop" else active
    return (returns - baseline).masked_fill(~keep, 0)


def rloo_advantage(
    *,
    rewards: Float[Tensor, "rows time"],
    response_mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, " rows"],
    scorable: Bool[Tensor, " rows"],
    alone: Literal["zero_baseline", "drop"] = "zero_baseline",
    discount: float = 1.0,
) -> Float[Tensor, "rows time"]:
    """A^k = R^k - mean of R over *all* other scorable rows of the prompt, on every token (RLOO, arXiv 2402.14740, eq. 7).

    R = sum_t discount^(t - 1) r_t is the return of the whole response: as in TRL, verl and OpenRLHF a response is one
    action, however long it or another one is. With no other row the baseline is 0 (`zero_baseline`: verl) or the
    advantage is 0 (`drop`: TRL).
    """
    active = response_mask & scorable[:, None]
    powers = discount ** torch.arange(rewards.shape[1], device=rewards.device).to(rewards.dtype)
    whole = (rewards.masked_fill(~active, 0) * powers).sum(-1, keepdim=True)
    present = response_mask.any(-1, keepdim=True)
    advantage = leave_one_out(returns=whole, response_mask=present, group=group, scorable=scorable, alone=alone)
    return advantage.expand_as(rewards).masked_fill(~active, 0)


def grpo_per_step(
    *,
    returns: Float[Tensor, "rows time"],
    response_mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, " rows"],
    scorable: Bool[Tensor, " rows"],
    alone: Literal["zero_baseline", "drop"] = "zero_baseline",
) -> Float[Tensor, "rows time"]:
    """`leave_one_out` divided by the standard deviation of G_t over the prompt's rows active at t (rePIRL's public code).

    That of a sample, over n - 1. A row that is alone at t has none and is not divided (the public code divides it by
    1e-6); where all active returns are equal the advantage is 0.
    """
    active = response_mask & scorable[:, None]
    counted = returns.masked_fill(~active, 0)
    groups = int(group.max()) + 1 if len(group) else 0
    count = group_sum(active.to(returns.dtype), group, groups)
    mean = group_sum(counted, group, groups) / count.clamp(min=1)
    deviation = (returns - mean[group]).masked_fill(~active, 0)
    std = (group_sum(deviation.square(), group, groups) / (count - 1).clamp(min=1)).sqrt()
    centred = leave_one_out(returns=returns, response_mask=response_mask, group=group, scorable=scorable, alone=alone)
    differs = std > _least_spread(mean.abs()).clamp(min=STD_EPS)
    divided = torch.where(differs[group], centred / std.clamp(min=STD_EPS)[group], 0.0)
    return torch.where((count == 1)[group], centred, divided)


def group_normalised(
    *,
    rewards: Float[Tensor, "rows time"],
    rewarded: Bool[Tensor, "rows time"],
    response_mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, " rows"],
    scorable: Bool[Tensor, " rows"],
    divide_by_std: bool = True,
    discount: float = 1.0,
    std_eps: float = STD_EPS,
) -> Float[Tensor, "rows time"]:
    """Rewards centred (and scaled) over the prompt's rewarded tokens, then summed from t on (GRPO, DeepSeekMath 4.1).

    `rewarded` marks the tokens that carry a reward: the last one for an outcome reward (A = (r - mean) / (std + std_eps)
    on every token, as in TRL, verl and OpenRLHF), all of them for a process reward. std is that of a sample, over n - 1.
    Without the division: Dr. GRPO's advantage.
    """
    where = rewarded & response_mask & scorable[:, None]
    groups = int(group.max()) + 1 if len(group) else 0
    count = group_sum(where.to(rewards.dtype).sum(-1), group, groups).clamp(min=1)
    mean = group_sum(rewards.masked_fill(~where, 0).sum(-1), group, groups) / count
    centred = (rewards - mean[group][:, None]).masked_fill(~where, 0)
    if divide_by_std:
        std = (group_sum(centred.square().sum(-1), group, groups) / (count - 1).clamp(min=1)).sqrt()
        # Equal rewards leave rounding noise in `centred`: a group without spread has no preference.
        least = _least_spread(mean.abs()).clamp(min=STD_EPS)
        centred = torch.where((std > least)[group][:, None], centred / (std + std_eps)[group][:, None], 0.0)
    return returns_to_go(centred, response_mask & scorable[:, None], discount)


def prime_advantage(
    *,
    rewards: Float[Tensor, "rows time"],
    rewarded: Bool[Tensor, "rows time"],
    response_mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, " rows"],
    scorable: Bool[Tensor, " rows"],
    discount: float = 1.0,
) -> Float[Tensor, "rows time"]:
    """Rewards minus the mean of the other rows' *mean* reward, summed from t on (PRIME, eq. 5).

    `rewarded` marks the tokens that carry a reward: all of them, or the last of each step. A constant reward gives 0 there:
    no length bias. A row with no other scorable row has its own mean as baseline.
    """
    active = rewarded & response_mask & scorable[:, None]
    means = rewards.masked_fill(~active, 0).sum(-1) / active.sum(-1).clamp(min=1)
    groups = int(group.max()) + 1 if len(group) else 0
    others = group_sum(scorable.to(rewards.dtype), group, groups)[group] - scorable.to(rewards.dtype)
    baseline = (group_sum(means, group, groups)[group] - means) / others.clamp(min=1)
    baseline = torch.where(others > 0, baseline, means)
    centred = (rewards - baseline[:, None]).masked_fill(~active, 0)
    return returns_to_go(centred, response_mask & scorable[:, None], discount)


def position_advantage(
    *,
    rewards: Float[Tensor, "rows time"],
    response_mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, " rows"],
    scorable: Bool[Tensor, " rows"],
    discount: float = 1.0,
) -> Float[Tensor, "rows time"]:
    """Each token's reward minus the mean of the prompt's other rows active at its position, summed from t on (ours).

    `per_position` weights leave a constant open at every position of every prompt: this alone of all estimators does not
    depend on it. With experts among the rows, rollouts that agree on a token the PRM scores below the expert's still lose;
    compared with each other alone they would stay as they are. Where no other row is active a token counts 0.
    """
    centred = leave_one_out(returns=rewards, response_mask=response_mask, group=group, scorable=scorable, alone="drop")
    return returns_to_go(centred, response_mask & scorable[:, None], discount)


def whiten(*, advantages: Float[Tensor, "rows time"], where: Bool[Tensor, "rows time"]) -> Float[Tensor, "rows time"]:
    """Mean 0 and standard deviation 1 over the tokens that count; all zero where they are all equal."""
    values = advantages[where]
    if not len(values):
        return torch.zeros_like(advantages)
    std = values.std(unbiased=False)
    centred = (advantages - values.mean()) / std.clamp(min=EPS)
    return torch.where(where & (std > _least_spread(values.abs().amax())), centred, 0.0)


def _least_spread(size: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The standard deviation from which on values of this size count as different."""
    return (NOISE * size).clamp(min=EPS)
