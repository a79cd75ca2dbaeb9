"""What a model takes, read off models of the same widths with one and two layers: everything else is linear in layers.

Nothing is loaded: the weights are random, and the vocabulary is small; what a vocabulary adds is arithmetic.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from repirl.models.loading import located
from repirl.models.policy import Policy
from repirl.structs import Rows

SMALL_VOCABULARY = 512


@dataclass(frozen=True)
class Linear:
    """A figure of a model by its number of layers: fixed + layers * per_layer."""

    fixed: float
    per_layer: float

    @classmethod
    def through(cls, one: float, two: float) -> Linear:
        """The line through the figures of one and two layers."""
        return cls(one - (two - one), two - one)

    def at(self, layers: int) -> float:
        """The figure of so many layers."""
        return self.fixed + layers * self.per_layer


@dataclass(frozen=True)
class Shape:
    """A model's sizes.

    kv_width: numbers that one token keeps in one layer's cache. tied: one matrix is embedding and output layer.
    """

    layers: int
    hidden: int
    vocabulary: int
    intermediate: int
    kv_width: int
    tied: bool

    @property
    def of_vocabulary(self) -> int:
        """Weights of embedding and output layer."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)


def config_of(policy: Policy) -> dict[str, Any]:
    """The fields of the policy's config.json, without its weights."""
    if policy.config is not None:
        fields = {"vocab_size": len(policy.tokenizer), **policy.config}
        made = AutoConfig.for_model(**fields)
    else:
        name, extra = located(str(policy.path), "config.json")
        made = AutoConfig.from_pretrained(name, **extra)
    fields = made.get_text_config().to_dict()
    return {name: value for name, value in fields.items() if name not in ("dtype", "torch_dtype", "_name_or_path")}


def shape_of(config: dict[str, Any]) -> Shape:
    """The sizes in these fields."""
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    return Shape(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        vocabulary=config["vocab_size"],
        intermediate=config.get("intermediate_size") or 4 * config["hidden_size"],
        kv_width=2 * (config.get("num_key_value_heads") or heads) * width,
        tied=bool(config.get("tie_word_embeddings")),
    )


def shallow(policy: Policy, config: dict[str, Any], layers: int) -> Policy:
    """A policy of random weights with these widths, so many layers and a small vocabulary; adapters as the policy's."""
    fields = copy.deepcopy(config) | {"num_hidden_layers": layers, "vocab_size": SMALL_VOCABULARY}
    if fields.get("layer_types"):
        fields["layer_types"] = fields["layer_types"][:layers]
    tokens = [chr(0x4E00 + i) for i in range(SMALL_VOCABULARY - 2)]
    return Policy(config=fields, tokens=tokens, dtype=policy.dtype, lora=policy.lora).load()


def weights_in(module: nn.Module) -> tuple[int, int]:
    """Number of parameters, each once, and how many of them are trained."""
    return sum(p.numel() for p in module.parameters()), sum(p.numel() for p in module.parameters() if p.requires_grad)


def saved_bytes(module: nn.Module, rows: Rows) -> int:
    """What a forward pass over rows keeps for its backward pass, beside the module's own weights."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = module(rows)  # held, so that no address is used twice
    assert result is not None
    return sum(kept.values())


def seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """The shortest of some runs, after one that warms up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def rows_of_lengths(prompts: int, samples: int, prompt_tokens: int, response_tokens: int) -> Rows:
    """Rows of random tokens, `samples` for each of `prompts`."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randint(2, SMALL_VOCABULARY, size, generator=generator)

    prompt_ids = draw(prompts, prompt_tokens).repeat_interleave(samples, 0)
    response_ids = draw(prompts * samples, response_tokens)
    return Rows(
        prompt_ids,
        torch.ones_like(prompt_ids, dtype=torch.bool),
        response_ids,
        torch.ones_like(response_ids, dtype=torch.bool),
    )
