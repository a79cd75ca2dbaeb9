"""rePIRL: a process reward model and a policy learned in turns (arXiv 2602.07832)."""

import logging
from functools import partial
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from repirl.data.collate import collate_rows
from repirl.distributed import warn_once
from repirl.learning.actor import Actor
from repirl.learning.ahead import AheadActor, from_plain, to_plain
from repirl.learning.alarms import Watch
from repirl.learning.alternation import Alternation
from repirl.learning.batch import GlobalBatch
from repirl.learning.learning_rate import FineTuningAdamW, Schedules, rate_of
from repirl.learning.optimizers import make_optimizer
from repirl.learning.outcomes import Outcomes
from repirl.learning.prm_objectives import IRL, PRMObjective
from repirl.learning.prompt_filter import PromptFilter
from repirl.learning.sampler_gap import SamplerGap
from repirl.learning.schedule import Schedule
from repirl.learning.settings import Advantage, Surrogate, Text
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.modules.answering import Answering
from repirl.modules.checks import check_precision, check_settings, warn_of_untrained_prm
from repirl.modules.counting import count_iteration, forget_figures, uncount_optimizer_steps
from repirl.modules.curriculum import tell_sampler
from repirl.modules.engine import connect, reduce
from repirl.modules.saving import base_measure, require_base_measure
from repirl.modules.words import iteration_in_words, prompts_in_words
from repirl.rollout.transformers import InProcess
from repirl.structs import Generator, Prompt, Response, Rows, Verifier

_log = logging.getLogger(__name__)
AHEAD = "rollouts_ahead"  # key of a checkpoint
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
        outcomes: where outcome rewards of training come from (learning/outcomes.py): `gold`, the verifier's word;
            `majority`, agreement with the most frequent answer of a prompt's own rollouts; `withheld`, nowhere. With the last
            two training prompts need no answer, and what the verifier says of them is logged and never learned from.
        objective: what the PRM is trained on (learning/prm_objectives.py); None = `IRL` with its defaults.
        text, advantage, surrogate: see learning/settings.py. schedule: learning/schedule.py.
        prompt_filter: learning/prompt_filter.py.
        rollout: the generator that samples responses; None = the policy's own forward pass.
        sampler_gap: corrections where the sampler's probabilities differ from the policy's (learning/sampler_gap.py).
        micro_batch_tokens: tokens in one forward-backward pass; changes memory and speed, never the gradient.
        policy_clip_norm, prm_clip_norm: largest global gradient norm; `.inf` = no clipping.
        eval_samples: sampled responses a problem in validation, beside the greedy one.
        eval_temperature: temperature of these samples; rollouts of training are always at 1.
        seed: seed of the rollouts.
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
        outcomes: Outcomes = "gold",
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
        acts = policy, text, rollout or InProcess(), verifier
        actor = AheadActor(*acts, micro_batch_tokens=micro_batch_tokens) if schedule.rollouts_ahead else Actor(*acts)
        super().__init__(actor, eval_samples, seed, eval_temperature)
        self.automatic_optimization = False
        self.prm = prm
        self.objective = IRL() if objective is None else objective
        self.optimizer_constructors = {"policy": policy_optimizer, "prm": prm_optimizer}
        self.scheduler_constructors = {"policy": policy_scheduler, "prm": prm_scheduler}
        self.schedules = Schedules()
        self.reference: Policy | None = None
        self.newest_rollouts: GlobalBatch | None = None  # of the iteration at hand, with advantages, for callbacks
        self.alternation = Alternation(
            self.actor,
            prm,
            objective=self.objective,
            samples=samples,
            outcomes=outcomes,
            advantage=advantage,
            surrogate=surrogate,
            schedule=schedule,
            prompt_filter=prompt_filter,
            sampler_gap=sampler_gap,
            micro_batch_tokens=micro_batch_tokens,
            policy_clip_norm=policy_clip_norm,
            prm_clip_norm=prm_clip_norm,
            seed=seed,
        )
        self.recorder = self.alternation.recorder
        check_settings(self.alternation)
        self.watch = Watch(samples)

    @property
    def reads_gold_answers(self) -> bool:
        """Whether training rests on the answers of its problems; the data module asks, and drops no problem for one."""
        return self.alternation.outcomes == "gold"

    def configure_model(self) -> None:
        """Loads the weights: constructing the module is cheap."""
        self.actor.load()
        if self.prm is not None:
            self.prm.build(self.policy)
            require_base_measure(
                self.prm.base_measure_of_weights, base_measure(self), f"prm.weights: {self.prm.weights}"
            )
        if self.reference is None and self.alternation.needs_reference:
            held = None if self.prm is None else self.prm.policy_at_start
            self.reference = self.policy.start() if held is None else held
        self.alternation.policy_learner.reference = self.reference
        self.shard()

    def training_step(self, prompts: list[Prompt], batch_idx: int) -> None:
        """One iteration (docs/algorithms.md): roll out, verify, update the PRM, score, update the policy."""
        learning = self.alternation
        self._begin()
        sampled = learning.roll_out(prompts)
        if sampled is not None:
            batch = learning.collect(sampled)
            batch = learning.keep(batch, tell=partial(tell_sampler, self.trainer))
            batch = learning.with_log_probs(batch)
            learning.update_prm(batch)
            self.newest_rollouts = batch = learning.with_advantages(batch)
            learning.update_policy(batch)
        self._end()

    def _begin(self) -> None:
        self.alternation.begin(self.global_step)
        self.newest_rollouts = None  # before the next are sampled: they take memory
        uncount_optimizer_steps(self.trainer)
        forget_figures(self.trainer)
        for learner, optimizer in zip(self.alternation.learners, self.trainer.optimizers, strict=True):
            self.recorder.add(learner.name, {"lr": rate_of(optimizer)})

    def _end(self) -> None:
        self.schedules.step()
        figures = self.recorder.take()
        for name, value in figures.items():
            self.log(name, value, prog_bar=name in SHOWN)
        for trouble in self.watch.see(figures):
            warn_once(f"iteration {self.global_step + 1}: {trouble}")
        count_iteration(self.trainer)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        backbone = None if self.prm is None else self.prm.backbone
        check_precision(self.trainer, stage, {"policy": self.policy, "prm.backbone": backbone})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The policy's and the PRM's, each with its scheduler where one is configured."""
        optimizers, schedulers = [], []
        for learner in self.alternation.learners:
            optimizer = make_optimizer(
                self.optimizer_constructors[learner.name],
                learner.model.parameters(),
                f"{learner.name}_optimizer",
                lambda: self.trainer.ckpt_path,
            )
            optimizers.append(optimizer)
            if (constructor := self.scheduler_constructors[learner.name]) is not None:
                schedulers.append(self.schedules.add(learner.name, constructor, optimizer, self.trainer.max_steps))
        connect(self, self.alternation.learners)
        return optimizers, schedulers

    def on_train_start(self) -> None:
        if self.trainer.is_global_zero:
            prompts = getattr(self.trainer.datamodule, "batch_prompts", None)  # type: ignore[attr-defined]
            _log.info(prompts_in_words(self.codec))
            _log.info(iteration_in_words(self.alternation, prompts, self.trainer.world_size))
        warn_of_untrained_prm(self.alternation, self.trainer.ckpt_path)
        self.schedules.go_on(self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the rollouts that the next iteration will train on, where they are sampled ahead."""
        super().on_save_checkpoint(checkpoint)
        if isinstance(self.actor, AheadActor) and (sampled := self.actor.look()) is not None:
            checkpoint[AHEAD] = to_plain(sampled)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on with those rollouts."""
        super().on_load_checkpoint(checkpoint)
        if self.trainer.state.fn != TrainerFn.FITTING or AHEAD not in checkpoint:
            return
        if not isinstance(self.actor, AheadActor):
            raise ValueError(
                f"checkpoint {str(self.trainer.ckpt_path)!r} holds rollouts ahead, which this run would lose: set "
                "model.schedule.rollouts_ahead=1, as it was"
            )
        self.actor.put(from_plain(checkpoint[AHEAD]))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Sums gradients over ranks, then clips: here they are unscaled, also under fp16."""
        reduce(self, self.alternation.learners, optimizer)

    def score(self, rows: Rows) -> Tensor:
        """PRM rewards of all rows, [n, t], without gradient, on this rank alone."""
        learner = self.alternation.prm_learner
        assert learner is not None, "the module has no PRM"
        return learner.values_here(rows, learner.model)

    def token_rewards(self, prompts: list[Prompt], responses: list[Response]) -> list[list[float]] | None:
        """As `Answering` asks; None without a PRM."""
        if self.prm is None:
            return None
        ids = [p.token_ids for p in prompts], [r.token_ids for r in responses]
        rows = collate_rows(*ids, self.codec.pad_id, self.device)
        return [row[mask].tolist() for row, mask in zip(self.score(rows), rows.response_mask, strict=True)]
