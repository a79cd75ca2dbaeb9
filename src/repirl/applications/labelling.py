"""Labels of steps by completions from them (Math-Shepherd, arXiv 2312.08935): a step is as good as what it leads to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from repirl.data.codec import ChatCodec
from repirl.data.fields import PROMPT_TEXT
from repirl.data.step_rows import step_ends_of, step_places
from repirl.data.steps import join_steps
from repirl.learning.actor import Actor
from repirl.rollout.transformers import row_seed
from repirl.structs import Problem, WrittenSolution


@dataclass(frozen=True)
class Task:
    """A solution to be labelled, in tokens.

    number: its row and its place in it, by which it is seeded. token_ids: of the response, the end token last.
    ends: the number of tokens up to the end of each step.
    """

    problem: Problem
    solution: WrittenSolution
    number: tuple[int, int]
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    ends: tuple[int, ...]


@dataclass
class _Counts:
    """What is known of a solution so far: of each step its completions with a verdict, and the right ones of them."""

    completions: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    generated: int = 0
    read: int = 0


def task_of(problem: Problem, solution: WrittenSolution, number: tuple[int, int], codec: ChatCodec) -> Task:
    """The solution in tokens, tokenised once as a whole: beginnings of it are beginnings of these tokens.

    Raises:
        ValueError: a step has no token of its own, or the text cannot be encoded.
    """
    ids = codec.encode_response(solution.text)  # first: what it refuses, the tokenizers library does not explain
    last = step_ends_of(step_places(solution, codec), len(solution.steps))
    if last is None:
        raise ValueError("a step has no token of its own: this tokenizer joins it to the step before; cut otherwise")
    return Task(problem, solution, number, codec.encode_prompt(problem.asked), ids, tuple(end + 1 for end in last))


class Labeller:
    """A policy that completes solutions from the end of each step, and a verifier that judges what comes of it.

    Args:
        actor: policy, codec, generator and verifier, loaded.
        completions: of each step but the last.
        temperature: of the completions.
        stop_after_wrong: whether what follows a step without a right completion is held for wrong without sampling.
        seed: of the completions, which depend on it, the solution's number and the step alone.
    """

    def __init__(
        self, actor: Actor, *, completions: int, temperature: float, stop_after_wrong: bool, seed: int
    ) -> None:
        self.actor, self.completions, self.temperature = actor, completions, temperature
        self.stop_after_wrong, self.seed = stop_after_wrong, seed

    def labelled(self, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """A record of each solution: labels, counts, costs. `labels` is null where no verdict is known of a step."""
        verdicts = self.actor.verify([task.problem for task in tasks], [[task.solution.text] for task in tasks])
        judged = [verdict for (verdict,) in verdicts]
        counts = [_Counts() for _ in tasks]
        known = [i for i, verdict in enumerate(judged) if verdict is not None and verdict.correct is not None]
        for step in range(max((len(task.ends) for task in tasks), default=1) - 1):
            going_on = [i for i in known if step < len(tasks[i].ends) - 1]
            asked = [i for i in going_on if not (self.stop_after_wrong and _hopeless(counts[i]))]
            for i in set(going_on) - set(asked):
                counts[i].completions.append(0)
                counts[i].right.append(0)
            self._complete([tasks[i] for i in asked], [counts[i] for i in asked], step)
        records = []
        for task, count, verdict in zip(tasks, counts, judged, strict=True):
            correct = None if verdict is None else verdict.correct
            records.append(
                _record(task, count, correct, None if verdict is None else verdict.status, self.stop_after_wrong)
            )
        return records

    def _complete(self, tasks: Sequence[Task], counts: Sequence[_Counts], step: int) -> None:
        """Adds the completions from the end of this step of each."""
        if not tasks:
            return
        begun = [task.token_ids[: task.ends[step]] for task in tasks]
        most = self.actor.text.max_response_tokens
        rows = self.actor.rollout.generate(
            [(*task.prompt_ids, *ids) for task, ids in zip(tasks, begun, strict=True)],
            samples=self.completions,
            seeds=[row_seed(self.seed, *task.number, step) for task in tasks],
            temperature=self.temperature,
            limits=[most - len(ids) for ids in begun],
        )
        texts = [
            [self.actor.codec.decode((*ids, *response.token_ids)) for response in row]
            for ids, row in zip(begun, rows, strict=True)
        ]
        verdicts = self.actor.verify([task.problem for task in tasks], texts)
        for task, ids, count, row, given in zip(tasks, begun, counts, rows, verdicts, strict=True):
            known = [verdict.correct for verdict in given if verdict is not None and verdict.correct is not None]
            count.completions.append(len(known))
            count.right.append(sum(known))
            count.generated += sum(len(response.token_ids) for response in row)
            count.read += len(task.prompt_ids) + len(ids)


def _hopeless(count: _Counts) -> bool:
    """Whether the newest step has no right completion."""
    return bool(count.right) and not count.right[-1]


def _record(
    task: Task, count: _Counts, correct: bool | None, status: str | None, stopped_after_wrong: bool
) -> dict[str, Any]:
    """What the output says of a solution. The last step's only completion is the solution itself."""
    record: dict[str, Any] = {
        "id": task.problem.id,
        "row": task.number[0],
        "sample": task.number[1],
        "problem": task.problem.text,
        **({} if task.problem.prompt is None else {PROMPT_TEXT: task.problem.prompt}),
        "gold": task.problem.answer,
        "steps": list(task.solution.steps),
    }
    if join_steps(task.solution.steps) != task.solution.steps:
        record["solution"] = task.solution.text  # else a reader would put newlines between the steps
    right, completions = [*count.right, int(bool(correct))], [*count.completions, 1]
    shares = [0.0 if not of else n / of for n, of in zip(right, completions, strict=True)]
    unknown = correct is None or any(_is_unknown(count, step, stopped_after_wrong) for step in range(len(count.right)))
    record |= {
        "labels": None if unknown else [bool(n) for n in right],
        "soft_labels": None if unknown else shares,
        "right": None if correct is None else right,
        "completions": None if correct is None else completions,
        "status": status,
        "generated_tokens": count.generated,
        "policy_tokens": count.read + count.generated,
    }
    return record


def _is_unknown(count: _Counts, step: int, stopped_after_wrong: bool) -> bool:
    """Whether no completion of the step has a verdict, though some were sampled."""
    stopped = stopped_after_wrong and any(not right for right in count.right[:step])
    return not count.completions[step] and not stopped
