"""rePIRL: a process reward model and a policy learned in turns (arXiv 2602.07832)."""

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import Optimizer

from repirl.data.collate import collate_rows, select
from repirl.data.codec import ChatCodec
from repirl.metrics import auroc, prm_diagnostics, saturated_share
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.modules.actor import Actor, Evaluation, outcome_of, prediction_record
from repirl.modules.distributed import (
    any_rank,
    gather_objects,
    gather_rows,
    own_rows,
    rank,
    require_explicit_gradients,
    sum_gradients,
    sum_over_ranks,
    world_size,
)
from repirl.modules.experience import Experience, build_experience
from repirl.modules.phases import Schedule, policy_passes, prm_passes, token_budget
from repirl.modules.settings import IRL, Advantage, PromptFilter, Surrogate, Text
from repirl.objectives.advantages import estimate, scale_rewards, whiten
from repirl.objectives.irl import irl_coefficients
from repirl.objectives.policy import clipped_surrogate, kl_estimate, was_clipped
from repirl.objectives.reduce import last_token, masked_mean, response_means
from repirl.rollout.transformers import InProcess
from repirl.structs import Expert, Prompt, Rows, Verifier
from repirl.verifiers.format import format_reward


SHOWN = ("rollout/accuracy", "prm/ranking_loss", "rollout/response_tokens")  # in the progress bar


class RePIRL(LightningModule):
    """Policy and PRM with manual optimisation and alternating phases; `global_step` counts iterations.

    Args:
        policy: the language model that is trained.
        prm: the process reward model; None = outcome reward only (RLOO, GRPO by `advantage`).
        verifier: judges final answers; None = no outcome label is read, in training or evaluation.
        policy_optimizer, prm_optimizer: constructors over parameters.
        samples: rollouts a prompt (K).
        text, irl, advantage, surrogate, schedule, prompt_filter: see modules/settings.py and modules/phases.py.
        rollout: what samples responses.
        micro_batch_tokens: padded tokens in one forward-backward pass; changes memory and speed, never the gradient.
        policy_clip_norm, prm_clip_norm: of the global gradient norm.
        eval_samples: sampled responses a problem in validation, beside the greedy one.
        seed: of rollouts.
    """

    def __init__(
        self,
        policy: Policy,
        prm: PRM | None = None,
        verifier: Verifier | None = None,
        policy_optimizer: OptimizerCallable = torch.optim.AdamW,
        prm_optimizer: OptimizerCallable = torch.optim.AdamW,
        samples: int = 4,
        text: Text = Text(),  # noqa: B008
        irl: IRL = IRL(),  # noqa: B008
        advantage: Advantage = Advantage(),  # noqa: B008
        surrogate: Surrogate = Surrogate(),  # noqa: B008
        schedule: Schedule = Schedule(),  # noqa: B008
        prompt_filter: PromptFilter = PromptFilter(),  # noqa: B008
        rollout: InProcess | None = None,
        micro_batch_tokens: int = 16384,
        policy_clip_norm: float = 1.0,
        prm_clip_norm: float = 10.0,
        eval_samples: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy, self.prm = policy, prm
        self.policy_optimizer, self.prm_optimizer = policy_optimizer, prm_optimizer
        self.samples, self.text, self.irl, self.advantage = samples, text, irl, advantage
        self.surrogate, self.schedule, self.prompt_filter = surrogate, schedule, prompt_filter
        self.micro_batch_tokens, self.eval_samples, self.seed = micro_batch_tokens, eval_samples, seed
        self.clip_norms = {"policy": policy_clip_norm, "prm": prm_clip_norm}
        self.max_prompt_tokens, self.max_response_tokens = text.max_prompt_tokens, text.max_response_tokens
        self.actor = Actor(policy, text, rollout or InProcess(), verifier)
        self.reference: Policy | None = None
        self.evaluation = Evaluation()
        self._expert_outcomes: dict[tuple[str, str], bool | None] = {}
        self._check()

    @property
    def codec(self) -> ChatCodec:
        """How problems become prompts; the data module asks for it."""
        return self.actor.codec

    def configure_model(self) -> None:
        """Loads the weights: constructing the module is cheap."""
        self.actor.load()
        if self.prm is not None:
            self.prm.build(self.policy)
        if self.reference is None and self._wants_reference():
            self.reference = copy.deepcopy(self.policy).requires_grad_(False)

    def _wants_reference(self) -> bool:
        return self.surrogate.kl_coef > 0 or (self.prm is not None and self.irl.base_measure == "reference")

    def _check(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")
        if self.actor.rollout.temperature != 1.0:
            raise ValueError("rollout.temperature must be 1 in training: the importance weights assume samples of the policy itself")
        if self.actor.verifier is None and self.prompt_filter.kind != "none":
            raise ValueError(f"prompt_filter {self.prompt_filter.kind!r} needs a verifier: it reads rollout accuracies")
        if self.prm is None and self.actor.verifier is None:
            raise ValueError("without prm and without verifier there is nothing to learn from: configure one of them")
        if self.prm is None and self.irl != IRL():
            raise ValueError("irl settings have no effect without a prm: remove them")

    def setup(self, stage: str) -> None:
        require_explicit_gradients(self.trainer)

    def configure_optimizers(self) -> list[Optimizer]:
        optimizers = [self.policy_optimizer(self.policy.parameters())]
        if self.prm is not None:
            optimizers.append(self.prm_optimizer([p for p in self.prm.parameters() if p.requires_grad]))
        return optimizers

    # ---- one iteration ----

    def training_step(self, batch: list[Prompt], batch_idx: int) -> None:
        """One iteration: roll out, verify, update the PRM, score, update the policy (docs/algorithms.md, section 2)."""
        iteration = self.global_step
        self._start_iteration()

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
                experts=[self._usable_experts(prompt) for prompt in batch],
                rollout_outcomes=[[outcome_of(v) for v in row] for row in verdicts],
                format_rewards=[[format_reward(r.text) for r in row] for row in rollouts],
                pad_id=self.codec.pad_id,
                device=self.device,
            )
        self._record_rollouts(experience)
        experience = self._filtered(experience)

        if self._prm_passes() or self.reference is not None or self.schedule.policy_steps > 1:
            with self._timed("log_probs"):
                experience = self._with_log_probs(experience)
        for _ in range(self._prm_passes()):
            for part in experience.parts(self.schedule.prm_mini_batches):
                with self._timed("prm_update"):
                    self._update_prm(part)
        with self._timed("score"):
            experience = self._with_advantages(experience.of_policy())
        for _ in range(policy_passes(self.schedule, iteration)):
            for part in experience.parts(self.schedule.policy_mini_batches):
                with self._timed("policy_update"):
                    self._update_policy(part)

        self._finish_iteration()

    # ---- PRM ----

    def _update_prm(self, part: Experience) -> None:
        """One optimiser step on L = sum_jt c_jt r_jt, the coefficients taken over all rows of all ranks."""
        micro_batches = self._micro_batches(part.rows)
        # A single micro-batch needs no second forward: its rewards serve the coefficients and the gradient.
        kept = self._prm()(part.rows) if len(micro_batches) == 1 else None
        rewards = self._score(part.rows) if kept is None else kept.detach()
        self._require_finite(rewards, part, "PRM reward")
        coefficients = self._irl_coefficients(part, rewards)
        if coefficients is None:
            return
        for index in micro_batches:
            rows = select(part.rows, index)
            values = self._prm()(rows) if kept is None else kept
            wanted = coefficients[index, : values.shape[1]] if kept is None else coefficients
            self.manual_backward((wanted * values).sum())
        self._step("prm")

    def _irl_coefficients(self, part: Experience, rewards: Tensor) -> Tensor | None:
        """This rank's share of the global coefficients, [N, T]; None where no prompt has both sets."""
        assert part.log_probs is not None
        log_ratio = -part.log_probs
        if self.irl.base_measure == "reference":
            assert part.reference_log_probs is not None
            log_ratio = log_ratio + part.reference_log_probs
        right = part.outcome == 1
        wrong_expert = part.is_expert & (part.outcome == 0)
        pseudo_expert = ~part.is_expert & right & (self.irl.corrected != "ignore")
        positive_weight = (part.is_expert & ~wrong_expert) * self.irl.expert_weight + pseudo_expert.float()
        left_z = pseudo_expert & (self.irl.corrected == "move")
        background = (~part.is_expert & ~left_z) | wrong_expert

        every = {
            "rewards": gather_rows(rewards),
            "log_ratio": gather_rows(log_ratio),
            "response_mask": gather_rows(part.rows.response_mask),
            "group": gather_rows(part.group),
            "positive_weight": gather_rows(positive_weight),
            "background": gather_rows(background),
        }
        terms = irl_coefficients(
            **every,
            weighting=self.irl.weighting,
            scope=self.irl.scope,
            experts_in_z=self.irl.experts_in_z,
            rhat=self.irl.rhat,
            temperature=self.irl.temperature,
            truncate=self.irl.truncate,
            absorbing=self.irl.absorbing,
        )
        is_expert, mask = gather_rows(part.is_expert), every["response_mask"]
        weight = every["positive_weight"]
        self._record(
            "prm",
            {
                "loss": (terms.token * every["rewards"]).sum(),
                "ranking_loss": terms.ranking_loss,
                "prompts_used": float(terms.cells),
                "prompts_skipped": float(terms.skipped),
                "ess": terms.ess,
                "ess_share": terms.ess_share,
                "largest_weight": terms.largest_weight,
                "chi_square": terms.chi_square,
                "expert_share": weight[is_expert].sum() / weight.sum().clamp(min=1e-8),
            }
            | self._diagnostics(every["rewards"], mask, is_expert, gather_rows(part.outcome)),
        )
        if not terms.cells:
            return None
        return own_rows(terms.token, len(rewards))[:, : rewards.shape[1]]

    def _diagnostics(self, rewards: Tensor, mask: Tensor, is_expert: Tensor, outcome: Tensor) -> dict[str, Tensor]:
        found = prm_diagnostics(
            mean_rewards=response_means(rewards, mask),
            lengths=mask.sum(-1).float(),
            is_expert=is_expert,
            outcome=outcome,
        )
        bound = self._prm().bound
        return found if bound is None else found | {"saturated": saturated_share(rewards, mask, bound)}

    # ---- policy ----

    def _with_advantages(self, experience: Experience) -> Experience:
        """Advantages of outcome, process and format reward over all ranks' rollouts, [N, T]."""
        mask, group = gather_rows(experience.rows.response_mask), gather_rows(experience.group)
        outcome, form = gather_rows(experience.outcome), gather_rows(experience.format_reward)
        last, known = last_token(mask), torch.ones_like(outcome, dtype=torch.bool)
        settings, advantages = self.advantage, torch.zeros(mask.shape, device=mask.device)
        sources: list[tuple[float, str, Tensor, Tensor, Tensor]] = []
        if self.actor.verifier is not None:
            reward = last * outcome.nan_to_num()[:, None]
            sources.append((settings.outcome_coef, settings.outcome_estimator, reward, last, ~outcome.isnan()))
        if settings.format_coef:
            sources.append((settings.format_coef, settings.outcome_estimator, last * form[:, None], last, known))
        if self.prm is not None and settings.prm_coef:
            rewards = self._score(experience.rows)
            self._require_finite(rewards, experience, "PRM reward")
            rewards = gather_rows(rewards)
            if not self._prm_passes():
                self._record("prm", self._diagnostics(rewards, mask, ~known, outcome))
            scaled = scale_rewards(rewards=rewards, response_mask=mask, scale=settings.reward_scale)
            sources.append((settings.prm_coef, settings.prm_estimator, scaled, mask, known))
        for coefficient, estimator, rewards, rewarded, scorable in sources:
            advantages = advantages + coefficient * estimate(
                cast("Any", estimator),
                rewards=rewards,
                rewarded=rewarded,
                response_mask=mask,
                group=group,
                scorable=scorable,
                alone=settings.alone,
            )
        if settings.whiten:
            advantages = whiten(advantages=advantages, where=mask)
        own = own_rows(advantages, len(experience.group))[:, : experience.rows.response_mask.shape[1]]
        return replace(experience, advantages=own)

    def _update_policy(self, part: Experience) -> None:
        """One optimiser step on -(clipped surrogate + entropy bonus - KL), the token mean over all ranks."""
        mask = part.rows.response_mask
        tokens = sum_over_ranks(mask.sum().float())
        if not tokens:
            return
        assert part.advantages is not None
        sums: dict[str, Tensor] = {}
        for index in self._micro_batches(part.rows):
            rows = select(part.rows, index)
            m, width = rows.response_mask, rows.response_mask.shape[1]
            log_probs, entropy = self.policy(rows)
            behaviour = log_probs.detach() if part.log_probs is None else part.log_probs[index, :width]
            pair = {
                "log_probs": log_probs,
                "behaviour_log_probs": behaviour,
                "advantages": part.advantages[index, :width],
                "clip_low": self.surrogate.clip_low,
                "clip_high": self.surrogate.clip_high,
            }
            value = clipped_surrogate(**pair, dual_clip=self.surrogate.dual_clip) + self.surrogate.entropy_coef * entropy
            seen = {
                "entropy": entropy,
                "clipped": was_clipped(**pair).float(),
                "behaviour_gap": (log_probs - behaviour).abs(),
            }
            if self.surrogate.kl_coef:
                assert part.reference_log_probs is not None
                kl = kl_estimate(log_probs=log_probs, reference_log_probs=part.reference_log_probs[index, :width])
                value, seen["kl"] = value - self.surrogate.kl_coef * kl, kl
            loss = -(value * m).sum() / tokens
            self.manual_backward(loss)
            for name, tensor in (seen | {"loss": -value}).items():
                sums[name] = sums.get(name, torch.zeros((), device=m.device)) + (tensor.detach() * m).sum()
        names = ["loss", "entropy", "clipped", "behaviour_gap", *(["kl"] if self.surrogate.kl_coef else [])]
        totals = sum_over_ranks(torch.stack([sums.get(n, torch.zeros((), device=mask.device)) for n in names])) / tokens
        self._require_finite(totals[None], part, "policy loss")
        self._record("policy", dict(zip(names, totals, strict=True)))
        self._step("policy")

    # ---- sets ----

    def _usable_experts(self, prompt: Prompt) -> list[Expert]:
        """The prompt's experts with the verifier's word on each (asked once); wrong ones dropped if so configured."""
        unknown = [e for e in prompt.experts if (prompt.problem.id, e.text) not in self._expert_outcomes]
        for expert, verdict in zip(unknown, self.actor.verify([prompt.problem], [[e.text for e in unknown]])[0], strict=True):
            self._expert_outcomes[prompt.problem.id, expert.text] = None if verdict is None else verdict.correct
        judged = [replace(e, correct=self._expert_outcomes[prompt.problem.id, e.text]) for e in prompt.experts]
        usable = [e for e in judged if e.correct is not False or self.irl.wrong_experts == "background"]
        self._dropped_experts += len(judged) - len(usable)
        return usable

    def _filtered(self, experience: Experience) -> Experience:
        """The rows of the prompts that the filter keeps, by rollout accuracy over all ranks."""
        group, outcome = gather_rows(experience.group), gather_rows(experience.outcome)
        rollouts = ~gather_rows(experience.is_expert) & ~outcome.isnan()
        prompts = group.unique()
        accuracy = torch.stack([outcome[rollouts & (group == g)].mean() for g in prompts])  # NaN where none is known
        if self.actor.verifier is not None:
            self._observe(experience, prompts, accuracy)
        within = (accuracy >= self.prompt_filter.low) & (accuracy <= self.prompt_filter.high)
        if self.prompt_filter.kind == "none":
            kept = prompts
        elif self.prompt_filter.kind == "strict":
            kept = prompts[within]
        else:
            kept = prompts[(~within).long().argsort(stable=True)][: (len(prompts) + 1) // 2]
        self._record(
            "prompts",
            {
                "kept": float(len(kept)),
                "all_right": (accuracy == 1).float().sum(),
                "all_wrong": (accuracy == 0).float().sum(),
            },
        )
        return experience if len(kept) == len(prompts) else experience.of_groups(kept)

    def _observe(self, experience: Experience, prompts: Tensor, accuracy: Tensor) -> None:
        """Tells the prompt sampler how hard the prompts were."""
        names = dict(gather_objects(list(zip(experience.positions, (p.problem.id for p in experience.prompts), strict=True))))
        known = [(names[int(g)], float(a)) for g, a in zip(prompts, accuracy, strict=True) if not a.isnan()]
        sampler = getattr(getattr(self.trainer, "datamodule", None), "sampler", None)
        if sampler is not None:
            sampler.update([name for name, _ in known], [a for _, a in known])

    # ---- forward passes over micro-batches ----

    def _prm_passes(self) -> int:
        return 0 if self.prm is None else prm_passes(self.schedule, self.global_step)

    def _prm(self) -> PRM:
        assert self.prm is not None
        return self.prm

    def _micro_batches(self, rows: Rows) -> list[Tensor]:
        lengths = (rows.prompt_mask.sum(-1) + rows.response_mask.sum(-1)).tolist()
        return [torch.tensor(m, device=self.device) for m in token_budget(lengths, self.micro_batch_tokens)]

    @torch.no_grad()
    def _over(self, rows: Rows, forward: Callable[[Rows], Tensor]) -> Tensor:
        """A no-grad forward of all rows, [N, T]."""
        out = torch.zeros(rows.response_mask.shape, device=self.device)
        for index in self._micro_batches(rows):
            values = forward(select(rows, index))
            out[index, : values.shape[1]] = values
        return out

    def _score(self, rows: Rows) -> Tensor:
        """PRM rewards of all rows, [N, T], without gradient."""
        return self._over(rows, self._prm())

    def _with_log_probs(self, experience: Experience) -> Experience:
        """Behaviour log-probabilities by the training forward, and those of the reference where a term needs them."""
        log_probs = self._over(experience.rows, lambda rows: self.policy(rows)[0])
        self._require_finite(log_probs, experience, "policy log-probability")
        reference = None if self.reference is None else self._over(experience.rows, lambda rows: self.reference(rows)[0])
        return replace(experience, log_probs=log_probs, reference_log_probs=reference)

    # ---- steps, checks, records ----

    def _step(self, name: str) -> None:
        optimizers = self.optimizers()
        optimizer = optimizers[["policy", "prm"].index(name)] if isinstance(optimizers, list) else optimizers
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Sums gradients over ranks, then clips: here they are unscaled, also under fp16."""
        name = "policy" if optimizer.param_groups[0]["params"][0] is next(self.policy.parameters()) else "prm"
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        sum_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip_norms[name])
        if not norm.isfinite() and self.trainer.precision != "16-mixed":  # fp16's scaler skips such steps itself
            raise FloatingPointError(
                f"iteration {self.global_step}: the {name} gradient is {float(norm)}; nothing was updated and the last "
                "checkpoint is good. Lower the learning rate, or look at the rewards in the log"
            )
        self._record(name, {"gradient_norm": norm})

    def _require_finite(self, values: Tensor, experience: Experience, what: str) -> None:
        bad = (~values.isfinite()).any(-1)
        if not any_rank(bool(bad.any()), self.device):
            return
        named = sorted({p.problem.id for g, p in zip(experience.positions, experience.prompts, strict=True) if len(bad) != len(experience.group) or g in experience.group[bad]})
        raise FloatingPointError(
            f"iteration {self.global_step}: {what} is NaN or infinite for prompt {', '.join(map(repr, named)) or '(on another rank)'}; "
            "nothing was updated by it and the last checkpoint is good. Lower the learning rate, or remove the prompt"
        )

    def _record_rollouts(self, experience: Experience) -> None:
        rollouts = experience.of_policy()
        lengths = gather_rows(rollouts.rows.response_mask.sum(-1).float())
        outcome = gather_rows(rollouts.outcome)
        known = ~outcome.isnan()
        found: dict[str, Tensor | float] = {
            "response_tokens": lengths.mean(),
            "truncated": 1 - gather_rows(rollouts.finished).float().mean(),
            "has_answer": 1 + gather_rows(rollouts.format_reward).mean(),
        }
        if self.actor.verifier is not None:
            found |= {"accuracy": masked_mean(outcome, known), "unscorable": 1 - known.float().mean()}
            found["experts_dropped"] = float(sum_over_ranks(torch.tensor(float(self._dropped_experts), device=self.device)))
        self._record("rollout", found)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._records[f"time/{phase}_s"].append(time.perf_counter() - start)

    def _record(self, group: str, values: Mapping[str, Tensor | float]) -> None:
        for name, value in values.items():
            self._records[f"{group}/{name}"].append(float(value))

    def _start_iteration(self) -> None:
        self._records: defaultdict[str, list[float]] = defaultdict(list)
        self._dropped_experts = 0
        for optimizer in self.trainer.strategy._lightning_optimizers:
            # Lightning counts every optimiser step as a global step; one iteration has several.
            optimizer._on_before_step = optimizer._on_after_step = lambda: None

    def _finish_iteration(self) -> None:
        """Logs the iteration's figures (means over its updates, sums of its times) and counts it as one global step."""
        for name, values in self._records.items():
            total = sum(values)
            self.log(name, total if name.startswith("time/") else total / len(values), on_step=True, prog_bar=name in SHOWN)
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()

    # ---- evaluation ----

    def validation_step(self, batch: list[Prompt], batch_idx: int) -> None:
        answered = self.evaluation.add(
            self.actor,
            batch,
            [batch_idx * 10**6 + i * world_size() + rank() for i in range(len(batch))],
            samples=self.eval_samples,
            seed=self.seed,
            device=self.device,
        )
        if self.prm is not None:
            pairs = [(p, r, v) for p, row in zip(batch, answered, strict=True) for r, v in row[1:]]
            if pairs:
                rows = collate_rows([p.token_ids for p, *_ in pairs], [r.token_ids for _, r, _ in pairs], self.codec.pad_id, self.device)
                means = response_means(self._score(rows), rows.response_mask)
                self._scored.append(torch.stack([means, torch.tensor([outcome_of(v) for *_, v in pairs], device=self.device)], 1))

    def on_validation_epoch_start(self) -> None:
        self._scored: list[Tensor] = []

    def on_validation_epoch_end(self) -> None:
        found = self.evaluation.compute()
        if self.prm is not None:
            scored = gather_rows(torch.cat(self._scored) if self._scored else torch.zeros(0, 2, device=self.device))
            known = scored[~scored[:, 1].isnan()]
            if len(known):
                found["auroc_correct_failed"] = auroc(known[:, 0], known[:, 1] == 1)
        self.log_dict({f"val/{name}": value for name, value in found.items()}, prog_bar=True)
