"""Supervised fine-tuning on expert trajectories: behaviour cloning, and how start policies are made."""

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer

from repirl.learning.actor import Actor
from repirl.learning.imitation import ImitationLearner
from repirl.learning.learning_rate import FineTuningAdamW, Schedules, rate_of
from repirl.learning.optimizers import make_optimizer
from repirl.learning.recorder import Recorder
from repirl.learning.settings import Text
from repirl.models.policy import Policy
from repirl.modules.answering import Answering
from repirl.modules.checks import check_precision
from repirl.modules.engine import connect, reduce
from repirl.rollout.transformers import InProcess
from repirl.structs import Generator, Prompt, Verifier


class SFT(Answering):
    """Minimises -log pi(expert response | prompt), the token mean over the global batch.

    Args: as in `RePIRL`. An iteration is one optimiser step on all experts of the batch's prompts; micro_batch_tokens
        changes memory and speed, never the gradient.
    """

    def __init__(
        self,
        policy: Policy,
        verifier: Verifier | None = None,
        policy_optimizer: OptimizerCallable = FineTuningAdamW,
        policy_scheduler: LRSchedulerCallable | None = None,
        text: Text = Text(),  # noqa: B008
        rollout: Generator | None = None,
        micro_batch_tokens: int = 16384,
        policy_clip_norm: float = 1.0,
        eval_samples: int = 1,
        eval_temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(Actor(policy, text, rollout or InProcess(), verifier), eval_samples, seed, eval_temperature)
        self.automatic_optimization = False
        self.policy_optimizer, self.policy_scheduler = policy_optimizer, policy_scheduler
        self.schedules, self.recorder = Schedules(), Recorder()
        self.learner = ImitationLearner(
            policy, micro_batch_tokens=micro_batch_tokens, clip_norm=policy_clip_norm, recorder=self.recorder
        )

    def configure_model(self) -> None:
        """Loads the weights: constructing the module is cheap."""
        self.actor.load()
        self.shard()

    def setup(self, stage: str) -> None:
        super().setup(stage)
        check_precision(self.trainer, stage, {"policy": self.policy})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The policy's, with its scheduler where one is configured."""
        optimizer = make_optimizer(
            self.policy_optimizer, self.policy.parameters(), "policy_optimizer", lambda: self.trainer.ckpt_path
        )
        connect(self, [self.learner])
        if self.policy_scheduler is None:
            return optimizer
        return [optimizer], [self.schedules.add("policy", self.policy_scheduler, optimizer, self.trainer.max_steps)]

    def on_train_start(self) -> None:
        self.schedules.go_on(self.global_step)

    def training_step(self, prompts: list[Prompt], batch_idx: int) -> None:
        """One optimiser step on all experts of the prompts."""
        self.recorder.iteration = self.global_step
        self.recorder.add("sft", {"lr": rate_of(self.trainer.optimizers[0])})
        with self.recorder.timed("policy_update", self.device):
            self.learner.update(prompts, pad_id=self.codec.pad_id)
        for name, value in self.recorder.take().items():
            self.log(name, value, prog_bar=name == "sft/loss")
        self.schedules.step()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Sums gradients over ranks, then clips: here they are unscaled, also under fp16."""
        reduce(self, [self.learner], optimizer)
