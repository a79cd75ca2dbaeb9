"""Solutions in words scored by a PRM, many at once: rewards of tokens, of steps, and of the whole."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor, nn

from repirl.data.codec import ChatCodec
from repirl.data.collate import collate_rows, select
from repirl.data.fields import cut
from repirl.data.step_rows import step_places
from repirl.data.steps import By, split_steps
from repirl.metrics.selection import Aggregation, aggregated
from repirl.models.hub import HubPRM
from repirl.models.micro_batches import micro_batches
from repirl.models.prm import PRM
from repirl.structs import Rows, WrittenSolution

BATCH_TOKENS = 4096  # of a forward pass


@dataclass(frozen=True)
class Score:
    """What a PRM says of a solution.

    steps: in words. step_rewards: one each; where tokens have rewards, the sum over the step's tokens.
    tokens: the text of each, the end token last; empty where the PRM gives no token rewards.
    token_rewards: r(s_t, a_t) of each, as training has it; with granularity `step` that of a step stands at its last token.
    """

    steps: tuple[str, ...]
    step_rewards: tuple[float, ...]
    tokens: tuple[str, ...] = ()
    token_rewards: tuple[float, ...] = ()

    def reward(self, by: Aggregation = "mean") -> float:
        """The reward of the whole by those of its steps (metrics/selection.py).

        Raises:
            ValueError: there is no such way, or the rewards do not permit it.
        """
        return aggregated(self.step_rewards, by, len(self.token_rewards))

    @property
    def token_mean(self) -> float | None:
        """The mean token reward, which the paper selects by; None where the PRM gives no token rewards."""
        return fmean(self.token_rewards) if self.token_rewards else None


def _unheard(note: str) -> None:
    pass


class Scorer(ABC):
    """A PRM that reads words. It is a `StepScorer`.

    context: tokens that its model can read; None = it has no limit of its own.
    parameters: of its model, or of its models where it is relative to another.
    waiting: called now and then while answers come from elsewhere, with what there is to say of it.
    """

    context: int | None = None
    parameters: int = 0
    waiting: Callable[[str], None] = staticmethod(_unheard)

    @abstractmethod
    def lengths(self, solutions: Sequence[WrittenSolution]) -> list[int]:
        """Tokens that the model reads of each, its problem and what the PRM adds included."""

    def tokens_read(self, solutions: Sequence[WrittenSolution]) -> list[int]:
        """Tokens that the model reads of each in all: more than `lengths` where it reads a solution several times."""
        return self.lengths(solutions)

    @abstractmethod
    def _scores(self, solutions: Sequence[WrittenSolution]) -> list[Score]:
        """Of solutions that fit into the context."""

    def too_long(self, solutions: Sequence[WrittenSolution]) -> list[int]:
        """Which of them do not fit into the model's context."""
        if self.context is None:
            return []
        return [i for i, length in enumerate(self.lengths(solutions)) if length > self.context]

    def unread(self, solutions: Sequence[WrittenSolution]) -> set[int]:
        """Which of them it cannot read: longer than its context, or with a text that it refuses."""

        def reads(one: WrittenSolution) -> bool:
            try:
                return not self.too_long([one])
            except ValueError:
                return False

        return {i for i, one in enumerate(solutions) if not reads(one)}

    @torch.no_grad()
    def scores(self, solutions: Sequence[WrittenSolution]) -> list[Score]:
        """The score of each, in order.

        Raises:
            ValueError: a solution cannot be scored, such as one longer than the model's context, or has a reward that is no
                finite number; it is named.
        """
        if long := self.too_long(solutions):
            one = solutions[long[0]]
            raise ValueError(
                f"solution {long[0] + 1} of {len(solutions)}, of problem {cut(one.problem)!r}, has {self.lengths([one])[0]} "
                f"tokens with its problem, and the PRM reads {self.context}: leave it out"
            )
        found = self._scores(solutions) if solutions else []
        for number, (one, score) in enumerate(zip(solutions, found, strict=True), start=1):
            if not all(map(math.isfinite, score.step_rewards)):
                raise ValueError(
                    f"solution {number} of {len(solutions)}, of problem {cut(one.problem)!r}, has step rewards that are no "
                    "finite numbers: the PRM's weights are not, or its half precision is too narrow for them"
                )
        return found

    def step_rewards(self, solutions: Sequence[WrittenSolution]) -> list[tuple[float, ...]]:
        """The reward of every step of every solution, in order. Raises ValueError as `scores`."""
        return [score.step_rewards for score in self.scores(solutions)]

    def score(self, problem: str, solution: str | Sequence[str], by: By = "newline") -> Score:
        """The score of one solution: a text, cut `by` (data/steps.py), or its steps, which are joined as they are.

        Raises:
            ValueError: as `scores`.
        """
        steps = split_steps(solution, by) if isinstance(solution, str) else tuple(solution)
        return self.scores([WrittenSolution(problem, steps)])[0]


class TokenScorer(Scorer):
    """A PRM that rewards tokens, by the prompt, tokens and end token of its training.

    Args:
        rewards: of every response token of rows, before a granularity sums them.
        codec: words to tokens, of the PRM's training.
        context: tokens that its model can read.
        packs: whether the model reads rows without padding, and each prompt once.
        granularity: of the rewards in training.
        device: where the model is.
        batch_tokens: most tokens of a forward pass.
        parameters: of the model.
    """

    def __init__(
        self,
        rewards: Callable[[Rows], Tensor],
        codec: ChatCodec,
        *,
        context: int | None,
        packs: bool,
        granularity: str,
        device: torch.device | str = "cpu",
        batch_tokens: int = BATCH_TOKENS,
        parameters: int = 0,
    ) -> None:
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1, not {batch_tokens}")
        self.rewards, self.codec, self.context, self.packs = rewards, codec, context, packs
        self.granularity, self.device, self.batch_tokens = granularity, device, batch_tokens
        self.parameters = parameters

    @classmethod
    def of(cls, prm: PRM, codec: ChatCodec, batch_tokens: int = BATCH_TOKENS) -> TokenScorer:
        """The scorer of a trained PRM."""
        assert prm.backbone is not None, "call build(policy) first"
        return cls(
            prm.token_rewards,
            codec,
            context=context_of(prm.backbone.model.config),
            packs=prm.packs,
            granularity=prm.granularity,
            device=prm.backbone.device,
            batch_tokens=batch_tokens,
            parameters=count_of(prm),
        )

    def lengths(self, solutions: Sequence[WrittenSolution]) -> list[int]:
        """As `Scorer` says."""
        return [len(prompt) + len(response) for prompt, response in zip(*self._encoded(solutions), strict=True)]

    def _encoded(self, solutions: Sequence[WrittenSolution]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        distinct = list(dict.fromkeys(solution.asked for solution in solutions))
        prompts = dict(zip(distinct, self.codec.encode_prompts(distinct), strict=True))
        responses = [
            ids if solution.ended else ids[:-1]
            for solution, ids in zip(solutions, self.codec.encode_responses([s.text for s in solutions]), strict=True)
        ]
        return [prompts[solution.asked] for solution in solutions], responses

    @torch.no_grad()
    def token_rewards(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
    ) -> Float[Tensor, "rows time"]:
        """The reward of every response token, before a granularity sums it; 0 after a response's end."""
        rows = collate_rows(prompts, responses, self.codec.pad_id, self.device)
        rewards = torch.zeros(rows.response_mask.shape)
        for batch in micro_batches(rows, self.batch_tokens, packs=self.packs):
            part = self.rewards(select(rows, batch)).float().cpu()
            rewards[batch.cpu(), : part.shape[1]] = part
        return rewards

    def _scores(self, solutions: Sequence[WrittenSolution]) -> list[Score]:
        prompts, responses = self._encoded(solutions)
        rewards = self.token_rewards(prompts, responses)
        return [
            self._score(solution, ids, values[: len(ids)])
            for solution, ids, values in zip(solutions, responses, rewards, strict=True)
        ]

    def _score(self, solution: WrittenSolution, ids: Sequence[int], rewards: Tensor) -> Score:
        count = len(solution.steps)
        places = step_places(solution, self.codec)
        if missing := sorted(set(range(count)) - set(places)):
            raise ValueError(
                f"step {missing[0] + 1} of a solution of {cut(solution.problem)!r}, {cut(solution.steps[missing[0]])!r}, "
                "has no token of its own: this tokenizer joins it to the step before; cut the solution otherwise"
            )
        step_of = torch.tensor(places)
        sums = torch.zeros(count).index_add(0, step_of, rewards)
        if self.granularity == "step":
            ends = torch.cat([step_of.diff() != 0, torch.tensor([True])])
            rewards = sums[step_of].masked_fill(~ends, 0)
        tokens = tuple(str(self.codec.tokenizer.decode([token])) for token in ids)
        return Score(solution.steps, tuple(sums.tolist()), tokens, tuple(rewards.tolist()))


class HubScorer(Scorer):
    """The scorer of another's PRM: rewards of steps alone."""

    def __init__(self, prm: HubPRM) -> None:
        self.prm, self.context, self.parameters = prm, prm.context, prm.parameters

    def lengths(self, solutions: Sequence[WrittenSolution]) -> list[int]:
        """As `Scorer` says."""
        return self.prm.lengths(solutions)

    def tokens_read(self, solutions: Sequence[WrittenSolution]) -> list[int]:
        """As `Scorer` says."""
        return self.prm.tokens_read(solutions)

    def _scores(self, solutions: Sequence[WrittenSolution]) -> list[Score]:
        rewards = self.prm.step_rewards(solutions)
        return [Score(solution.steps, values) for solution, values in zip(solutions, rewards, strict=True)]


def count_of(*modules: nn.Module) -> int:
    """Number of parameters, each once."""
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


def context_of(config: object) -> int | None:
    """The positions that a model of this configuration can read; None where it says nothing."""
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    length = getattr(inner, "max_position_embeddings", None)
    return None if length is None else int(length)
