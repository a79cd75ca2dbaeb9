"""PRMs that give a reward at a separator after each step; its token is appended, never read out of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification

from repirl.models.hub.base import HubPRM, Reading, causal_parts, decoder_of, tensors_of, tokenizer_of


class QwenMath(HubPRM):
    """Qwen2.5-Math-PRM: the token `<extra_0>` after each step of an assistant's turn; the probability of class 1 of 2."""

    architecture = "Qwen2ForProcessRewardModel"
    served_labels = 2
    SYSTEM: ClassVar[str] = "Please reason step by step, and put your final answer within \\boxed{}."
    SEPARATOR: ClassVar[str] = "<extra_0>"

    @classmethod
    def load(cls, name: str, *, device: str = "cpu", batch_tokens: int = 4096) -> Self:
        """As `HubPRM` says."""
        weights = tensors_of(name, "score.", device)

        def head(states: Tensor) -> Tensor:
            hidden = nn.functional.linear(states, weights["0.weight"], weights["0.bias"]).relu()
            return nn.functional.linear(hidden, weights["2.weight"], weights["2.bias"])

        return cls(decoder_of(name, device), head, tokenizer_of(name), batch_tokens)

    def read(self, problem: str, steps: Sequence[str]) -> list[Reading]:
        """As `HubPRM` says."""
        turns = [{"role": "system", "content": self.SYSTEM}, {"role": "user", "content": problem}]
        prompt = self.tokens(self.rendered(turns))
        return [separated(prompt, [self.tokens(step) for step in steps], self.tokens(self.SEPARATOR))]

    def reward(self, outputs: Tensor) -> Tensor:
        """As `HubPRM` says."""
        return outputs.softmax(-1)[:, 1]


class MathShepherd(HubPRM):
    """Math-Shepherd: "problem Step 1: ... ки", a line a step; at the tag, the probability of + against -."""

    TAG: ClassVar[str] = "ки"

    @classmethod
    def load(cls, name: str, *, device: str = "cpu", batch_tokens: int = 4096) -> Self:
        """As `HubPRM` says."""
        return cls(*causal_parts(name, device), tokenizer_of(name), batch_tokens)

    def read(self, problem: str, steps: Sequence[str]) -> list[Reading]:
        """As `HubPRM` says. A step that does not say its number gets it."""
        numbered = [
            step if step.lower().startswith("step") else f"Step {k}: {step}" for k, step in enumerate(steps, start=1)
        ]
        first = self.first_tokens(f"{problem} {numbered[0]}")
        others = [self.tokens(f"\n{step}", after=self.TAG) for step in numbered[1:]]
        return [separated((), [first, *others], (self.last_token(self.TAG),))]

    def reward(self, outputs: Tensor) -> Tensor:
        """As `HubPRM` says."""
        return outputs[:, [self.last_token("+"), self.last_token("-")]].softmax(-1)[:, 0]


class Skywork(HubPRM):
    """Skywork-o1-Open-PRM: a newline after each step; there the sigmoid of a value head."""

    architecture = "Qwen2ForPrmModel"

    @classmethod
    def load(cls, name: str, *, device: str = "cpu", batch_tokens: int = 4096) -> Self:
        """As `HubPRM` says."""
        weights = tensors_of(name, "v_head.summary.", device)

        def head(states: Tensor) -> Tensor:
            return nn.functional.linear(states.to(weights["weight"].dtype), weights["weight"], weights["bias"])

        return cls(decoder_of(name, device), head, tokenizer_of(name), batch_tokens)

    def read(self, problem: str, steps: Sequence[str]) -> list[Reading]:
        """As `HubPRM` says."""
        prompt = self.tokens(f"{self.tokenizer.bos_token or ''}{problem}\n")
        return [separated(prompt, [self.tokens(step) for step in steps], (self.last_token("\n"),))]

    def reward(self, outputs: Tensor) -> Tensor:
        """As `HubPRM` says."""
        return outputs[:, 0].sigmoid()


class TokenClassification(HubPRM):
    """TRL's PRMTrainer: problem and steps without a template, a newline after each step; the probability of class 1 of 2."""

    SEPARATOR: ClassVar[str] = "\n"
    served_labels = 2

    @classmethod
    def load(cls, name: str, *, device: str = "cpu", batch_tokens: int = 4096) -> Self:
        """As `HubPRM` says. Raises ValueError where the classes are not two."""
        model: Any = AutoModelForTokenClassification.from_pretrained(name).to(device)
        if model.config.num_labels != 2:
            raise ValueError(
                f"{name!r} has {model.config.num_labels} classes: a PRM of this kind has 2, wrong and right"
            )
        head = model.score if hasattr(model, "score") else model.classifier
        return cls(model.base_model, head, tokenizer_of(name), batch_tokens)

    def read(self, problem: str, steps: Sequence[str]) -> list[Reading]:
        """As `HubPRM` says."""
        bos = self.tokenizer.bos_token_id
        prompt = (*([] if bos is None else [int(bos)]), *self.tokens(problem))
        return [separated(prompt, [self.tokens(step) for step in steps], self.tokens(self.SEPARATOR))]

    def reward(self, outputs: Tensor) -> Tensor:
        """As `HubPRM` says."""
        return outputs.softmax(-1)[:, 1]


class Pure(TokenClassification):
    """PURE: as TRL's; the probability of class 1 less that of class 0."""

    def reward(self, outputs: Tensor) -> Tensor:
        """As `HubPRM` says."""
        return torch.tanh((outputs[:, 1] - outputs[:, 0]) / 2)


def separated(prompt: Sequence[int], steps: Sequence[Sequence[int]], separator: Sequence[int]) -> Reading:
    """Prompt, then each step and the separator; the place of a step is the separator's last token."""
    ids, places = [*prompt], []
    for step in steps:
        ids += [*step, *separator]
        places.append(len(ids) - 1)
    return Reading(tuple(ids), tuple(places))
