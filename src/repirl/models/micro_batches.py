"""Rows into micro-batches of at most so many tokens: pure functions of lengths."""

from collections.abc import Sequence

import torch
from torch import Tensor

from repirl.models.packing import distinct_prompts
from repirl.structs import Rows


def micro_batches(rows: Rows, budget: int, *, packs: bool) -> list[Tensor]:
    """Indices of the rows of each micro-batch. packs: rows go through the model without padding, prompts once."""
    of_prompt, of_response = rows.prompt_mask.sum(-1).tolist(), rows.response_mask.sum(-1).tolist()
    if packs:
        batches = packed_batches(
            distinct_prompts(rows)[0].tolist() if of_prompt else [], of_prompt, of_response, budget
        )
    else:
        batches = padded_batches([p + r for p, r in zip(of_prompt, of_response, strict=True)], budget)
    return [torch.tensor(batch, device=rows.prompt_ids.device) for batch in batches]


def packed_batches(
    prompts: Sequence[int], prompt_lengths: Sequence[int], response_lengths: Sequence[int], budget: int
) -> list[list[int]]:
    """Rows by prompt, longest prompt first, in micro-batches of at most `budget` tokens; a prompt counts once in each.

    prompts: which prompt a row has. A row longer than the budget makes a micro-batch of its own.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-prompt_lengths[i], prompts[i], -response_lengths[i], i))
    batches: list[list[int]] = []
    size = 0
    for i in order:
        again = bool(batches) and prompts[batches[-1][-1]] == prompts[i]
        added = response_lengths[i] + (0 if again else prompt_lengths[i])
        if batches and size + added <= budget:
            batches[-1].append(i)
            size += added
        else:
            batches.append([i])
            size = prompt_lengths[i] + response_lengths[i]
    return batches


def padded_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows of similar length in micro-batches whose padded size (rows x longest) stays within `budget` tokens.

    A row longer than the budget makes a micro-batch of its own.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
