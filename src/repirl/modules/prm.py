"""A process reward model learned from labels of steps, offline: no policy, no rollouts."""

from __future__ import annotations

from functools import cached_property

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer

from repirl.data.codec import ChatCodec
from repirl.data.step_rows import LabelledResponse, labelled_rows
from repirl.learning.actor import codec_of, require_context
from repirl.learning.learning_rate import FineTuningAdamW, Schedules, rate_of
from repirl.learning.optimizers import make_optimizer
from repirl.learning.recorder import Recorder
from repirl.learning.settings import Text
from repirl.learning.step_figures import StepFigures
from repirl.learning.step_learner import StepLearner
from repirl.models.prm import PRM
from repirl.modules.base import RunModule
from repirl.modules.checks import check_precision
from repirl.modules.engine import connect, reduce


class SupervisedPRM(RunModule):
    """Minimises the cross-entropy of sigma(step reward) against labels of steps, the mean over the steps of the global batch.

    A step's reward is the sum of its tokens' rewards, as in `repirl score`; sigma of it is the probability that the step is
    right. An iteration is one optimiser step on all labelled steps of the batch.

    Args:
        prm: the process reward model, of any kind, with a `backbone` of its own. `weights` of an earlier run continue it.
        prm_optimizer: constructor over parameters.
        prm_scheduler: constructor over the optimiser, stepped once an iteration; None = a constant rate.
        text: how problems become prompts, and how long prompts and solutions may be (learning/settings.py).
        micro_batch_tokens: tokens in one forward-backward pass; changes memory and speed, never the gradient.
        prm_clip_norm: largest global gradient norm; `.inf` = no clipping.
    """

    def __init__(
        self,
        prm: PRM,
        prm_optimizer: OptimizerCallable = FineTuningAdamW,
        prm_scheduler: LRSchedulerCallable | None = None,
        text: Text = Text(),  # noqa: B008
        micro_batch_tokens: int = 16384,
        prm_clip_norm: float = 1.0,
    ) -> None:
        super().__init__(text)
        self.automatic_optimization = False
        if prm.backbone is None:
            raise ValueError("prm.backbone: without a policy the PRM needs a language model of its own; give its path")
        self.prm, self.prm_optimizer, self.prm_scheduler = prm, prm_optimizer, prm_scheduler
        self.schedules, self.recorder, self.figures = Schedules(), Recorder(), StepFigures()
        self.learner = StepLearner(
            prm, micro_batch_tokens=micro_batch_tokens, clip_norm=prm_clip_norm, recorder=self.recorder
        )

    @cached_property
    def codec(self) -> ChatCodec:
        """How problems become prompts; the data module asks for it."""
        assert self.prm.backbone is not None
        return codec_of(self.prm.backbone.tokenizer, self.text)

    @property
    def can_validate(self) -> bool:
        """Labels are all that it takes."""
        return True

    def configure_model(self) -> None:
        """Loads the weights: constructing the module is cheap."""
        self.prm.build()
        assert self.prm.backbone is not None
        require_context(self.prm.backbone, self.text)
        self.shard()

    def setup(self, stage: str) -> None:
        super().setup(stage)
        check_precision(self.trainer, stage, {"prm.backbone": self.prm.backbone})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The PRM's, with its scheduler where one is configured."""
        optimizer = make_optimizer(
            self.prm_optimizer, self.prm.parameters(), "prm_optimizer", lambda: self.trainer.ckpt_path
        )
        connect(self, [self.learner])
        if self.prm_scheduler is None:
            return optimizer
        return [optimizer], [self.schedules.add("prm", self.prm_scheduler, optimizer, self.trainer.max_steps)]

    def on_train_start(self) -> None:
        self.schedules.go_on(self.global_step)

    def training_step(self, responses: list[LabelledResponse], batch_idx: int) -> None:
        """One optimiser step on all labelled steps of the batch."""
        self.recorder.iteration = self.global_step
        self.recorder.add("prm", {"lr": rate_of(self.trainer.optimizers[0])})
        with self.recorder.timed("prm_update", self.device):
            self.learner.update(responses, pad_id=self.codec.pad_id, device=self.device)
        for name, value in self.recorder.take().items():
            self.log(name, value, prog_bar=name in ("prm/loss", "prm/step_accuracy"))
        self.schedules.step()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Sums gradients over ranks, then clips: here they are unscaled, also under fp16."""
        reduce(self, [self.learner], optimizer)

    def on_validation_epoch_start(self) -> None:
        self.figures.reset()

    def validation_step(self, responses: list[LabelledResponse], batch_idx: int) -> None:
        """Rewards the labelled steps."""
        for dataset in dict.fromkeys(response.dataset for response in responses):
            of_set = [response for response in responses if response.dataset == dataset]
            given = labelled_rows(of_set, self.codec.pad_id, self.device)
            self.figures.update(dataset, given, self.learner.step_rewards(given))

    def on_validation_epoch_end(self) -> None:
        self._log_results("val")

    def on_test_epoch_start(self) -> None:
        self.figures.reset()

    def test_step(self, responses: list[LabelledResponse], batch_idx: int) -> None:
        """As validation."""
        self.validation_step(responses, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._log_results("test")

    def _log_results(self, prefix: str) -> None:
        for name, value in self.figures.results().items():
            self.log(f"{prefix}/{name}", value, prog_bar=name.endswith("wrong_step_auroc"))
