"""Scores read as probabilities of being right."""

from jaxtyping import Float
from torch import Tensor


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
