"""One iteration of rePIRL, step by step and without Lightning: the global batch goes from one method to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from repirl.learning.actor import Actor, UsableExperts
from repirl.learning.ahead import AheadActor, Sampled
from repirl.learning.batch import GlobalBatch
from repirl.learning.collect import collected, positions_of
from repirl.learning.learner import Learner
from repirl.learning.outcomes import Outcomes, are_given
from repirl.learning.policy_learner import PolicyLearner
from repirl.learning.prm_learner import PRMLearner
from repirl.learning.prm_objectives import PRMObjective
from repirl.learning.prompt_filter import PromptFilter, group_accuracy, keep_prompts
from repirl.learning.recorder import Recorder
from repirl.learning.sampler_gap import SamplerGap, with_ratios, without_far_rollouts
from repirl.learning.schedule import Schedule, policy_passes, prm_passes
from repirl.learning.settings import Advantage, Surrogate
from repirl.learning.shaping import combined, mean_reward, reward_sources, share_alone
from repirl.models.prm import PRM
from repirl.models.sharding import free, whole
from repirl.objectives.estimators import ESTIMATORS
from repirl.structs import Prompt

Told = Callable[[GlobalBatch, Tensor, Tensor], None]
"""Is told a batch, its prompts and their rollout accuracies, [prompts]."""


class Alternation:
    """PRM and policy, learned in turns. `begin`, then the other methods in the order in which they stand.

    Without a PRM its steps do nothing, and advantages come from outcomes, format and certainty alone.

    Args: as in `repirl.modules.repirl.RePIRL`.

    learners: of the policy, and of the PRM where there is one. Each needs its `engine` before the first update.
    """

    def __init__(
        self,
        actor: Actor,
        prm: PRM | None,
        *,
        objective: PRMObjective,
        samples: int,
        outcomes: Outcomes,
        advantage: Advantage,
        surrogate: Surrogate,
        schedule: Schedule,
        prompt_filter: PromptFilter,
        sampler_gap: SamplerGap,
        micro_batch_tokens: int,
        policy_clip_norm: float,
        prm_clip_norm: float,
        seed: int,
    ) -> None:
        self.actor, self.objective, self.samples, self.seed = actor, objective, samples, seed
        self.advantage, self.schedule = advantage, schedule
        self.prompt_filter, self.sampler_gap = prompt_filter, sampler_gap
        self.outcomes = outcomes
        self.recorder = Recorder()
        self.experts = UsableExperts(actor, drop_wrong=objective.drops_wrong_experts, judged=outcomes == "gold")
        self.policy_learner = PolicyLearner(
            actor.policy,
            surrogate,
            max_response_tokens=actor.text.max_response_tokens,
            micro_batch_tokens=micro_batch_tokens,
            clip_norm=policy_clip_norm,
            recorder=self.recorder,
        )
        self.prm_learner = (
            None
            if prm is None
            else PRMLearner(
                prm,
                objective,
                micro_batch_tokens=micro_batch_tokens,
                clip_norm=prm_clip_norm,
                recorder=self.recorder,
            )
        )
        self.learners: list[Learner] = [one for one in (self.policy_learner, self.prm_learner) if one is not None]

    # ---- the steps, in order ----

    def begin(self, iteration: int) -> None:
        """Starts an iteration, counted from 0: it decides seeds, schedules and the policy's version."""
        self.recorder.iteration = iteration

    def roll_out(self, prompts: Sequence[Prompt]) -> Sampled | None:
        """This rank's prompts to train on, each with K responses; None where there are none yet.

        They are the given ones; with rollouts ahead those of the iteration before, while the given ones are sampled for.
        """
        positions, iteration = positions_of(prompts), self.recorder.iteration
        key = self.seed, iteration
        with self._timed("rollout"):
            if isinstance(self.actor, AheadActor):
                sampled = self.actor.take()
                self.actor.start(prompts, positions, samples=self.samples, key=key, version=iteration)
                return sampled
            with whole(self.actor.policy):
                rollouts = self.actor.sample(prompts, positions, samples=self.samples, key=key, temperature=1.0)
            return Sampled(list(prompts), rollouts)

    def collect(self, sampled: Sampled) -> GlobalBatch:
        """Rollouts and experts of all ranks, with the verifier's word on each."""
        with self._timed("verify"):
            return collected(
                sampled.prompts,
                sampled.rollouts,
                actor=self.actor,
                experts=None if self.prm_learner is None else self.experts,
                outcomes=self.outcomes,
                step_ends=None if self.prm_learner is None else self.prm_learner.model.step_ends,
                recorder=self.recorder,
                device=self.device,
            )

    def keep(self, batch: GlobalBatch, tell: Told | None = None) -> GlobalBatch:
        """The prompts that are trained on, by the accuracy of their rollouts, which `tell` is told first."""
        prompts, accuracy = group_accuracy(outcome=batch.outcome, is_expert=batch.is_expert, group=batch.group)
        if self.has_outcomes:
            if tell is not None:
                tell(batch, prompts, accuracy)
            right, wrong = (accuracy == 1).float().sum(), (accuracy == 0).float().sum()
            self.recorder.add("prompts", {"all_right": right, "all_wrong": wrong})
        kept = prompts[keep_prompts(accuracy, self.prompt_filter)]
        self.recorder.add("prompts", {"kept": len(kept)})
        return batch if len(kept) == len(prompts) else batch.of_groups(kept)

    def with_log_probs(self, batch: GlobalBatch) -> GlobalBatch:
        """Log-probabilities where a term needs them, without the rollouts that the sampler got too wrong."""
        if not self._needs_log_probs():
            return batch
        with self._timed("log_probs"):
            batch = self.policy_learner.with_log_probs(batch, keeps_entropies=self.advantage.certainty_coef > 0)
            free(self.policy_learner.model, self.policy_learner.reference)
        if not self.actor.gives_log_probs:
            return batch
        batch, figures = without_far_rollouts(batch, self.sampler_gap)
        self.recorder.add("sampler", figures)
        return batch

    def update_prm(self, batch: GlobalBatch) -> None:
        """Experts up, importance-weighted rollouts down."""
        for _ in range(self._prm_passes()):
            assert self.prm_learner is not None
            for part in batch.mini_batches(self.schedule.prm_mini_batches):
                with self._timed("prm_update"):
                    self.prm_learner.update(part)

    def with_advantages(self, batch: GlobalBatch) -> GlobalBatch:
        """The rollouts with advantages from the PRM's scores, outcomes, format and the policy's own certainty."""
        with self._timed("score"):
            if not ESTIMATORS[self.advantage.prm_estimator].compares_experts:
                batch = batch.of_policy()
            batch = replace(batch, prm_rewards=self._scores(batch))
            sources = reward_sources(
                batch,
                settings=self.advantage,
                judged=self.has_outcomes,
                prm_rewards=batch.prm_rewards,
                maxent_coef=self._maxent_coef(),
                of_reference=self.objective.needs_reference,
                by_step=self.prm_learner is not None and self.prm_learner.model.granularity == "step",
            )
            advantages = combined(batch, sources, self.advantage)
            self.recorder.add("policy", share_alone(batch))
            self.recorder.add("rollout", mean_reward(batch, sources))
            rollouts, figures = with_ratios(replace(batch, advantages=advantages).of_policy(), self.sampler_gap)
            self.recorder.add("sampler", figures)
            return rollouts

    def update_policy(self, rollouts: GlobalBatch) -> None:
        """The clipped surrogate up."""
        for _ in range(policy_passes(self.schedule, self.recorder.iteration)):
            for part in rollouts.mini_batches(self.schedule.policy_mini_batches):
                with self._timed("policy_update"):
                    self.policy_learner.update(part)

    # ---- what the steps need ----

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return self.policy_learner.model.device

    @property
    def has_outcomes(self) -> bool:
        """Whether training is told which rollouts are right."""
        return are_given(self.outcomes, verified=self.actor.verifier is not None)

    @property
    def needs_reference(self) -> bool:
        """Whether a term is relative to the policy at the start of training."""
        by_prm = self.prm_learner is not None and self.objective.needs_reference
        return by_prm or self.policy_learner.surrogate.kl_coef > 0

    def _needs_log_probs(self) -> bool:
        by_prm = bool(self._prm_passes()) and self.objective.needs_log_probs
        maxent = self.prm_learner is not None and self._maxent_coef() > 0
        several = self.needs_reference or self.schedule.policy_steps > 1
        return by_prm or maxent or several or self.advantage.certainty_coef > 0 or self.actor.gives_log_probs

    def _scores(self, batch: GlobalBatch) -> Tensor | None:
        if self.prm_learner is None or not self.advantage.prm_coef:
            return None
        prm_rewards = self.prm_learner.score(batch)
        free(self.prm_learner.model)
        if not self._prm_passes():
            self.recorder.add("prm", self.prm_learner.diagnostics(batch, prm_rewards))
        return prm_rewards

    def _prm_passes(self) -> int:
        return 0 if self.prm_learner is None else prm_passes(self.schedule, self.recorder.iteration)

    def _maxent_coef(self) -> float:
        given = self.advantage.maxent_coef
        return self.objective.maxent_coef if given is None else given

    def _timed(self, phase: str) -> AbstractContextManager[None]:
        return self.recorder.timed(phase, self.device)
