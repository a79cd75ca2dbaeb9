"""Masked sums, counts and statistics."""

from jaxtyping import Bool, Float, Int
from torch import Tensor


def masked_mean(values: Float[Tensor, "*shape"], where: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean of the values that count; 0 where none does."""
    return values.masked_fill(~where, 0).sum() / where.sum().clamp(min=1)


def response_means(
    values: Float[Tensor, "rows time"], response_mask: Bool[Tensor, "rows time"]
) -> Float[Tensor, " rows"]:
    """Mean over each row's response tokens: Rbar = R / |tau| for token rewards."""
    return values.masked_fill(~response_mask, 0).sum(-1) / response_mask.sum(-1).clamp(min=1)


def last_token(response_mask: Bool[Tensor, "rows time"]) -> Bool[Tensor, "rows time"]:
    """True at each row's last response token only."""
    later = response_mask.flip(-1).long().cumsum(-1).flip(-1)
    return response_mask & (later == 1)


def group_sum(
    values: Float[Tensor, "rows *rest"], group: Int[Tensor, " rows"], groups: int
) -> Float[Tensor, "g *rest"]:
    """Sum over the rows of each group; group ids are 0 .. groups - 1."""
    return values.new_zeros(groups, *values.shape[1:]).index_add(0, group, values)
