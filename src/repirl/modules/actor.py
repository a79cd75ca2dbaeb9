"""The policy as something that answers problems: rollouts, verdicts and their summary. Shared by all modules."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch

from repirl.data.codec import ChatCodec
from repirl.metrics import auroc
from repirl.models.policy import Policy
from repirl.modules.distributed import gather_objects, rank, world_size
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
            self.policy.tokenizer,
            instruction=text.instruction,
            template=text.template,
            prompt_format=text.prompt_format,
            template_options=text.template_options,
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
        self,
        prompts: Sequence[Prompt],
        positions: Sequence[int],
        *,
        samples: int,
        key: Sequence[int],
        temperature: float,
    ) -> list[list[Response]]:
        """`samples` responses a prompt; the randomness of each comes from (key, its position in the global batch)."""
        seeds = [row_seed(*key, position) for position in positions]
        return self.rollout.generate(
            [p.token_ids for p in prompts], samples=samples, seeds=seeds, temperature=temperature
        )

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


Scores = Callable[[list[Prompt], list[Response]], Sequence[float] | None]


class Evaluation:
    """Greedy and sampled accuracy, length, finished and format shares over an evaluation set, all ranks together.

    Where a PRM gives scores of the sampled responses: their AUROC, correct against failed.
    """

    def start(self) -> None:
        """Forgets what was added."""
        self._values: dict[str, list[float]] = {}
        self._scored: list[tuple[float, float]] = []

    def add(
        self,
        actor: Actor,
        prompts: list[Prompt],
        batch_index: int,
        samples: int,
        seed: int,
        scores: Scores | None = None,
    ) -> None:
        """Answers the prompts greedily and `samples` times at temperature 1, and counts."""
        positions = [batch_index * 10**6 + i * world_size() + rank() for i in range(len(prompts))]
        for kind, count, temperature in (("greedy", 1, 0.0), ("sampled", samples, 1.0)):
            if not count or not prompts:
                continue
            rows = actor.sample(prompts, positions, samples=count, key=(seed,), temperature=temperature)
            verdicts = actor.verify([p.problem for p in prompts], [[r.text for r in row] for row in rows])
            responses = [r for row in rows for r in row]
            outcomes = [outcome_of(v) for row in verdicts for v in row]
            self._count(f"{kind}_tokens", [float(len(r.token_ids)) for r in responses])
            self._count(f"{kind}_finished", [float(r.finished) for r in responses])
            self._count(f"{kind}_has_answer", [1 + format_reward(r.text) for r in responses])
            if actor.verifier is not None:
                self._count(f"{kind}_accuracy", outcomes)
            if kind == "sampled" and scores is not None:
                scored = scores([p for p in prompts for _ in range(count)], responses)
                self._scored += [] if scored is None else zip(scored, outcomes, strict=True)

    def _count(self, name: str, values: list[float]) -> None:
        self._values.setdefault(name, []).extend(v for v in values if not math.isnan(v))

    def results(self, prefix: str) -> dict[str, float]:
        """The means over all ranks, named prefix/..."""
        parts = gather_objects([(self._values, self._scored)])
        names = dict.fromkeys(name for values, _ in parts for name in values)
        pooled = {name: [v for values, _ in parts for v in values.get(name, [])] for name in names}
        found = {f"{prefix}/{name}": sum(values) / len(values) for name, values in pooled.items() if values}
        scored = torch.tensor([pair for _, part in parts for pair in part if not math.isnan(pair[1])])
        if len(scored) and 0 < scored[:, 1].mean() < 1:
            found[f"{prefix}/auroc_correct_failed"] = float(auroc(scored[:, 0], scored[:, 1] == 1))
        return found


def predict(
    actor: Actor,
    prompts: list[Prompt],
    token_rewards: Callable[[list[Prompt], list[Response]], list[list[float]] | None] | None = None,
) -> list[dict[str, Any]]:
    """One record a problem: the greedy response, its verdict where an answer or tests are known, its token rewards."""
    responses = [row[0] for row in actor.sample(prompts, range(len(prompts)), samples=1, key=(0,), temperature=0.0)]
    rewards = None if token_rewards is None or not prompts else token_rewards(prompts, responses)
    records = []
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        known = prompt.problem.answer is not None or prompt.problem.tests is not None
        verdict = actor.verify([prompt.problem], [[response.text]])[0][0] if known else None
        own = None if rewards is None else rewards[i]
        records.append(
            {
                "id": prompt.problem.id,
                "problem": prompt.problem.text,
                "response": response.text,
                "finished": response.finished,
                "tokens": len(response.token_ids),
                "verdict": None if verdict is None else asdict(verdict),
                "prm_mean_reward": None if own is None else sum(own) / len(own),
                "prm_token_rewards": own,
            }
        )
    return records
