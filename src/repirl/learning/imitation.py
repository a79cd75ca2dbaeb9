"""Behaviour cloning: the policy learns the experts' responses by heart."""

from collections.abc import Sequence

import torch

from repirl.data.collate import collate_rows
from repirl.distributed import any_rank, sum_over_ranks
from repirl.learning.learner import Learner, run
from repirl.learning.recorder import Recorder
from repirl.models.policy import Policy
from repirl.structs import Prompt


class ImitationLearner(Learner):
    """Minimises -log pi(expert response | prompt), the token mean over the global batch. Args: as in `Learner`."""

    model: Policy

    def __init__(self, policy: Policy, *, micro_batch_tokens: int, clip_norm: float, recorder: Recorder) -> None:
        super().__init__("sft", policy, micro_batch_tokens=micro_batch_tokens, clip_norm=clip_norm, recorder=recorder)

    def update(self, prompts: Sequence[Prompt], *, pad_id: int) -> None:
        """One optimiser step on all experts of the prompts of all ranks. pad_id: of the policy's tokenizer.

        Raises ValueError where a rank's prompts have no expert, FloatingPointError where a loss is not finite.
        """
        device = self.model.device
        pairs = [(prompt, expert) for prompt in prompts for expert in prompt.experts]
        if any_rank(not pairs, device):
            raise ValueError(
                "a process's share of the batch has no expert trajectory to imitate: set data.expert_share to 1, or leave it "
                "out and set data.require_experts to true"
            )
        rows = collate_rows([p.token_ids for p, _ in pairs], [e.token_ids for _, e in pairs], pad_id, device)
        tokens = sum_over_ranks(rows.response_mask.sum().float())
        indices = self.micro_batches(rows)
        finite = torch.ones(len(pairs), dtype=torch.bool, device=device)
        totals = torch.zeros(2, device=device)
        for number, index in enumerate(indices, start=1):
            log_probs, entropy = self.model(rows) if len(indices) == 1 else run(self.model, rows, index)
            loss = -log_probs.sum() / tokens
            self.backward(loss, last=number == len(indices))
            totals += torch.stack([loss.detach(), entropy.detach().sum() / tokens])
            finite[... if len(indices) == 1 else index] = log_probs.detach().isfinite().all(-1)
        self.require_finite(finite, [prompt.problem.id for prompt, _ in pairs])
        loss_of_all, entropy_of_all = sum_over_ranks(totals)
        self.recorder.add("sft", {"loss": loss_of_all, "entropy": entropy_of_all})
        self.engine.step()
