"""A policy's weights as others know them, under plain names, adapters merged or apart; and whether they changed."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedConfig, PreTrainedModel

WRAPPER = "base_model.model."  # what get_peft_model puts before every name
BESIDE = ("modules_to_save.", "token_adapter.")  # in the names of weights that PEFT trains beside a layer's adapters
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def plain_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Name and value of each weight as in a saved Hugging Face folder; a tied weight comes once.

    PEFT adapters are merged in float32 into a copy of the layer they adapt, one layer at a time; the model stays as it is.
    Weights of one module come one after another, buffers that are saved at the end.

    Raises:
        ValueError: the model trains what no layer's merge takes up, such as copies of whole modules (modules_to_save).
    """
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}
    inside = tuple(f"{name}." for name in adapted)
    inner: PreTrainedModel = getattr(model, "get_base_model", lambda: model)()
    tied, seen, shared = inner.all_tied_weights_keys, set[str](), set[Tensor]()
    for name, parameter in model.named_parameters(
        remove_duplicate=False
    ):  # layers may share weights, and each has them
        if name.removeprefix(WRAPPER) in tied:
            continue
        if any(part in name for part in BESIDE):
            raise ValueError(
                f"weight {name!r} is no adapter of one layer: it cannot be merged; use such adapters alone"
            )
        if not name.startswith(inside):
            value = parameter.detach()
            yield name.removeprefix(WRAPPER), value.clone() if parameter in shared else value
            shared.add(parameter)
            continue
        owner = next(module for module in adapted if name.startswith(f"{module}."))
        if owner not in seen:
            seen.add(owner)
            layer = copy.deepcopy(adapted[owner])
            dtypes = {own: value.dtype for own, value in layer.base_layer.named_parameters()}
            layer.float().merge()  # into its base layer, by the active adapters; in half precision it would round twice
            for own, value in layer.base_layer.named_parameters():
                yield f"{owner}.{own}".removeprefix(WRAPPER), value.detach().to(dtypes[own])
    yield from (
        (name.removeprefix(WRAPPER), buffer) for name, buffer in saved_buffers(model) if not name.startswith(inside)
    )


def saved_buffers(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Those that are saved, under the model's own names."""
    for name, module in model.named_modules():
        for own in module._buffers.keys() - module._non_persistent_buffers_set:
            if (buffer := module._buffers[own]) is not None:
                yield f"{name}.{own}".lstrip("."), buffer


@dataclass(frozen=True)
class Adapters:
    """LoRA adapters as a PEFT folder holds them.

    config: of adapter_config.json what says how they are applied. weights: of adapter_model.safetensors. rank: the largest.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    rank: int


def plain_adapters(model: PreTrainedModel) -> Adapters | None:
    """The model's adapters, where its output is that of `base_weights` with plain LoRA of linear layers; else None.

    None are thus other kinds, such as DoRA, and adapters of embeddings or with biases: those can be merged alone.
    """
    settings = getattr(model, "peft_config", {}).get("default")
    if settings is None or settings.bias != "none" or settings.layer_replication or settings.target_parameters:
        return None
    weights = {}
    for name, module in model.named_modules():
        if not hasattr(module, "base_layer"):
            continue
        for own, value in module.named_parameters():
            if own.startswith("base_layer."):
                continue
            factor = own.removesuffix(".default.weight")
            if factor not in ("lora_A", "lora_B"):
                return None
            weights[f"{WRAPPER}{name.removeprefix(WRAPPER)}.{factor}.weight"] = value.detach()
    told = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
    config = {name: getattr(settings, name) for name in told} | {"peft_type": "LORA", "bias": "none"}
    targets = settings.target_modules
    config["target_modules"] = targets if isinstance(targets, str) else sorted(targets)
    return Adapters(config, weights, max(value.shape[0] for name, value in weights.items() if "lora_A" in name))


def base_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """As `plain_weights`, of what the adapters adapt, without them; the model's must be of `plain_adapters`."""
    factors, seen = adapter_names(model), set[Tensor]()
    inner: PreTrainedModel = getattr(model, "get_base_model", lambda: model)()
    # Not the state_dict: where weights are sharded, and gathered just now, it has this process's parts.
    for name, value in [*model.named_parameters(remove_duplicate=False), *saved_buffers(model)]:
        plain = name.removeprefix(WRAPPER).replace(".base_layer.", ".")
        if name not in factors and plain not in inner.all_tied_weights_keys:
            yield plain, value.detach().clone() if value in seen else value.detach()  # layers may share weights
            seen.add(value)


def adapter_names(model: PreTrainedModel) -> set[str]:
    """Names of the weights that are factors of plain adapters."""
    return {name for name, _ in model.named_parameters() if ".lora_A." in name or ".lora_B." in name}


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """The model without adapters; a copy with adapters merged, on the CPU, where it has some.

    Also a copy where it is sharded: all its weights must be gathered (models/sharding.py), and saving would free them.
    """
    if not any(hasattr(module, "base_layer") or isinstance(module, FSDPModule) for module in model.modules()):
        return model
    return rebuilt(model, dict(plain_weights(model)), model.dtype)


def rebuilt(
    model: PreTrainedModel,
    weights: dict[str, Tensor],
    dtype: torch.dtype,
    config: PreTrainedConfig | None = None,
) -> PreTrainedModel:
    """A model of the same class with these weights, as from a saved folder: what is computed stays float32.

    Raises:
        ValueError: the weights are not the model's.
    """
    load: Any = type(model).from_pretrained  # whose result depends on its last argument here
    fresh: PreTrainedModel
    fresh, report = load(
        None,
        config=copy.deepcopy(model.config) if config is None else config,
        state_dict={name: value.cpu() for name, value in weights.items()},
        dtype=dtype,
        output_loading_info=True,
    )
    if wrong := sorted([*report["missing_keys"], *report["unexpected_keys"]]):
        raise ValueError(
            f"{type(model).__name__} cannot be rebuilt from its weights: {', '.join(wrong[:5])} do not fit"
        )
    fresh.generation_config = model.generation_config
    return fresh


def stamp(model: PreTrainedModel) -> list[float]:
    """Equal to an earlier stamp where all weights have the values that they had; costs one pass over them.

    The values themselves are read: PyTorch's counters of writes miss fused optimisers and writes through `.data`.
    """
    return stamp_of(model.parameters())


def stamp_of(parameters: Iterable[Tensor]) -> list[float]:
    """As `stamp`, of these weights."""
    sums: list[float] = []
    for parameter in parameters:
        value = parameter.detach()
        # The sum of all bits, in integers, loses no change to rounding; the sum of values tells signs apart.
        bits = value.view(BITS[value.element_size()])
        sums += [int(bits.sum(dtype=torch.int64)), float(value.sum(dtype=torch.float64))]
    return sums


def dtype_name(model: PreTrainedModel) -> str:
    """Of the weights, such as `float32`."""
    return str(model.dtype).removeprefix("torch.")


def plain_config(model: PreTrainedModel) -> dict[str, object]:
    """The model's config.json, which names its architecture."""
    # PEFT's wrapper is not the architecture.
    inner: PreTrainedModel = getattr(model, "get_base_model", lambda: model)()
    config = {k: str(v) if isinstance(v, torch.dtype) else v for k, v in inner.config.to_dict().items()}
    config |= {"architectures": [type(inner).__name__]}
    return {name: value for name, value in config.items() if name not in ("dtype", "torch_dtype", "_name_or_path")}
