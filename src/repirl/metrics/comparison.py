"""Uncertainty of figures, and two runs compared problem by problem."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from repirl.metrics.paired import MOST_PATTERNS, exact_sign_flip, paired_t_interval

Statistic = Callable[[Tensor], Tensor]
FEW = 10
"""Values up to which a percentile bootstrap is too narrow to report, and Student's t takes its place."""


def mean_of_last(values: Float[Tensor, "... n"]) -> Float[Tensor, "..."]:
    """The mean over the last dimension."""
    return values.mean(-1)


def interquartile_mean(values: Float[Tensor, "... n"]) -> Float[Tensor, "..."]:
    """Mean over the last dimension without its lowest and highest quarter (Agarwal et al. 2021, arXiv 2108.13264).

    A quarter is rounded down: of 5 values one is left out at each end.
    """
    cut = values.shape[-1] // 4
    return values.sort(-1).values[..., cut : values.shape[-1] - cut].mean(-1)


def bootstrap_interval(
    values: Float[Tensor, " n"],
    *,
    statistic: Statistic = mean_of_last,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic over the last dimension, values resampled with replacement.

    Give one value a unit that was drawn at random: the mean over its samples for a problem, not every sample. Of few
    values it is too narrow: of 5 normal ones a 95 % interval covers the mean in .80 to .90 of cases; take
    `paired_t_interval` for the seeds of a study.
    """
    return stratified_interval(values[:, None], statistic=statistic, level=level, resamples=resamples, seed=seed)


def stratified_interval(
    scores: Float[Tensor, "runs tasks"],
    *,
    statistic: Statistic = interquartile_mean,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of all scores, runs resampled within each task (Agarwal et al. 2021).

    Raises ValueError for no scores, or a level outside (0, 1).
    """
    if not scores.numel() or not 0 < level < 1:
        raise ValueError(f"an interval needs scores, and a level in (0, 1): got {scores.numel()} scores, level {level}")
    generator = torch.Generator().manual_seed(seed)
    runs, tasks = scores.shape
    found = []
    block = max(1, 2**22 // scores.numel())  # resamples at a time, in bounded memory
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        index = torch.randint(runs, (size, runs, tasks), generator=generator)
        found.append(statistic(scores.double().expand(size, runs, tasks).gather(1, index).flatten(1)))
    tail = (1 - level) / 2
    low, high = torch.cat(found).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs over the same problems.

    difference: mean of second - first; low, high: its interval over problems, NaN for one problem. better, worse: problems
    where the second scores higher, lower. p_value: two-sided, of no difference.
    """

    problems: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    better: int
    worse: int
    p_value: float


def paired_comparison(
    first: Float[Tensor, " problems"],
    second: Float[Tensor, " problems"],
    *,
    level: float = 0.95,
    resamples: int = 10000,
    seed: int = 0,
) -> Comparison:
    """Compares two runs problem by problem; the order of problems must be the same in both.

    The interval is a bootstrap's, for at most 10 problems Student's t. p_value: by sign flips of the differences, all of
    them where they are no more than `resamples`, else as many at random (then at least 1 / (resamples + 1)). For outcomes
    of 0 and 1 that is the sign test (exact McNemar).
    """
    differences = second.double() - first.double()
    low, high = mean_interval(differences, level=level, resamples=resamples, seed=seed)
    return Comparison(
        problems=len(differences),
        first=float(first.double().mean()),
        second=float(second.double().mean()),
        difference=float(differences.mean()),
        low=low,
        high=high,
        better=int((differences > 0).sum()),
        worse=int((differences < 0).sum()),
        p_value=_sign_flip_p(differences[differences != 0], resamples, seed),
    )


def mean_interval(
    values: Float[Tensor, " n"], *, level: float = 0.95, resamples: int = 10000, seed: int = 0
) -> tuple[float, float]:
    """Interval of a mean over problems: a bootstrap's, for at most 10 values Student's t; NaN for one value."""
    if len(values) == 1:
        return math.nan, math.nan
    if len(values) <= FEW:
        return paired_t_interval(values, level=level)
    return bootstrap_interval(values, level=level, resamples=resamples, seed=seed)


def _sign_flip_p(differences: Tensor, resamples: int, seed: int) -> float:
    """Two-sided p-value of the sum of differences, none of them 0, under independent random signs."""
    count = len(differences)
    if 2**count <= resamples and count <= MOST_PATTERNS:
        return exact_sign_flip(differences)
    observed = differences.sum().abs() * (1 - 1e-12)  # equal sums must not fall apart by rounding
    generator = torch.Generator().manual_seed(seed)
    extreme, block = 0, max(1, 2**22 // count)
    for start in range(0, resamples, block):
        bits = torch.randint(2, (min(block, resamples - start), count), generator=generator)
        extreme += int((((1 - 2.0 * bits).double() @ differences).abs() >= observed).sum())
    return (extreme + 1) / (resamples + 1)
