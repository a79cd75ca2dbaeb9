"""A small llama with weights large enough that context matters, and rows for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from repirl.models.policy import Policy
from repirl.structs import Rows

TOKENS = [*"abcdefg", "\n"]
PAD, EOS, NEWLINE, VOCABULARY = 0, 1, 9, 10
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
PROMPTS = [[2, 3], [4, 5, 6, 7, 8], [5], [2, 2, 9, 3]]
RESPONSES = [[3, 4, 1], [6], [7, 9, 2, 9, 9, 5], [8, 9, 1]]


def tiny_policy(seed: int = 0, **changes: Any) -> Policy:
    """A loaded policy; `changes` go into the model's config."""
    return Policy(config={**LLAMA, **changes}, tokens=TOKENS, init_seed=seed).load()


def rows_of(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    left: int = 0,
    right: int = 0,
    filler: int = PAD,
) -> Rows:
    """Rows with `left` and `right` more columns of padding than needed, filled with `filler`."""
    width, time = max(map(len, prompts)) + left, max(map(len, responses)) + right
    return Rows(
        prompt_ids=torch.tensor([[filler] * (width - len(p)) + list(p) for p in prompts]),
        prompt_mask=torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts]),
        response_ids=torch.tensor([list(r) + [filler] * (time - len(r)) for r in responses]),
        response_mask=torch.tensor([[True] * len(r) + [False] * (time - len(r)) for r in responses]),
    )


def alone(policy: Policy, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """Log-probabilities [T, V] of every token at each response position, by one plain forward without padding."""
    ids = torch.tensor([[*prompt, *response]])
    logits = policy.model(input_ids=ids).logits[0]
    return logits.log_softmax(-1)[len(prompt) - 1 : -1]
