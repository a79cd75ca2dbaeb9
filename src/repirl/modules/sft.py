"""Supervised fine-tuning on expert trajectories: behaviour cloning, and how start policies are made."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import Optimizer

from repirl.data.codec import ChatCodec
from repirl.data.collate import collate_rows
from repirl.models.policy import Policy
from repirl.modules.actor import Actor, Evaluation, log_results, predict
from repirl.modules.distributed import any_rank, require_explicit_gradients, sum_and_clip, sum_over_ranks
from repirl.modules.settings import Text
from repirl.rollout.transformers import InProcess
from repirl.structs import Generator, Prompt, Verifier


class SFT(LightningModule):
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
        super().__init__()
        self.policy, self.policy_optimizer, self.policy_clip_norm = policy, policy_optimizer, policy_clip_norm
        self.max_prompt_tokens, self.max_response_tokens = text.max_prompt_tokens, text.max_response_tokens
        self.eval_samples, self.seed = eval_samples, seed
        self.actor = Actor(policy, text, rollout or InProcess(), verifier)
        self.evaluation = Evaluation()

    @property
    def codec(self) -> ChatCodec:
        """How problems become prompts; the data module asks for it."""
        return self.actor.codec

    @property
    def verifier(self) -> Verifier | None:  # the data module asks it which gold answers it can read
        return self.actor.verifier

    def configure_model(self) -> None:
        """Loads the weights: constructing the module is cheap."""
        self.actor.load()

    def setup(self, stage: str) -> None:
        require_explicit_gradients(self.trainer)

    def teardown(self, stage: str) -> None:
        """Ends the worker processes of verifier and generator."""
        self.actor.close()

    def configure_optimizers(self) -> Optimizer:
        return self.policy_optimizer(self.policy.parameters())

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
        parameters = list(self.policy.parameters())
        norm = sum_and_clip(parameters, self.policy_clip_norm, f"iteration {self.global_step}", scaled=scaled)
        self.log("sft/gradient_norm", norm)

    def on_validation_epoch_start(self) -> None:
        self.evaluation.start()

    def validation_step(self, batch: list[Prompt], batch_idx: int) -> None:
        """Answers greedily and by sampling."""
        self.evaluation.add(self.actor, batch, batch_idx, self.eval_samples, self.seed)

    def on_validation_epoch_end(self) -> None:
        log_results(self, self.evaluation.results("val"))

    def on_test_epoch_start(self) -> None:
        self.evaluation.start()

    def test_step(self, batch: list[Prompt], batch_idx: int) -> None:
        """As validation."""
        self.evaluation.add(self.actor, batch, batch_idx, self.eval_samples, self.seed)

    def on_test_epoch_end(self) -> None:
        log_results(self, self.evaluation.results("test"))

    def predict_step(self, batch: list[Prompt], batch_idx: int) -> list[dict[str, Any]]:
        """One record a problem."""
        return predict(self.actor, batch)
