"""A PRM as a folder that loads without this package; read again and compared before anybody relies on it."""

import copy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from repirl.equality import PROMPT, probe_rows, require_same_rewards
from repirl.models.modeling_repirl_prm import RepirlPRMConfig, RepirlPRMForTokenClassification
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.structs import Rows
from repirl.weights import plain_config, plain_weights

# In this process the package's own class reads such a folder, and no file out of it is executed.
AutoConfig.register(RepirlPRMConfig.model_type, RepirlPRMConfig, exist_ok=True)
AutoModelForTokenClassification.register(RepirlPRMConfig, RepirlPRMForTokenClassification, exist_ok=True)


def is_standard(prm: PRM) -> bool:
    """Whether transformers has a class for this PRM: one linear layer over the states, each token its own reward."""
    assert prm.backbone is not None, "call build(policy) first"
    if prm.kind != "linear" or prm.granularity != "token":
        return False
    config = prm.backbone.model.config
    if type(config) not in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
        return False
    with torch.device("meta"):
        empty = AutoModelForTokenClassification.from_config(_one_label(config))
    return isinstance(getattr(empty, "score", None), nn.Linear)


def save_prm(prm: PRM, folder: Path) -> None:
    """Writes model and tokenizer, adapters merged, and reads them again.

    Afterwards the PRM's weights are float32: folder and PRM are compared there, whatever type the folder has, since
    rounding in half precision would hide a fault.

    Raises:
        ValueError: it cannot be written, or what the folder holds gives other rewards.
    """
    assert prm.backbone is not None, "call build(policy) first"
    try:
        made = _standard(prm) if is_standard(prm) else _custom(prm)
        made.save_pretrained(folder)
        prm.backbone.tokenizer.save_pretrained(folder)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"the PRM cannot be exported to {folder}: {error}") from error
    kind = type(made)
    del made
    expected = _probe(prm.float())
    saved: PreTrainedModel = kind.from_pretrained(folder, dtype=torch.float32)
    require_same_rewards(expected, _probe_saved(saved, prm), f"the exported PRM {folder} is not the trained one")
    if AutoTokenizer.from_pretrained(folder).get_vocab() != prm.backbone.tokenizer.get_vocab():
        raise ValueError(f"the exported tokenizer {folder} is read with other tokens than the PRM's")


def _custom(prm: PRM) -> PreTrainedModel:
    """As modeling_repirl_prm.py has it."""
    assert prm.backbone is not None
    relative, backbone = prm.head_class.needs_reference, prm.backbone
    config = RepirlPRMConfig(
        kind=prm.kind,
        beta=prm.beta,
        granularity=prm.granularity,
        rank=prm.rank,
        hidden_size=backbone.hidden_size,
        vocab_size=backbone.vocabulary_size,
        backbone=plain_config(backbone.model),
        reference=None if prm.reference is None else plain_config(prm.reference.model),
    )
    weights = {f"reward_head.{name}": value for name, value in prm.head.state_dict().items()}
    weights |= _of_language_model(backbone, "backbone", with_output=relative)
    if prm.reference is not None:
        # Backbone and reference may share what no adapter changes; in a file each has its own.
        start = _of_language_model(prm.reference, "reference", with_output=relative)
        weights |= {name: value.clone() for name, value in start.items()}
    if prm.granularity == "step":
        size = backbone.vocabulary_size
        weights |= {"ends_line": prm.ends_line[:size], "is_blank": prm.is_blank[:size]}
    return _made(RepirlPRMForTokenClassification, config, weights, backbone.dtype)


def _standard(prm: PRM) -> PreTrainedModel:
    """As transformers has it for this kind of language model. Its own head is in the file in float32."""
    assert prm.backbone is not None
    model, head = prm.backbone.model, prm.head.state_dict()
    kind: Any = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING[type(model.config)]
    weights = _of_language_model(prm.backbone, kind.base_model_prefix, with_output=False)
    made = _made(kind, _one_label(model.config), weights | head, prm.backbone.dtype)
    score: Any = made.score
    score.float().load_state_dict({name.removeprefix("score."): value for name, value in head.items()})
    return made


def _one_label(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of a model with one number a token."""
    changed = copy.deepcopy(config)
    changed.id2label, changed.label2id = {0: "reward"}, {"reward": 0}
    changed.classifier_dropout = 0.0
    return changed


def _of_language_model(policy: Policy, name: str, *, with_output: bool) -> dict[str, Tensor]:
    """Its weights under `name`, adapters merged; without its output layer they are those of its decoder alone."""
    weights = dict(plain_weights(policy.model))
    if with_output:
        return {f"{name}.{own}": value for own, value in weights.items()}
    prefix = f"{policy.model.base_model_prefix}."
    return {f"{name}.{own.removeprefix(prefix)}": v for own, v in weights.items() if own.startswith(prefix)}


def _made(
    kind: type[PreTrainedModel], config: PreTrainedConfig, weights: dict[str, Tensor], dtype: str
) -> PreTrainedModel:
    load: Any = kind.from_pretrained
    made: PreTrainedModel
    made, report = load(None, config=config, state_dict=weights, dtype=getattr(torch, dtype), output_loading_info=True)
    if wrong := sorted([*report["missing_keys"], *report["unexpected_keys"]]):
        raise ValueError(f"{kind.__name__} does not take the PRM's weights: {', '.join(wrong[:5])} do not fit")
    return made


# ---- whether both say the same ----


@torch.no_grad()
def _probe(prm: PRM) -> Float[Tensor, "rows time"]:
    """Rewards of the probe's rows."""
    assert prm.backbone is not None
    ids = torch.tensor(probe_rows(prm.backbone.vocabulary_size), device=prm.backbone.device)
    prompts, responses = ids[:, :PROMPT], ids[:, PROMPT:]
    rows = Rows(prompts, torch.ones_like(prompts).bool(), responses, torch.ones_like(responses).bool())
    rewards: Tensor = prm(rows)
    return rewards.cpu()


@torch.no_grad()
def _probe_saved(model: PreTrainedModel, prm: PRM) -> Float[Tensor, "rows time"]:
    """The same by a model that was read from a folder."""
    assert prm.backbone is not None
    ids = torch.tensor(probe_rows(prm.backbone.vocabulary_size))
    response = (torch.arange(ids.shape[1]) >= PROMPT).expand_as(ids)
    known = {"response_mask": response} if isinstance(model, RepirlPRMForTokenClassification) else {}
    rewards: Tensor = model.eval()(input_ids=ids, **known).logits[:, PROMPT:, 0]
    return rewards
