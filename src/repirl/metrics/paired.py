"""Inference from a few paired differences, such as two arms of a study on the same seeds.

A percentile bootstrap of so few values is too narrow: of normal differences a 95 % interval covers the mean in .80 to .90
of cases at n = 5, Student's t interval in .95.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from repirl.metrics.student import central_probability, cumulative_probability, quantile

MOST_PATTERNS = 20
"""Differences up to which all sign patterns are listed: 2^20 of them."""


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Two one-sided t tests of a mean difference against a margin.

    p_value: of a true difference beyond the margin, the larger of the two. low, high: the 90 % t interval; it lies within
    the margin where p_value < .05.
    """

    p_value: float
    low: float
    high: float


def paired_t_interval(differences: Float[Tensor, " pairs"], *, level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean difference. Raises ValueError for fewer than 2 pairs, or a level outside (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"a t interval needs a level in (0, 1), not {level}")
    mean, error = _mean_and_error(differences)
    half = quantile(level, len(differences) - 1) * error
    return mean - half, mean + half


def paired_t_test(differences: Float[Tensor, " pairs"]) -> float:
    """Two-sided p-value of no mean difference, by Student's t; 1 where all are 0, 0 where all are equal and not 0."""
    mean, error = _mean_and_error(differences)
    return 1 - central_probability(_ratio(mean, error), len(differences) - 1)


def exact_sign_flip(differences: Float[Tensor, " pairs"]) -> float:
    """Two-sided p-value of differences symmetric about 0: the share of all 2^n sign patterns with a sum as far from 0.

    It needs no normal differences, but is never below 2 / 2^n: .0625 at n = 5, .0078 at n = 8. Differences of 0 change
    nothing. Raises ValueError for more than 20 that are not 0.
    """
    moved = differences[differences != 0].double()
    count = len(moved)
    if count > MOST_PATTERNS:
        raise ValueError(
            f"{count} differences have 2^{count} sign patterns, too many to list (at most {MOST_PATTERNS}); "
            "use paired_comparison, which draws patterns at random"
        )
    observed = moved.sum().abs() * (1 - 1e-12)  # equal sums must not fall apart by rounding
    sums = torch.zeros(1, dtype=torch.float64)
    for value in moved:
        sums = torch.cat([sums + value, sums - value])
    return float((sums.abs() >= observed).double().mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of several tests, in their order (Holm 1979): the chance of any false finding stays below each.

    The k-th smallest of m is multiplied by m - k + 1; none is below that of a smaller one, and none above 1.
    """
    order = sorted(range(len(p_values)), key=lambda test: p_values[test])
    adjusted, largest = [0.0] * len(order), 0.0
    for rank, test in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[test]))
        adjusted[test] = largest
    return adjusted


def equivalence(differences: Float[Tensor, " pairs"], *, margin: float) -> Equivalence:
    """Whether the mean difference lies within -margin and margin (two one-sided t tests, Schuirmann 1987).

    A large p-value of no difference does not say so. Raises ValueError for fewer than 2 pairs, or a margin not above 0.
    """
    if not margin > 0:
        raise ValueError(f"equivalence needs a margin above 0, not {margin}")
    mean, error = _mean_and_error(differences)
    freedom = len(differences) - 1
    above = 1 - cumulative_probability(_ratio(mean + margin, error), freedom)  # of a mean at most -margin
    below = cumulative_probability(_ratio(mean - margin, error), freedom)  # of a mean at least margin
    low, high = paired_t_interval(differences, level=0.9)
    return Equivalence(p_value=max(above, below), low=low, high=high)


def _mean_and_error(differences: Tensor) -> tuple[float, float]:
    if len(differences) < 2:
        raise ValueError(f"a t interval needs at least 2 pairs, not {len(differences)}: run more seeds")
    values = differences.double()
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def _ratio(mean: float, error: float) -> float:
    """Student's t; differences that are all equal leave no doubt."""
    if error > 0:
        return mean / error
    return math.copysign(math.inf, mean) if mean else 0.0
