"""What is done about rollouts of a sampler that computes other probabilities than the training forward pass."""

from dataclasses import dataclass, replace

from torch import Tensor

from repirl.distributed import gather_rows
from repirl.learning.batch import Experience
from repirl.objectives.reduce import masked_mean
from repirl.objectives.sampler import RatioLevel, gap_figures, is_far, truncated_ratios


@dataclass(frozen=True)
class SamplerGap:
    """Corrections of the sampler's error; by default none, and what the error is gets logged.

    Both need a `rollout` that gives log-probabilities (`repirl.rollout.vllm.VLLM`).

    Args:
        mask_above: rollouts whose mean |log pi - log sampler| a token, in nats, is above leave the iteration: they are in
            no set, no baseline and no loss. None = none does.
        max_ratio: advantages are multiplied by min(pi / sampler, max_ratio). None = they are not.
        ratio: of each `token`, or of the whole `sequence`.
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


def without_far_rollouts(experience: Experience, settings: SamplerGap) -> tuple[Experience, dict[str, Tensor | float]]:
    """The rows that stay, and what there is to say of the gap before any left; all ranks together."""
    assert experience.log_probs is not None
    rollouts = experience.of_policy()
    assert rollouts.log_probs is not None
    figures: dict[str, Tensor | float] = {
        **gap_figures(
            log_probs=gather_rows(rollouts.log_probs),
            sampler_log_probs=gather_rows(rollouts.sampler_log_probs),
            response_mask=gather_rows(rollouts.rows.response_mask),
        )
    }
    if settings.mask_above is None:
        return experience, figures
    far = ~experience.is_expert & is_far(
        log_probs=experience.log_probs,
        sampler_log_probs=experience.sampler_log_probs,
        response_mask=experience.rows.response_mask,
        above=settings.mask_above,
    )
    figures["masked"] = masked_mean(gather_rows(far).float(), ~gather_rows(experience.is_expert))
    return experience.select((~far).nonzero()[:, 0]), figures


def with_ratios(rollouts: Experience, settings: SamplerGap) -> tuple[Experience, dict[str, Tensor | float]]:
    """Advantages times the truncated ratios, which the clipped surrogate, being homogeneous in them, passes on."""
    if settings.max_ratio is None:
        return rollouts, {}
    assert rollouts.log_probs is not None
    assert rollouts.advantages is not None
    mask = rollouts.rows.response_mask
    ratios = truncated_ratios(
        log_probs=rollouts.log_probs,
        sampler_log_probs=rollouts.sampler_log_probs,
        response_mask=mask,
        max_ratio=settings.max_ratio,
        level=settings.ratio,
    )
    everywhere, counts = gather_rows(ratios), gather_rows(mask)
    figures: dict[str, Tensor | float] = {
        "ratio_mean": masked_mean(everywhere, counts),
        # The cap is e^log(max_ratio), which may be a rounding below max_ratio.
        "ratio_truncated": masked_mean((everywhere >= settings.max_ratio * (1 - 1e-6)).float(), counts),
    }
    return replace(rollouts, advantages=rollouts.advantages * ratios), figures
