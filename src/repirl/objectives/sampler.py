"""Where the sampler's probabilities differ from the trainer's: d_t = log pi(a_t|s_t) - log mu(a_t|s_t).

pi is the policy by the training forward pass, mu what the sampling engine computed with the same weights: other kernels,
another precision, weights that are out of date. Apart from the importance weights of irl.py, whose q stays pi.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from repirl.objectives.policy import kl_estimate
from repirl.objectives.reduce import masked_mean, response_means

RatioLevel = Literal["token", "sequence"]


def gap_figures(
    *,
    log_probs: Float[Tensor, "rows time"],
    sampler_log_probs: Float[Tensor, "rows time"],
    response_mask: Bool[Tensor, "rows time"],
) -> dict[str, Tensor]:
    """Mean and largest |d_t| in nats, and the k3 estimate of KL(mu || pi) a token, e^d - 1 - d, over all tokens given."""
    gap = (log_probs - sampler_log_probs).abs().masked_fill(~response_mask, 0)
    kl = kl_estimate(log_probs=sampler_log_probs, reference_log_probs=log_probs)  # the samples are mu's
    return {
        "gap_mean": masked_mean(gap, response_mask),
        "gap_max": gap.max() if gap.numel() else gap.new_zeros(()),
        "kl": masked_mean(kl, response_mask),
    }


def is_far(
    *,
    log_probs: Float[Tensor, "rows time"],
    sampler_log_probs: Float[Tensor, "rows time"],
    response_mask: Bool[Tensor, "rows time"],
    above: float,
) -> Bool[Tensor, " rows"]:
    """Rows whose mean |d_t| over response tokens is greater than `above`, in nats."""
    return response_means((log_probs - sampler_log_probs).abs(), response_mask) > above


def truncated_ratios(
    *,
    log_probs: Float[Tensor, "rows time"],
    sampler_log_probs: Float[Tensor, "rows time"],
    response_mask: Bool[Tensor, "rows time"],
    max_ratio: float,
    level: RatioLevel = "token",
) -> Float[Tensor, "rows time"]:
    """min(pi/mu, max_ratio) of each response token, 0 elsewhere: truncated importance sampling (Ionides 2008).

    level: `token`: e^d_t. `sequence`: the whole response's e^(sum_t d_t) at each of its tokens.
    """
    log_ratio = (log_probs - sampler_log_probs).masked_fill(~response_mask, 0)
    if level == "sequence":
        log_ratio = log_ratio.sum(-1, keepdim=True).expand_as(log_ratio)
    ratios = log_ratio.clamp(max=math.log(max_ratio)).exp()  # clamped first: e^d may overflow
    return torch.where(response_mask, ratios, 0.0)
