"""Answers to problems, from an endpoint or from a policy in this process, as they come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from repirl import config
from repirl.applications.experts_settings import Experts
from repirl.applications.settings import given_text
from repirl.applications.trained import check_device, opened
from repirl.learning.actor import Actor
from repirl.learning.evaluation import number_of
from repirl.learning.settings import Text
from repirl.progress.count import Count
from repirl.rollout.endpoint import NoAnswer, Refused, in_threads
from repirl.rollout.openai import ChatAnswer, ChatEndpoint
from repirl.rollout.transformers import InProcess
from repirl.structs import Problem, Prompt, Response

GIVE_UP = 5  # problems in a row without an answer
Wanted = tuple[Problem, int]
"""A problem and the number of one of its answers."""
Record = dict[str, Any]
Write = Callable[[Sequence[Record]], None]


@dataclass(frozen=True, slots=True)
class Missing:
    """An answer that the endpoint does not give."""

    id: str
    sample: int
    why: str


def endpoint_of(asked: Experts) -> ChatEndpoint:
    """The endpoint that is asked for. Raises ValueError."""
    assert asked.base_url is not None
    assert asked.model is not None
    text = asked.text or Text()
    return ChatEndpoint(
        asked.base_url,
        asked.model,
        temperature=asked.temperature,
        top_p=asked.top_p,
        max_tokens=text.max_response_tokens if asked.max_tokens is None else asked.max_tokens,
        max_tokens_field=asked.max_tokens_field,
        extra=asked.extra,
        api_key_env=asked.api_key_env,
        requests_per_minute=asked.requests_per_minute,
        timeout_s=asked.timeout_s,
        retries=asked.retries,
    )


def messages_of(problem: Problem, instruction: str, system: str | None) -> list[dict[str, str]]:
    """The conversation that an endpoint answers."""
    user = {"role": "user", "content": problem.asked + instruction}
    return [user] if system is None else [{"role": "system", "content": system}, user]


def ask_endpoint(asked: Experts, endpoint: ChatEndpoint, wanted: Sequence[Wanted], write: Write) -> list[Missing]:
    """Writes each answer when it comes; returns those that did not come.

    Raises:
        ValueError: the endpoint refuses, or gave none to several problems in a row. What came was written.
    """
    instruction = (asked.text or Text()).instruction

    def ask(one: Wanted) -> ChatAnswer:
        return endpoint.ask(messages_of(one[0], instruction, asked.system))

    missing: list[Missing] = []
    patience = _Patience(accepts_one=asked.missing == "accept")
    with Count("experts", "answers", len(wanted)) as count:
        for result in in_threads(ask, wanted, patience.ends, concurrent=asked.concurrent, stop=endpoint.stop):
            count.show(f"last failure: {endpoint.last_failure}" if endpoint.last_failure else "")
            if result is None:
                continue
            (problem, sample), answer = result
            if isinstance(answer, ChatAnswer):
                write([_record(problem, sample, answer)])
                count.done += 1
            elif isinstance(answer, (Refused, NoAnswer)):
                missing.append(Missing(problem.id, sample, str(answer)))
            else:
                raise answer
    if patience.ended_by is not None:
        raise ValueError(patience.ended_by)
    return missing


class _Patience:
    """Whether an endpoint is asked any further. Threads ask one after another.

    accepts_one: a refusal of one request alone ends nothing.
    ended_by: the problem and the reason; None where it goes on.
    """

    def __init__(self, *, accepts_one: bool) -> None:
        self.accepts_one = accepts_one
        self.ended_by: str | None = None
        self._in_a_row: set[str] = set()
        self._lock = threading.Lock()

    def ends(self, one: Wanted, answer: ChatAnswer | Exception) -> bool:
        """Whether nothing more is to be asked after this answer."""
        with self._lock:
            if isinstance(answer, ChatAnswer):
                self._in_a_row.clear()
                return False
            problem, _ = one
            self._in_a_row.add(problem.id)
            passes = isinstance(answer, NoAnswer) or (
                isinstance(answer, Refused) and answer.of_one_request and self.accepts_one
            )
            if passes and len(self._in_a_row) < GIVE_UP:
                return False
            self.ended_by = self.ended_by or f"problem {problem.id!r}: {answer}"
            return True


def _record(problem: Problem, sample: int, answer: ChatAnswer) -> Record:
    return {
        "id": problem.id,
        "sample": sample,
        "text": answer.text,
        "reasoning": answer.reasoning,
        "finish_reason": answer.finish_reason,
        "model": answer.model,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "attempts": answer.attempts,
        "time": now(),
    }


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


# ---- in this process ----


def policy_of(asked: Experts, given: config.Config) -> Actor:
    """The policy that is asked for, loaded. Raises ValueError."""
    check_device(asked.device)
    trained = opened(asked.checkpoint, asked.policy, given_text(asked.text, given))
    actor = Actor(trained.policy.to(asked.device), trained.text, asked.rollout or InProcess(), None)
    actor.load()
    return actor


def ask_policy(
    asked: Experts, actor: Actor, prompts: Sequence[Prompt], known: frozenset[tuple[str, int]], write: Write
) -> None:
    """Writes the answers that are not known yet, some problems at a time. They depend on seed and problem alone."""
    left = [prompt for prompt in prompts if any((prompt.problem.id, k) not in known for k in range(asked.n))]
    temperature = 1.0 if asked.temperature is None else asked.temperature
    with Count("experts", "answers", len(left) * asked.n) as count:
        for first in range(0, len(left), asked.problems_at_once):
            chosen = left[first : first + asked.problems_at_once]
            numbers = [number_of(prompt) for prompt in chosen]
            rows = actor.sample(chosen, numbers, samples=asked.n, key=(asked.seed,), temperature=temperature)
            write(
                [
                    _record(prompt.problem, k, _answer(prompt, response, asked.policy or asked.checkpoint))
                    for prompt, row in zip(chosen, rows, strict=True)
                    for k, response in enumerate(row)
                    if (prompt.problem.id, k) not in known
                ]
            )
            count.done += len(chosen) * asked.n
            count.show()


def _answer(prompt: Prompt, response: Response, model: str | None) -> ChatAnswer:
    return ChatAnswer(
        text=response.text,
        reasoning=None,
        finish_reason="stop" if response.finished else "length",
        model=model,
        prompt_tokens=len(prompt.token_ids),
        completion_tokens=len(response.token_ids),
        attempts=1,
    )
