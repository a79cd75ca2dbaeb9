"""Steps of a response: where they end, and rewards summed over them."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from repirl.objectives.reduce import last_token


def step_ends(
    *, is_separator: Bool[Tensor, "rows time"], response_mask: Bool[Tensor, "rows time"]
) -> Bool[Tensor, "rows time"]:
    """True at the last token of each step: a separator (one that closes a line), and the last response token always."""
    return (is_separator & response_mask) | last_token(response_mask)


def sum_to_step_ends(
    *, rewards: Float[Tensor, "rows time"], ends: Bool[Tensor, "rows time"], response_mask: Bool[Tensor, "rows time"]
) -> Float[Tensor, "rows time"]:
    """Token rewards summed over each step onto the step's last token, 0 elsewhere; a row's sum stays the same."""
    rewards = rewards.masked_fill(~response_mask, 0)
    step = (ends.long().cumsum(-1) - ends.long()).masked_fill(~response_mask, 0)
    totals = torch.zeros_like(rewards).scatter_add(1, step, rewards)
    return totals.gather(1, step).masked_fill(~ends, 0)
