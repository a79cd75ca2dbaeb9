"""PRMs that give a reward where a verdict is about to be said, or at the last token of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

from torch import Tensor, nn

from repirl.models.hub.base import HubPRM, Reading, causal_parts, decoder_of, tensors_of, tokenizer_of


class RLHFlow(HubPRM):
    """RLHFlow's PRMs: each step is a user's turn, answered "+"; the probability of + against - just before the answer."""

    @classmethod
    def load(cls, name: str, *, device: str = "cpu", batch_tokens: int = 4096) -> Self:
        """As `HubPRM` says."""
        return cls(*causal_parts(name, device), tokenizer_of(name), batch_tokens)

    def read(self, problem: str, steps: Sequence[str]) -> list[Reading]:
        """As `HubPRM` says. The last answer is not read: its place is before it."""
        turns: list[dict[str, str]] = []
        ids: list[int] = []
        places = []
        written = ""
        for k, step in enumerate(steps):
            turns.append({"role": "user", "content": f"{problem} {step}" if k == 0 else step})
            whole = self.rendered(turns)
            if not whole.startswith(written):
                raise ValueError(
                    "this tokenizer's chat template changes earlier turns, which no PRM of this kind does: give another kind"
                )
            ids += self.tokens(whole[len(written) :])
            places.append(len(ids) - 1)
            turns.append({"role": "assistant", "content": "+"})
            ids.append(self.last_token("+"))
            written = f"{whole}+"
        return [Reading(tuple(ids[:-1]), tuple(places))]

    def reward(self, outputs: Tensor) -> Tensor:
        """As `HubPRM` says."""
        return outputs[:, [self.last_token("+"), self.last_token("-")]].softmax(-1)[:, 0]


class ReasonEval(HubPRM):
    """ReasonEval: three classes at the last token of each step, wrong, neutral, right; the reward is 1 less that of wrong."""

    architecture = "ReasonEval"
    PROMPT: ClassVar[str] = "Question:\n{problem}\nAnswer:\nLet's think step by step.\n"

    @classmethod
    def load(cls, name: str, *, device: str = "cpu", batch_tokens: int = 4096) -> Self:
        """As `HubPRM` says."""
        weights = tensors_of(name, "score_head.", device)

        def head(states: Tensor) -> Tensor:
            return nn.functional.linear(states, weights["weight"], weights.get("bias"))

        return cls(decoder_of(name, device), head, tokenizer_of(name), batch_tokens)

    def read(self, problem: str, steps: Sequence[str]) -> list[Reading]:
        """As `HubPRM` says. Steps are tokenised each by itself."""
        ids = [*self.first_tokens(self.PROMPT.format(problem=problem))]
        places = []
        for step in steps:
            ids += self.tokens(step)
            places.append(len(ids) - 1)
        return [Reading(tuple(ids), tuple(places))]

    def reward(self, outputs: Tensor) -> Tensor:
        """As `HubPRM` says: the validity, the probabilities of neutral and of right."""
        return outputs.softmax(-1)[:, 1:].sum(-1)


class Generative(HubPRM):
    """A chat model that is asked of each step whether the solution is right so far; the probability of Yes against No.

    The answer is not sampled and no critique is written: it is the first token's probability.
    """

    QUESTION: ClassVar[str] = (
        "{problem}\n\nHere is a solution, up to one of its steps:\n\n{solution}\n\n"
        "Is the last of these steps correct (Yes/No)? Answer with one word."
    )

    @classmethod
    def load(cls, name: str, *, device: str = "cpu", batch_tokens: int = 4096) -> Self:
        """As `HubPRM` says."""
        return cls(*causal_parts(name, device), tokenizer_of(name), batch_tokens)

    def read(self, problem: str, steps: Sequence[str]) -> list[Reading]:
        """As `HubPRM` says: a reading for each step."""
        readings = []
        for count in range(1, len(steps) + 1):
            asked = self.QUESTION.format(problem=problem, solution="\n\n".join(steps[:count]))
            ids = self.tokens(self.rendered([{"role": "user", "content": asked}]))
            readings.append(Reading(ids, (len(ids) - 1,)))
        return readings

    def reward(self, outputs: Tensor) -> Tensor:
        """As `HubPRM` says."""
        return outputs[:, [self.tokens("Yes")[0], self.tokens("No")[0]]].softmax(-1)[:, 0]
