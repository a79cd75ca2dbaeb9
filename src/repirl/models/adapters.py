"""LoRA adapters, and the proof that they can be merged: into exported weights, and into those of a rollout engine."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from repirl.equality import probe, require_same
from repirl.weights import dtype_name, merged

REFUSED = {
    "lora_dropout": "dropout would make behaviour and new log-probabilities differ",
    "modules_to_save": "copies of whole modules cannot be merged",
    "trainable_token_indices": "rows of the embedding that are trained apart cannot be merged",
    "alora_invocation_tokens": "adapters that are active after certain tokens alone cannot be merged",
}
"""Fields of `peft.LoraConfig` that cannot work here, and why."""
_SCALES = (0.01, 0.03, 0.1, 0.3, 1.0)


def check_lora_fields(fields: dict[str, Any]) -> None:
    """Raises ValueError for fields that are known not to work."""
    for name, reason in REFUSED.items():
        if fields.get(name):
            raise ValueError(f"policy.lora: {name} is not supported: {reason}; leave it out")


def add_lora(model: PreTrainedModel, fields: dict[str, Any], seed: int = 0) -> None:
    """Puts LoRA adapters into the model, drawn from `seed`, and freezes everything else.

    Raises:
        ValueError: an unknown field, a name that fits no layer, the output layer, whose weight is read directly, or
            adapters that cannot be merged.
    """
    from peft import LoraConfig  # seconds to import

    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.add_adapter(LoraConfig(**fields))
    except Exception as error:  # PEFT's own checks raise errors of many kinds
        raise ValueError(f"policy.lora: {error}") from error
    if hasattr(model.get_output_embeddings(), "base_layer"):
        raise ValueError("policy.lora: target_modules holds the output layer, which is not supported; leave it out")
    if hasattr(model.get_input_embeddings(), "base_layer") and model.config.get_text_config().tie_word_embeddings:
        raise ValueError(
            "policy.lora: target_modules holds the embedding, which this model ties to its output layer: merged, the adapter "
            "would change both; leave it out"
        )
    _check_merge(model)


@torch.no_grad()
def _check_merge(model: PreTrainedModel) -> None:
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
            raise ValueError(
                "policy.lora: these adapters draw random numbers in the forward pass; that is not supported"
            )
        with torch.enable_grad():
            model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
        found = _of_merged(model)
    finally:
        for p, value in zip(trained, start, strict=True):
            p.copy_(value)
        model.train(training)
    require_same(moved, found, dtype_name(model), "policy.lora: the model with these adapters merged is another model")


def _of_merged(model: PreTrainedModel) -> Tensor:
    try:
        return probe(merged(model))
    except Exception as error:  # PEFT's own refusals are errors of many kinds
        raise ValueError(f"policy.lora: these adapters cannot be merged into the weights: {error}") from error


def _move(trained: list[nn.Parameter], start: list[Tensor], scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for p, value in zip(trained, start, strict=True):
        p.copy_(value + scale * torch.randn(p.shape, generator=generator).to(value))
