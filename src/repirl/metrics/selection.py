"""One of several solutions chosen, by a PRM's rewards, by votes or by lot, and what n of N samples are expected to give.

`right` is 1 or 0 for each sample. For n below N a figure is the expectation over all subsets of n samples: best of n and
pass@n by closed forms, votes over given subsets (`subsets_of`). Ties count by expectation, as if drawn by lot.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Aggregation = Literal["mean", "sum", "min", "last", "product", "token_mean"]
"""How step rewards become the score of a solution.

mean, sum, min, last: of the steps'. product: of probabilities. token_mean: the sum over the number of tokens that were
rewarded, by which the paper selects.
"""

_OF_STEPS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": fmean,
    "sum": sum,
    "min": min,
    "last": lambda rewards: rewards[-1],
    "product": math.prod,
}
AGGREGATIONS = (*_OF_STEPS, "token_mean")
_ROUNDING = 1e-9  # relative: sums of one set of weights in another order are equal


def aggregated(rewards: Sequence[float], by: str, tokens: int | None = None) -> float:
    """The score of a solution by its step rewards; minus infinity, the last place, for one without steps.

    Args:
        rewards: one a step.
        by: a name of `Aggregation`.
        tokens: number of tokens that were rewarded, for `token_mean`; None where the PRM rewards steps alone.

    Raises:
        ValueError: there is no such way, or the rewards do not permit it.
    """
    if by not in AGGREGATIONS:
        raise ValueError(f"step rewards cannot be aggregated by {by!r}: give {', '.join(AGGREGATIONS)}")
    if not rewards:
        return -math.inf
    if by == "token_mean":
        if not tokens:
            raise ValueError(
                "this PRM rewards steps and no tokens, so there is no token_mean: give mean, sum, min or last"
            )
        return sum(rewards) / tokens
    if by == "product" and min(rewards) < 0:
        raise ValueError(
            f"a product of step rewards needs probabilities, and one is {min(rewards):.4g}: two negative ones would make a "
            "high score; give mean, sum, min or last"
        )
    return float(_OF_STEPS[by](rewards))


def expected_best_of_n(*, scores: Float[Tensor, " samples"], right: Float[Tensor, " samples"], n: int) -> float:
    """Chance that the highest-scoring of n samples, drawn without replacement from N, is right.

    Sorted from the highest score, the best of the n is among the t samples of one score with a samples above them with
    probability [C(N - a, n) - C(N - a - t, n)] / C(N, n), and then each of the t alike.
    """
    count = _checked(len(scores), n)
    chance, left = 0.0, count  # samples that do not score higher
    for score in scores.unique().flip(0):
        tied = scores == score
        after = left - int(tied.sum())
        weight = (math.comb(left, n) - math.comb(after, n)) / math.comb(count, n)
        chance += weight * float(right[tied].mean())
        left = after
    return chance


def expected_pass(*, right: Float[Tensor, " samples"], n: int) -> float:
    """Chance that one of n samples is right, 1 - C(N - c, n) / C(N, n) for c right ones: the ceiling of any selection."""
    count = _checked(len(right), n)
    return 1 - math.comb(count - int(right.sum()), n) / math.comb(count, n)


def subsets_of(samples: int, n: int, *, most: int, seed: int) -> Int[Tensor, "subsets n"]:
    """Subsets of n of the samples: all where they are at most `most`, else so many at random."""
    _checked(samples, n)
    if math.comb(samples, n) <= most:
        return torch.tensor(list(itertools.combinations(range(samples), n)))
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(most, samples, generator=generator).argsort(-1)[:, :n]


def expected_vote(
    *,
    answers: Sequence[str | None],
    weights: Float[Tensor, " samples"],
    right: Float[Tensor, " samples"],
    subsets: Int[Tensor, "subsets n"],
) -> float:
    """Chance that the answer with the largest sum of weights is right, as a mean over subsets of the samples.

    Equal texts are one answer, so give normal forms; None, no answer, is never chosen, and a subset without any answer
    counts as wrong. With weights of 1 it is the plain majority vote. Responses of one answer count by their mean verdict.
    """
    numbers = {answer: i for i, answer in enumerate(dict.fromkeys(a for a in answers if a is not None))}
    none = len(numbers)
    if not none:
        return 0.0
    group = torch.tensor([none if answer is None else numbers[answer] for answer in answers])
    truth = torch.stack([right[group == i].double().mean() for i in range(none)])
    votes = torch.zeros(len(subsets), none + 1, dtype=torch.float64)
    sums = votes.scatter_add(1, group[subsets], weights.double()[subsets])[:, :none]
    present = votes.scatter_add(1, group[subsets], torch.ones_like(subsets, dtype=torch.float64))[:, :none] > 0
    highest = sums.masked_fill(~present, -math.inf).amax(-1, keepdim=True)
    chosen = present & (sums >= highest - _ROUNDING * highest.abs())
    return float(((chosen * truth).sum(-1) / chosen.sum(-1).clamp(min=1)).mean())


def exponential_weights(scores: Float[Tensor, " samples"]) -> Float[Tensor, " samples"]:
    """exp(score), up to a common factor that changes no vote: the weights of the paper's vote, positive for any rewards."""
    highest = scores.max()
    return torch.zeros_like(scores) if highest == -math.inf else (scores - highest).exp()


def _checked(samples: int, n: int) -> int:
    if not 1 <= n <= samples:
        raise ValueError(f"n must be from 1 to the number of samples, {samples}, not {n}")
    return samples
