"""Solutions that are there already, as `repirl search` takes them in the place of samples of its own."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repirl.applications.scoring import Scorer
from repirl.applications.searching import SAMPLED, SEARCHED, UNREAD, Rewards, TooLong, final_answer, rewards_of, unit_of
from repirl.data.fields import as_scalar, as_text, cut, optional, prompt_text, shown
from repirl.data.sources import read_plain
from repirl.data.steps import By, split_steps
from repirl.data.tables import read_table
from repirl.structs import Problem, Verifier, WrittenSolution


@dataclass(frozen=True)
class Stored:
    """A solution of a problem, with what its row says of it. steps: empty for a response without words."""

    problem: Problem
    steps: tuple[str, ...]
    row: Mapping[str, Any]

    @property
    def written(self) -> WrittenSolution:
        """For a PRM that reads words."""
        ended = self.row.get("finished") is not False
        return WrittenSolution(self.problem.text, self.steps, ended=ended, prompt=self.problem.prompt)


def read_stored(path: str, by: By | re.Pattern[str]) -> list[list[Stored]]:
    """The solutions of each problem, in the order of the file.

    A row has a `problem` with `solution`, `solutions` or `steps`; the gold answer as `gold`, else as `answer`, or no gold
    answer and a verdict as `right`. Rows that `repirl score` or a search has written hold `step_rewards`; their steps
    joined are the solution. Beams of a search are left out: they are no samples.

    Raises:
        ValueError: naming file, line and field, or there are no solutions; one id stands for two problems.
    """
    groups: dict[str, list[Stored]] = {}
    for where, row in read_table(path):
        if row.get("method") in SEARCHED:
            continue
        try:
            for one in _read_row(row, by):
                group = groups.setdefault(one.problem.id, [])
                _refuse_another(one.problem, group)
                group.append(one)
        except ValueError as error:
            raise ValueError(f"{path}, {where}: {error}") from error
    if not groups:
        raise ValueError(f"{path}: there are no solutions in it")
    return list(groups.values())


def _refuse_another(problem: Problem, group: Sequence[Stored]) -> None:
    """Raises ValueError where the solutions so far are of another problem: a choice among them would mean nothing."""
    if group and (group[0].problem.text, group[0].problem.answer) != (problem.text, problem.answer):
        raise ValueError(
            f"id {problem.id!r} stands for another problem or gold answer in an earlier row, {cut(group[0].problem.text)!r}; "
            "give each problem its own id"
        )


def _read_row(row: Mapping[str, Any], by: By | re.Pattern[str]) -> list[Stored]:
    if "step_rewards" in row:
        text, steps = as_text(row.get("problem"), "problem"), row.get("steps")
        if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
            raise ValueError("a row with step_rewards needs `steps`, a list of texts")
        _check_rewards(row["step_rewards"], len(steps))
        parts = [tuple(steps)]
    else:
        text, texts, _ = read_plain({name: value for name, value in row.items() if name != "answer"}, {})
        if not texts:
            raise ValueError(f"no solution, solutions or steps field, or null; there is {', '.join(row)}")
        parts = [split_steps(one, by) for one in texts]
    name = "gold" if "gold" in row else "answer"
    gold = None if row.get(name) is None else as_scalar(row[name], name)
    if gold is None and not isinstance(row.get("right"), bool):
        raise ValueError("no gold answer as `gold` or `answer`, and no verdict as `right`: nothing says what is right")
    given = optional(row, "id", required=False)
    problem = Problem(text if given is None else as_scalar(given, "id"), text, gold, prompt=prompt_text(row))
    return [Stored(problem, steps, row) for steps in parts]


def _check_rewards(rewards: Any, steps: int) -> None:
    """Raises ValueError unless there is a finite number for each step, or none at all (null)."""
    if rewards is None or rewards == []:  # nobody has read it, or nobody could
        return
    if not isinstance(rewards, list) or not all(_is_number(one) and math.isfinite(one) for one in rewards):
        raise ValueError(f"field 'step_rewards': found {shown(rewards)}, expected a finite number for each step")
    if len(rewards) != steps:
        raise ValueError(f"field 'step_rewards': {len(rewards)} rewards of {steps} steps; give one for each")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def stored_units(
    groups: Sequence[Sequence[Stored]],
    scorer: Scorer | None,
    verifier: Verifier,
    *,
    needs_rewards: bool,
    too_long: TooLong = "refuse",
) -> list[dict[str, Any]]:
    """The same as units of samples (searching.py), scored by the PRM; without one by the rewards in their rows.

    Raises:
        ValueError: there are neither, or a solution cannot be scored.
    """
    flat = [one for group in groups for one in group]
    rewards: list[Rewards | None] = list(_rewards(flat, scorer, too_long)) if needs_rewards else [None] * len(flat)
    judged = [one for one in flat if one.problem.answer is not None]
    verdicts = iter(verifier.verify([one.problem for one in judged], ["".join(one.steps) for one in judged]))
    left = iter(rewards)
    units = []
    for group in groups:
        samples = []
        for one in group:
            reward, verdict = next(left), next(verdicts) if one.problem.answer is not None else None
            text = "".join(one.steps)
            samples.append(
                {
                    "steps": list(one.steps),
                    "answer": final_answer(one.problem, text, verifier),
                    "right": one.row["right"] if verdict is None else verdict.correct,
                    "status": one.row.get("status") if verdict is None else verdict.status,
                    "finished": one.row.get("finished", True),
                    "step_rewards": None if reward is None else list(reward.steps),
                    "rewarded_tokens": None if reward is None else reward.rewarded,
                    "generated_tokens": _count(one.row, "generated_tokens", "tokens"),
                    "prm_tokens": None if reward is None else reward.read,
                }
            )
        spent = {
            "generated_tokens": _sum([sample["generated_tokens"] for sample in samples]),
            "policy_tokens": None,
            "prm_tokens": _sum([sample["prm_tokens"] for sample in samples]),
        }
        units.append(
            unit_of(
                group[0].problem,
                SAMPLED,
                len(samples),
                spent,
                samples,
                prompt_tokens=group[0].row.get("prompt_tokens"),
            )
        )
    return units


def _rewards(flat: Sequence[Stored], scorer: Scorer | None, too_long: TooLong) -> list[Rewards]:
    if scorer is not None:
        some = [one for one in flat if one.steps]
        found = iter(rewards_of(scorer, [one.written for one in some], too_long))
        return [next(found) if one.steps else UNREAD for one in flat]
    missing = [one for one in flat if one.steps and not _has_rewards(one.row)]
    if missing:
        raise ValueError(
            f"the solutions of problem {missing[0].problem.id!r} have no step_rewards, and no PRM is named: give `prm`, or "
            "methods that need none"
        )
    return [
        Rewards(
            tuple(map(float, one.row["step_rewards"] or ())),
            _count(one.row, "rewarded_tokens", "token_rewards"),
            _count(one.row, "prm_tokens"),
        )
        for one in flat
    ]


def _has_rewards(row: Mapping[str, Any]) -> bool:
    """Whether a PRM was asked: of a solution that it cannot read a search writes [], `score` null with a null mean."""
    return row.get("step_rewards") is not None or ("step_rewards" in row and "mean" in row)


def _count(row: Mapping[str, Any], number: str, items: str = "") -> int | None:
    """A number of tokens, where the row says it as we write it: as a number, or by a list of them; else None."""
    given, listed = row.get(number), row.get(items)
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    return (len(listed) or None) if isinstance(listed, list) else None


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
