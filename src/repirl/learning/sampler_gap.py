"""What is done about rollouts of a sampler that computes other probabilities than the training forward pass."""

from dataclasses import dataclass, replace

from torch import Tensor

from repirl.learning.batch import GlobalBatch
from repirl.objectives.reduce import masked_mean
from repirl.objectives.sampler import RatioLevel, gap_figures, is_far, truncated_ratios


@dataclass(frozen=True)
class SamplerGap:
    """Corrections of the sampler's error; by default none. The error is logged in any case.

    Both need a `rollout` that gives log-probabilities (`repirl.rollout.vllm.VLLM`).

    Args:
        mask_above: rollouts whose mean |log pi - log sampler| a token, in nats, is above leave the iteration: they are in
            no set, no baseline and no loss. None = no rollout does.
        max_ratio: advantages are multiplied by min(pi / sampler, max_ratio). None = no correction.
        ratio: the ratio of each `token`, or of the whole `sequence`.
    """

    mask_above: float | None = None
    max_ratio: float | None = None
    ratio: RatioLevel = "token"

    def __post_init__(self) -> None:
        if self.mask_above is not None and not self.mask_above > 0:
            raise ValueError(f"sampler_gap.mask_above must be > 0, or null for no mask; not {self.mask_above}")
        if self.max_ratio is not None and not self.max_ratio >= 1:
            raise ValueError(f"sampler_gap.max_ratio must be >= 1, or null for no correction; not {self.max_ratio}")

    @property
    def corrects(self) -> bool:
        """Whether anything is done."""
        return self.mask_above is not None or self.max_ratio is not None


def without_far_rollouts(batch: GlobalBatch, settings: SamplerGap) -> tuple[GlobalBatch, dict[str, Tensor | float]]:
    """The rows that stay, and what there is to say of the gap before any left."""
    rollouts = batch.of_policy()
    figures: dict[str, Tensor | float] = {**gap_figures(**_pair(rollouts))}
    if settings.mask_above is None:
        return batch, figures
    far = ~batch.is_expert & is_far(**_pair(batch), above=settings.mask_above)
    figures["masked"] = masked_mean(far.float(), ~batch.is_expert)
    return batch.select(~far), figures


def with_ratios(rollouts: GlobalBatch, settings: SamplerGap) -> tuple[GlobalBatch, dict[str, Tensor | float]]:
    """Advantages times the truncated ratios, which the clipped surrogate, being homogeneous in them, passes on."""
    if settings.max_ratio is None:
        return rollouts, {}
    assert rollouts.advantages is not None
    ratios = truncated_ratios(**_pair(rollouts), max_ratio=settings.max_ratio, level=settings.ratio)
    figures: dict[str, Tensor | float] = {
        "ratio_mean": masked_mean(ratios, rollouts.response_mask),
        # The cap is e^log(max_ratio), which may be a rounding below max_ratio.
        "ratio_truncated": masked_mean((ratios >= settings.max_ratio * (1 - 1e-6)).float(), rollouts.response_mask),
    }
    return replace(rollouts, advantages=rollouts.advantages * ratios), figures


def _pair(batch: GlobalBatch) -> dict[str, Tensor]:
    """Log-probabilities of the same tokens by the training forward and by the sampler."""
    assert batch.old_log_probs is not None
    assert batch.sampler_log_probs is not None
    return {
        "log_probs": batch.old_log_probs,
        "sampler_log_probs": batch.sampler_log_probs,
        "response_mask": batch.response_mask,
    }
