"""Canaries for the private names of torch, transformers and peft (docs/private-names.md).

Libraries are imported inside the tests: where a name is gone, its canary is to say so, not the import of this file.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.private_names.table import canary

IDS = torch.tensor([[2, 5, 7, 3], [4, 1, 6, 6]])
REAL = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])  # the first prompt is padded


# ---- torch ----


@canary("Module._apply", "Module._buffers", "Module._non_persistent_buffers_set", "Module._modules")
def test_modules_convert_by_apply_and_keep_buffers_and_children_by_name() -> None:
    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("computed", torch.ones(1), persistent=False)
            self.register_buffer("saved", torch.ones(1))
            self.calls = 0

        def _apply(self, fn: Any, recurse: bool = True) -> Any:
            self.calls += 1
            return super()._apply(fn, recurse)

    child = Watched()
    parent = nn.Sequential(child)
    for number, convert in enumerate((lambda m: m.half(), lambda m: m.to("cpu"), lambda m: m.bfloat16()), start=1):
        convert(parent)  # a parent converts its children by their own method
        assert child.calls == number
    assert child._buffers.keys() == {"computed", "saved"}
    assert child._buffers["computed"].dtype == torch.bfloat16
    assert child._non_persistent_buffers_set == {"computed"}
    child._buffers["computed"] = torch.zeros(1)
    assert child.computed.dtype == torch.float32
    assert set(child.state_dict()) == {"saved"}
    assert "layer" not in child._modules
    child.layer = nn.Identity()
    assert child._modules["layer"] is child.layer


@canary("LRScheduler.base_lrs")
def test_the_rates_of_a_schedule_follow_its_base_rates() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    assert scheduler.base_lrs == [0.5]
    vars(scheduler).update(base_lrs=[3.0])
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 1.5  # 3 / (1 + 1)


# ---- transformers ----


def llama(**changes: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 16}
    torch.manual_seed(0)
    config = AutoConfig.for_model(**({"model_type": "llama", "num_hidden_layers": 2, **sizes} | changes))
    return AutoModelForCausalLM.from_config(config).eval()


@canary(
    "PreTrainedConfig._attn_implementation",
    "PreTrainedModel._supports_attention_backend",
    "integrations.sdpa_attention.sdpa_attention_forward",
    "masking_utils.sdpa_mask",
    "LlamaAttention.layer_idx",
)
@torch.no_grad()
def test_an_attention_of_our_own_gets_masks_layers_and_further_arguments() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface, BloomPreTrainedModel
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    seen: list[tuple[int, Any, Any]] = []

    def attention(module: Any, query: Any, key: Any, value: Any, mask: Any, packed: Any = None, **rest: Any) -> Any:
        seen.append((module.layer_idx, mask, packed))
        return sdpa_attention_forward(module, query, key, value, mask, **rest)

    AttentionInterface.register("canary", attention)
    AttentionMaskInterface.register("canary", sdpa_mask)
    model = llama()
    assert model.config.get_text_config()._attn_implementation == "sdpa"
    plain = model(IDS, attention_mask=REAL).logits
    assert model._supports_attention_backend
    assert not BloomPreTrainedModel._supports_attention_backend  # its layers call an attention of their own
    model.set_attn_implementation("canary")
    assert model.config.get_text_config()._attn_implementation == "canary"
    torch.testing.assert_close(model(IDS, attention_mask=REAL).logits, plain)
    assert [(layer, packed) for layer, _, packed in seen] == [(0, None), (1, None)]
    seen.clear()
    given, packed = torch.ones(1, 1, 1, 1, dtype=torch.bool), object()
    model.base_model(IDS, attention_mask=given, position_ids=torch.arange(4)[None], use_cache=False, packed=packed)
    assert [(layer, mask is given, word is packed) for layer, mask, word in seen] == [(0, True, True), (1, True, True)]


@canary(
    "DynamicCache.layers",
    "DynamicCache.batch_repeat_interleave",
    "DynamicLayer.batch_select_indices",
    "DynamicLayer.lazy_initialization",
    "DynamicLayer.is_initialized",
)
@torch.no_grad()
def test_a_cache_holds_layers_that_can_be_repeated_selected_and_replaced() -> None:
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class Ours(DynamicLayer):
        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self.keys, self.values = key_states, value_states
                return self.keys, self.values
            return super().update(key_states, value_states)

    model = llama()
    cache = DynamicCache(config=model.config)
    model(IDS, past_key_values=cache)
    assert [type(layer) for layer in cache.layers] == [DynamicLayer, DynamicLayer]
    assert cache.layers[0].keys.shape == (2, 2, 4, 8)  # rows, heads, tokens, width
    cache.batch_repeat_interleave(2)
    first = cache.layers[0].keys
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])
    for layer in cache.layers:
        layer.batch_select_indices(torch.tensor([2, 0]))
    assert torch.equal(cache.layers[0].keys, first[[2, 0]])
    ours = Ours()
    assert not ours.is_initialized
    ours.update(cache.layers[0].keys, cache.layers[0].values)
    assert ours.is_initialized
    assert ours.dtype == torch.float32
    cache.layers[0] = ours
    step = model(torch.tensor([[9], [8]]), past_key_values=cache).logits[:, -1]
    whole = model(torch.cat([IDS[[1, 0]], torch.tensor([[9], [8]])], dim=1)).logits[:, -1]
    torch.testing.assert_close(step, whole)
    assert ours.get_seq_length() == 5


@canary("PreTrainedTokenizerBase._encode_plus")
def test_every_way_to_encode_comes_through_one_method() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    texts: list[Any] = []

    class Watched(PreTrainedTokenizerFast):
        def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> Any:
            texts.append(text)
            return super()._encode_plus(text, *args, **kwargs)

    backend = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1, "b": 2}))
    backend.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    watched = Watched(tokenizer_object=backend, pad_token="<pad>")
    assert watched("ab")["input_ids"] == [1, 2]
    assert watched(["a", "b"])["input_ids"] == [[1], [2]]
    assert watched.encode("b") == [2]
    assert texts == ["ab", ["a", "b"], "b"]


@canary("PreTrainedModel.all_tied_weights_keys", "PreTrainedModel.from_pretrained")
def test_a_model_is_made_from_weights_alone_and_says_which_are_tied() -> None:
    assert llama(tie_word_embeddings=False).all_tied_weights_keys == {}
    model = llama(tie_word_embeddings=True)
    assert dict(model.all_tied_weights_keys) == {"lm_head.weight": "model.embed_tokens.weight"}
    weights = {name: value for name, value in model.state_dict().items() if name not in model.all_tied_weights_keys}

    def loaded(state: dict[str, Tensor]) -> Any:
        options = {"config": model.config, "state_dict": state, "dtype": torch.bfloat16}
        return type(model).from_pretrained(None, output_loading_info=True, **options)

    fresh, report = loaded(weights)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert fresh.dtype == torch.bfloat16
    assert fresh.model.rotary_emb.inv_freq.dtype == torch.float32  # computed, not rounded
    assert torch.equal(fresh.lm_head.weight, model.lm_head.weight.bfloat16())
    _, report = loaded(
        {name: value for name, value in weights.items() if "norm" not in name} | {"other": weights.popitem()[1]}
    )
    assert "model.norm.weight" in report["missing_keys"]
    assert "other" in report["unexpected_keys"]


@canary("PreTrainedModel._keep_in_fp32_modules_strict")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_named_modules_stay_float32(dtype: torch.dtype) -> None:
    from transformers import LlamaForCausalLM

    class Exact(LlamaForCausalLM):
        _keep_in_fp32_modules_strict = ["norm"]  # noqa: RUF012

    model = llama()
    made = Exact.from_pretrained(None, config=model.config, state_dict=model.state_dict(), dtype=dtype)
    assert (made.model.norm.weight.dtype, made.model.layers[0].mlp.up_proj.weight.dtype) == (torch.float32, dtype)


# ---- peft ----


@canary("BaseTunerLayer.base_layer", "LoraLayer.merge")
@torch.no_grad()
def test_an_adapted_layer_holds_its_base_and_merges_into_it() -> None:
    from peft import LoraConfig

    model = llama()
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    (first, _) = [module for module in model.modules() if hasattr(module, "base_layer")]
    start, x = first.base_layer.weight.clone(), torch.randn(3, 16)
    adapted = first(x)
    assert not torch.allclose(adapted, first.base_layer(x), atol=1e-3)
    first.merge()
    torch.testing.assert_close(first.base_layer(x), adapted)
    assert not torch.equal(first.base_layer.weight, start)


@canary("PeftAdapterMixin.peft_config")
def test_a_model_whose_adapters_are_forgotten_takes_others() -> None:
    from peft import LoraConfig

    model = llama(num_hidden_layers=1)
    attention = model.model.layers[0].self_attn
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="already exists"):  # two of one name
        model.add_adapter(LoraConfig(r=3, target_modules=["q_proj"]))
    attention.q_proj = attention.q_proj.base_layer
    model.peft_config.clear()
    model.add_adapter(LoraConfig(r=3, target_modules=["q_proj"]))
    assert attention.q_proj.lora_A["default"].weight.shape == (3, 16)
    assert list(model.peft_config) == ["default"]


@canary("PeftModel.base_model.model", "ModulesToSaveWrapper.modules_to_save", "TrainableTokensLayer.token_adapter")
def test_names_say_what_is_trained_beside_adapters() -> None:
    from peft import LoraConfig, get_peft_model

    def names(**fields: Any) -> list[str]:
        return [name for name, _ in get_peft_model(llama(), LoraConfig(r=2, **fields)).named_parameters()]

    plain = names(target_modules=["q_proj"])
    assert "base_model.model.model.norm.weight" in plain
    assert all(name.startswith("base_model.model.") for name in plain)
    assert not any("modules_to_save." in name or "token_adapter." in name for name in plain)
    assert any("modules_to_save." in name for name in names(target_modules=["q_proj"], modules_to_save=["norm"]))
    rows_apart = names(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [1]})
    assert any("token_adapter." in name for name in rows_apart)
