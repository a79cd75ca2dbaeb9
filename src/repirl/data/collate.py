"""Token lists to padded tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from repirl.structs import Rows


def collate_rows(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad_id: int,
    device: torch.device | str | None = None,
) -> Rows:
    """Row i is prompts[i] followed by responses[i]: prompts padded on the left, responses on the right.

    Raises ValueError for no rows, unequal numbers, or an empty prompt or response.
    """
    if not prompts or len(prompts) != len(responses):
        raise ValueError(f"expected equally many prompts and responses, not {len(prompts)} and {len(responses)}, or 0")
    for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if not prompt or not response:
            raise ValueError(f"row {index}: the {'response' if prompt else 'prompt'} has no tokens")
    width, length = max(map(len, prompts)), max(map(len, responses))
    prompt_ids = torch.tensor([[pad_id] * (width - len(ids)) + list(ids) for ids in prompts])
    response_ids = torch.tensor([list(ids) + [pad_id] * (length - len(ids)) for ids in responses])
    pads = width - torch.tensor([len(ids) for ids in prompts])
    lengths = torch.tensor([len(ids) for ids in responses])
    return Rows(
        prompt_ids=prompt_ids.to(device),
        prompt_mask=(torch.arange(width) >= pads[:, None]).to(device),
        response_ids=response_ids.to(device),
        response_mask=(torch.arange(length) < lengths[:, None]).to(device),
    )


def select(rows: Rows, index: Int[Tensor, " M"] | Sequence[int]) -> Rows:
    """The rows at `index`, in that order, without the columns that are padding in all of them."""
    chosen = torch.as_tensor(index, dtype=torch.long, device=rows.prompt_ids.device)
    prompt_mask, response_mask = rows.prompt_mask[chosen], rows.response_mask[chosen]
    width, length = int(prompt_mask.any(0).sum()), int(response_mask.any(0).sum())
    first = prompt_mask.shape[1] - width
    return Rows(
        prompt_ids=rows.prompt_ids[chosen, first:],
        prompt_mask=prompt_mask[:, first:],
        response_ids=rows.response_ids[chosen, :length],
        response_mask=response_mask[:, :length],
    )
