"""A PRM learned from labels of steps, without a policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from repirl.data.step_rows import LabelledResponse, LabelledRows, labelled_rows
from repirl.distributed import sum_over_ranks
from repirl.learning.learner import Learner, run
from repirl.learning.recorder import Recorder
from repirl.models.prm import PRM
from repirl.objectives.prm import Coefficients, step_cross_entropy_coefficients
from repirl.objectives.steps import sum_to_step_ends


class StepLearner(Learner):
    """Minimises the cross-entropy of sigma(step reward) against the steps' targets, the mean over the global batch's steps.

    A step's reward is the sum of its tokens' rewards, whatever the PRM's granularity. Args: as in `Learner`.
    """

    model: PRM

    def __init__(self, prm: PRM, *, micro_batch_tokens: int, clip_norm: float, recorder: Recorder) -> None:
        super().__init__("prm", prm, micro_batch_tokens=micro_batch_tokens, clip_norm=clip_norm, recorder=recorder)

    def update(self, responses: Sequence[LabelledResponse], *, pad_id: int, device: torch.device) -> None:
        """One optimiser step on all labelled steps of all ranks. Raises FloatingPointError where a loss is not finite."""
        given = labelled_rows(responses, pad_id, device)
        steps = sum_over_ranks(given.ends.sum().float())
        indices = self.micro_batches(given.rows)
        finite = torch.ones(len(responses), dtype=torch.bool, device=device)
        totals = torch.zeros(2, device=device)
        for number, index in enumerate(indices, start=1):
            rewards = run(self.model.token_rewards, given.rows, index)
            part = cross_entropy(given, index, rewards.detach())
            share = part.cells / steps  # the mean over this micro-batch's steps counts as much in that over all
            self.backward((share * part.token * rewards).sum(), last=number == len(indices))
            totals += share * torch.stack([part.loss, torch.as_tensor(part.figures["accuracy"], device=device)])
            finite[index] = rewards.detach().isfinite().all(-1)
        self.require_finite(finite, [response.id for response in responses], "solution")
        loss, accuracy = sum_over_ranks(totals)
        wrong = sum_over_ranks(given.is_wrong.sum().float())
        self.recorder.add("prm", {"loss": loss, "step_accuracy": accuracy, "wrong_steps": wrong / steps})
        self.engine.step()

    def step_rewards(self, given: LabelledRows) -> Tensor:
        """The reward of each labelled step at its last token, [n, t], 0 elsewhere, on this rank alone."""
        rewards = self.values_here(given.rows, self.model.token_rewards)
        return sum_to_step_ends(rewards=rewards, ends=given.ends, response_mask=given.rows.response_mask)


def cross_entropy(given: LabelledRows, index: Tensor, rewards: Tensor) -> Coefficients:
    """That of the rows at `index`, whose token rewards are given: without the columns that are padding in all of them."""
    time = rewards.shape[1]
    return step_cross_entropy_coefficients(
        rewards=rewards,
        labels=given.targets[index, :time],
        ends=given.ends[index, :time],
        response_mask=given.rows.response_mask[index, :time],
    )
