"""What a configuration must satisfy as a whole; read once, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, get_args

from lightning.pytorch import Trainer

from repirl.distributed import warn_once
from repirl.learning.outcomes import Outcomes
from repirl.objectives.estimators import ESTIMATORS

if TYPE_CHECKING:
    from repirl.learning.alternation import Alternation
    from repirl.models.policy import Policy


def check_settings(learning: Alternation) -> None:
    """Raises ValueError where settings, each good alone, do not go together."""
    verifier, rollout = learning.actor.verifier, learning.actor.rollout
    if learning.samples < 1:
        raise ValueError(f"samples must be at least 1, not {learning.samples}")
    if rollout.truncated:
        raise ValueError(
            "rollout samples from a part of the distribution only (top_p, top_k or min_p): its log-probabilities would be "
            "biased. In training leave top_p at 1, top_k and min_p at 0"
        )
    if learning.sampler_gap.corrects and not learning.actor.gives_log_probs:
        raise ValueError(
            f"sampler_gap: {type(rollout).__name__} samples by the policy's own forward pass and gives no log-probabilities "
            "to compare; remove sampler_gap, or sample with repirl.rollout.vllm.VLLM, or with schedule.rollouts_ahead"
        )
    if learning.outcomes not in get_args(Outcomes):
        raise ValueError(f"outcomes must be one of {', '.join(get_args(Outcomes))}, not {learning.outcomes!r}")
    where = "" if learning.outcomes == "gold" else f", and outcomes {learning.outcomes!r} gives none"
    if not learning.has_outcomes and learning.prompt_filter.kind != "none":
        raise ValueError(
            f"prompt_filter {learning.prompt_filter.kind!r} needs a verifier: it reads rollout accuracies{where}"
        )
    alone = learning.prm_learner is None and not learning.advantage.certainty_coef
    if alone and verifier is None and not learning.has_outcomes:
        raise ValueError("without prm and without verifier there is nothing to learn from: configure one of them")
    if learning.prm_learner is not None and learning.objective.needs_verifier and not learning.has_outcomes:
        raise ValueError(
            f"objective {type(learning.objective).__name__} learns from outcomes: it needs a verifier, or another "
            f"objective{where}"
        )
    by_token = learning.objective.compares_tokens or ESTIMATORS[learning.advantage.prm_estimator].compares_experts
    if learning.prm_learner is not None and learning.prm_learner.model.granularity == "step" and by_token:
        raise ValueError(
            "prm.granularity 'step' rewards the last token of each step alone, but IRL's weighting 'per_position', a "
            "discriminator's form 'token' and prm_estimator 'position' compare rewards token by token: choose another"
        )
    by_prm = learning.prm_learner is not None and learning.advantage.prm_coef
    by_outcomes = learning.has_outcomes and learning.advantage.outcome_coef
    own = learning.advantage.format_coef or learning.advantage.certainty_coef
    if learning.schedule.policy_updates and not (by_prm or by_outcomes or own):
        raise ValueError(
            "advantage: every reward of this module has weight 0, so the policy has no reward; set a weight above 0"
        )


def warn_of_untrained_prm(learning: Alternation, ckpt_path: object) -> None:
    """Says where a policy would follow a PRM that nothing has trained and nothing will."""
    learner = learning.prm_learner
    if learner is None or (learning.schedule.prm_updates and learning.schedule.prm_stops != 0) or ckpt_path:
        return
    if learner.model.weights is None and learner.model.head_class.has_weights:
        warn_once(
            "schedule freezes a PRM whose head is untrained, so that its rewards mean nothing to the policy; give "
            "prm.weights, the checkpoint of a run that trained one"
        )


def check_precision(trainer: Trainer, stage: str, models: Mapping[str, Policy | None]) -> None:
    """Raises ValueError where the trainer's precision and the models' dtypes do not go together. models: by setting."""
    precision = trainer.precision
    if precision not in ("32-true", "bf16-mixed", "16-mixed"):
        instead = {"bf16-true": "bfloat16", "16-true": "float16"}.get(precision, "float32")
        raise ValueError(
            f"trainer.precision {precision!r} would turn rewards, advantages and rotary frequencies into that type too; "
            f"leave it at 32-true, and give the weights their type by policy.dtype: {instead}"
        )
    if precision == "16-mixed" and trainer.world_size > 1:
        raise ValueError(
            "trainer.precision '16-mixed' on several processes: a rank whose own gradients are finite would step where "
            "another's are not; set trainer.precision to bf16-mixed"
        )
    for name, model in models.items() if stage == "fit" else ():
        dtype = None if model is None else model.dtype
        if dtype == "float16" and precision != "16-mixed":
            raise ValueError(
                f"{name}.dtype float16 with trainer.precision {precision!r}: without a scaled loss small gradients become 0; "
                f"set {name}.dtype to bfloat16, or trainer.precision to 16-mixed, which needs a GPU"
            )
        if dtype == "bfloat16" and precision == "16-mixed":
            raise ValueError(
                f"{name}.dtype bfloat16 with trainer.precision '16-mixed': two types of half precision; set "
                f"trainer.precision to 32-true, or {name}.dtype to float32"
            )
