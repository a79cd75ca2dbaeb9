"""Which prompts of a batch are trained on."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class PromptFilter:
    """Which prompts of a batch are trained on, by rollout accuracy (needs a verifier).

    Args:
        kind: `none`; `strict` keeps accuracies within [low, high]; `reorder_half` puts those first and keeps half the batch.
    """

    kind: Literal["none", "strict", "reorder_half"] = "none"
    low: float = 0.2
    high: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"prompt_filter: expected 0 <= low <= high <= 1, not {self.low} and {self.high}")


def group_accuracy(*, outcome: Tensor, is_expert: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """The prompts, [prompts], and the mean known outcome of each one's rollouts, NaN where none is known."""
    rollouts = ~is_expert & ~outcome.isnan()
    prompts = group.unique()
    return prompts, torch.stack([outcome[rollouts & (group == g)].mean() for g in prompts])


def keep_prompts(accuracy: Tensor, prompt_filter: PromptFilter) -> Tensor:
    """Indices of the prompts to train on, by their rollout accuracy [prompts]; NaN counts as outside the range."""
    within = (accuracy >= prompt_filter.low) & (accuracy <= prompt_filter.high)
    if prompt_filter.kind == "none":
        return torch.arange(len(accuracy), device=accuracy.device)
    if prompt_filter.kind == "strict":
        return within.nonzero()[:, 0]
    return (~within).long().argsort(stable=True)[: (len(accuracy) + 1) // 2]
