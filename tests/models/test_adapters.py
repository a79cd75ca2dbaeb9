"""LoRA: what is trained is what is exported, or it is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM

from repirl.equality import TOLERANCE, probe, require_same
from repirl.models import adapters
from repirl.models.policy import Policy
from repirl.weights import merged
from tests.models.tiny import LLAMA, PROMPTS, RESPONSES, TOKENS, rows_of, tiny_policy

LORA = {"r": 2, "target_modules": "all-linear"}
ROWS = rows_of(PROMPTS, RESPONSES)
SIZES = {name: value for name, value in LLAMA.items() if name != "model_type"}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True},
    "gemma": {"model_type": "gemma", "head_dim": 8},
    "mistral": {"model_type": "mistral", "sliding_window": 4},
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
}


def adapted(lora: dict[str, Any], dtype: Any = "float32", **config: Any) -> Policy:
    base = {} if config.get("model_type") == "gpt2" else LLAMA
    return Policy(config={**base, **config}, tokens=TOKENS, dtype=dtype, lora={**LORA, **lora}).load()


@torch.no_grad()
def trained(policy: Policy, size: float = 0.2) -> Tensor:
    """Moves all that is trained; the log-probabilities then."""
    before = policy(ROWS)[0]
    generator = torch.Generator().manual_seed(5)
    for p in policy.parameters():
        if p.requires_grad:
            p.add_(size * torch.randn(p.shape, generator=generator))
    after = policy(ROWS)[0]
    assert (after - before).abs().mean() > 0.05
    return after


def exported(policy: Policy, folder: Path) -> Tensor:
    policy.save_pretrained(folder)
    with torch.no_grad():
        return Policy(path=str(folder), dtype=policy.dtype).load()(ROWS)[0]


def test_lora_trains_adapters_alone_and_exports_them_merged(tmp_path: Path) -> None:
    policy, plain = adapted({}), tiny_policy()
    torch.testing.assert_close(policy(ROWS)[0], plain(ROWS)[0], rtol=0, atol=1e-5)  # adapters start as zero
    names = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert names
    assert all("lora_" in name for name in names)
    policy(ROWS)[0].sum().backward()
    torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1).step()
    moved = policy(ROWS)[0].detach()
    assert (moved - plain(ROWS)[0]).abs().max() > 1e-2
    torch.testing.assert_close(exported(policy, tmp_path), moved, rtol=0, atol=1e-5)
    again = [adapted({}) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*(one.parameters() for one in again), strict=True))  # init_seed


EQUAL: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "biases": {"bias": "all"},
    "biases of adapted layers": {"bias": "lora_only"},
    "patterns": {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 3}},
    "one layer": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "excluded": {"exclude_modules": ["q_proj"]},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "random": {"init_lora_weights": False},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "parameters": {"target_modules": ["q_proj"], "target_parameters": ["mlp.up_proj.weight"]},
    "replicated": {"layer_replication": [[0, 2], [1, 2]]},
    "kasa": {"kasa_config": {}},
}


@pytest.mark.parametrize("name", EQUAL)
def test_variants_are_exported_equal(name: str, tmp_path: Path) -> None:
    policy = adapted(EQUAL[name])
    for layer in policy.model.model.layers:  # fresh norms are 1, as those of a model that lost them
        torch.nn.init.uniform_(layer.input_layernorm.weight, 0.5, 1.5)
    torch.testing.assert_close(exported(policy, tmp_path / "fresh"), policy(ROWS)[0].detach(), rtol=0, atol=1e-4)
    moved = trained(policy)
    torch.testing.assert_close(exported(policy, tmp_path / "moved"), moved, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_are_exported_equal(name: str, tmp_path: Path) -> None:
    policy = adapted({}, **ARCHITECTURES[name])
    trained(policy)
    if name == "qwen2":  # read as Qwen's byte-level tokenizer, which has no use for this vocabulary
        with pytest.raises(ValueError, match=r"the exported tokenizer .* is read with other tokens"):
            policy.save_pretrained(tmp_path)
    else:
        policy.save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(probe(saved), probe(policy.model), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_merged_with_one_rounding(dtype: str, tmp_path: Path) -> None:
    policy = adapted({}, dtype)
    trained(policy)
    expected = {}
    for name, module in policy.model.named_modules():
        if hasattr(module, "base_layer"):
            delta = module.lora_B["default"].weight.float() @ module.lora_A["default"].weight.float()
            scaling = module.scaling["default"]
            expected[f"{name}.weight"] = (module.base_layer.weight.float() + scaling * delta).to(module.weight.dtype)
    found = merged(policy.model).state_dict()
    assert len(expected) == 14
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    policy.save_pretrained(tmp_path)


def test_biased_layers_take_a_biased_adapter(tmp_path: Path) -> None:
    policy = adapted({"lora_bias": True, "target_modules": ["q_proj", "v_proj"]}, attention_bias=True)
    moved = trained(policy)
    torch.testing.assert_close(exported(policy, tmp_path), moved, rtol=0, atol=1e-4)


TIED = {"tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("changed", "config", "message"),
    [
        ({"lora_dropout": 0.1}, {}, "lora_dropout is not supported"),
        ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save is not supported"),
        ({"modules_to_save": ["norm"]}, {}, "modules_to_save is not supported"),
        ({"trainable_token_indices": [2, 3]}, {}, "trainable_token_indices is not supported: rows of the embedding"),
        ({"trainable_token_indices": {"embed_tokens": [2]}}, TIED, "trainable_token_indices is not supported"),
        ({"alora_invocation_tokens": [2]}, {}, "alora_invocation_tokens is not supported: adapters that are active"),
        ({"rank": 4}, {}, "unexpected keyword argument 'rank'"),
        ({"target_modules": ["query"]}, {}, "Target modules .*query.* not found"),
        ({"target_modules": ["lm_head"]}, {}, "target_modules holds the output layer"),
        ({"target_modules": ["lm_head", "q_proj"], "use_dora": True}, TIED, "target_modules holds the output layer"),
        ({"target_modules": ["embed_tokens"]}, TIED, "target_modules holds the embedding, which this model ties"),
        ({"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}, TIED, "holds the embedding"),
        ({"target_modules": ["embed_tokens"]}, {**ARCHITECTURES["qwen2"]}, "holds the embedding"),
        ({"target_modules": ["embed_tokens"]}, {**ARCHITECTURES["gemma"]}, "holds the embedding"),
        ({"lora_bias": True}, {}, "cannot be merged into the weights: .*base layer has no bias"),
        ({"lora_bias": True}, {"attention_bias": True}, "cannot be merged into the weights: .*base layer has no bias"),
        ({"lora_bias": True, "target_modules": ["q_proj"]}, {}, "cannot be merged into the weights"),
        ({"monteclora_config": {}}, {}, "draw random numbers in the forward pass"),
        ({"arrow_config": {}}, {}, "NoneType"),
        ({"init_lora_weights": "corda"}, {}, "preprocess_corda"),
    ],
)
def test_lora_that_cannot_work_is_refused_at_the_start(
    changed: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"policy.lora: .*{message}"):
        adapted(changed, **config)


def test_what_is_off_is_not_refused() -> None:
    adapted({"lora_dropout": 0.0, "modules_to_save": None, "trainable_token_indices": None})


# --- the probe itself: kinds that no list knows


def test_the_probe_refuses_an_adapter_that_a_merge_changes() -> None:
    of = tiny_policy(tie_word_embeddings=True).model
    of.add_adapter(LoraConfig(r=2, target_modules=["embed_tokens"]))
    with pytest.raises(ValueError, match=r"merged is another model: .* differ from the policy's by [\d.]+ nats"):
        adapters._check_merge(of, "policy.lora")


def test_the_probe_refuses_an_adapter_that_no_merge_knows() -> None:
    of = tiny_policy().model
    of.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    # A trained factor in the forward pass, as a future kind of adapter may have one.
    layer = of.model.layers[0].mlp.up_proj
    layer.register_parameter("factor", torch.nn.Parameter(torch.ones(layer.out_features)))
    layer.register_forward_hook(lambda module, _, output: output * module.factor)
    with pytest.raises(ValueError, match=r"cannot be merged into the weights: .*cannot be rebuilt from its weights"):
        adapters._check_merge(of, "policy.lora")


def test_the_probe_leaves_the_model_as_it_was() -> None:
    plain, policy = tiny_policy(), adapted({})
    assert all(not (p != 0).any() for name, p in policy.named_parameters() if "lora_B" in name)
    assert all(p.grad is None for p in policy.parameters())
    assert policy.model.training == plain.model.training
    torch.testing.assert_close(policy(ROWS)[0], plain(ROWS)[0], rtol=0, atol=1e-5)


def test_equal_is_within_what_rounding_explains() -> None:
    of = probe(tiny_policy().model)
    for dtype, tolerance in TOLERANCE.items():
        require_same(of, of + 0.9 * tolerance, dtype, "it")
        for shift in (1.1 * tolerance, -1.1 * tolerance, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="it: its log-probabilities differ"):
                require_same(of, of + shift, dtype, "it")


def test_bfloat16_models_differ_from_their_float32_selves_by_less_than_the_tolerance() -> None:
    whole, half = (Policy(config=LLAMA, tokens=TOKENS, dtype=d).load().model for d in ("float32", "bfloat16"))  # type: ignore[arg-type]
    gap = float((probe(whole) - probe(half)).abs().mean())
    assert 1e-4 < gap < TOLERANCE["bfloat16"] / 2


def test_an_export_that_lost_its_embedding_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    save = type(policy.model).save_pretrained

    def without(model: Any, folder: Path) -> None:
        broken = AutoModelForCausalLM.from_config(model.config)
        broken.load_state_dict({**model.state_dict(), "model.embed_tokens.weight": broken.model.embed_tokens.weight})
        save(broken, folder)

    monkeypatch.setattr(type(policy.model), "save_pretrained", without)
    with pytest.raises(ValueError, match=r"the exported model .* is not the trained one"):
        policy.save_pretrained(tmp_path)
