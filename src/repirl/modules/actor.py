"""The policy as something that answers problems: rollouts, verdicts and their summary. Shared by all modules."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from torchmetrics import MeanMetric

from repirl.data.codec import ChatCodec
from repirl.models.policy import Policy
from repirl.modules.settings import Text
from repirl.rollout.transformers import InProcess, row_seed
from repirl.structs import Problem, Prompt, Response, Verdict, Verifier
from repirl.verifiers.format import format_reward


class Actor:
    """A policy with its codec, its generator and, where given, a verifier."""

    def __init__(self, policy: Policy, text: Text, rollout: InProcess, verifier: Verifier | None) -> None:
        self.policy, self.text, self.rollout, self.verifier = policy, text, rollout, verifier

    @cached_property
    def codec(self) -> ChatCodec:
        """How this policy's tokenizer writes problems and reads responses."""
        text = self.text
        return ChatCodec(
            self.policy.tokenizer, instruction=text.instruction, template=text.template, prompt_format=text.prompt_format
        )

    def load(self) -> None:
        """Loads the policy's weights and lets the generator sample from them."""
        self.rollout.attach(
            self.policy.load().model,
            decode=self.codec.decode,
            pad_id=self.codec.pad_id,
            eos_ids=self.codec.eos_ids,
            max_response_tokens=self.text.max_response_tokens,
        )

    def sample(
        self, prompts: Sequence[Prompt], positions: Sequence[int], *, samples: int, key: Sequence[int], temperature: float
    ) -> list[list[Response]]:
        """`samples` responses a prompt; the randomness of each comes from (key, its position in the global batch)."""
        seeds = [row_seed(*key, position) for position in positions]
        return self.rollout.generate([p.token_ids for p in prompts], samples=samples, seeds=seeds, temperature=temperature)

    def verify(self, problems: Sequence[Problem], texts: Sequence[Sequence[str]]) -> list[list[Verdict | None]]:
        """A verdict for each text of each problem; None everywhere without a verifier."""
        if self.verifier is None:
            return [[None] * len(row) for row in texts]
        flat = [(problem, text) for problem, row in zip(problems, texts, strict=True) for text in row]
        verdicts = iter(self.verifier.verify([p for p, _ in flat], [t for _, t in flat]))
        return [[next(verdicts) for _ in row] for row in texts]


def outcome_of(verdict: Verdict | None) -> float:
    """1 right, 0 wrong, NaN where nothing is known."""
    return float("nan") if verdict is None or verdict.correct is None else float(verdict.correct)


class Evaluation(torch.nn.Module):
    """Greedy and sampled accuracy, length, finished and format shares over an evaluation set, all ranks together."""

    def __init__(self) -> None:
        super().__init__()
        self.means = torch.nn.ModuleDict()

    def _update(self, name: str, values: Sequence[float], device: torch.device) -> None:
        if name not in self.means:
            self.means[name] = MeanMetric(nan_strategy="ignore").to(device)
        if values:
            self.means[name].update(torch.tensor(values, device=device))

    def add(
        self, actor: Actor, prompts: Sequence[Prompt], positions: Sequence[int], *, samples: int, seed: int, device: torch.device
    ) -> list[list[tuple[Response, Verdict | None]]]:
        """Answers the prompts greedily (first) and `samples` times at temperature 1; returns all of it."""
        problems = [p.problem for p in prompts]
        greedy = actor.sample(prompts, positions, samples=1, key=(seed,), temperature=0.0)
        sampled = actor.sample(prompts, positions, samples=samples, key=(seed,), temperature=1.0) if samples else [[] for _ in prompts]
        responses = [g + s for g, s in zip(greedy, sampled, strict=True)]
        verdicts = actor.verify(problems, [[r.text for r in row] for row in responses])
        kinds = {"greedy": slice(0, 1)} | ({"sampled": slice(1, None)} if samples else {})
        for kind, part in kinds.items():
            flat = [r for row in responses for r in row[part]]
            self._update(f"{kind}_tokens", [float(len(r.token_ids)) for r in flat], device)
            self._update(f"{kind}_finished", [float(r.finished) for r in flat], device)
            self._update(f"{kind}_has_answer", [1.0 + format_reward(r.text) for r in flat], device)
            if actor.verifier is not None:
                self._update(f"{kind}_accuracy", [outcome_of(v) for row in verdicts for v in row[part]], device)
        return [list(zip(rs, vs, strict=True)) for rs, vs in zip(responses, verdicts, strict=True)]

    def compute(self) -> dict[str, Any]:
        """The means so far; the count starts anew."""
        found = {name: metric.compute() for name, metric in self.means.items()}
        for metric in self.means.values():
            metric.reset()
        return found


def prediction_record(prompt: Prompt, response: Response, verdict: Verdict | None, rewards: list[float] | None) -> dict[str, Any]:
    """One line of `repirl predict`."""
    return {
        "id": prompt.problem.id,
        "problem": prompt.problem.text,
        "response": response.text,
        "finished": response.finished,
        "tokens": len(response.token_ids),
        "verdict": None if verdict is None else asdict(verdict),
        "prm_mean_reward": None if rewards is None else sum(rewards) / len(rewards),
        "prm_token_rewards": rewards,
    }
