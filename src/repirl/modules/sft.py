"""Supervised fine-tuning on expert trajectories: behaviour cloning, and how start policies are made."""

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import Optimizer

from repirl.data.collate import collate_rows
from repirl.models.policy import Policy
from repirl.modules.actor import Actor
from repirl.modules.answering import Answering
from repirl.modules.checks import check_precision
from repirl.modules.distributed import any_rank, require_explicit_gradients, sum_and_clip, sum_over_ranks
from repirl.modules.optimizers import make_optimizer
from repirl.modules.settings import Text
from repirl.rollout.transformers import InProcess
from repirl.structs import Generator, Prompt, Verifier


class SFT(Answering):
    """Minimises -log pi(expert response | prompt), the token mean over the global batch.

    Args: as in `RePIRL`. An iteration is one optimiser step on all experts of the batch's prompts.
    """

    def __init__(
        self,
        policy: Policy,
        verifier: Verifier | None = None,
        policy_optimizer: OptimizerCallable = torch.optim.AdamW,
        text: Text = Text(),  # noqa: B008
        rollout: Generator | None = None,
        policy_clip_norm: float = 1.0,
        eval_samples: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(Actor(policy, text, rollout or InProcess(), verifier), eval_samples, seed)
        self.policy_optimizer, self.policy_clip_norm = policy_optimizer, policy_clip_norm

    def configure_model(self) -> None:
        """Loads the weights: constructing the module is cheap."""
        self.actor.load()

    def setup(self, stage: str) -> None:
        require_explicit_gradients(self.trainer)
        check_precision(self.trainer, stage, [self.policy])

    def configure_optimizers(self) -> Optimizer:
        return make_optimizer(
            self.policy_optimizer, self.policy.parameters(), "policy_optimizer", lambda: self.trainer.ckpt_path
        )

    def training_step(self, batch: list[Prompt], batch_idx: int) -> Tensor:
        pairs = [(prompt, expert) for prompt in batch for expert in prompt.experts]
        if any_rank(not pairs, self.device):
            raise ValueError("a batch has no expert trajectory to imitate: set data.require_experts to true")
        rows = collate_rows(
            [p.token_ids for p, _ in pairs], [e.token_ids for _, e in pairs], self.codec.pad_id, self.device
        )
        log_probs, entropy = self.policy(rows)
        tokens = sum_over_ranks(rows.response_mask.sum().float())
        loss: Tensor = -log_probs.sum() / tokens
        if any_rank(not bool(loss.isfinite()), self.device):
            named = ", ".join(
                repr(p.problem.id) for (p, _), row in zip(pairs, log_probs, strict=True) if not row.isfinite().all()
            )
            raise FloatingPointError(
                f"iteration {self.global_step}: the loss is not finite for prompt {named or 'of another rank'}"
            )
        self.log("sft/loss", sum_over_ranks(loss.detach()), prog_bar=True)
        self.log("sft/entropy", sum_over_ranks(entropy.detach().sum()) / tokens)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Sums gradients over ranks, then clips: here they are unscaled, also under fp16."""
        scaled = self.trainer.precision == "16-mixed"
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = sum_and_clip(parameters, self.policy_clip_norm, f"iteration {self.global_step}", scaled=scaled)
        self.log("sft/gradient_norm", norm)
