"""A model that learns in micro-batches, on any number of ranks: what PRM and policy learners have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from repirl.data.collate import select
from repirl.distributed import any_rank, largest_over_ranks, sum_and_clip
from repirl.learning.recorder import Recorder
from repirl.models.micro_batches import micro_batches
from repirl.models.sharding import sum_at_next_backward
from repirl.structs import Rows

Forward = Callable[[Rows], Any]
"""Token values of rows: a tensor [n, t], or several."""


class Engine(Protocol):
    """How gradients are computed and applied."""

    def backward(self, loss: Tensor) -> None:
        """Adds the loss's gradient to the parameters' own."""

    def step(self) -> None:
        """One optimiser step, with gradients summed and clipped by the learner before it; then they are cleared."""


class TorchEngine:
    """PyTorch alone."""

    def __init__(self, learner: Learner, optimizer: Optimizer) -> None:
        self.learner, self.optimizer = learner, optimizer

    def backward(self, loss: Tensor) -> None:
        """As `Engine` says."""
        loss.backward()

    def step(self) -> None:
        """As `Engine` says."""
        self.learner.reduce_gradients(self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Learner:
    """A model with its forward passes, micro-batches and optimiser steps.

    Every rank does equal work: as many forward and backward passes as the rank that needs most, with nothing in the last of
    them where its own rows are done. A sharded model's pass is a collective, in which all must take part.

    Args:
        name: of its figures and messages: `policy`, `prm`.
        model: what is trained.
        micro_batch_tokens: tokens in one forward-backward pass; changes memory and speed, never the gradient.
        clip_norm: largest global gradient norm, above 0; infinity clips nothing.
        recorder: takes the figures.

    engine: how it learns; set before the first update.
    sums_each_pass: whether gradients of sharded weights are summed over ranks after each micro-batch, not after the last
        alone: more traffic, and no rank ever holds a whole gradient.
    """

    engine: Engine
    sums_each_pass = False

    def __init__(
        self, name: str, model: nn.Module, *, micro_batch_tokens: int, clip_norm: float, recorder: Recorder
    ) -> None:
        if not clip_norm > 0:
            raise ValueError(
                f"{'policy' if name == 'sft' else name}_clip_norm must be above 0, not {clip_norm}: it is the largest norm "
                "of the gradient, and `.inf` clips nothing"
            )
        self.name, self.model, self.recorder = name, model, recorder
        self.micro_batch_tokens, self.clip_norm = micro_batch_tokens, clip_norm

    @property
    def packs(self) -> bool:
        """Whether the model reads rows without padding, and each prompt once."""
        return bool(self.model.packs)

    # ---- forward ----

    def micro_batches(self, rows: Rows) -> list[Tensor]:
        """Indices of the rows of each micro-batch, equally many on every rank; empty where this one has no rows left."""
        indices = micro_batches(rows, self.micro_batch_tokens, packs=self.packs)
        device = rows.prompt_ids.device
        missing = largest_over_ranks(len(indices), device) - len(indices)
        return [*indices, *[torch.zeros(0, dtype=torch.long, device=device)] * missing]

    def values(self, rows: Rows, forward: Callable[[Rows], Tensor]) -> Tensor:
        """`forward` of all rows, [n, ..., t], micro-batch by micro-batch, without gradient. Every rank must call it."""
        return over_micro_batches(rows, self.micro_batches(rows), forward)

    def values_here(self, rows: Rows, forward: Callable[[Rows], Tensor]) -> Tensor:
        """`values` on this rank alone: in evaluation ranks need not have equally many batches."""
        return over_micro_batches(rows, micro_batches(rows, self.micro_batch_tokens, packs=self.packs), forward)

    # ---- steps ----

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Adds the loss's gradient. last: the step comes next, and gradients of sharded weights are summed over ranks."""
        sum_at_next_backward(self.model, last or self.sums_each_pass)
        self.engine.backward(loss)

    def require_finite(self, finite: Tensor, names: Sequence[str], of: str = "prompt") -> None:
        """Raises FloatingPointError on all ranks where a row's loss is not finite. names: whose each row is."""
        if not any_rank(not bool(finite.all()), finite.device):
            return
        named = ", ".join(repr(name) for name, fine in zip(names, finite, strict=True) if not fine)
        raise FloatingPointError(
            f"iteration {self.recorder.iteration}: the loss is not finite for {of} {named or 'of another rank'}"
        )

    def reduce_gradients(self, optimizer: Optimizer, *, scaled: bool = False) -> None:
        """Sums the gradients over ranks and clips their norm. scaled: fp16's scaler skips infinite gradients itself."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        what = f"iteration {self.recorder.iteration}, {self.name}"
        norm = sum_and_clip(parameters, self.clip_norm, what, scaled=scaled)
        self.recorder.add(self.name, {"gradient_norm": norm})


def over_micro_batches(rows: Rows, indices: Sequence[Tensor], forward: Callable[[Rows], Tensor]) -> Tensor:
    """`forward` of the rows at each index, put together to [n, ..., t], without gradient; 0 where no index leads."""
    count, time = rows.response_mask.shape
    values = torch.zeros(count, time, device=rows.response_mask.device)
    with torch.no_grad():
        for number, index in enumerate(indices):
            part = run(forward, rows, index)
            if number == 0:  # the first says how many values a token has
                values = values.new_zeros(count, *part.shape[1:-1], time)
            values[index, ..., : part.shape[-1]] = part
    return values


def run(forward: Forward, rows: Rows, index: Tensor | Sequence[int]) -> Any:
    """`forward` of the rows at `index`, each value [len(index), t].

    Where there are none, of a row of one token, of which nothing is returned: the pass takes place, and its gradient is 0.
    """
    if len(index):
        return forward(select(rows, index))
    values = forward(_placeholder(rows))
    return values[:0] if isinstance(values, Tensor) else tuple(value[:0] for value in values)


def _placeholder(rows: Rows) -> Rows:
    token = torch.zeros(1, 1, dtype=torch.long, device=rows.prompt_ids.device)
    return Rows(token, torch.ones_like(token, dtype=torch.bool), token, torch.ones_like(token, dtype=torch.bool))
