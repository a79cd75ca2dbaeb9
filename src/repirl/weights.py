"""A policy's weights as others know them, under plain names and with adapters merged; and whether they changed."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

WRAPPER = "base_model.model."  # what get_peft_model puts before every name
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def plain_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Name and value of each weight as in a saved Hugging Face folder; a tied weight comes once.

    PEFT adapters are merged into a copy of the layer they adapt, one layer at a time; the model stays as it is. Weights of
    one module come one after another.

    Raises:
        ValueError: the model trains copies of whole modules beside its adapters (PEFT's modules_to_save).
    """
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}
    inside = tuple(f"{name}." for name in adapted)
    seen = set()
    for name, parameter in model.named_parameters():
        if "modules_to_save." in name:
            raise ValueError(f"weight {name!r}: modules_to_save cannot be sent to an engine; use adapters alone")
        if not name.startswith(inside):
            yield name.removeprefix(WRAPPER), parameter.detach()
            continue
        owner = next(module for module in adapted if name.startswith(f"{module}."))
        if owner not in seen:
            seen.add(owner)
            layer = copy.deepcopy(adapted[owner])
            layer.merge()  # into its base layer, by the active adapters
            for own, value in layer.base_layer.named_parameters():
                yield f"{owner}.{own}".removeprefix(WRAPPER), value.detach()


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """The model without adapters; a copy with adapters merged where it has some."""
    if not any(hasattr(module, "base_layer") for module in model.modules()):
        return model
    fresh: PreTrainedModel = type(model)(copy.deepcopy(model.config))
    fresh.to(getattr(torch, dtype_name(model)))
    fresh.load_state_dict(dict(plain_weights(model)), strict=False)  # a tied weight comes once
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    return fresh


def stamp(model: PreTrainedModel) -> list[float]:
    """Equal to an earlier stamp where all weights have the values that they had; costs one pass over them.

    The values themselves are read: PyTorch's counters of writes miss fused optimisers and writes through `.data`.
    """
    found: list[float] = []
    for parameter in model.parameters():
        value = parameter.detach()
        # The sum of all bits, in integers, loses no change to rounding; the sum of values tells signs apart.
        bits = value.view(BITS[value.element_size()])
        found += [int(bits.sum(dtype=torch.int64)), float(value.sum(dtype=torch.float64))]
    return found


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
