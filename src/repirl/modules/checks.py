"""What a configuration of `RePIRL` must satisfy as a whole; read once, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repirl.modules.repirl import RePIRL


def check_settings(module: RePIRL) -> None:
    """Raises ValueError where settings, each good alone, do not go together."""
    verifier, rollout = module.actor.verifier, module.actor.rollout
    if module.samples < 1:
        raise ValueError(f"samples must be at least 1, not {module.samples}")
    if rollout.temperature != 1.0:
        raise ValueError(
            "rollout.temperature must be 1 in training: the importance weights assume samples of the policy itself"
        )
    if rollout.truncated:
        raise ValueError(
            "rollout samples from a part of the distribution only (top_p, top_k or min_p): its log-probabilities would be "
            "biased. In training leave top_p at 1, top_k and min_p at 0"
        )
    if module.sampler_gap.corrects and not rollout.gives_log_probs:
        raise ValueError(
            f"sampler_gap: {type(rollout).__name__} samples by the policy's own forward pass and gives no log-probabilities "
            "to compare; remove sampler_gap, or sample with repirl.rollout.vllm.VLLM"
        )
    if verifier is None and module.prompt_filter.kind != "none":
        raise ValueError(f"prompt_filter {module.prompt_filter.kind!r} needs a verifier: it reads rollout accuracies")
    if module.prm is None and verifier is None:
        raise ValueError("without prm and without verifier there is nothing to learn from: configure one of them")
    if module.prm is not None and module.objective.needs_verifier and verifier is None:
        raise ValueError(
            f"objective {type(module.objective).__name__} learns from outcomes: it needs a verifier, or another objective"
        )
    by_prm = module.prm is not None and module.advantage.prm_coef
    by_verifier = verifier is not None and module.advantage.outcome_coef
    if module.schedule.policy_updates and not (by_prm or by_verifier or module.advantage.format_coef):
        raise ValueError("advantage: every reward that this module has is weighted 0, so the policy has none; set one")
