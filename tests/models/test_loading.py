"""Types of weights and of what is computed beside them, however a model comes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch
from torch import Tensor, nn

from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.models.tokenizers import character_tokenizer
from tests.models.tiny import LLAMA, PROMPTS, RESPONSES, TOKENS, rows_of

ROWS = rows_of(PROMPTS, RESPONSES)
# A base of 10,000 and heads of 8: frequencies 1, .1, .01, .001, of which bfloat16 has only the first.
FREQUENCIES = torch.tensor([1.0, 0.1, 0.01, 0.001])
ROTARY = {
    "llama": {},
    "qwen3": {"model_type": "qwen3", "head_dim": 8},
    "gemma": {"model_type": "gemma", "head_dim": 8},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
}


def made(dtype: Any, **config: Any) -> Policy:
    return Policy(config={**LLAMA, **config}, tokens=TOKENS, dtype=dtype, init_seed=3).load()


def frequencies(of: nn.Module) -> list[Tensor]:
    found = [buffer for name, buffer in of.named_buffers() if name.endswith("inv_freq")]
    assert found
    return found


def is_right(of: nn.Module) -> None:
    for found in frequencies(of):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, FREQUENCIES, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", ROTARY)
def test_a_fresh_model_is_that_of_its_folder_bit_for_bit(name: str, dtype: str, tmp_path: Path) -> None:
    fresh = made(dtype, **ROTARY[name])
    is_right(fresh)
    assert {p.dtype for p in fresh.parameters()} == {getattr(torch, dtype)}
    fresh.save_pretrained(tmp_path)
    loaded = Policy(path=str(tmp_path), dtype=dtype).load()  # type: ignore[arg-type]
    is_right(loaded)
    assert torch.equal(fresh(ROWS)[0], loaded(ROWS)[0])
    # The same weights as in float32, each rounded once.
    for p, whole in zip(fresh.parameters(), made("float32", **ROTARY[name]).parameters(), strict=True):
        assert torch.equal(p, whole.to(p.dtype))


def test_rounded_frequencies_would_show() -> None:
    policy = made("bfloat16")
    right = policy(ROWS)[0]
    for found in frequencies(policy):
        found.copy_(found.bfloat16().float())
    assert not torch.equal(policy(ROWS)[0], right)


CONVERSIONS: list[Callable[[nn.Module], nn.Module]] = [
    lambda module: module.to(torch.bfloat16),
    lambda module: module.bfloat16(),
    lambda module: module.half(),
    lambda module: module.to("cpu", torch.float16),
    lambda module: module.half().float(),
    lambda module: copy.deepcopy(module).bfloat16(),
    lambda module: nn.ModuleDict({"policy": module}).to(torch.bfloat16),
]


@pytest.mark.parametrize("convert", CONVERSIONS)
def test_conversions_leave_frequencies_alone(convert: Callable[[nn.Module], nn.Module]) -> None:
    is_right(convert(made("float32")))


def test_a_converted_policy_is_the_one_made_in_that_type() -> None:
    assert torch.equal(made("float32").to(torch.bfloat16)(ROWS)[0], made("bfloat16")(ROWS)[0])


@pytest.mark.parametrize("kind", ["q_head", "implicit", "logit_difference"])
def test_copies_have_them_too(kind: Any) -> None:
    policy = made("bfloat16")
    prm = PRM(kind=kind).build(policy)
    assert prm.backbone is not None
    is_right(prm.backbone)
    is_right(copy.deepcopy(policy).requires_grad_(False))
    if prm.reference is not None:
        is_right(prm.reference)
    own = PRM(kind=kind, backbone=Policy(config=LLAMA, tokens=TOKENS, dtype="bfloat16")).build(policy)
    assert own.backbone is not None
    is_right(own.backbone)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_adapters_leave_them_alone(dtype: Any, tmp_path: Path) -> None:
    lora = {"r": 2, "target_modules": "all-linear", "init_lora_weights": False}
    policy = Policy(config=LLAMA, tokens=TOKENS, dtype=dtype, lora=lora).load()
    is_right(policy)
    policy.save_pretrained(tmp_path)
    is_right(Policy(path=str(tmp_path), dtype=dtype).load())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_works_for_a_model_from_a_folder(checkpointing: bool, tmp_path: Path) -> None:
    made("float32").save_pretrained(tmp_path)
    policy = Policy(path=str(tmp_path), gradient_checkpointing=checkpointing).load()
    passes: list[int] = []
    policy.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    policy(ROWS)[0].sum().backward()
    assert len(passes) == (2 if checkpointing else 1)  # once more in the backward pass


def write_gguf(path: Path) -> None:
    """A llama of one layer in float32, as other programs write it."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(10)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (10, 32), "output": (10, 32), "output_norm": (32,)}
    layer = {"attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32)}
    layer |= {"attn_output": (32, 32), "ffn_gate": (48, 32), "ffn_up": (48, 32), "ffn_down": (32, 48)}
    shapes |= {f"blk.0.{name}": shape for name, shape in layer.items()}
    draw = numpy.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", (0.3 * draw.standard_normal(shape)).astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_gguf_file_is_that_of_its_folder_bit_for_bit(dtype: Any, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf")
    character_tokenizer(TOKENS).save_pretrained(tmp_path / "tokenizer")
    policy = Policy(path=str(tmp_path / "model.gguf"), tokenizer=str(tmp_path / "tokenizer"), dtype=dtype).load()
    is_right(policy)
    policy.save_pretrained(tmp_path / "saved")
    loaded = Policy(path=str(tmp_path / "saved"), dtype=dtype).load()
    assert torch.equal(policy(ROWS)[0], loaded(ROWS)[0])
