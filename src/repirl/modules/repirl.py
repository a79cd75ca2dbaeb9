"""rePIRL: a process reward model and a policy learned in turns (arXiv 2602.07832)."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from repirl.data.collate import collate_rows, select
from repirl.distributed import (
    any_rank,
    gather_rows,
    own_rows,
    rank,
    sum_and_clip,
    sum_over_ranks,
    world_size,
)
from repirl.learning.actor import Actor, UsableExperts, outcome_of
from repirl.learning.batch import Experience, build_experience
from repirl.learning.learning_rate import FineTuningAdamW, Schedules, rate_of
from repirl.learning.optimizers import make_optimizer
from repirl.learning.prm_objectives import IRL, Evidence, PRMObjective, log_ratio
from repirl.learning.prompt_filter import PromptFilter, group_accuracy, keep_prompts
from repirl.learning.recorder import Recorder, over_micro_batches, rollout_figures
from repirl.learning.sampler_gap import SamplerGap, with_ratios, without_far_rollouts
from repirl.learning.schedule import Schedule, policy_passes, prm_passes
from repirl.learning.settings import Advantage, Surrogate, Text
from repirl.metrics import prm_diagnostics, saturated_share
from repirl.models.micro_batches import micro_batches
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.modules.answering import Answering
from repirl.modules.checks import check_precision, check_settings
from repirl.modules.counting import count_iteration, forget_figures, uncount_optimizer_steps
from repirl.modules.curriculum import tell_sampler
from repirl.objectives.advantages import RewardSource, combine, others_active, scale_rewards
from repirl.objectives.policy import loss_denominator, policy_objective, row_weights
from repirl.objectives.reduce import last_token, masked_mean, response_means
from repirl.rollout.transformers import InProcess
from repirl.structs import Generator, Prompt, Response, Rows, Verifier
from repirl.verifiers.format import format_reward

SHOWN = ("rollout/accuracy", "prm/ranking_loss", "rollout/response_tokens")  # in the progress bar


class RePIRL(Answering):
    """Policy and PRM with manual optimisation and alternating phases; `global_step` counts iterations.

    Args:
        policy: the language model that is trained.
        prm: the process reward model; None = outcome reward only (RLOO, GRPO by `advantage`).
        verifier: judges final answers; None = no outcome label is read, in training or evaluation.
        policy_optimizer, prm_optimizer: constructors over parameters.
        policy_scheduler, prm_scheduler: constructors over optimisers, stepped once an iteration (learning/learning_rate.py);
            None = constant rates.
        samples: rollouts a prompt (K).
        objective: what the PRM is trained on (learning/prm_objectives.py); None = `IRL` with its defaults.
        text, advantage, surrogate: see learning/settings.py. schedule: learning/schedule.py.
        prompt_filter: learning/prompt_filter.py.
        rollout: what samples responses; None = the policy's own forward pass.
        sampler_gap: what is done where the sampler's probabilities differ from the policy's (learning/sampler_gap.py).
        micro_batch_tokens: tokens in one forward-backward pass; changes memory and speed, never the gradient.
        policy_clip_norm, prm_clip_norm: of the global gradient norm.
        eval_samples: sampled responses a problem in validation, beside the greedy one.
        eval_temperature: of those; rollouts of training are always at 1, samples of the policy itself.
        seed: of rollouts.
    """

    def __init__(
        self,
        policy: Policy,
        prm: PRM | None = None,
        verifier: Verifier | None = None,
        policy_optimizer: OptimizerCallable = FineTuningAdamW,
        prm_optimizer: OptimizerCallable = FineTuningAdamW,
        policy_scheduler: LRSchedulerCallable | None = None,
        prm_scheduler: LRSchedulerCallable | None = None,
        objective: PRMObjective | None = None,
        samples: int = 4,
        text: Text = Text(),  # noqa: B008
        advantage: Advantage = Advantage(),  # noqa: B008
        surrogate: Surrogate = Surrogate(),  # noqa: B008
        schedule: Schedule = Schedule(),  # noqa: B008
        prompt_filter: PromptFilter = PromptFilter(),  # noqa: B008
        rollout: Generator | None = None,
        sampler_gap: SamplerGap = SamplerGap(),  # noqa: B008
        micro_batch_tokens: int = 16384,
        policy_clip_norm: float = 1.0,
        prm_clip_norm: float = 10.0,
        eval_samples: int = 1,
        eval_temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(Actor(policy, text, rollout or InProcess(), verifier), eval_samples, seed, eval_temperature)
        self.automatic_optimization = False
        self.prm = prm
        self.policy_optimizer, self.prm_optimizer = policy_optimizer, prm_optimizer
        self.policy_scheduler, self.prm_scheduler = policy_scheduler, prm_scheduler
        self.schedules = Schedules()
        self.objective = IRL() if objective is None else objective
        self.samples, self.advantage = samples, advantage
        self.surrogate, self.schedule, self.prompt_filter = surrogate, schedule, prompt_filter
        self.sampler_gap = sampler_gap
        self.micro_batch_tokens = micro_batch_tokens
        self.clip_norms = {"policy": policy_clip_norm, "prm": prm_clip_norm}
        self.reference: Policy | None = None
        self.recorder = Recorder()
        self.experts = UsableExperts(self.actor, drop_wrong=self.objective.drops_wrong_experts)
        check_settings(self)

    def configure_model(self) -> None:
        """Loads the weights: constructing the module is cheap."""
        self.actor.load()
        if self.prm is not None:
            self.prm.build(self.policy)
        if self.reference is None and self._wants_reference():
            self.reference = copy.deepcopy(self.policy).requires_grad_(False)

    def _wants_reference(self) -> bool:
        return self.surrogate.kl_coef > 0 or (self.prm is not None and self.objective.needs_reference)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        check_precision(self.trainer, stage, [self.policy, None if self.prm is None else self.prm.backbone])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The policy's and the PRM's, each with its scheduler where one is configured."""
        trained: dict[str, tuple[OptimizerCallable, nn.Module]] = {"policy": (self.policy_optimizer, self.policy)}
        if self.prm is not None:
            trained["prm"] = (self.prm_optimizer, self.prm)
        made = {
            name: make_optimizer(constructor, module.parameters(), f"{name}_optimizer", lambda: self.trainer.ckpt_path)
            for name, (constructor, module) in trained.items()
        }
        constructors = {"policy": self.policy_scheduler, "prm": self.prm_scheduler}
        schedulers = [
            self.schedules.add(name, constructor, optimizer, self.trainer.max_steps)
            for name, optimizer in made.items()
            if (constructor := constructors[name]) is not None
        ]
        return list(made.values()), schedulers

    def on_train_start(self) -> None:
        self.schedules.go_on(self.global_step)

    # ---- one iteration ----

    def training_step(self, batch: list[Prompt], batch_idx: int) -> None:
        """One iteration: roll out, verify, update the PRM, score, update the policy (docs/algorithms.md)."""
        iteration = self.global_step
        uncount_optimizer_steps(self.trainer)
        forget_figures(self.trainer)
        for name, optimizer in zip(("policy", "prm"), self.trainer.optimizers, strict=False):
            self.recorder.add(name, {"lr": rate_of(optimizer)})

        with self._timed("rollout"):
            positions = [i * world_size() + rank() for i in range(len(batch))]
            key = (self.seed, iteration)
            rollouts = self.actor.sample(batch, positions, samples=self.samples, key=key, temperature=1.0)
        with self._timed("verify"):
            verdicts = self.actor.verify([p.problem for p in batch], [[r.text for r in row] for row in rollouts])
            experience = build_experience(
                prompts=batch,
                positions=positions,
                rollouts=rollouts,
                experts=[self.experts.of(prompt) for prompt in batch],
                rollout_outcomes=[[outcome_of(v) for v in row] for row in verdicts],
                format_rewards=[[format_reward(r.text) for r in row] for row in rollouts],
                pad_id=self.codec.pad_id,
                device=self.device,
            )
        for name, figures in rollout_figures(experience, verdicts).items():
            self.recorder.add(name, figures)
        experience = self._filtered(experience)

        if self._wants_log_probs():
            with self._timed("log_probs"):
                experience = self._with_log_probs(experience)
        if self.actor.rollout.gives_log_probs:
            experience, figures = without_far_rollouts(experience, self.sampler_gap)
            self.recorder.add("sampler", figures)
        for _ in range(self._prm_passes()):
            for part in experience.parts(self.schedule.prm_mini_batches):
                with self._timed("prm_update"):
                    self._update_prm(part)
        with self._timed("score"):
            experience = self._with_advantages(experience)
        for _ in range(policy_passes(self.schedule, iteration)):
            for part in experience.parts(self.schedule.policy_mini_batches):
                with self._timed("policy_update"):
                    self._update_policy(part)

        self.schedules.step()
        self._log()
        count_iteration(self.trainer)

    # ---- PRM ----

    def _update_prm(self, part: Experience) -> None:
        """One optimiser step on L = sum_jt c_jt r_jt, the coefficients taken over all rows of all ranks."""
        micro_batches = self._micro_batches(part.rows)
        # A single micro-batch needs no second forward: its rewards serve the coefficients and the gradient.
        kept = self._prm()(part.rows) if len(micro_batches) == 1 else None
        rewards = self.score(part.rows) if kept is None else kept.detach()
        self._require_finite(rewards, part, "the PRM's reward")
        coefficients = self._prm_coefficients(part, rewards)
        if coefficients is None:
            return
        for index in micro_batches:
            values = self._prm()(select(part.rows, index)) if kept is None else kept
            wanted = coefficients if kept is not None else coefficients[index, : values.shape[1]]
            self.manual_backward((wanted * values).sum())
        self._step("prm")

    def _prm_coefficients(self, part: Experience, rewards: Tensor) -> Tensor | None:
        """This rank's share of the global coefficients dL/dr, [N, T]; None where there is nothing to learn from."""
        everywhere = part.gathered(rewards, self._prm().step_ends(part.rows))
        found = self.objective.coefficients(everywhere)
        self.recorder.add("prm", self._diagnostics(everywhere))
        if not found.cells:  # a loss of 0 would read as measured
            counts = {name: value for name, value in found.figures.items() if name.startswith("prompts_")}
            self.recorder.add("prm", counts)
            return None
        self.recorder.add("prm", {"loss": found.loss, **found.figures})
        return own_rows(found.token, len(part.group))[:, : part.rows.response_mask.shape[1]]

    def _diagnostics(self, rows: Evidence) -> dict[str, Tensor]:
        found = prm_diagnostics(
            mean_rewards=response_means(rows.rewards, rows.response_mask),
            lengths=rows.response_mask.sum(-1).float(),
            is_expert=rows.is_expert,
            outcome=rows.outcome,
        )
        bound = self._prm().bound
        if bound is None or not len(rows.rewards):
            return found
        return found | {"saturated": saturated_share(rows.rewards, rows.response_mask, bound)}

    # ---- policy ----

    def _with_advantages(self, experience: Experience) -> Experience:
        """The rollouts with A = c_o A_outcome + c_f A_format + c_p A_prm over all ranks, whitened; [N, T]."""
        settings = self.advantage
        if settings.prm_estimator != "position":  # which compares rollouts with experts too
            experience = experience.of_policy()
        mask, group, is_expert = map(
            gather_rows, (experience.rows.response_mask, experience.group, experience.is_expert)
        )
        outcome, last = gather_rows(experience.outcome), last_token(mask)
        rolled = mask & ~is_expert[:, None]
        sources = []
        if self.actor.verifier is not None and settings.outcome_coef:
            right, known = last * outcome.nan_to_num()[:, None], ~outcome.isnan() & ~is_expert
            sources.append(RewardSource(settings.outcome_coef, settings.outcome_estimator, right, last, known))
        if settings.format_coef:
            form = last * gather_rows(experience.format_reward)[:, None]
            sources.append(RewardSource(settings.format_coef, settings.outcome_estimator, form, last, ~is_expert))
        if self.prm is not None and settings.prm_coef:
            rewards = self.score(experience.rows)
            self._require_finite(rewards, experience, "the PRM's reward")
            everywhere = experience.gathered(rewards, self._prm().step_ends(experience.rows))
            if not self._prm_passes():
                self.recorder.add("prm", self._diagnostics(everywhere))
            soft = everywhere.rewards
            if maxent := self._maxent_coef():
                soft = soft + maxent * log_ratio(everywhere, of_reference=self.objective.needs_reference)
            scaled = scale_rewards(rewards=soft, response_mask=rolled, scale=settings.reward_scale)
            every = torch.ones_like(is_expert)
            source = RewardSource(settings.prm_coef, settings.prm_estimator, scaled, mask, every, settings.prm_discount)
            sources.append(source)
        if rolled.any():
            self.recorder.add("policy", {"alone": masked_mean((others_active(rolled, group) == 0).float(), rolled)})
        advantages = combine(
            sources,
            response_mask=mask,
            group=group,
            is_expert=is_expert,
            alone=settings.alone,
            whitened=settings.whiten,
            std_eps=settings.std_eps,
        )
        own = own_rows(advantages, len(experience.group))[:, : experience.rows.response_mask.shape[1]]
        experience, figures = with_ratios(replace(experience, advantages=own).of_policy(), self.sampler_gap)
        self.recorder.add("sampler", figures)
        return experience

    def _update_policy(self, part: Experience) -> None:
        """One optimiser step on -(clipped surrogate + entropy bonus - KL), aggregated over all ranks."""
        assert part.advantages is not None
        aggregation, mask = self.surrogate.loss_aggregation, part.rows.response_mask
        tokens, count = sum_over_ranks(torch.stack([mask.sum(), mask.any(-1).sum()]).float())
        if not tokens:
            return
        length = float(self.surrogate.loss_length or self.max_response_tokens)
        denominator = loss_denominator(aggregation, tokens=tokens, rows=count, length=length)
        totals = torch.zeros(5, device=self.device)
        finite = torch.ones(len(part.group), 1, device=self.device)
        for index in self._micro_batches(part.rows):
            rows = select(part.rows, index)
            width = rows.response_mask.shape[1]
            log_probs, entropy = self.policy(rows)
            of_reference = part.reference_log_probs
            terms = policy_objective(
                log_probs=log_probs,
                entropy=entropy,
                behaviour_log_probs=log_probs.detach() if part.log_probs is None else part.log_probs[index, :width],
                advantages=part.advantages[index, :width],
                reference_log_probs=None if of_reference is None else of_reference[index, :width],
                **self.surrogate.per_token,
            )
            loss = -terms.value * row_weights(rows.response_mask, aggregation)
            self.manual_backward((loss * rows.response_mask).sum() / denominator)
            seen = [loss, entropy, terms.clipped.float(), terms.behaviour_gap, terms.kl]
            totals += (torch.stack(seen).detach() * rows.response_mask).sum((1, 2))
            finite[index, 0] = torch.where(terms.value.detach().isfinite().all(-1), 1.0, float("nan"))
        self._require_finite(finite, part, "the policy's loss")
        names = ["loss", "entropy", "clipped", "behaviour_gap", *(["kl"] if self.surrogate.kl_coef else [])]
        counts = torch.stack([denominator, tokens, tokens, tokens, tokens])
        self.recorder.add("policy", dict(zip(names, sum_over_ranks(totals) / counts, strict=False)))
        self._step("policy")

    # ---- sets ----

    def _filtered(self, experience: Experience) -> Experience:
        """The rows of the prompts that the filter keeps, by rollout accuracy over all ranks."""
        prompts, accuracy = group_accuracy(
            outcome=gather_rows(experience.outcome),
            is_expert=gather_rows(experience.is_expert),
            group=gather_rows(experience.group),
        )
        if self.actor.verifier is not None:
            tell_sampler(self.trainer, experience, prompts, accuracy)
            right, wrong = (accuracy == 1).float().sum(), (accuracy == 0).float().sum()
            self.recorder.add("prompts", {"all_right": right, "all_wrong": wrong})
        kept = prompts[keep_prompts(accuracy, self.prompt_filter)]
        self.recorder.add("prompts", {"kept": len(kept)})
        return experience if len(kept) == len(prompts) else experience.of_groups(kept)

    # ---- forward passes over micro-batches ----

    def _wants_log_probs(self) -> bool:
        by_prm = bool(self._prm_passes()) and self.objective.needs_log_probs
        maxent = self.prm is not None and self._maxent_coef() > 0
        several = self.reference is not None or self.schedule.policy_steps > 1
        return by_prm or maxent or several or self.actor.rollout.gives_log_probs

    def _maxent_coef(self) -> float:
        given = self.advantage.maxent_coef
        return self.objective.maxent_coef if given is None else given

    def _prm_passes(self) -> int:
        return 0 if self.prm is None else prm_passes(self.schedule, self.global_step)

    def _prm(self) -> PRM:
        assert self.prm is not None
        return self.prm

    def _micro_batches(self, rows: Rows) -> list[Tensor]:
        backbone = None if self.prm is None else self.prm.backbone
        packs = self.policy.packs and (backbone is None or backbone.packs)
        return micro_batches(rows, self.micro_batch_tokens, packs=packs)

    def _over(self, rows: Rows, forward: Callable[[Rows], Tensor]) -> Tensor:
        count, columns = rows.response_mask.shape
        indices = self._micro_batches(rows)
        return over_micro_batches((count, columns), indices, lambda i: forward(select(rows, i)), self.device)

    def score(self, rows: Rows) -> Tensor:
        """PRM rewards of all rows, [N, T], without gradient."""
        return self._over(rows, self._prm())

    def _with_log_probs(self, experience: Experience) -> Experience:
        """Behaviour log-probabilities by the training forward, and those of the reference where a term needs them."""
        log_probs = self._over(experience.rows, lambda rows: self.policy(rows)[0])
        self._require_finite(log_probs, experience, "the policy's log-probability")
        reference = self.reference
        if reference is None:
            return replace(experience, log_probs=log_probs)
        at_start = self._over(experience.rows, lambda rows: reference(rows)[0])
        return replace(experience, log_probs=log_probs, reference_log_probs=at_start)

    # ---- steps, checks, records ----

    def _step(self, name: str) -> None:
        optimizers = self.optimizers()
        optimizer = optimizers[["policy", "prm"].index(name)] if isinstance(optimizers, list) else optimizers
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Sums gradients over ranks, then clips: here they are unscaled, also under fp16."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        name = "policy" if optimizer is self.trainer.optimizers[0] else "prm"
        what, scaled = f"iteration {self.global_step}, {name}", self.trainer.precision == "16-mixed"
        self.recorder.add(name, {"gradient_norm": sum_and_clip(parameters, self.clip_norms[name], what, scaled=scaled)})

    def _require_finite(self, values: Tensor, experience: Experience, what: str) -> None:
        """Raises FloatingPointError on all ranks, naming the prompts, where any value of any rank is not finite."""
        bad = (~values.isfinite()).any(-1)
        if not any_rank(bool(bad.any()), self.device):
            return
        if not any_rank(not bool(bad.all()), self.device):  # no prompt's fault
            where, advice = (
                "all prompts",
                "lower the learning rate, or give policy.dtype more range: float32 or bfloat16",
            )
        else:
            where = "prompt " + (", ".join(map(repr, experience.prompt_ids_of(bad))) or "on another rank")
            advice = "lower the learning rate, or remove the prompt"
        raise FloatingPointError(
            f"iteration {self.global_step}: {what} is NaN or infinite for {where}; nothing was updated by it: {advice}"
        )

    def _timed(self, phase: str) -> AbstractContextManager[None]:
        return self.recorder.timed(phase, self.device)

    def _log(self) -> None:
        for name, value in self.recorder.take().items():
            self.log(name, value, prog_bar=name in SHOWN)

    # ---- evaluation ----

    def token_rewards(self, prompts: list[Prompt], responses: list[Response]) -> list[list[float]] | None:
        """As `Answering` asks; None without a PRM."""
        if self.prm is None:
            return None
        ids = [p.token_ids for p in prompts], [r.token_ids for r in responses]
        rows = collate_rows(*ids, self.codec.pad_id, self.device)
        rewards = self.score(rows)
        return [row[mask].tolist() for row, mask in zip(rewards, rows.response_mask, strict=True)]
