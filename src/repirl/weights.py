"""A policy's weights as others know them, under plain names and with adapters merged; and whether they changed."""

import copy
from collections.abc import Iterable, Iterator
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
    for name, module in model.named_modules():
        for own in module._buffers.keys() - module._non_persistent_buffers_set:
            if (buffer := module._buffers[own]) is not None and not f"{name}.".startswith(inside):
                yield f"{name}.{own}".lstrip(".").removeprefix(WRAPPER), buffer


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
