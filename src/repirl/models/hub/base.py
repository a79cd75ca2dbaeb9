"""What the PRMs of others have in common: words to tokens, a forward pass, and a reward at a place of each step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import snapshot_download
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from repirl.models.micro_batches import padded_batches
from repirl.structs import WrittenSolution


@dataclass(frozen=True)
class Reading:
    """Tokens that the model reads, and the places in them, one a step, whose states give the rewards."""

    ids: tuple[int, ...]
    places: tuple[int, ...]


class HubPRM(ABC):
    """A PRM of one kind. It is a `StepScorer`.

    Args:
        decoder: gives hidden states.
        head: of the states at the places to outputs.
        tokenizer: of the model.
        batch_tokens: most tokens of a forward pass, padding included.

    architecture: the beginning of the name in config.json by which this kind is known; empty where none tells.
    served_labels: numbers a token that vLLM gives of this kind, one reading a solution; 0 where it cannot serve it.
    """

    architecture: ClassVar[str] = ""
    served_labels: ClassVar[int] = 0

    def __init__(
        self,
        decoder: nn.Module,
        head: Callable[[Tensor], Tensor],
        tokenizer: PreTrainedTokenizerBase,
        batch_tokens: int = 4096,
    ) -> None:
        self.decoder, self.head, self.tokenizer, self.batch_tokens = decoder.eval(), head, tokenizer, batch_tokens
        known = {str(text) for text in tokenizer.all_special_tokens}
        self._special = known | {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}

    @classmethod
    @abstractmethod
    def load(cls, name: str, *, device: str = "cpu", batch_tokens: int = 4096) -> HubPRM:
        """The PRM of a folder or hub id, in the type of its weights."""

    @classmethod
    def unloaded(cls, name: str) -> Self:
        """The PRM of a folder or hub id without weights: it reads words, and a server has the model."""
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        with torch.device("meta"):
            decoder = AutoModel.from_config(config, trust_remote_code=False)
        return cls(decoder, nn.Identity(), tokenizer_of(name))

    @abstractmethod
    def read(self, problem: str, steps: Sequence[str]) -> list[Reading]:
        """What the model reads of a solution: the places of all readings together are its steps, in order.

        Steps come without white space at their ends.
        """

    @abstractmethod
    def reward(self, outputs: Float[Tensor, "steps outputs"]) -> Float[Tensor, " steps"]:
        """The reward of each step by the head's outputs at its place."""

    @property
    def context(self) -> int | None:
        """Tokens that the model can read; None where its configuration does not say."""
        config: Any = self.decoder.config
        length = getattr(config.get_text_config(), "max_position_embeddings", None)
        return None if length is None else int(length)

    def lengths(self, solutions: Sequence[WrittenSolution]) -> list[int]:
        """Tokens of the longest reading of each."""
        return [max(len(reading.ids) for reading in self.readings(solution)) for solution in solutions]

    def tokens_read(self, solutions: Sequence[WrittenSolution]) -> list[int]:
        """Tokens of all readings of each."""
        return [sum(len(reading.ids) for reading in self.readings(solution)) for solution in solutions]

    @property
    def parameters(self) -> int:
        """Number of parameters of the decoder, beside which a head hardly counts."""
        return sum(p.numel() for p in self.decoder.parameters())

    @torch.no_grad()
    def step_rewards(self, solutions: Sequence[WrittenSolution]) -> list[tuple[float, ...]]:
        """The reward of every step of every solution, in order. Raises ValueError where a text holds a special token."""
        readings = [self.readings(solution) for solution in solutions]
        flat = [reading for group in readings for reading in group]
        rewards: list[list[float]] = [[] for _ in flat]
        for batch in padded_batches([len(reading.ids) for reading in flat], self.batch_tokens):
            for i, values in zip(batch, self._forward([flat[i] for i in batch]), strict=True):
                rewards[i] = values
        left = iter(rewards)
        return [tuple(value for _ in group for value in next(left)) for group in readings]

    def _forward(self, readings: Sequence[Reading]) -> list[list[float]]:
        device = next(self.decoder.parameters()).device
        width = max(len(reading.ids) for reading in readings)
        ids = torch.tensor([[*r.ids, *[0] * (width - len(r.ids))] for r in readings], device=device)
        mask = torch.tensor([[1] * len(r.ids) + [0] * (width - len(r.ids)) for r in readings], device=device)
        states = self.decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        rows = [row for row, reading in enumerate(readings) for _ in reading.places]
        places = [place for reading in readings for place in reading.places]
        rewards = self.reward(self.head(states[rows, places]).float())
        return [part.tolist() for part in rewards.split([len(reading.places) for reading in readings])]

    def readings(self, solution: WrittenSolution) -> list[Reading]:
        """What the model reads of a solution. Raises ValueError where a text holds a special token."""
        for text in (solution.problem, *solution.steps):
            if special := [token for token in self._special if token in text]:
                raise ValueError(f"the special token {special[0]!r} stands in {text[:60]!r}; remove it there")
        return self.read(solution.problem, [step.strip() for step in solution.steps])

    # ---- words to tokens ----

    def tokens(self, text: str, *, after: str = "") -> tuple[int, ...]:
        """Tokens of a text without special ones around it; those that it has `after` a text, where they can be told apart."""
        whole, before = (self.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (after + text, after))
        if after and whole[: len(before)] != before:
            return self.tokens(text)
        return tuple(whole[len(before) :] if after else whole)

    def last_token(self, text: str) -> int:
        """The last token of a text, such as a separator's or a label's."""
        return self.tokens(text)[-1]

    def first_tokens(self, text: str) -> tuple[int, ...]:
        """Tokens of a text at the beginning, after the beginning-of-text token where the tokenizer puts one."""
        return tuple(self.tokenizer(text)["input_ids"])

    def rendered(self, turns: Sequence[dict[str, str]]) -> str:
        """The chat template's text, up to and including the header of the assistant's turn. Raises ValueError without one."""
        if not self.tokenizer.chat_template:
            raise ValueError(f"a PRM of this kind ({type(self).__name__}) needs a tokenizer with a chat template")
        return str(self.tokenizer.apply_chat_template(list(turns), add_generation_prompt=True, tokenize=False))


# ---- models and their parts ----


def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    return tokenizer


def causal_parts(name: str, device: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Decoder and output layer of a causal LM. Raises ValueError where its logits are changed after the output layer."""
    model: Any = AutoModelForCausalLM.from_pretrained(name)
    if getattr(model.config.get_text_config(), "final_logit_softcapping", None) is not None:
        raise ValueError(f"{type(model).__name__} caps its logits after the output layer, which is not supported")
    model.to(device)
    return model.base_model, model.get_output_embeddings()


def decoder_of(name: str, device: str) -> nn.Module:
    """The decoder of a model whose class is not one of transformers'; none of the folder's own code is run."""
    decoder: nn.Module = AutoModel.from_pretrained(name, trust_remote_code=False).to(device)
    return decoder


def tensors_of(name: str, prefix: str, device: str) -> dict[str, Tensor]:
    """The weights whose names begin with `prefix`, without it. Raises ValueError where there are none."""
    folder = Path(name) if Path(name).is_dir() else Path(snapshot_download(name))
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin")):
        content = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        )
        tensors |= {key.removeprefix(prefix): value for key, value in content.items() if key.startswith(prefix)}
    if not tensors:
        raise ValueError(f"{name!r} has no weights {prefix!r}: it is a PRM of another kind")
    return {key: value.to(device) for key, value in tensors.items()}
