"""What a PRM's step rewards say of solutions with labelled steps: figures, baselines, intervals, style controls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from repirl.data.flawed import Domain, flawed_twin
from repirl.data.step_labelled import LabelledSolution
from repirl.metrics.process_bench import choose_threshold, first_below, harmonic_mean, process_bench_figures
from repirl.metrics.ranking import auroc, correlation
from repirl.metrics.steps import first_error_accuracy, wrong_step_auroc
from repirl.structs import StepScorer, WrittenSolution

T = TypeVar("T")
RESAMPLES = 2000
CONTROLS = 200  # right solutions of a set that are looked at for style


@dataclass(frozen=True)
class Scored:
    """Labelled solutions in rows, their steps in columns.

    rewards: of each step. mask: True = a step. first_error: -1 where all steps are right. is_wrong, labelled: of each step.
    characters: of each step.
    """

    rewards: Tensor
    mask: Tensor
    first_error: Tensor
    is_wrong: Tensor
    labelled: Tensor
    characters: Tensor


def scored(solutions: Sequence[LabelledSolution], rewards: Sequence[Sequence[float]]) -> Scored:
    """The solutions as tensors, with one reward a step."""
    shape = len(solutions), max(len(one.solution.steps) for one in solutions)
    values, mask, wrong, labelled, characters = (torch.zeros(shape, dtype=torch.float64) for _ in range(5))
    for row, (one, given) in enumerate(zip(solutions, rewards, strict=True)):
        steps = one.solution.steps
        values[row, : len(steps)] = torch.tensor(list(given), dtype=torch.float64)
        mask[row, : len(steps)] = 1
        wrong[row, list(one.wrong_steps)] = 1
        labelled[row, : one.labelled_steps] = 1
        characters[row, : len(steps)] = torch.tensor([len(step) for step in steps], dtype=torch.float64)
    first = torch.tensor([one.first_error for one in solutions])
    return Scored(values, mask.bool(), first, wrong.bool(), labelled.bool(), characters)


def threshold_of(given: Scored) -> float:
    """The threshold of the highest F1 on these solutions."""
    return choose_threshold(step_rewards=given.rewards, step_mask=given.mask, first_error=given.first_error)


def by_length(given: Scored) -> Scored:
    """The same, scored by a baseline that has read nothing: the longer a step, the worse."""
    return replace(given, rewards=-given.characters)


def all_right(given: Scored) -> Scored:
    """The same, scored by a baseline that holds every step for right: a threshold of 0 blames none."""
    return replace(given, rewards=torch.zeros_like(given.rewards))


def figures(given: Scored, threshold: float | None) -> dict[str, float]:
    """How well the rewards find wrong steps; the accuracies and F1 need a threshold, and are left out without one.

    wrong_step_auroc: chance that a wrong step has a lower reward than a right one, of all solutions pooled.
    f1: harmonic mean of the two accuracies; like them NaN where there are only right or only erroneous solutions.
    first_error_accuracy: share of the erroneous solutions whose lowest step is the first wrong one.
    correct_solution_auroc: chance that the lowest step of a right solution is above that of an erroneous one.
    length_correlation, step_count_correlation: of a solution's mean reward with its characters and its steps.
    """
    count = given.mask.sum(-1)
    means = (given.rewards * given.mask).sum(-1) / count
    lowest = given.rewards.masked_fill(~given.mask, math.inf).amin(-1)
    kept = given.labelled & given.mask
    found = {
        "wrong_step_auroc": wrong_step_auroc(given.rewards[kept], given.is_wrong[kept]),
        "first_error_accuracy": first_error_accuracy(
            step_rewards=given.rewards, step_mask=given.mask, is_wrong=given.is_wrong
        ),
        "correct_solution_auroc": auroc(lowest, given.first_error < 0),
        "length_correlation": correlation(means, given.characters.sum(-1)),
        "step_count_correlation": correlation(means, count.double()),
    }
    if threshold is not None:
        found |= process_bench_figures(
            predicted=first_below(given.rewards, given.mask, threshold), first_error=given.first_error
        )
    return {name: float(value) for name, value in found.items()}


def f1_interval(given: Scored, threshold: float, *, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the F1 over solutions, erroneous and correct ones drawn apart."""
    hit = (first_below(given.rewards, given.mask, threshold) == given.first_error).double()
    generator = torch.Generator().manual_seed(seed)
    kinds = [hit[given.first_error >= 0], hit[given.first_error < 0]]
    if not all(len(kind) for kind in kinds):
        return math.nan, math.nan
    drawn = [kind[torch.randint(len(kind), (RESAMPLES, len(kind)), generator=generator)].mean(-1) for kind in kinds]
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = harmonic_mean(drawn[0], drawn[1]).quantile(tails).tolist()
    return low, high


def controls(
    scorer: StepScorer,
    solutions: Sequence[LabelledSolution],
    rewards: Sequence[Sequence[float]],
    *,
    domain: Domain = "prose",
    limit: int = CONTROLS,
    seed: int = 0,
    too_long: Callable[[Sequence[WrittenSolution]], Sequence[int]] = lambda solutions: (),
) -> dict[str, float]:
    """Right solutions against flawed twins of their own, and against a hollow text; shares count ties half.

    A twin has one number or operator changed (data/flawed.py): author, length and layout are the same, so that style can
    tell nothing. twin_step_wins: share of twins whose changed step has a lower reward than the step it was made of; .5 by
    chance. twin_solution_wins: the same of the solutions' lowest steps. hollow_wins: share of solutions of several steps
    whose first step, said again in the place of all others, has a higher mean reward than the solution; 0 is good.

    At most `limit` right solutions, the first ones, are looked at. Twins and hollow texts that are too long for the PRM, as
    `too_long` says by their places, are left out: a long first step said again may be.
    """
    right = [(one, given) for one, given in zip(solutions, rewards, strict=True) if one.first_error < 0][:limit]
    pairs = [(flawed_twin(one.solution, domain, seed=seed), given) for one, given in right]
    twins = [(twin, given) for twin, given in pairs if twin is not None]
    twins = _without(twins, too_long([twin.solution for twin, _ in twins]))
    of_twins = scorer.step_rewards([twin.solution for twin, _ in twins])
    hollow = [(_hollow(one.solution), given) for one, given in right if len(one.solution.steps) > 1]
    hollow = _without(hollow, too_long([text for text, _ in hollow]))
    of_hollow = scorer.step_rewards([text for text, _ in hollow])
    places = [twin.first_wrong for twin, _ in twins]
    return {
        "right_solutions": float(len(right)),
        "twins": float(len(twins)),
        "twin_step_wins": _wins(
            [(given[place], own[place]) for (_, given), own, place in zip(twins, of_twins, places, strict=True)]
        ),
        "twin_solution_wins": _wins([(min(given), min(own)) for (_, given), own in zip(twins, of_twins, strict=True)]),
        "hollow_wins": _wins([(_mean(own), _mean(given)) for (_, given), own in zip(hollow, of_hollow, strict=True)]),
    }


def expert_controls(
    scorer: StepScorer,
    solutions: Sequence[LabelledSolution],
    rewards: Sequence[Sequence[float]],
    experts: Sequence[WrittenSolution],
    *,
    too_long: Callable[[Sequence[WrittenSolution]], Sequence[int]] = lambda solutions: (),
) -> dict[str, float]:
    """Experts against right solutions of the same problem, by mean reward: both are right, so that style alone can tell.

    expert_wins: share of the pairs whose expert has the higher mean, ties counted half; .5 where the PRM does not tell them
    apart, 1 where it always prefers the expert, NaN of no pair. expert_pairs, expert_problems: how many there are.

    Every expert is paired with every right solution of its problem. Experts that are too long for the PRM, as `too_long` says
    by their places, are left out.
    """
    means: dict[str, list[float]] = {}
    for one, given in zip(solutions, rewards, strict=True):
        if one.first_error < 0:
            means.setdefault(same_problem(one.solution.problem), []).append(_mean(given))
    met = [expert for expert in experts if same_problem(expert.problem) in means]
    met = _without(met, too_long(met))
    of_experts = [
        (same_problem(one.problem), _mean(own)) for one, own in zip(met, scorer.step_rewards(met), strict=True)
    ]
    pairs = [(own, other) for problem, own in of_experts for other in means[problem]]
    return {
        "expert_wins": _wins(pairs),
        "expert_pairs": float(len(pairs)),
        "expert_problems": float(len({problem for problem, _ in of_experts})),
    }


def same_problem(text: str) -> str:
    """What two statements of one problem have in common: their words, whatever the white space between them."""
    return " ".join(text.split())


def _without(items: Sequence[T], places: Sequence[int]) -> list[T]:
    out = set(places)
    return [item for place, item in enumerate(items) if place not in out]


def _hollow(solution: WrittenSolution) -> WrittenSolution:
    first, last = solution.steps[0], len(solution.steps) - 1
    return replace(solution, steps=(*[first] * last, first.rstrip()))


def _wins(pairs: Sequence[tuple[float, float]]) -> float:
    """Share of pairs whose first is higher, ties counted half; NaN of nothing."""
    return sum((1 + (a > b) - (a < b)) / 2 for a, b in pairs) / len(pairs) if pairs else math.nan


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def report(given: Scored, threshold: float | None, length_threshold: float | None, *, seed: int) -> dict[str, Any]:
    """The figures of one set beside those of two baselines: length alone, and holding every step for right."""
    found: dict[str, Any] = {"solutions": len(given.first_error), "erroneous": int((given.first_error >= 0).sum())}
    found["prm"] = figures(given, threshold)
    if threshold is not None:
        found["prm"]["f1_low"], found["prm"]["f1_high"] = f1_interval(given, threshold, seed=seed)
    found["length_alone"] = figures(by_length(given), length_threshold)
    found["all_right"] = figures(all_right(given), 0.0)
    return found


def plain(node: Any) -> Any:
    """For JSON, which has no NaN."""
    if isinstance(node, Mapping):
        return {key: plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [plain(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node
