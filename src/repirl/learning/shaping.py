"""From rewards to advantages, of the whole global batch at once: pure functions."""

import torch
from jaxtyping import Float
from torch import Tensor

from repirl.learning.batch import GlobalBatch
from repirl.learning.prm_objectives import log_ratio
from repirl.learning.settings import Advantage
from repirl.objectives.advantages import others_active, scale_rewards
from repirl.objectives.estimators import RewardSource, combine, estimator
from repirl.objectives.reduce import last_token, masked_mean
from repirl.objectives.steps import sum_to_step_ends


def shaped(
    batch: GlobalBatch,
    *,
    settings: Advantage,
    judged: bool,
    prm_rewards: Float[Tensor, "rows time"] | None,
    maxent_coef: float,
    of_reference: bool,
    by_step: bool,
) -> Float[Tensor, "rows time"]:
    """A = c_o A_outcome + c_f A_format + c_p A_prm of every response token, whitened; 0 for experts.

    judged: outcomes come from a verifier. prm_rewards: r_phi of every token; None without a PRM.
    maxent_coef: times log b - log q is added to them; of_reference: b is the policy at the start, else 1. by_step: the PRM
    rewards steps, each at its last token, and so does what is added.
    """
    sources = []
    if judged and settings.outcome_coef:
        sources.append(outcome_source(batch, settings))
    if settings.format_coef:
        sources.append(format_source(batch, settings))
    if prm_rewards is not None and settings.prm_coef:
        followed = with_entropy(batch, prm_rewards, maxent_coef, of_reference=of_reference)
        sources.append(prm_source(batch, followed, settings, by_step=by_step))
    return combine(
        sources,
        response_mask=batch.response_mask,
        group=batch.group,
        is_expert=batch.is_expert,
        whitened=settings.whiten,
    )


def outcome_source(batch: GlobalBatch, settings: Advantage) -> RewardSource:
    """The verdict, 1 or 0, at each response's last token; rollouts without a verdict take no part."""
    last = last_token(batch.response_mask)
    return RewardSource(
        coefficient=settings.outcome_coef,
        estimator=estimator(settings.outcome_estimator, alone=settings.alone, std_eps=settings.std_eps),
        rewards=last * batch.outcome.nan_to_num()[:, None],
        rewarded=last,
        scorable=~batch.outcome.isnan() & ~batch.is_expert,
    )


def format_source(batch: GlobalBatch, settings: Advantage) -> RewardSource:
    """0, or -1 for a response without a readable answer, at its last token."""
    last = last_token(batch.response_mask)
    return RewardSource(
        coefficient=settings.format_coef,
        estimator=estimator(settings.outcome_estimator, alone=settings.alone, std_eps=settings.std_eps),
        rewards=last * batch.format_reward[:, None],
        rewarded=last,
        scorable=~batch.is_expert,
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
