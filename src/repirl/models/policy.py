"""A causal LM that gives token log-probabilities of responses, chunked over the vocabulary."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from repirl.models.loading import Dtype, causal_lm_from_config, load_causal_lm, load_tokenizer
from repirl.models.log_probs import token_log_probs
from repirl.models.tokenizers import character_tokenizer
from repirl.structs import Rows


@dataclass(frozen=True, slots=True)
class Packed:
    """Prompt and response joined, right-padded. ids: [N, L]. at: [N, T], the column of each response token."""

    ids: Int[Tensor, "rows columns"]
    at: Int[Tensor, "rows time"]


def pack(rows: Rows) -> Packed:
    """Joins prompt and response without a gap: causal attention then needs no mask, and positions are plain columns."""
    lengths = rows.prompt_mask.sum(-1)
    total = int((lengths + rows.response_mask.sum(-1)).max())
    columns = torch.arange(rows.prompt_ids.shape[1] + rows.response_ids.shape[1], device=lengths.device)
    both = torch.cat([rows.prompt_ids, rows.response_ids], dim=1)
    start = rows.prompt_ids.shape[1] - lengths  # the first real column of a left-padded prompt
    index = (columns[:total] + start[:, None]).clamp(max=len(columns) - 1)
    steps = torch.arange(rows.response_ids.shape[1], device=lengths.device)
    return Packed(ids=both.gather(1, index), at=(lengths[:, None] + steps).clamp(max=total - 1))


class Policy(nn.Module):
    """A Hugging Face causal LM with its tokenizer. Weights come with `load()`.

    Args:
        path: hub id, local folder, GGUF file or `package://name/file.gguf`.
        config: instead of `path`, a from-scratch model's config (model_type and its fields; vocab_size is set here).
        tokenizer: where the tokenizer is, if not at `path`.
        tokens: instead of a tokenizer, the explicit vocabulary of a toy language.
        dtype: of the weights. gradient_checkpointing: trade compute for memory.
        init_seed: of fresh weights.
    """

    def __init__(
        self,
        path: str | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        tokens: list[str] | None = None,
        dtype: Dtype = "float32",
        gradient_checkpointing: bool = False,
        init_seed: int = 0,
    ) -> None:
        super().__init__()
        if (path is None) == (config is None):
            raise ValueError("policy: give either path or config")
        if config is not None and tokenizer is None and tokens is None:
            raise ValueError("policy: a from-scratch config also needs tokenizer or tokens")
        self.path, self.config, self.dtype = path, config, dtype
        self._tokenizer_path, self._tokens = tokenizer or path, tokens
        self.gradient_checkpointing, self.init_seed = gradient_checkpointing, init_seed

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Loaded at first use."""
        return (
            character_tokenizer(self._tokens) if self._tokens is not None else load_tokenizer(str(self._tokenizer_path))
        )

    def load(self) -> "Policy":
        """Loads or makes the weights; does nothing the second time. Constructing a policy is cheap, this is not."""
        if "model" in self._modules:
            return self
        if self.path is not None:
            model = load_causal_lm(self.path, self.dtype)
        else:
            ids = {"pad_token_id": self.tokenizer.pad_token_id, "eos_token_id": self.tokenizer.eos_token_id}
            fresh = {"vocab_size": len(self.tokenizer), "bos_token_id": None, **ids, **(self.config or {})}
            model = causal_lm_from_config(fresh, self.dtype, self.init_seed)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model: PreTrainedModel = model
        self._check_plain_head()
        return self

    @property
    def hidden_size(self) -> int:
        """Width of h(s_t)."""
        return int(self.head_weight.shape[1])

    @property
    def vocabulary_size(self) -> int:
        """Rows of the output layer, which may be more than the tokenizer's tokens."""
        return int(self.head_weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head_weight.device

    @property
    def head_weight(self) -> Float[Tensor, "vocabulary hidden"]:
        """The output layer's weight."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    @property
    def head_bias(self) -> Float[Tensor, " vocabulary"] | None:
        """The output layer's bias, where it has one."""
        return getattr(self.model.get_output_embeddings(), "bias", None)

    def _check_plain_head(self) -> None:
        """Some models cap or scale their logits after the head: the chunked log-probabilities would be wrong for them."""
        # A cap leaves the small logits of fresh weights as they are, so comparing does not always show it.
        capped = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None) is not None
        with torch.no_grad():
            ids = torch.arange(min(4, self.vocabulary_size), device=self.device)[None]
            ours = nn.functional.linear(self.hidden_states(ids), self.head_weight, self.head_bias).float()
            if capped or not torch.allclose(
                ours, self.model(ids, use_cache=False).logits.float(), atol=1e-3, rtol=1e-3
            ):
                raise ValueError(
                    f"{type(self.model).__name__} changes its logits after the output layer (soft-capping or scaling); "
                    "this is not supported: choose a model without it"
                )

    def hidden_states(self, ids: Int[Tensor, "rows columns"]) -> Float[Tensor, "rows columns hidden"]:
        """Last hidden states of right-padded ids."""
        states: Tensor = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return states

    def response_states(self, rows: Rows) -> Float[Tensor, "rows time hidden"]:
        """h(s_t): the hidden state *before* each response token, the one that predicts it."""
        packed = pack(rows)
        hidden = self.hidden_states(packed.ids[:, :-1])
        before = (packed.at - 1).clamp(max=hidden.shape[1] - 1)
        return hidden.gather(1, before[..., None].expand(-1, -1, hidden.shape[-1]))

    def forward(self, rows: Rows) -> tuple[Float[Tensor, "rows time"], Float[Tensor, "rows time"]]:
        """Log pi(a_t|s_t) and entropy in nats of every response token, float32, 0 outside the response."""
        states = self.response_states(rows)[rows.response_mask]
        values = token_log_probs(states, self.head_weight, rows.response_ids[rows.response_mask], self.head_bias)
        log_probs, entropies = (
            torch.zeros(rows.response_mask.shape, device=v.device).masked_scatter(rows.response_mask, v) for v in values
        )
        return log_probs, entropies

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes model and tokenizer as a plain Hugging Face folder."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
