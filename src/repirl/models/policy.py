"""A causal LM that gives token log-probabilities of responses, chunked over the vocabulary."""

import copy
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from repirl import checkpoints
from repirl.equality import probe, require_same
from repirl.models.adapters import add_lora, check_lora_fields, without_adapters
from repirl.models.loading import Dtype, causal_lm_from_config, load_causal_lm, load_tokenizer
from repirl.models.log_probs import token_log_probs
from repirl.models.packing import join, joined_states, pack, packed_states, use_shared_prefix
from repirl.models.tokenizers import character_tokenizer, files_of, from_files
from repirl.structs import Rows
from repirl.weights import merged, plain_config


class Policy(nn.Module):
    """A Hugging Face causal LM with its tokenizer. Weights come with `load()`.

    Args:
        path: hub id, local folder, GGUF file or `package://name/file.gguf`.
        config: instead of `path`, a from-scratch model's config (model_type and its fields; vocab_size is set here).
        tokenizer: where the tokenizer is, if not at `path`.
        tokens: instead of a tokenizer, the explicit vocabulary of a toy language.
        dtype: type of the weights. gradient_checkpointing: trade compute for memory.
        init_seed: seed of fresh weights.
        lora: fields of peft.LoraConfig, such as {r: 16, target_modules: all-linear}: then only these adapters are trained.

    packs: whether the model reads rows without padding and each prompt once (models/packing.py); known after `load()`.
    """

    packs: bool

    def __init__(
        self,
        path: str | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        tokens: list[str] | None = None,
        dtype: Dtype = "float32",
        gradient_checkpointing: bool = False,
        init_seed: int = 0,
        lora: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if (path is None) == (config is None):
            raise ValueError("policy: give either path or config, not both")
        if config is not None and tokenizer is None and tokens is None:
            raise ValueError("policy: a from-scratch config also needs tokenizer or tokens")
        check_lora_fields(lora or {}, "policy.lora")
        self.arguments: dict[str, Any] = {
            "path": path,
            "config": config,
            "tokenizer": tokenizer,
            "tokens": tokens,
            "dtype": dtype,
            "gradient_checkpointing": gradient_checkpointing,
            "init_seed": init_seed,
            "lora": lora,
        }
        self.path, self.config, self.dtype, self.lora = path, config, dtype, lora
        self._tokenizer_path, self._tokens = tokenizer or path, tokens
        self.gradient_checkpointing, self.init_seed = gradient_checkpointing, init_seed

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Loaded at first use."""
        return (
            character_tokenizer(self._tokens) if self._tokens is not None else load_tokenizer(str(self._tokenizer_path))
        )

    @cached_property
    def _tokenizer_files(self) -> dict[str, bytes] | None:
        """None where the constructor was given all tokens."""
        return None if self._tokens is not None else files_of(self.tokenizer)

    def description(self) -> dict[str, Any]:
        """What a checkpoint says of this policy: its arguments, and what rebuilds it without the files it was read from."""
        stored = {"config": self._base_config, "tokenizer": self._tokenizer_files}
        return {"arguments": self.arguments, "stored": stored}

    @classmethod
    def described(cls, description: Mapping[str, Any]) -> "Policy":
        """A loaded policy of such a description, its weights fresh."""
        stored, given = description["stored"], description["arguments"]
        policy = cls(
            config=stored["config"],
            # A tokenizer from files takes the place of what would be loaded from its old path.
            tokenizer=None if given["tokens"] else given["tokenizer"] or given["path"],
            tokens=given["tokens"],
            **{name: given[name] for name in ("dtype", "init_seed", "lora")},
        )
        if stored["tokenizer"] is not None:
            policy.tokenizer = from_files(stored["tokenizer"])
        return policy.load()

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "Policy":
        """The trained policy of a run's checkpoint; what the run started from need not be there any more.

        Raises:
            ValueError: the file is missing, damaged, or describes no policy.
        """
        return cls.restored(*checkpoints.read_part(Path(path), "policy"))

    @classmethod
    def restored(cls, description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> "Policy":
        """A policy of such a description and these weights."""
        policy = cls.described(description)
        policy.load_state_dict(weights)
        return policy

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
        self._take(model, "policy.lora")
        self._check_plain_head()
        self.packs = use_shared_prefix(model)
        return self

    def _take(self, model: PreTrainedModel, where: str) -> None:
        """Reads from this model, with adapters where `lora`, the setting at `where`, asks for them."""
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()  # elsewhere transformers ignores it
        self._base_config = plain_config(model)  # adapters may change it: replicated layers are counted
        self._base_stays = self.lora is not None and add_lora(model, self.lora, self.init_seed, where)
        self.model: PreTrainedModel = model

    def view(self, lora: dict[str, Any] | None, where: str = "lora") -> "Policy":
        """Another policy over the same base weights, with adapters of its own, or with none: the base as it is.

        Its parameters are the frozen base's, which are this policy's too, and its adapters'. Nothing is switched: each of
        them is a model of its own in all but the memory of the base.

        Args:
            lora: fields of peft.LoraConfig.
            where: the setting that has them, for messages.

        Raises:
            ValueError: the base is trained, or these adapters would change it.
        """
        if not self._base_stays:
            reason = (
                "trains all its weights" if self.lora is None else "has adapters that train or change its own weights"
            )
            raise ValueError(
                f"{where}: the policy {reason}, and would move what it shares: give policy.lora plain adapters too, or "
                "give the PRM a prm.backbone with lora"
            )
        view = Policy(**self.arguments | {"lora": lora})
        view.tokenizer, view.packs = self.tokenizer, self.packs
        view._take(without_adapters(self.model), where)
        if lora is None:
            view._base_stays = True
        elif not view._base_stays:
            raise ValueError(
                f"{where}: these adapters train or change the base's own weights, which the policy shares: leave "
                "init_lora_weights and bias at their defaults"
            )
        return view

    def start(self) -> "Policy":
        """The policy as it is now, frozen: a reference for what is trained from here.

        Where its adapters add nothing yet it is the base without them, and takes no memory; else a copy.
        """
        if self.lora is not None and self._base_stays:
            base = self.view(None)
            if torch.equal(probe(base.model), probe(self.model)):
                return base.requires_grad_(False)
        return copy.deepcopy(self).requires_grad_(False)

    def snapshot(self) -> "Policy":
        """The policy as it is now, frozen; `take_weights` brings it up to date. What is never trained is shared."""
        memo: dict[int, Any] = {id(p): p for p in self.parameters() if not p.requires_grad}
        return copy.deepcopy(self, memo).requires_grad_(False)

    @torch.no_grad()
    def take_weights(self, policy: "Policy") -> None:
        """Copies the trained weights of the policy that this is a snapshot of; sharded ones whole, on all ranks together."""
        for own, given in zip(self.parameters(), policy.parameters(), strict=True):
            if own is not given:
                own.copy_(given.full_tensor() if isinstance(given, DTensor) else given)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Policy":
        """Moves and converts as PyTorch does, but leaves computed float32 buffers such as rotary frequencies float32."""
        computed = [
            (module, name, buffer)
            for module in self.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and buffer.dtype == torch.float32 and name in module._non_persistent_buffers_set
        ]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for module, name, buffer in computed:
            now = module._buffers[name]
            if now is not None and now.dtype != buffer.dtype:
                module._buffers[name] = buffer.to(now.device)
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
            states = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            ours = nn.functional.linear(states, self.head_weight, self.head_bias).float()
            if capped or not torch.allclose(
                ours, self.model(ids, use_cache=False).logits.float(), atol=1e-3, rtol=1e-3
            ):
                raise ValueError(
                    f"{type(self.model).__name__} changes its logits after the output layer (soft-capping or scaling); "
                    "this is not supported: choose a model without it"
                )

    def action_states(self, rows: Rows, *, after: bool = False) -> Float[Tensor, "actions hidden"]:
        """The hidden state before each response token, h(s_t), which predicts it; or `after` it, which has seen it.

        The tokens of the first row come first, then those of the second. Where weights are sharded it gathers them, as
        `forward` does.
        """
        return self._action_states(rows, after=after)

    def _action_states(self, rows: Rows, *, after: bool = False) -> Float[Tensor, "actions hidden"]:
        base = self.model.base_model
        if self.packs:
            packed = pack(rows, with_last=after)
            return packed_states(base, packed)[packed.read]
        return joined_states(base, join(rows), before=not after)[rows.response_mask]

    def forward(self, rows: Rows) -> tuple[Float[Tensor, "rows time"], Float[Tensor, "rows time"]]:
        """Log pi(a_t|s_t) and entropy in nats of every response token, float32, 0 outside the response."""
        states = self._action_states(rows)
        values = token_log_probs(states, self.head_weight, rows.response_ids[rows.response_mask], self.head_bias)
        log_probs, entropies = (
            torch.zeros(rows.response_mask.shape, device=v.device).masked_scatter(rows.response_mask, v) for v in values
        )
        return log_probs, entropies

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes model and tokenizer as a plain Hugging Face folder, adapters merged, and reads it again.

        Raises:
            ValueError: it cannot be written, or what the folder holds is not this policy (equality.py).
        """
        try:
            merged(self.model).save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"the policy cannot be exported to {folder}: {error}") from error
        saved = load_causal_lm(str(folder), self.dtype)
        require_same(probe(self.model), probe(saved), self.dtype, f"the exported model {folder} is not the trained one")
        if load_tokenizer(str(folder)).get_vocab() != self.tokenizer.get_vocab():
            raise ValueError(
                f"the exported tokenizer {folder} is read with other tokens than the policy's: transformers takes it for "
                f"that of model type {self.model.config.model_type!r}; give the policy another tokenizer or model type"
            )

    def save_adapter(self, folder: str | Path, base: str) -> None:
        """Writes the adapters alone as a PEFT folder, with the tokenizer, and reads them again onto the base.

        Args:
            folder: where to.
            base: path or hub id of the base model, which the folder will name.

        Raises:
            ValueError: there are none, they change the base, or what the folder holds is not this policy.
        """
        if self.lora is None:
            raise ValueError("the policy has no adapters: all its weights were trained")
        if not self._base_stays:
            raise ValueError("the policy's adapters change its base's own weights: alone they are not the policy")
        settings: Any = self.model.peft_config["default"]
        settings.base_model_name_or_path = base
        try:
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            again = self.view(None).model
            again.load_adapter(str(folder))
        except (OSError, RuntimeError) as error:
            raise ValueError(f"the adapters cannot be exported to {folder}: {error}") from error
        require_same(
            probe(self.model), probe(again), self.dtype, f"the exported adapters {folder} are not the trained ones"
        )
