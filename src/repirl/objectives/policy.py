"""Policy objectives per token. They return [rows, time]; the caller sums and divides by the global token count."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MAX_LOG_RATIO = 80.0  # exp of it times an advantage is finite in float32, which ends at exp(88.7)
LossAggregation = Literal["token_mean", "sequence_mean", "sequence_sum", "constant"]


def row_weights(response_mask: Bool[Tensor, "rows time"], aggregation: LossAggregation) -> Float[Tensor, "rows 1"]:
    """What each token of a row counts in the loss, before the division by `loss_denominator`.

    1 / (tokens of the row) for `sequence_mean`, else 1.
    """
    lengths = response_mask.sum(-1, keepdim=True).clamp(min=1).float()
    return 1 / lengths if aggregation == "sequence_mean" else torch.ones_like(lengths)


def loss_denominator(
    aggregation: LossAggregation, *, tokens: Float[Tensor, ""], rows: Float[Tensor, ""], length: float
) -> Float[Tensor, ""]:
    """What the sum over all rows is divided by.

    tokens, rows: of the batch of one optimiser step, on all ranks. length: the constant of `constant`, in tokens.
    """
    if aggregation == "token_mean":
        return tokens
    return rows * length if aggregation == "constant" else rows


def clipped_surrogate(
    *,
    log_probs: Float[Tensor, "rows time"],
    old_log_probs: Float[Tensor, "rows time"],
    advantages: Float[Tensor, "rows time"],
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Float[Tensor, "rows time"]:
    """min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), rho = exp(log pi - log pi_old); to maximise (PPO).

    dual_clip c > 1: for A < 0 the value is at least c A (Ye et al. 2020). A log-ratio above MAX_LOG_RATIO counts as that,
    without a gradient.
    """
    rho = _ratio(log_probs, old_log_probs)
    value = torch.minimum(rho * advantages, rho.clamp(1 - clip_low, 1 + clip_high) * advantages)
    if dual_clip is not None:
        value = torch.where(advantages < 0, torch.maximum(value, dual_clip * advantages), value)
    return value


def was_clipped(
    *,
    log_probs: Float[Tensor, "rows time"],
    old_log_probs: Float[Tensor, "rows time"],
    advantages: Float[Tensor, "rows time"],
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Bool[Tensor, "rows time"]:
    """True where clipping took the gradient: rho beyond the bound in the direction of the advantage, or past all bounds."""
    rho = _ratio(log_probs, old_log_probs)
    beyond = (advantages < 0) & (log_probs - old_log_probs > MAX_LOG_RATIO)
    if dual_clip is not None:
        beyond = beyond | ((advantages < 0) & (rho > dual_clip))
    return ((advantages > 0) & (rho > 1 + clip_high)) | ((advantages < 0) & (rho < 1 - clip_low)) | beyond


def _ratio(log_probs: Float[Tensor, "rows time"], of: Float[Tensor, "rows time"]) -> Float[Tensor, "rows time"]:
    """exp(log pi - log of), finite: infinity times the gradient 0 of what was clipped would be NaN."""
    return (log_probs - of).clamp(max=MAX_LOG_RATIO).exp()


def kl_estimate(
    *,
    log_probs: Float[Tensor, "rows time"],
    reference_log_probs: Float[Tensor, "rows time"],
    estimator: Literal["k1", "k2", "k3"] = "k3",
) -> Float[Tensor, "rows time"]:
    """Per-token estimate of KL(pi || pi_ref) from samples of pi (Schulman's k1, k2, k3), d = log pi - log pi_ref.

    k1 = d (unbiased value), k2 = d^2 / 2 (its gradient is unbiased), k3 = exp(-d) - 1 + d (unbiased value, never
    negative; d below -MAX_LOG_RATIO counts as that, without a gradient).
    """
    d = log_probs - reference_log_probs
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d.square() / 2
    d = d.clamp(min=-MAX_LOG_RATIO)
    return (-d).exp() - 1 + d


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """Per token, [rows, time]: the value to maximise, where clipping took the gradient, |log pi - log pi_old|, and the KL."""

    value: Float[Tensor, "rows time"]
    clipped: Bool[Tensor, "rows time"]
    old_gap: Float[Tensor, "rows time"]
    kl: Float[Tensor, "rows time"]


def policy_objective(
    *,
    log_probs: Float[Tensor, "rows time"],
    entropy: Float[Tensor, "rows time"],
    old_log_probs: Float[Tensor, "rows time"],
    advantages: Float[Tensor, "rows time"],
    reference_log_probs: Float[Tensor, "rows time"] | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    entropy_coef: float = 0.0,
    kl_coef: float = 0.0,
) -> PolicyObjective:
    """J = clipped surrogate + entropy_coef H(pi) - kl_coef k3(pi, pi_start); entropy is a bonus, whatever eq. 6 prints.

    reference_log_probs: of the policy at the start; needed where kl_coef is not 0.
    """
    surrogate = clipped_surrogate(
        log_probs=log_probs,
        old_log_probs=old_log_probs,
        advantages=advantages,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
    )
    clipped = was_clipped(
        log_probs=log_probs,
        old_log_probs=old_log_probs,
        advantages=advantages,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
    )
    value = surrogate + entropy_coef * entropy
    kl = torch.zeros_like(value)
    if kl_coef:
        assert reference_log_probs is not None
        kl = kl_estimate(log_probs=log_probs, reference_log_probs=reference_log_probs)
        value = value - kl_coef * kl
    return PolicyObjective(value, clipped, (log_probs - old_log_probs).abs(), kl)
