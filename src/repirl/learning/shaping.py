"""From rewards to advantages, of the whole global batch at once: pure functions."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from repirl.learning.batch import GlobalBatch
from repirl.learning.prm_objectives import log_ratio
from repirl.learning.settings import Advantage
from repirl.objectives.advantages import others_active, scale_rewards
from repirl.objectives.estimators import RewardSource, combine, estimator
from repirl.objectives.reduce import last_token, masked_mean, response_means
from repirl.objectives.steps import sum_to_step_ends


def shaped(batch: GlobalBatch, *, settings: Advantage, **options: Any) -> Float[Tensor, "rows time"]:
    """A = c_o A_outcome + c_f A_format + c_e A_certainty + c_p A_prm of every response token, whitened; 0 for experts.

    options: as `reward_sources` takes them.
    """
    return combined(batch, reward_sources(batch, settings=settings, **options), settings)


def reward_sources(
    batch: GlobalBatch,
    *,
    settings: Advantage,
    judged: bool,
    prm_rewards: Float[Tensor, "rows time"] | None,
    maxent_coef: float,
    of_reference: bool,
    by_step: bool,
) -> list[RewardSource]:
    """The rewards that have a weight, each with its estimator.

    judged: training has outcomes (learning/outcomes.py). prm_rewards: r_phi of every token; None without a PRM.
    maxent_coef: times log b - log q is added to them; of_reference: b is the policy at the start, else 1. by_step: the PRM
    rewards steps, each at its last token, and so does what is added.
    """
    sources = []
    if judged and settings.outcome_coef:
        sources.append(outcome_source(batch, settings))
    if settings.format_coef:
        sources.append(format_source(batch, settings))
    if settings.certainty_coef:
        sources.append(certainty_source(batch, settings))
    if prm_rewards is not None and settings.prm_coef:
        followed = with_entropy(batch, prm_rewards, maxent_coef, of_reference=of_reference)
        sources.append(prm_source(batch, followed, settings, by_step=by_step))
    return sources


def combined(batch: GlobalBatch, sources: Sequence[RewardSource], settings: Advantage) -> Float[Tensor, "rows time"]:
    """The sum of the sources' advantages, whitened; 0 for experts."""
    return combine(
        sources,
        response_mask=batch.response_mask,
        group=batch.group,
        is_expert=batch.is_expert,
        whitened=settings.whiten,
    )


def mean_reward(batch: GlobalBatch, sources: Sequence[RewardSource]) -> dict[str, Tensor]:
    """`reward`: mean over rollouts of sum_t sum_sources coefficient x r_t; nothing without rollouts.

    Before estimators, discount and whitening; a rollout that a source cannot score has 0 of it.
    """
    rollouts = ~batch.is_expert
    if not rollouts.any():
        return {}
    total = torch.zeros(len(rollouts), device=rollouts.device)
    for source in sources:
        scored = batch.response_mask & source.scorable[:, None]
        total = total + source.coefficient * source.rewards.masked_fill(~scored, 0).sum(-1)
    return {"reward": total[rollouts].mean()}


def outcome_source(batch: GlobalBatch, settings: Advantage) -> RewardSource:
    """The outcome, 1 or 0, at each response's last token; rollouts without one take no part."""
    return _of_responses(batch, batch.outcome, settings.outcome_coef, settings)


def format_source(batch: GlobalBatch, settings: Advantage) -> RewardSource:
    """0, or -1 for a response without a readable answer, at its last token."""
    return _of_responses(batch, batch.format_reward, settings.format_coef, settings)


def certainty_source(batch: GlobalBatch, settings: Advantage) -> RewardSource:
    """Minus the mean entropy of the policy over a response's tokens, at its last token; between -log V and 0.

    r = -(1/T) sum_t H(pi(.|s_t)), in nats: RENT (Prabhudesai et al. 2025, arXiv 2505.22660). It is cousin to the
    self-certainty of Zhao et al. 2025 (arXiv 2505.19590), (1/T) sum_t KL(uniform || pi(.|s_t)), and not the same: that one
    is dominated by the tokens that the policy finds least likely, this one by those that it may well sample. The
    entropy comes with the log-probabilities of the same pass; the divergence would need one of its own.
    """
    assert batch.entropies is not None
    certainty = -response_means(batch.entropies, batch.response_mask)
    return _of_responses(batch, certainty, settings.certainty_coef, settings)


def _of_responses(
    batch: GlobalBatch, rewards: Float[Tensor, " rows"], coefficient: float, settings: Advantage
) -> RewardSource:
    """One reward a rollout, at its last token; NaN takes no part."""
    last = last_token(batch.response_mask)
    return RewardSource(
        coefficient=coefficient,
        estimator=estimator(settings.outcome_estimator, alone=settings.alone, std_eps=settings.std_eps),
        rewards=last * rewards.nan_to_num()[:, None],
        rewarded=last,
        scorable=~rewards.isnan() & ~batch.is_expert,
    )


def with_entropy(
    batch: GlobalBatch, prm_rewards: Float[Tensor, "rows time"], maxent_coef: float, *, of_reference: bool
) -> Float[Tensor, "rows time"]:
    """R + maxent_coef (log b - log q) of each token: what the policy maximises to follow b exp(R) / Z."""
    if not maxent_coef:
        return prm_rewards
    return prm_rewards + maxent_coef * log_ratio(batch, of_reference=of_reference)


def prm_source(
    batch: GlobalBatch, rewards: Float[Tensor, "rows time"], settings: Advantage, *, by_step: bool
) -> RewardSource:
    """Token or step rewards, scaled by those of the rollouts; only some estimators compare experts with them."""
    if by_step:
        rewards = sum_to_step_ends(rewards=rewards, ends=batch.step_ends, response_mask=batch.response_mask)
    how = estimator(settings.prm_estimator, alone=settings.alone, std_eps=settings.std_eps)
    of_rollouts = batch.response_mask & ~batch.is_expert[:, None]
    return RewardSource(
        coefficient=settings.prm_coef,
        estimator=how,
        rewards=scale_rewards(rewards=rewards, response_mask=of_rollouts, scale=settings.reward_scale),
        rewarded=batch.step_ends if by_step else batch.response_mask,
        scorable=torch.ones_like(batch.is_expert) if how.compares_experts else ~batch.is_expert,
        discount=settings.prm_discount,
    )


def share_alone(batch: GlobalBatch) -> dict[str, Tensor]:
    """Share of the rollouts' tokens at whose position no other rollout of the prompt is active; nothing without rollouts."""
    of_rollouts = batch.response_mask & ~batch.is_expert[:, None]
    if not of_rollouts.any():
        return {}
    return {"alone": masked_mean((others_active(of_rollouts, batch.group) == 0).float(), of_rollouts)}
