"""Supervised fine-tuning on expert trajectories: behaviour cloning, and how start policies are made."""

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer

from repirl.data.collate import collate_rows, select
from repirl.distributed import any_rank, sum_and_clip, sum_over_ranks
from repirl.learning.actor import Actor
from repirl.learning.learning_rate import FineTuningAdamW, Schedules, rate_of
from repirl.learning.optimizers import make_optimizer
from repirl.learning.settings import Text
from repirl.models.micro_batches import micro_batches
from repirl.models.policy import Policy
from repirl.modules.answering import Answering
from repirl.modules.checks import check_precision
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
        self.micro_batch_tokens, self.policy_clip_norm = micro_batch_tokens, policy_clip_norm
        self.schedules = Schedules()

    def configure_model(self) -> None:
        """Loads the weights: constructing the module is cheap."""
        self.actor.load()

    def setup(self, stage: str) -> None:
        super().setup(stage)
        check_precision(self.trainer, stage, [self.policy])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The policy's, with its scheduler where one is configured."""
        optimizer = make_optimizer(
            self.policy_optimizer, self.policy.parameters(), "policy_optimizer", lambda: self.trainer.ckpt_path
        )
        if self.policy_scheduler is None:
            return optimizer
        return [optimizer], [self.schedules.add("policy", self.policy_scheduler, optimizer, self.trainer.max_steps)]

    def on_train_start(self) -> None:
        self.schedules.go_on(self.global_step)

    def training_step(self, batch: list[Prompt], batch_idx: int) -> None:
        """One optimiser step, in micro-batches: each adds its share of the global batch's token mean."""
        pairs = [(prompt, expert) for prompt in batch for expert in prompt.experts]
        if any_rank(not pairs, self.device):
            raise ValueError("a batch has no expert trajectory to imitate: set data.require_experts to true")
        rows = collate_rows(
            [p.token_ids for p, _ in pairs], [e.token_ids for _, e in pairs], self.codec.pad_id, self.device
        )
        tokens = sum_over_ranks(rows.response_mask.sum().float())
        indices = micro_batches(rows, self.micro_batch_tokens, packs=self.policy.packs)
        finite = torch.ones(len(pairs), dtype=torch.bool, device=self.device)
        totals = torch.zeros(2, device=self.device)
        for index in indices:
            log_probs, entropy = self.policy(rows if len(indices) == 1 else select(rows, index))
            loss = -log_probs.sum() / tokens
            self.manual_backward(loss)
            totals += torch.stack([loss.detach(), entropy.detach().sum() / tokens])
            finite[... if len(indices) == 1 else index] = log_probs.detach().isfinite().all(-1)
        if any_rank(not bool(finite.all()), self.device):
            named = ", ".join(repr(p.problem.id) for (p, _), fine in zip(pairs, finite, strict=True) if not fine)
            raise FloatingPointError(
                f"iteration {self.global_step}: the loss is not finite for prompt {named or 'of another rank'}"
            )
        found, mean_entropy = sum_over_ranks(totals)
        self.log("sft/loss", found, prog_bar=True)
        self.log("sft/entropy", mean_entropy)
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        self.log("sft/lr", rate_of(optimizer.optimizer))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.schedules.step()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Sums gradients over ranks, then clips: here they are unscaled, also under fp16."""
        scaled = self.trainer.precision == "16-mixed"
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = sum_and_clip(parameters, self.policy_clip_norm, f"iteration {self.global_step}", scaled=scaled)
        self.log("sft/gradient_norm", norm)
