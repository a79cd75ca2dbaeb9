"""What is found when a policy answers problems: in validation and test, and in prediction."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from repirl.distributed import gather_objects, rank, world_size
from repirl.learning.actor import Actor
from repirl.learning.figures import EvaluationFigures
from repirl.learning.records import Answer, ProblemRecord
from repirl.structs import Prompt, Response, Verdict
from repirl.verifiers.answers import extract_answer, normalise
from repirl.verifiers.format import has_answer

Scores = Callable[[list[Prompt], list[Response]], Sequence[float] | None]


class Evaluation:
    """Answers an evaluation's problems, greedily and by sampling, and keeps what was found of each.

    figures: what follows from it, as metric objects.
    """

    def __init__(self) -> None:
        self.figures = EvaluationFigures()
        self._records: list[ProblemRecord] = []

    def start(self) -> None:
        """Forgets what was added."""
        self._records = []
        self.figures.reset()

    def add(
        self,
        actor: Actor,
        prompts: list[Prompt],
        batch_index: int,
        samples: int,
        seed: int,
        temperature: float = 1.0,
        scores: Scores | None = None,
    ) -> None:
        """Answers the prompts greedily and `samples` times at `temperature`.

        What is sampled depends on the seed and the problem alone: not on the batch, the ranks, or other problems.
        """
        if not prompts:
            return
        seeds = [number_of(prompt) for prompt in prompts]
        greedy = _answered(actor, prompts, actor.sample(prompts, seeds, samples=1, key=(seed,), temperature=0.0))
        sampled: list[list[Answer]] = [[] for _ in prompts]
        if samples:
            rows = actor.sample(prompts, seeds, samples=samples, key=(seed,), temperature=temperature)
            sampled = _answered(actor, prompts, rows, scores)
        records = [
            ProblemRecord(
                place=(batch_index, index * world_size() + rank()),
                dataset=prompt.dataset,
                id=prompt.problem.id,
                problem=prompt.problem.text,
                gold=prompt.problem.answer,
                votes=prompt.problem.tests is None,
                greedy=greedy[index][0],
                samples=tuple(sampled[index]),
            )
            for index, prompt in enumerate(prompts)
        ]
        self._records += records
        self.figures.update(records)

    def records(self) -> list[ProblemRecord]:
        """Those of all ranks, in the order of the data. All ranks must call it."""
        return sorted(gather_objects(self._records), key=lambda record: record.place)


def number_of(prompt: Prompt) -> int:
    """A number that stands for the problem in its data set."""
    name = f"{prompt.dataset}/{prompt.problem.id}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=6).digest(), "little")


def _answered(
    actor: Actor, prompts: list[Prompt], rows: list[list[Response]], scores: Scores | None = None
) -> list[list[Answer]]:
    """The responses to each prompt, judged, and scored where `scores` does."""
    verdicts = actor.verify([prompt.problem for prompt in prompts], [[r.text for r in row] for row in rows])
    flat = [(prompt, response) for prompt, row in zip(prompts, rows, strict=True) for response in row]
    scored = None if scores is None else scores([prompt for prompt, _ in flat], [response for _, response in flat])
    rewards = iter([None] * len(flat) if scored is None else scored)
    return [
        [_answer(prompt, r, v, next(rewards)) for r, v in zip(row, judged, strict=True)]
        for prompt, row, judged in zip(prompts, rows, verdicts, strict=True)
    ]


def _answer(prompt: Prompt, response: Response, verdict: Verdict | None, reward: float | None) -> Answer:
    final = extract_answer(response.text) if prompt.problem.tests is None else None
    return Answer(
        response=response.text,
        answer=None if final is None else normalise(final),
        correct=None if verdict is None else verdict.correct,
        status=None if verdict is None else verdict.status,
        tokens=len(response.token_ids),
        finished=response.finished,
        readable=has_answer(response.text) if verdict is None else verdict.status != "no_answer",
        prm_mean_reward=reward,
    )


def predict(
    actor: Actor,
    prompts: list[Prompt],
    token_rewards: Callable[[list[Prompt], list[Response]], list[list[float]] | None] | None = None,
) -> list[dict[str, Any]]:
    """One record a problem: the greedy response, its verdict where an answer or tests are known, its token rewards."""
    responses = [row[0] for row in actor.sample(prompts, range(len(prompts)), samples=1, key=(0,), temperature=0.0)]
    rewards = None if token_rewards is None or not prompts else token_rewards(prompts, responses)
    known = [p.problem.answer is not None or p.problem.tests is not None for p in prompts]
    texts = [[response.text] if has else [] for response, has in zip(responses, known, strict=True)]
    verdicts = actor.verify([prompt.problem for prompt in prompts], texts)
    records = []
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        verdict = verdicts[i][0] if known[i] else None
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
