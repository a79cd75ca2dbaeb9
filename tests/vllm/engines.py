"""What the tests of an engine share: generators over small policies, and their gap to the training forward pass."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from repirl.data.codec import ChatCodec
from repirl.models.policy import Policy
from repirl.objectives.sampler import gap_figures
from repirl.rollout.vllm import VLLM
from repirl.structs import Response
from tests.models.tiny import EOS, PAD, rows_of, tiny_policy

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make vllm-test"
)

PROMPTS, SEEDS = [[2, 3], [4, 5, 6, 7, 8, 2, 2], [5], [2, 2, 9, 3]], [11, 12, 13, 14]
EAGER = {"enforce_eager": True, "max_model_len": 96, "max_num_seqs": 64}


HEADS = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # of 32: vLLM's CPU kernels have no less


def wide_policy(seed: int = 3, **changes: Any) -> Policy:
    """The small policy of the other tests, with heads that vLLM has kernels for."""
    return tiny_policy(seed, **(HEADS | changes))


def attached(policy: Policy, limit: int = 16, eos: Sequence[int] = (EOS,), **settings: Any) -> VLLM:
    made = VLLM(**({"engine": EAGER} | settings))
    decode = ChatCodec(policy.tokenizer).decode
    made.attach(policy.model, decode=decode, pad_id=PAD, eos_ids=eos, max_response_tokens=limit)
    return made


def gap(policy: Policy, responses: Sequence[Sequence[Response]], prompts: Sequence[Sequence[int]] = PROMPTS) -> float:
    """The largest |log pi - log sampler| of any token, pi by the training forward pass."""
    pairs = [(prompt, response) for prompt, group in zip(prompts, responses, strict=True) for response in group]
    rows = rows_of([p for p, _ in pairs], [r.token_ids for _, r in pairs])
    sampler = torch.zeros(rows.response_mask.shape)
    for row, (_, response) in zip(sampler, pairs, strict=True):
        assert response.log_probs is not None
        row[: len(response.log_probs)] = torch.tensor(response.log_probs)
    with torch.no_grad():
        log_probs, _ = policy(rows)
    figures = gap_figures(log_probs=log_probs, sampler_log_probs=sampler, response_mask=rows.response_mask)
    return float(figures["gap_max"])


def step(policy: Policy, learning_rate: float = 0.02) -> None:
    """One optimiser step that moves every trained weight."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate)
    log_probs, _ = policy(rows_of([[2, 3], [5]], [[4, 4, 4, 1], [6, 7, 8, 1]]))
    (-log_probs.sum()).backward()
    optimizer.step()
    optimizer.zero_grad()


def ids(responses: Sequence[Sequence[Response]]) -> list[list[tuple[int, ...]]]:
    return [[response.token_ids for response in group] for group in responses]
