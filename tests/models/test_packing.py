"""Packed rows against plain forwards of each row alone; what they cost; which models read them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from repirl.models.packing import distinct_prompts, join, pack
from repirl.models.policy import Policy
from tests.models.tiny import LLAMA, PROMPTS, RESPONSES, TOKENS, alone, rows_of, tiny_policy

SHARED = [*PROMPTS, PROMPTS[1], PROMPTS[3], PROMPTS[1]]  # 4 distinct prompts, 7 rows
ANSWERS = [*RESPONSES, [5, 5, 1], [7], [6, 2, 3, 1]]
PACKING: list[dict[str, Any]] = [
    LLAMA,
    {**LLAMA, "num_key_value_heads": 4},
    {**LLAMA, "model_type": "qwen2"},
    {**LLAMA, "model_type": "qwen3", "head_dim": 8},
    {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.3},
]
NOT_PACKING: list[dict[str, Any]] = [
    {**LLAMA, "model_type": "mistral", "sliding_window": 3},
    {**LLAMA, "model_type": "gemma3_text", "sliding_window": 3, "head_dim": 8},
]


def test_each_prompt_comes_once_and_the_last_token_only_where_it_is_read() -> None:
    rows = rows_of([[2, 3], [4], [2, 3]], [[5], [6, 7, 8], [9, 1]], left=1, right=1, filler=9)
    before, at = pack(rows, with_last=False), pack(rows, with_last=True)
    assert before.ids.tolist() == [[4, 2, 3, 6, 7, 9]]  # prompts, then responses without their last tokens
    assert before.positions.tolist() == [[0, 0, 1, 1, 2, 2]]
    assert before.read.tolist() == [2, 0, 3, 4, 2, 5]  # a prompt's last token predicts each first token
    assert at.ids.tolist() == [[4, 2, 3, 5, 6, 7, 8, 9, 1]]
    assert at.positions.tolist() == [[0, 0, 1, 2, 1, 2, 3, 2, 3]]
    assert at.read.tolist() == [3, 4, 5, 6, 7, 8]


def test_prompts_are_the_same_only_where_their_tokens_are() -> None:
    number, first = distinct_prompts(rows_of([[2, 3], [0, 2, 3], [2, 3], [3]], [[1]] * 4, left=2, filler=0))
    assert number[0] == number[2]
    assert len(set(number.tolist())) == 3  # a leading pad token that counts is not padding
    assert number[first].tolist() == [0, 1, 2]


def test_joining_puts_prompt_and_response_side_by_side() -> None:
    joined = join(rows_of([[2, 3], [4]], [[5], [6, 7, 8]], left=1, right=1, filler=9))
    assert joined.ids[0, :3].tolist() == [2, 3, 5]
    assert joined.ids[1].tolist() == [4, 6, 7, 8]
    assert joined.at[0, 0] == 2
    assert joined.at[1, :3].tolist() == [1, 2, 3]


@pytest.mark.parametrize("config", [*PACKING, *NOT_PACKING], ids=lambda c: f"{c['model_type']}")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_values_and_gradients_are_those_of_each_row_alone(config: dict[str, Any], checkpointing: bool) -> None:
    policy, plain = (
        Policy(config=config, tokens=TOKENS, gradient_checkpointing=c).load().train() for c in (checkpointing, False)
    )
    plain.model.set_attn_implementation("sdpa")
    assert policy.packs == (config in PACKING)
    rows = rows_of(SHARED, ANSWERS, left=2, right=1)
    log_probs, _ = policy(rows)
    weights = torch.linspace(-1, 1, log_probs.numel()).view(log_probs.shape)
    (log_probs * weights).sum().backward()
    for row, (prompt, response) in enumerate(zip(SHARED, ANSWERS, strict=True)):
        expected = alone(plain, prompt, response).gather(1, torch.tensor(response)[:, None])[:, 0]
        torch.testing.assert_close(log_probs[row, : len(response)], expected, rtol=0, atol=1e-5)
        (expected * weights[row, : len(response)]).sum().backward()
    for (name, one), other in zip(policy.model.named_parameters(), plain.model.parameters(), strict=True):
        assert other.grad is not None, name
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_states_after_a_token_are_the_next_ones_before() -> None:
    policy = tiny_policy()
    rows = rows_of(SHARED, ANSWERS, left=1)
    before, after = policy.action_states(rows), policy.action_states(rows, after=True)
    first = torch.tensor([t for r in ANSWERS for t in range(len(r))]) == 0
    torch.testing.assert_close(before[~first], after[:-1][~first[1:]], rtol=0, atol=1e-5)


def test_one_row_and_one_token() -> None:
    policy = tiny_policy()
    rows = rows_of([[2, 3]], [[5]])
    torch.testing.assert_close(policy(rows)[0][0], alone(policy, [2, 3], [5])[:, 5], rtol=0, atol=1e-5)


def test_cached_decoding_is_as_before() -> None:
    packing, plain = tiny_policy(), tiny_policy()
    plain.model.set_attn_implementation("sdpa")
    ids, mask = torch.tensor([[0, 2, 3, 4], [5, 6, 7, 8]]), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    outputs = [p.model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False, output_logits=True,
                                return_dict_in_generate=True) for p in (packing, plain)]  # fmt: skip
    assert all(torch.equal(*pair) for pair in zip(*(o.logits for o in outputs), strict=True))
