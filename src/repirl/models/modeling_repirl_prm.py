"""A process reward model: a real number for every token of a solution, by a language model and a head.

This file is copied beside exported weights and needs torch and transformers alone. Its formulas are those of repirl's
heads.py and steps.py, written again so that a folder loads without repirl.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput

KINDS = ("q_head", "logit_difference", "implicit", "head", "linear")
RELATIVE = ("logit_difference", "implicit")
"""Kinds whose reward is beta times a value by the backbone less that by the reference."""
AFTER = ("head", "linear")
"""Kinds that read the state after the token; the others read the state before it."""
CHUNK = 1024  # tokens whose logits exist at a time


class RepirlPRMConfig(PreTrainedConfig):
    """What the weights alone do not say.

    kind: of the head. beta: scale of the relative kinds. granularity: `token`, or `step`: the rewards of a line's tokens
    summed onto its last. rank: of a q_head's matrix; None = full. backbone, reference: configurations of language models.
    """

    model_type = "repirl_prm"

    def __init__(
        self,
        kind: str = "q_head",
        beta: float = 1.0,
        granularity: str = "token",
        rank: int | None = None,
        hidden_size: int = 0,
        vocab_size: int = 0,
        backbone: dict[str, Any] | None = None,
        reference: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}: {__name__} does not know its formula")
        self.kind, self.beta, self.granularity, self.rank = kind, beta, granularity, rank
        self.hidden_size, self.vocab_size = hidden_size, vocab_size
        self.backbone, self.reference = backbone, reference
        kwargs.setdefault("id2label", {0: "reward"})
        kwargs.setdefault("label2id", {"reward": 0})
        super().__init__(**kwargs)


class RewardHead(nn.Module):
    """The value of a token by a hidden state, in float32; the relative kinds need no weights here."""

    def __init__(self, config: RepirlPRMConfig) -> None:
        super().__init__()
        width = config.hidden_size
        if config.kind == "q_head":
            self.query = nn.Linear(width, config.rank, bias=False) if config.rank else nn.Identity()
            self.action = nn.Embedding(config.vocab_size, config.rank or width)
        elif config.kind == "head":
            hidden = [nn.Linear(width, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU()]
            self.score: nn.Module = nn.Sequential(*hidden, nn.Linear(1024, 1), nn.Tanh())
        elif config.kind == "linear":
            self.score = nn.Linear(width, 1)

    def forward(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The value of each token."""
        if hasattr(self, "action"):
            values: Tensor = (self.query(states.float()) * self.action(tokens)).sum(-1)
        else:
            values = self.score(states.float())[..., 0]
        return values


class RepirlPRMForTokenClassification(PreTrainedModel):
    """Rewards of all tokens by one forward pass: `model(input_ids).logits[:, t, 0]` is that of token t."""

    config_class = RepirlPRMConfig
    base_model_prefix = "backbone"
    _keep_in_fp32_modules_strict = ["reward_head"]  # noqa: RUF012 - of the base class; "head" would name lm_head too

    def __init__(self, config: RepirlPRMConfig) -> None:
        super().__init__(config)
        self.backbone = _language_model(config, config.backbone)
        if config.kind in RELATIVE:
            self.reference = _language_model(config, config.reference)
        else:
            self.reward_head = RewardHead(config)
        if config.granularity == "step":
            self.register_buffer("ends_line", torch.zeros(config.vocab_size, dtype=torch.bool))
            self.register_buffer("is_blank", torch.zeros(config.vocab_size, dtype=torch.bool))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        response_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Rewards [rows, columns, 1] in float32.

        Args:
            input_ids: prompt and response of each row, [rows, columns].
            attention_mask: 0 where a column is padding, on either side; None = nowhere.
            response_mask: 1 where a token belongs to the response: others get 0. None = all tokens that are no padding.
                With granularity `step` it must be given, since a step ends only in a response.
            kwargs: arguments that this model does not have are not read.
        """
        attended = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        response = attended.bool() if response_mask is None else response_mask.bool() & attended.bool()
        if response_mask is None and self.config.granularity == "step":
            raise ValueError(
                "these rewards are summed over steps: give response_mask, 1 where a token is the response's"
            )
        # Padding goes behind the tokens: causal attention then needs no mask, and positions are plain columns.
        order = attended.bool().logical_not().int().argsort(dim=-1, stable=True)
        ids = input_ids.gather(1, order)
        values = self._values(self.backbone, ids)
        if self.config.kind in RELATIVE:
            values = self.config.beta * (values - self._values(self.reference, ids))
        rewards = torch.zeros_like(values).scatter(1, order, values).masked_fill(~response, 0)
        if self.config.granularity == "step":
            rewards = self._summed(rewards, input_ids, response)
        return TokenClassifierOutput(logits=rewards[..., None])

    def _values(self, model: PreTrainedModel, ids: Tensor) -> Tensor:
        relative = self.config.kind in RELATIVE
        states = (model.base_model if relative else model)(input_ids=ids, use_cache=False).last_hidden_state
        if self.config.kind in AFTER:
            values: Tensor = self.reward_head(states, ids)
            return values
        before, tokens = states[:, :-1], ids[:, 1:]
        if relative:
            flat = [_said(model, s, t, self.config.kind) for s, t in _chunks(before.flatten(0, 1), tokens.flatten())]
            values = torch.cat(flat).view(tokens.shape) if flat else before.new_zeros(tokens.shape).float()
        else:
            values = self.reward_head(before, tokens)
        return nn.functional.pad(values, (1, 0))  # nothing stands before the first token

    def _summed(self, rewards: Tensor, ids: Tensor, response: Tensor) -> Tensor:
        """Token rewards summed onto the last token of each line that has words, and onto the last of the response."""
        flags: Any = self
        ends = step_ends(flags.ends_line[ids], response, flags.is_blank[ids])
        step = (ends.long().cumsum(-1) - ends.long()).masked_fill(~response, 0)
        totals = torch.zeros_like(rewards).scatter_add(1, step, rewards)
        return totals.gather(1, step).masked_fill(~ends, 0)


def step_ends(ends_line: Tensor, response: Tensor, blank: Tensor) -> Tensor:
    """The last token of each step; blank lines belong to the step before them, at the beginning to the one after."""
    closes = ends_line & response
    line = closes.long().cumsum(-1) - closes.long()
    words = (response & ~blank).long()
    in_line = torch.zeros(len(words), words.shape[1] + 1, dtype=words.dtype, device=words.device)
    in_line = in_line.scatter_add(1, line, words)
    in_next = in_line[:, 1:].gather(1, line)
    last = response & (response.flip(-1).long().cumsum(-1).flip(-1) == 1)
    return closes & (words.cumsum(-1) > 0) & (in_next > 0) | last


def _language_model(config: RepirlPRMConfig, fields: dict[str, Any] | None) -> PreTrainedModel:
    inner = AutoConfig.for_model(**(fields or {}))
    kind: Any = AutoModelForCausalLM if config.kind in RELATIVE else AutoModel  # only they read the output layer
    model: PreTrainedModel = kind.from_config(inner)
    return model


def _chunks(states: Tensor, tokens: Tensor) -> Any:
    return zip(states.split(CHUNK), tokens.split(CHUNK), strict=True) if len(tokens) else ()


def _said(model: PreTrainedModel, states: Tensor, tokens: Tensor, kind: str) -> Tensor:
    """The logit, or the log-probability, that a language model gives each token by the state before it."""
    output: Any = model.get_output_embeddings()
    bias = getattr(output, "bias", None)
    if kind == "implicit":
        logits = nn.functional.linear(states, output.weight, bias).float()
        return logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
    values = (states.float() * nn.functional.embedding(tokens, output.weight).float()).sum(-1)
    return values if bias is None else values + bias[tokens]


RepirlPRMConfig.register_for_auto_class()  # type: ignore[no-untyped-call]
RepirlPRMForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")  # type: ignore[no-untyped-call]
