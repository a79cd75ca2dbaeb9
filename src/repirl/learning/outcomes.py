"""Where outcome rewards come from: gold answers, the majority of a prompt's own rollouts, or nowhere.

The verifier is asked in all three cases, where there is one: what it says is logged. Only with `gold` is it learned from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from repirl.learning.actor import Actor, outcome_of
from repirl.metrics.answers import majority_vote
from repirl.structs import Problem, Verdict
from repirl.verifiers.answers import extract_answer, normalise

Outcomes = Literal["gold", "majority", "withheld"]
"""`gold`: the verifier's word. `majority`: agreement with the most frequent answer. `withheld`: none is given."""


def are_given(outcomes: Outcomes, *, verified: bool) -> bool:
    """Whether training has outcomes. verified: there is a verifier."""
    return outcomes == "majority" or (outcomes == "gold" and verified)


def verdicts_on(
    outcomes: Outcomes, actor: Actor, problems: Sequence[Problem], texts: Sequence[Sequence[str]]
) -> list[list[Verdict | None]]:
    """A verdict for each text of each problem; None without a verifier.

    With `gold` every problem needs what the verifier compares with, which raises ValueError where it is missing. With the
    others nothing rests on the verdicts, and they are None for a problem without answer and tests.
    """
    if outcomes == "gold":
        return actor.verify(problems, texts)
    known = [problem.answer is not None or problem.tests is not None for problem in problems]
    asked = [row if has else [] for row, has in zip(texts, known, strict=True)]
    verdicts = actor.verify(problems, asked)
    return [v if has else [None] * len(row) for v, row, has in zip(verdicts, texts, known, strict=True)]


def outcomes_of(
    outcomes: Outcomes,
    problems: Sequence[Problem],
    texts: Sequence[Sequence[str]],
    verdicts: Sequence[Sequence[Verdict | None]],
) -> list[list[float]]:
    """What training takes for the outcome of each text of each problem: 1 right, 0 wrong, NaN unknown.

    Raises ValueError where the majority is asked of a problem whose answers are programs.
    """
    if outcomes == "gold":
        return [[outcome_of(verdict) for verdict in row] for row in verdicts]
    if outcomes == "withheld":
        return [[math.nan] * len(row) for row in texts]
    for problem in problems:
        if problem.tests is not None:
            raise ValueError(
                f"problem {problem.id!r} asks for a program, and programs have no majority: leave such problems out, or "
                "set model.outcomes to gold or withheld"
            )
    return [majority_outcomes([answer_in(text) for text in row]) for row in texts]


def answer_in(text: str) -> str | None:
    """The final answer of a response in normal form (verifiers/answers.py); None where there is none."""
    found = extract_answer(text)
    return (normalise(found) or None) if found else None


def majority_outcomes(answers: Sequence[str | None]) -> list[float]:
    """1 for each answer that equals the most frequent one, else 0: TTRL's reward (Zuo et al. 2025, arXiv 2504.16084).

    r_k = 1[a_k = argmax_a sum_k' 1[a_k' = a]] over one prompt's rollouts. None, no answer, has no vote and is 0; where
    there is no answer at all, all are 0. Of equally frequent answers the one that was sampled first is taken.
    """
    winner = majority_vote(answers)
    return [float(winner is not None and answer == answers[winner]) for answer in answers]
