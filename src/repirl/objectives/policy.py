"""Policy objectives per token. They return [rows, time]; the caller sums and divides by the global token count."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def clipped_surrogate(
    *,
    log_probs: Float[Tensor, "rows time"],
    behaviour_log_probs: Float[Tensor, "rows time"],
    advantages: Float[Tensor, "rows time"],
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Float[Tensor, "rows time"]:
    """min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), rho = exp(log pi - log pi_behaviour); to maximise (PPO).

    dual_clip c > 1: for A < 0 the value is at least c A (Ye et al. 2020).
    """
    rho = (log_probs - behaviour_log_probs).exp()
    value = torch.minimum(rho * advantages, rho.clamp(1 - clip_low, 1 + clip_high) * advantages)
    if dual_clip is not None:
        value = torch.where(advantages < 0, torch.maximum(value, dual_clip * advantages), value)
    return value


def was_clipped(
    *,
    log_probs: Float[Tensor, "rows time"],
    behaviour_log_probs: Float[Tensor, "rows time"],
    advantages: Float[Tensor, "rows time"],
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Bool[Tensor, "rows time"]:
    """True where clipping took the gradient: rho beyond the bound in the direction of the advantage."""
    rho = (log_probs - behaviour_log_probs).exp()
    return ((advantages > 0) & (rho > 1 + clip_high)) | ((advantages < 0) & (rho < 1 - clip_low))


def kl_estimate(
    *,
    log_probs: Float[Tensor, "rows time"],
    reference_log_probs: Float[Tensor, "rows time"],
    estimator: Literal["k1", "k2", "k3"] = "k3",
) -> Float[Tensor, "rows time"]:
    """Per-token estimate of KL(pi || pi_ref) from samples of pi (Schulman's k1, k2, k3), d = log pi - log pi_ref.

    k1 = d (unbiased value), k2 = d^2 / 2 (its gradient is unbiased), k3 = exp(-d) - 1 + d (unbiased value, never
    negative).
    """
    d = log_probs - reference_log_probs
    if estimator == "k1":
        return d
    return d.square() / 2 if estimator == "k2" else (-d).exp() - 1 + d


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """Per token, [rows, time]: the value to maximise, where clipping took the gradient, |log pi - log q|, and the KL."""

    value: Float[Tensor, "rows time"]
    clipped: Bool[Tensor, "rows time"]
    behaviour_gap: Float[Tensor, "rows time"]
    kl: Float[Tensor, "rows time"]


def policy_objective(
    *,
    log_probs: Float[Tensor, "rows time"],
    entropy: Float[Tensor, "rows time"],
    behaviour_log_probs: Float[Tensor, "rows time"],
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
        behaviour_log_probs=behaviour_log_probs,
        advantages=advantages,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
    )
    clipped = was_clipped(
        log_probs=log_probs,
        behaviour_log_probs=behaviour_log_probs,
        advantages=advantages,
        clip_low=clip_low,
        clip_high=clip_high,
    )
    value = surrogate + entropy_coef * entropy
    kl = torch.zeros_like(value)
    if kl_coef:
        assert reference_log_probs is not None
        kl = kl_estimate(log_probs=log_probs, reference_log_probs=reference_log_probs)
        value = value - kl_coef * kl
    return PolicyObjective(value, clipped, (log_probs - behaviour_log_probs).abs(), kl)
