"""How well scores order things: AUROC and correlation."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def auroc(scores: Float[Tensor, " n"], positive: Bool[Tensor, " n"]) -> Float[Tensor, ""]:
    """Probability that a positive scores higher than a negative, ties counted half; NaN if either class is empty.

    By ranks (Mann-Whitney), so that scores of any size keep their order; a sigmoid first would tie the large ones.
    """
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    upper = counts.cumsum(0).double()
    ranks = (upper - (counts - 1) / 2)[place]  # 1-based midranks
    p, n = positive.sum().double(), (~positive).sum().double()
    area: Tensor = (ranks[positive].sum() - p * (p + 1) / 2) / (p * n)
    return area.to(scores.dtype)


def auroc_within(
    scores: Float[Tensor, " n"], positive: Bool[Tensor, " n"], group: Int[Tensor, " n"], groups: int
) -> Float[Tensor, " groups"]:
    """The AUROC within each group, such as the solutions of one generator; NaN where a group lacks a class.

    Over all groups pooled, a score that only tells a good generator from a poor one does well: it knows style. Within one
    it is at .5.
    """
    of_each = [auroc(scores[group == index], positive[group == index]) for index in range(groups)]
    return torch.stack(of_each)


def correlation(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Pearson correlation; 0 where either side is constant."""
    x, y = x - x.mean(), y - y.mean()
    scale = x.norm() * y.norm()
    return torch.where(scale > 0, (x * y).sum() / scale.clamp(min=torch.finfo(x.dtype).tiny), scale)
