"""Steps of a response: where they end, and rewards summed over them."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from repirl.objectives.reduce import last_token


def step_ends(
    *,
    is_separator: Bool[Tensor, "rows time"],
    response_mask: Bool[Tensor, "rows time"],
    is_blank: Bool[Tensor, "rows time"] | None = None,
) -> Bool[Tensor, "rows time"]:
    """True at the last token of each step: a separator (one that closes a line), and the last response token always.

    Tokens that are `is_blank` (white space, end tokens) make no step of their own: blank lines belong to the step before
    them, at the beginning of a response to the one after them.
    """
    closes = is_separator & response_mask
    if is_blank is not None:
        line = closes.long().cumsum(-1) - closes.long()
        words = (response_mask & ~is_blank).long()
        in_line = torch.zeros_like(words).scatter_add(1, line, words)
        in_next = torch.cat([in_line[:, 1:], torch.zeros_like(in_line[:, :1])], dim=1).gather(1, line)
        closes = closes & (words.cumsum(-1) > 0) & (in_next > 0)
    return closes | last_token(response_mask)


def sum_to_step_ends(
    *, rewards: Float[Tensor, "rows time"], ends: Bool[Tensor, "rows time"], response_mask: Bool[Tensor, "rows time"]
) -> Float[Tensor, "rows time"]:
    """Token rewards summed over each step onto the step's last token, 0 elsewhere; a row's sum stays the same."""
    rewards = rewards.masked_fill(~response_mask, 0)
    step = (ends.long().cumsum(-1) - ends.long()).masked_fill(~response_mask, 0)
    totals = torch.zeros_like(rewards).scatter_add(1, step, rewards)
    return totals.gather(1, step).masked_fill(~ends, 0)
