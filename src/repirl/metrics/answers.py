"""Several responses to one problem: pass@k, votes, best of n."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def pass_at_k(
    *, correct: Int[Tensor, " problems"], samples: Int[Tensor, " problems"], k: int
) -> Float[Tensor, " problems"]:
    """Unbiased estimate of the chance that one of k samples is right: 1 - C(n - c, k) / C(n, k), of each problem.

    From `samples` n of which `correct` c are right (Chen et al. 2021, arXiv 2107.03374, equation 1); NaN where n < k.
    1 - (1 - c / n)^k would be biased. Raises ValueError for k < 1 or c > n.
    """
    if k < 1 or bool((correct > samples).any()):
        raise ValueError(f"pass@k: k must be at least 1, not {k}, and no problem have more right answers than samples")
    counts = zip(samples.tolist(), correct.tolist(), strict=True)
    values = [1 - math.comb(n - c, k) / math.comb(n, k) if n >= k else math.nan for n, c in counts]
    return torch.tensor(values, dtype=torch.float64)


def weighted_vote(answers: Sequence[str | None], scores: Sequence[float]) -> int | None:
    """Index of the first response of the answer whose responses have the largest sum of exp(score).

    Equal answers are one group; None, no readable answer, is never chosen. A tie goes to the earlier answer. None where
    no response has an answer. With Rbar, the mean token reward, as score: the paper's weighted vote.
    """
    groups: dict[str, list[int]] = {}
    for index, (answer, _) in enumerate(zip(answers, scores, strict=True)):
        if answer is not None:
            groups.setdefault(answer, []).append(index)
    values = torch.as_tensor(scores, dtype=torch.float64)
    weights = {answer: float(values[members].logsumexp(0)) for answer, members in groups.items()}
    return groups[max(weights, key=weights.__getitem__)][0] if groups else None


def majority_vote(answers: Sequence[str | None]) -> int | None:
    """Index of the first response of the most frequent answer; ties and None as in `weighted_vote`."""
    return weighted_vote(answers, [0.0] * len(answers))


def best_of_n(
    *, scores: Float[Tensor, "problems n"], correct: Float[Tensor, "problems n"]
) -> Float[Tensor, " problems"]:
    """`correct` of each problem's highest-scoring response; tied responses count by their mean, as if drawn by lot."""
    highest = scores == scores.amax(-1, keepdim=True)
    return torch.where(highest, correct, 0).sum(-1) / highest.sum(-1)
