"""Solutions sampled, or searched for by steps, with a PRM's rewards, verdicts and what they cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from repirl.applications.scoring import Scorer, TokenScorer
from repirl.data.codec import ChatCodec
from repirl.data.fields import PROMPT_TEXT
from repirl.data.token_steps import ends_of_steps, texts_of_steps
from repirl.learning.actor import Actor
from repirl.learning.evaluation import number_of
from repirl.metrics.selection import aggregated
from repirl.rollout.beams import Beam, searched
from repirl.rollout.transformers import row_seed
from repirl.structs import Problem, Prompt, WrittenSolution
from repirl.verifiers.answers import EXTRACTION, extract_answer, normalise

TooLong = Literal["refuse", "skip"]
Searched = Literal["beam_search", "dvts"]
SAMPLED = "sampled"
SEARCHED: tuple[Searched, ...] = ("beam_search", "dvts")


@dataclass(frozen=True, slots=True)
class Rewards:
    """What a PRM says of a response.

    steps: one reward a step. rewarded: number of tokens with a reward; None where the PRM rewards steps alone.
    read: tokens that it read for it; None where that is not known.
    """

    steps: tuple[float, ...]
    rewarded: int | None
    read: int | None


UNREAD = Rewards((), None, 0)
"""Of a response without words, or one that the PRM cannot read: it ranks last."""


class ResponseScorer:
    """A PRM's rewards of responses in tokens.

    A PRM with the policy's tokenizer reads them as they were sampled; another reads their text.

    Args:
        scorer: the PRM.
        codec: of the policy.
        separators: the tokens that end a step.
        too_long: of a response that the PRM cannot read, `refuse` raises, `skip` leaves it without rewards.
    """

    def __init__(
        self, scorer: Scorer, codec: ChatCodec, separators: frozenset[int], too_long: TooLong = "refuse"
    ) -> None:
        self.scorer, self.codec, self.separators, self.too_long = scorer, codec, separators, too_long
        self.by_token: TokenScorer | None = None
        if isinstance(scorer, TokenScorer) and _same_tokens(scorer.codec, codec):
            self.by_token = scorer

    def ends(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """Where each step of a response ends."""
        return ends_of_steps(token_ids, self.separators, lambda ids: not self.codec.decode(ids).strip())

    def steps(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """The text of each step."""
        return texts_of_steps(token_ids, self.ends(token_ids), self.codec.decode)

    def of(
        self, problems: Sequence[Problem], responses: Sequence[Sequence[int]], finished: Sequence[bool]
    ) -> list[Rewards]:
        """The rewards of each; none for a response without words, which no PRM has to read.

        Raises:
            ValueError: one cannot be scored, such as one longer than the PRM's context.
        """
        ends = [self.ends(ids) for ids in responses]
        some = [i for i, of_steps in enumerate(ends) if of_steps]
        chosen = [problems[i] for i in some], [responses[i] for i in some]
        if self.by_token is None:
            written = [
                WrittenSolution(problem.text, self.steps(ids), ended=finished[i], prompt=problem.prompt)
                for i, problem, ids in zip(some, *chosen, strict=True)
            ]
            found = rewards_of(self.scorer, written, self.too_long)
        else:
            found = self._by_token(self.by_token, *chosen, [ends[i] for i in some])
        by_place = dict(zip(some, found, strict=True))
        return [by_place.get(i, UNREAD) for i in range(len(responses))]

    def _by_token(
        self,
        scorer: TokenScorer,
        problems: Sequence[Problem],
        responses: Sequence[Sequence[int]],
        ends: Sequence[tuple[int, ...]],
    ) -> list[Rewards]:
        prompts = scorer.codec.encode_prompts([problem.asked for problem in problems])
        lengths = [len(prompt) + len(ids) for prompt, ids in zip(prompts, responses, strict=True)]
        limit = math.inf if scorer.context is None else scorer.context
        if max(lengths, default=0) > limit and self.too_long == "refuse":
            problem = problems[lengths.index(max(lengths))]
            raise ValueError(
                f"a response to problem {problem.id!r} has {max(lengths)} tokens with its prompt, and the PRM reads {limit}: "
                "give too_long: skip, which ranks such responses last"
            )
        kept = [i for i, length in enumerate(lengths) if length <= limit]
        found = [UNREAD] * len(responses)
        if not kept:
            return found
        rewards = scorer.token_rewards([tuple(prompts[i]) for i in kept], [tuple(responses[i]) for i in kept])
        for i, row in zip(kept, rewards, strict=True):
            count = len(responses[i])
            of_steps = tuple(float(part.sum()) for part in row[:count].split(_sizes(ends[i])))
            found[i] = Rewards(of_steps, count, lengths[i])
        return found


def rewards_of(scorer: Scorer, solutions: Sequence[WrittenSolution], too_long: TooLong = "refuse") -> list[Rewards]:
    """A PRM's rewards of solutions in words.

    too_long: of a solution that the PRM cannot read, `refuse` raises ValueError, `skip` leaves it without rewards.
    """
    out = scorer.unread(solutions) if too_long == "skip" else set()
    kept = [one for i, one in enumerate(solutions) if i not in out]
    if not kept:
        return [UNREAD] * len(solutions)
    scored = zip(scorer.scores(kept), scorer.tokens_read(kept), strict=True)
    found = iter(Rewards(score.step_rewards, len(score.token_rewards) or None, read) for score, read in scored)
    return [UNREAD if i in out else next(found) for i in range(len(solutions))]


class Solver:
    """A policy that answers problems, by samples or by steps, and a PRM that says which to prefer.

    Args:
        actor: policy, codec, generator and verifier, loaded.
        rewards: of responses; without a PRM they have none.
        aggregation: how step rewards become a score (metrics/selection.py).
        temperature: of samples and of steps.
        seed: of what is sampled, which depends on it and the problem alone.
    """

    def __init__(
        self, actor: Actor, rewards: ResponseScorer, *, scores: bool, aggregation: str, temperature: float, seed: int
    ) -> None:
        self.actor, self.rewards, self.scores = actor, rewards, scores
        self.aggregation, self.temperature, self.seed = aggregation, temperature, seed
        self._stops_at_steps = False

    def sampled(self, prompts: Sequence[Prompt], n: int) -> list[dict[str, Any]]:
        """`n` independent samples of each problem: a unit each."""
        self._attach(at_steps=False)
        numbers = [number_of(prompt) for prompt in prompts]
        rows = self.actor.sample(prompts, numbers, samples=n, key=(self.seed,), temperature=self.temperature)
        beams = [
            Beam(i, 0, response.token_ids, ended=True, finished=response.finished)
            for i, row in enumerate(rows)
            for response in row
        ]
        beams, read = self._judged(prompts, beams)
        groups = [beams[first : first + n] for first in range(0, len(beams), n)]
        units = []
        for i, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
            own = read[i * n : (i + 1) * n]
            generated = sum(len(beam.token_ids) for beam in group)
            spent = {
                "generated_tokens": generated,
                "policy_tokens": len(prompt.token_ids) + generated,
                "prm_tokens": sum(own),
            }
            samples = self._records(prompt, group)
            for sample, tokens in zip(samples, own, strict=True):
                sample["prm_tokens"] = tokens
            units.append(unit_of(prompt.problem, SAMPLED, n, spent, samples, prompt_tokens=len(prompt.token_ids)))
        return units

    def searched(self, prompts: Sequence[Prompt], method: Searched, n: int, children: int) -> list[dict[str, Any]]:
        """The ended beams of each problem, `n` at a time: a unit each."""
        self._attach(at_steps=True)
        sampler = _StepSampler(self, prompts, (self.seed, 1 + SEARCHED.index(method), n), children)
        prm_tokens: Counter[int] = Counter()

        def judge(beams: Sequence[Beam]) -> list[Beam]:
            judged, read = self._judged(prompts, beams)
            for beam, tokens in zip(judged, read, strict=True):
                prm_tokens[beam.problem] += tokens
            return judged

        found = searched(
            len(prompts), beams=n, children=children, diverse=method == "dvts", grow=sampler.grow, judge=judge
        )
        return [
            unit_of(
                prompt.problem,
                method,
                n,
                {
                    "generated_tokens": sampler.generated[i],
                    "policy_tokens": sampler.read[i] + sampler.generated[i],
                    "prm_tokens": prm_tokens[i],
                },
                self._records(prompt, found[i]),
                prompt_tokens=len(prompt.token_ids),
            )
            for i, prompt in enumerate(prompts)
        ]

    def _attach(self, *, at_steps: bool) -> None:
        """Lets the generator stop at the end of a step, or of a response alone."""
        if at_steps == self._stops_at_steps:
            return
        codec, separators = self.actor.codec, self.rewards.separators if at_steps else ()
        self.actor.rollout.attach(
            self.actor.policy.model,
            decode=codec.decode,
            pad_id=codec.pad_id,
            eos_ids=(*codec.eos_ids, *sorted(separators)),
            max_response_tokens=self.actor.text.max_response_tokens,
        )
        self._stops_at_steps = at_steps

    def _judged(self, prompts: Sequence[Prompt], beams: Sequence[Beam]) -> tuple[list[Beam], list[int]]:
        """The beams with their rewards and values, and the tokens that the PRM read of each."""
        if not self.scores:
            return list(beams), [0] * len(beams)
        problems = [prompts[beam.problem].problem for beam in beams]
        rewards = self.rewards.of(problems, [b.token_ids for b in beams], [b.finished for b in beams])
        judged = [
            replace(beam, step_rewards=r.steps, value=aggregated(r.steps, self.aggregation, r.rewarded))
            for beam, r in zip(beams, rewards, strict=True)
        ]
        return judged, [r.read or 0 for r in rewards]

    def _records(self, prompt: Prompt, beams: Sequence[Beam]) -> list[dict[str, Any]]:
        """A record of each response, with its verdict."""
        texts = [self.actor.codec.decode(beam.token_ids) for beam in beams]
        (verdicts,) = self.actor.verify([prompt.problem], [texts])
        by_token = self.rewards.by_token is not None
        return [
            {
                "steps": list(self.rewards.steps(beam.token_ids)),
                "answer": final_answer(prompt.problem, text, self.actor.verifier),
                "right": None if verdict is None else verdict.correct,
                "status": None if verdict is None else verdict.status,
                "finished": beam.finished,
                "step_rewards": list(beam.step_rewards) if self.scores else None,
                "rewarded_tokens": len(beam.token_ids) if by_token and self.scores else None,
                "generated_tokens": len(beam.token_ids),
            }
            for beam, text, verdict in zip(beams, texts, verdicts, strict=True)
        ]


class _StepSampler:
    """Grows beams by a step; counts the tokens that were sampled, and read before them, of each problem."""

    def __init__(self, solver: Solver, prompts: Sequence[Prompt], key: Sequence[int], children: int) -> None:
        self.solver, self.prompts, self.key, self.children = solver, prompts, tuple(key), children
        self.numbers = [number_of(prompt) for prompt in prompts]
        self.generated: Counter[int] = Counter()
        self.read: Counter[int] = Counter()

    def grow(self, beams: Sequence[Beam], depth: int) -> list[Beam]:
        """All children of all beams; a child that has no words yet goes on until it has."""
        rows = self._continued(beams, self._seeds(beams, depth, 0), self.children)
        grown = [child for row in rows for child in row]
        attempt = 0
        while blank := [i for i, b in enumerate(grown) if not b.ended and not self.solver.rewards.ends(b.token_ids)]:
            attempt += 1
            without = [grown[i] for i in blank]
            for i, (child,) in zip(
                blank, self._continued(without, self._seeds(without, depth, attempt), 1), strict=True
            ):
                grown[i] = child
        return grown

    def _seeds(self, beams: Sequence[Beam], depth: int, attempt: int) -> list[int]:
        """By the problem and a beam's number among its beams, whatever other problems are beside it."""
        count: Counter[int] = Counter()
        seeds = []
        for beam in beams:
            seeds.append(row_seed(*self.key, self.numbers[beam.problem], depth, attempt, count[beam.problem]))
            count[beam.problem] += 1
        return seeds

    def _continued(self, beams: Sequence[Beam], seeds: Sequence[int], samples: int) -> list[list[Beam]]:
        actor = self.solver.actor
        most = actor.text.max_response_tokens
        before = [(*self.prompts[beam.problem].token_ids, *beam.token_ids) for beam in beams]
        rows = actor.rollout.generate(
            before,
            samples=samples,
            seeds=seeds,
            temperature=self.solver.temperature,
            limits=[most - len(beam.token_ids) for beam in beams],
        )
        found = []
        for beam, prefix, row in zip(beams, before, rows, strict=True):
            self.read[beam.problem] += len(prefix)
            children = []
            for response in row:
                self.generated[beam.problem] += len(response.token_ids)
                ids = (*beam.token_ids, *response.token_ids)
                finished = response.finished and ids[-1] not in self.solver.rewards.separators
                children.append(replace(beam, token_ids=ids, finished=finished, ended=finished or len(ids) >= most))
            found.append(children)
        return found


def unit_of(
    problem: Problem,
    method: str,
    n: int,
    spent: Mapping[str, int | None],
    samples: Sequence[dict[str, Any]],
    *,
    prompt_tokens: int | None,
) -> dict[str, Any]:
    """What one problem gave by one method and size, as it is kept until the run is whole."""
    about: dict[str, Any] = {
        "id": problem.id,
        "problem": problem.text,
        "gold": problem.answer,
        "method": method,
        "n": n,
    }
    about |= {} if problem.prompt is None else {PROMPT_TEXT: problem.prompt}
    return {**about, "prompt_tokens": prompt_tokens, "spent": dict(spent), "samples": list(samples)}


def final_answer(problem: Problem, text: str, verifier: object = None) -> str | None:
    """The final answer in normal form, by which votes are counted; None without one, and for programs."""
    found = (
        extract_answer(text, extraction=getattr(verifier, "extraction", EXTRACTION)) if problem.tests is None else None
    )
    return None if found is None else normalise(found)


def _same_tokens(one: ChatCodec, other: ChatCodec) -> bool:
    return one.eos_ids == other.eos_ids and one.tokenizer.get_vocab() == other.tokenizer.get_vocab()


def _sizes(ends: Sequence[int]) -> list[int]:
    return [end - start for start, end in zip((0, *ends[:-1]), ends, strict=True)]
