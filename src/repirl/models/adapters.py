"""LoRA adapters, and the proof that they can be merged: into exported weights, and into those of a rollout engine."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from repirl.equality import probe, require_same
from repirl.weights import dtype_name, merged, stamp_of

REFUSED = {
    "lora_dropout": "dropout would make behaviour and new log-probabilities differ",
    "modules_to_save": "copies of whole modules cannot be merged",
    "trainable_token_indices": "rows of the embedding that are trained apart cannot be merged",
    "alora_invocation_tokens": "adapters that are active after certain tokens alone cannot be merged",
}
"""Fields of `peft.LoraConfig` that cannot work here, and why."""
_SCALES = (0.01, 0.03, 0.1, 0.3, 1.0)


def check_lora_fields(fields: dict[str, Any], where: str) -> None:
    """Raises ValueError for fields that are known not to work; `where` is the setting that has them."""
    for name, reason in REFUSED.items():
        if fields.get(name):
            raise ValueError(f"{where}: {name} is not supported: {reason}; leave it out")


def add_lora(model: PreTrainedModel, fields: dict[str, Any], seed: int, where: str) -> bool:
    """Puts LoRA adapters into the model, drawn from `seed`, and freezes everything else.

    Returns:
        Whether the weights that it had are as they were and stay so: some ways to begin take the adapters' part out of
        them, and biases may be trained.

    Raises:
        ValueError: an unknown field, a name that fits no layer, the output layer, whose weight is read directly, or
            adapters that cannot be merged.
    """
    from peft import LoraConfig  # seconds to import

    base = list(model.parameters())
    before = stamp_of(base)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.add_adapter(LoraConfig(**fields))
    except Exception as error:  # PEFT's own checks raise errors of many kinds
        raise ValueError(f"{where}: {error}") from error
    if hasattr(model.get_output_embeddings(), "base_layer"):
        raise ValueError(f"{where}: target_modules holds the output layer, which is not supported; leave it out")
    if hasattr(model.get_input_embeddings(), "base_layer") and model.config.get_text_config().tie_word_embeddings:
        raise ValueError(
            f"{where}: target_modules holds the embedding, which this model ties to its output layer: merged, the adapter "
            "would change both; leave it out"
        )
    _check_merge(model, where)
    now = {id(p) for p in model.parameters()}
    kept = all(id(p) in now for p in base) and stamp_of(base) == before
    return kept and not any(p.requires_grad for p in base)


def without_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """A second model over the very weights of this one, less its adapters."""
    plain = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    for parent in list(plain.modules()):
        for name, child in list(parent.named_children()):
            layer: Any = child
            while hasattr(layer, "base_layer"):
                layer = layer.base_layer
            setattr(parent, name, layer)
    plain.peft_config.clear()
    return plain


@torch.no_grad()
def _check_merge(model: PreTrainedModel, where: str) -> None:
    """Merges adapters with values as after training: fresh ones add nothing, and would always pass.

    All are moved by noise, as little as changes log-probabilities by a nat, and put back. In training mode, after a pass
    with gradients: what only then is random or cannot be copied would otherwise be found when training ends.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    start, training = [p.clone() for p in trained], model.training
    before = probe(model.train())
    try:
        for scale in _SCALES:
            _move(trained, start, scale)
            moved = probe(model)
            if float((moved - before).abs().mean()) > 1:
                break
        if not torch.equal(probe(model), moved):
            raise ValueError(f"{where}: these adapters draw random numbers in the forward pass; that is not supported")
        with torch.enable_grad():
            model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
        found = _of_merged(model, where)
    finally:
        for p, value in zip(trained, start, strict=True):
            p.copy_(value)
        model.train(training)
    require_same(moved, found, dtype_name(model), f"{where}: the model with these adapters merged is another model")


def _of_merged(model: PreTrainedModel, where: str) -> Tensor:
    try:
        return probe(merged(model))
    except Exception as error:  # PEFT's own refusals are errors of many kinds
        raise ValueError(f"{where}: these adapters cannot be merged into the weights: {error}") from error


def _move(trained: list[nn.Parameter], start: list[Tensor], scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for p, value in zip(trained, start, strict=True):
        p.copy_(value + scale * torch.randn(p.shape, generator=generator).to(value))
