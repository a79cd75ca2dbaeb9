"""Scores read as probabilities of being right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def brier_score(*, probabilities: Float[Tensor, " n"], labels: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Mean of (p - y)^2, 0 at best; .25 for p = 1/2 throughout. NaN without values."""
    return (probabilities - labels).square().mean()


def calibration_error(
    *, confidence: Float[Tensor, " bins"], right: Float[Tensor, " bins"], count: Float[Tensor, " bins"]
) -> Float[Tensor, ""]:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3): sum of |right - confidence| / all.

    confidence, right: sums of probabilities and of labels in each bin. count: how many fell into it. NaN without values.
    """
    return (right - confidence).abs().sum() / count.sum()


@dataclass(frozen=True)
class Platt:
    """A probability of being right for a score: sigmoid(slope * score + offset)."""

    slope: float
    offset: float

    def probabilities(self, scores: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Of each score."""
        return (self.slope * scores + self.offset).sigmoid()


def fit_platt(scores: Float[Tensor, " n"], is_right: Bool[Tensor, " n"]) -> Platt:
    """The map of highest likelihood, with Platt's targets (1999), which keep it finite where scores separate the classes.

    The target of the n right ones is (n + 1) / (n + 2), of the m wrong ones 1 / (m + 2).

    Raises ValueError without a right or without a wrong one.
    """
    right, wrong = int(is_right.sum()), int((~is_right).sum())
    if not right or not wrong:
        raise ValueError(f"fit_platt: needs right and wrong ones, and these are {right} and {wrong}")
    targets = torch.where(is_right, (right + 1) / (right + 2), 1 / (wrong + 2)).double()
    centre = scores.double().mean()
    spread = scores.double().std().clamp(min=1e-12)
    weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = weights[0] * (scores.double() - centre) / spread + weights[1]
        value: Tensor = binary_cross_entropy_with_logits(logits, targets)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    gain, offset = weights.tolist()
    slope = gain / float(spread)
    return Platt(slope, offset - slope * float(centre))
