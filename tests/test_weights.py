"""What an engine with its own copy is told: every weight once, adapters merged, and that weights changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from repirl.models.policy import Policy
from repirl.weights import plain_config, plain_weights, stamp
from tests.models.tiny import LLAMA, TOKENS, tiny_policy

LORA = {"r": 2, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}


def model(**changes: Any) -> PreTrainedModel:
    return tiny_policy(seed=3, **changes).model


def logits(of: nn.Module) -> Tensor:
    with torch.no_grad():
        return of(torch.tensor([[2, 3, 4, 5, 9]])).logits


def rebuilt(of: PreTrainedModel) -> PreTrainedModel:
    """Another model with the config and the weights that an engine would be sent."""
    config = plain_config(of)
    fresh = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    missing, unexpected = fresh.load_state_dict(dict(plain_weights(of)), strict=False)
    assert unexpected == []
    assert set(missing) <= ({"lm_head.weight"} if config["tie_word_embeddings"] else set())
    fresh.tie_weights()
    return fresh.eval()


@pytest.mark.parametrize("tied", [False, True])
def test_names_and_values_are_those_of_a_saved_folder(tied: bool, tmp_path: Path) -> None:
    of = model(tie_word_embeddings=tied)
    of.save_pretrained(tmp_path)
    saved, sent = load_file(tmp_path / "model.safetensors"), list(plain_weights(of))
    assert len(sent) == len(dict(sent)) == len(saved)
    assert ("lm_head.weight" in saved) != tied
    for name, value in sent:
        assert torch.equal(value, saved[name])


def test_the_config_names_the_architecture_and_no_dtype() -> None:
    config = plain_config(model())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["hidden_size"], config["model_type"]) == (32, "llama")
    assert not {"dtype", "torch_dtype"} & config.keys()


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_rebuilt_from_them_is_the_same(tied: bool) -> None:
    of = model(tie_word_embeddings=tied)
    assert torch.equal(logits(rebuilt(of)), logits(of))


def wrapped(of: PreTrainedModel, **settings: Any) -> Any:
    return get_peft_model(of, LoraConfig(**LORA, **settings))


def injected(of: PreTrainedModel, **settings: Any) -> Any:
    of.add_adapter(LoraConfig(**LORA, **settings))
    return of


ADAPTERS = [wrapped, injected, partial(wrapped, use_dora=True), partial(injected, lora_bias=False, use_rslora=True)]


@pytest.mark.parametrize("adapt", ADAPTERS, ids=["wrapped", "injected", "dora", "rslora"])
def test_adapters_arrive_merged_and_stay_apart_here(adapt: Callable[[PreTrainedModel], Any]) -> None:
    plain = logits(model())
    of = adapt(model()).eval()
    adapted, before = logits(of), {name: p.clone() for name, p in of.named_parameters()}
    assert (adapted - plain).abs().max() > 0.1
    torch.testing.assert_close(logits(rebuilt(of)), adapted, atol=1e-5, rtol=1e-5)
    assert [name for name, _ in plain_weights(of)] == [name for name, _ in plain_weights(model())]
    assert before.keys() == dict(of.named_parameters()).keys()
    assert all(torch.equal(p, before[name]) for name, p in of.named_parameters())
    torch.testing.assert_close(logits(of), adapted, atol=0, rtol=0)


def test_whole_modules_trained_beside_adapters_are_refused() -> None:
    of = wrapped(model(), modules_to_save=["lm_head"])
    with pytest.raises(ValueError, match=r"modules_to_save.* is no adapter of one layer: it cannot be merged"):
        list(plain_weights(of))


# --- has anything changed?


def step(of: nn.Module, optimizer: Callable[[Any], torch.optim.Optimizer]) -> None:
    trained = [p for p in of.parameters() if p.requires_grad]
    ids = torch.tensor([[2, 3, 4, 5]])
    of(ids, labels=ids).loss.backward()
    optimizer(trained).step()


ADAMW = torch.optim.AdamW
OPTIMIZERS = [
    partial(torch.optim.SGD, lr=1e-3),
    partial(torch.optim.SGD, lr=1e-3, foreach=True),
    partial(torch.optim.SGD, lr=1e-3, fused=True),
    partial(ADAMW, lr=1e-3, foreach=False),
    partial(ADAMW, lr=1e-3, foreach=True),
    partial(ADAMW, lr=1e-3, fused=True),
    partial(torch.optim.Adafactor, lr=1e-3),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: f"{o.func.__name__} {o.keywords}")
@pytest.mark.parametrize("lora", [False, True])
def test_a_step_of_any_optimiser_is_seen(optimizer: Any, lora: bool) -> None:
    of = wrapped(model()) if lora else model()
    before = stamp(of)
    step(of, optimizer)
    assert stamp(of) != before


def test_loading_and_replacing_weights_is_seen() -> None:
    of, other = model(), tiny_policy(seed=4).model
    before = stamp(of)
    of.load_state_dict(other.state_dict())
    loaded = stamp(of)
    assert loaded != before
    of.lm_head.weight = nn.Parameter(of.lm_head.weight.clone())
    assert stamp(of) == loaded  # the same values elsewhere
    of.lm_head.weight = nn.Parameter(of.lm_head.weight * 3)
    replaced = stamp(of)
    assert replaced != loaded
    with torch.no_grad(), torch.inference_mode():
        of.lm_head.weight.mul_(2)
    assert stamp(of) != replaced


def test_reading_weights_is_no_change() -> None:
    of = wrapped(model())
    before = stamp(of)
    of(torch.tensor([[2, 3]]), labels=torch.tensor([[2, 3]])).loss.backward()
    list(plain_weights(of))
    of.state_dict()
    assert stamp(of) == before


def test_small_and_hidden_writes_are_seen() -> None:
    of = model()
    before = stamp(of)
    weight = of.lm_head.weight
    weight.data[3, 4] = torch.nextafter(weight.data[3, 4], torch.tensor(1e9))  # by the last bit, past the counter
    once = stamp(of)
    assert once != before
    weight.data.neg_()
    assert stamp(of) != once


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_equal_weights_have_equal_stamps_in_every_precision(dtype: str) -> None:
    first, second = (Policy(config=LLAMA, tokens=TOKENS, dtype=dtype).load().model for _ in range(2))  # type: ignore[arg-type]
    assert stamp(first) == stamp(second)
    with torch.inference_mode():
        assert stamp(first) == stamp(second)
        first.lm_head.weight.mul_(2)
    assert stamp(first) != stamp(second)
