"""From answers with verdicts to rows of experts, and what they cost. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from repirl.data.code import written_tests
from repirl.structs import Problem

Record = Mapping[str, Any]
Outcome = Literal["expert", "unfinished", "empty", "duplicate", "wrong", "undecided"]
OUTCOMES: tuple[Outcome, ...] = ("expert", "unfinished", "empty", "duplicate", "wrong", "undecided")
FINISHED = ("stop", "eos_token", "stop_sequence", "end_turn")  # finish reasons of a whole answer, as servers write them


def is_whole(answer: Record) -> bool:
    """Whether it ended by itself and has words: only such an answer is verified."""
    return answer["finish_reason"] in FINISHED and bool(answer["text"].strip())


def outcomes_of(answers: Sequence[Record], verdicts: Mapping[tuple[str, int], Record], keep: str) -> list[Outcome]:
    """What each answer is, in order; the first of several equal ones counts.

    verdicts: by id and number, where an answer was verified. keep: `right` or `all`.
    """
    seen: set[tuple[str, str]] = set()
    return [_outcome(one, verdicts.get((one["id"], one["sample"])), keep, seen) for one in answers]


def _outcome(answer: Record, verdict: Record | None, keep: str, seen: set[tuple[str, str]]) -> Outcome:
    if not answer["text"].strip():
        return "empty"
    if not is_whole(answer):
        return "unfinished"
    key = answer["id"], normalised(answer["text"])
    if key in seen:
        return "duplicate"
    seen.add(key)
    right = None if verdict is None else verdict["right"]
    if right or keep == "all":
        return "expert"
    return "undecided" if right is None else "wrong"


def normalised(text: str) -> str:
    """The text in small letters, with one space for any white space: what two answers are compared by."""
    return " ".join(text.casefold().split())


def row_of(
    problem: Problem, answer: Record, verdict: Record | None, *, about: Record, contaminated: Mapping[str, str]
) -> dict[str, Any]:
    """A row of experts as repirl.data.sources.Table reads it.

    about: what holds of all answers. contaminated: name of a set -> id of its problem that this one is.
    """
    gold = {} if problem.answer is None else {"answer": problem.answer}
    prompt = {} if problem.prompt is None else {"prompt": problem.prompt}
    return {
        "id": problem.id,
        "problem": problem.text,
        **gold,
        **written_tests(problem.tests),
        "solution": answer["text"].strip(),
        "right": None if verdict is None else verdict["right"],
        **({"contaminated": dict(contaminated)} if contaminated else {}),
        "provenance": {
            **about,
            "model": answer["model"] or about["model"],
            "sample": answer["sample"],
            "status": None if verdict is None else verdict["status"],
            **{
                name: answer[name]
                for name in ("time", "finish_reason", "prompt_tokens", "completion_tokens", "attempts")
            },
            **prompt,
        },
    }


def counts_of(
    answers: Sequence[Record], verdicts: Mapping[tuple[str, int], Record], outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """How many answers became what, and why."""
    counted = Counter(outcomes)
    return {
        "received": len(answers),
        **{name: counted[name] for name in OUTCOMES},
        "right": sum(bool(verdict["right"]) for verdict in verdicts.values()),
        "by_status": dict(Counter(verdict["status"] for verdict in verdicts.values())),
        "by_finish_reason": dict(Counter(str(answer["finish_reason"]) for answer in answers)),
        "attempts": sum(answer["attempts"] for answer in answers),
    }


def cost_of(
    answers: Sequence[Record], experts: int, *, price_prompt: float | None, price_completion: float | None
) -> dict[str, Any]:
    """Tokens, and their cost at prices of a million; without a price the cost is None.

    An answer whose tokens the endpoint did not count adds none.
    """
    prompt = sum(answer["prompt_tokens"] or 0 for answer in answers)
    completion = sum(answer["completion_tokens"] or 0 for answer in answers)
    without = sum(answer["prompt_tokens"] is None or answer["completion_tokens"] is None for answer in answers)
    cost = None
    if price_prompt is not None and price_completion is not None:
        cost = (prompt * price_prompt + completion * price_completion) / 1e6
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "answers_without_count": without,
        "price_prompt": price_prompt,
        "price_completion": price_completion,
        "cost": cost,
        "cost_per_expert": None if cost is None or not experts else cost / experts,
    }
