"""ProcessBench (arXiv 2412.06559): does a PRM find the first wrong step, and does it leave right solutions alone?

Labels are human: `first_error` is the index of the first wrong step from 0, -1 where all steps are right. The benchmark's
figure of a part is the harmonic mean of the accuracies on erroneous and on correct solutions; its total is the plain mean
over the parts, whatever their sizes.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from repirl.metrics.accumulate import Accumulator

NO_ERROR = -1


def first_below(
    step_rewards: Float[Tensor, "solutions steps"], step_mask: Bool[Tensor, "solutions steps"], threshold: float
) -> Int[Tensor, " solutions"]:
    """Index of the first step whose reward is below the threshold; -1 where there is none."""
    below = (step_rewards < threshold) & step_mask
    return torch.where(below.any(-1), below.int().argmax(-1), NO_ERROR)


def process_bench_figures(
    *, predicted: Int[Tensor, " solutions"], first_error: Int[Tensor, " solutions"]
) -> dict[str, Tensor]:
    """Accuracy on erroneous and on correct solutions, and their harmonic mean.

    An erroneous solution counts only where the very step is named. A figure is NaN where its solutions are missing.
    """
    hit = (predicted == first_error).double()
    flawed = first_error != NO_ERROR
    erroneous, correct = hit[flawed].mean(), hit[~flawed].mean()
    return {"accuracy_erroneous": erroneous, "accuracy_correct": correct, "f1": harmonic_mean(erroneous, correct)}


def harmonic_mean(first: Float[Tensor, "*n"], second: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """2ab / (a + b), 0 where both are 0."""
    total = first + second
    return torch.where(total == 0, total, 2 * first * second / total)


def choose_threshold(
    *,
    step_rewards: Float[Tensor, "solutions steps"],
    step_mask: Bool[Tensor, "solutions steps"],
    first_error: Int[Tensor, " solutions"],
) -> float:
    """The threshold of the highest F1; the lowest of several. Use it on a part that is not reported, or say that it is.

    The threshold t names solution's step e exactly where reward[e] < t <= all rewards before, and nothing where t <= all
    rewards: an interval for each solution. F1 is highest where such an interval ends; the threshold is put midway from
    there to the next value below at which anything changes.

    Raises ValueError without an erroneous or without a correct solution: one of them alone is served by any extreme.
    """
    flawed = first_error != NO_ERROR
    if not flawed.any() or flawed.all():
        raise ValueError(
            "choose_threshold: needs solutions with and without a wrong step, and these have "
            f"{int(flawed.sum())} with and {int((~flawed).sum())} without; take the threshold from another set"
        )
    rewards = step_rewards.double()
    place = torch.arange(rewards.shape[-1], device=rewards.device)
    before = step_mask & ((place < first_error[:, None]) | ~flawed[:, None])
    high = rewards.masked_fill(~before, math.inf).amin(-1)  # inf where the first step is the wrong one
    low = rewards.gather(-1, first_error.clamp(min=0)[:, None])[:, 0].masked_fill(~flawed, -math.inf)
    possible = low < high
    f1 = {}
    ends = torch.cat([low[possible], high[possible]]).unique()
    ends = ends[ends > -math.inf]
    for kind, of_kind in (("erroneous", flawed), ("correct", ~flawed)):
        starts, stops = low[of_kind & possible].sort().values, high[of_kind & possible].sort().values
        covered = torch.searchsorted(starts, ends) - torch.searchsorted(stops, ends)  # starts < t, less stops < t
        f1[kind] = covered.double() / of_kind.sum()
    best = int(harmonic_mean(f1["erroneous"], f1["correct"]).argmax())
    return _midway(float(ends[best - 1]) if best else -math.inf, float(ends[best]))


def _midway(low: float, high: float) -> float:
    """A threshold in (low, high]."""
    if math.isinf(low) or math.isinf(high):
        return high if math.isinf(low) else low + 1.0
    middle = low + (high - low) / 2
    return middle if middle > low else high


class ProcessBench(Accumulator):
    """ProcessBench's figures over parts, by a fixed threshold.

    Args:
        threshold: a step whose reward is below it is held for wrong (`choose_threshold`).
        parts: their names, such as gsm8k, math, olympiadbench, omnimath.
    """

    hits: Tensor
    count: Tensor

    def __init__(self, threshold: float, parts: Sequence[str]) -> None:
        super().__init__()
        if math.isnan(threshold) or not parts or len(set(parts)) < len(parts):
            raise ValueError(f"ProcessBench: needs a threshold and distinct parts, not {threshold} and {list(parts)}")
        self.threshold, self.parts = threshold, tuple(parts)
        for name in ("hits", "count"):  # of each part: erroneous, correct
            self.add_state(name, torch.zeros(len(parts), 2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        part: str,
        *,
        step_rewards: Float[Tensor, "solutions steps"],
        step_mask: Bool[Tensor, "solutions steps"],
        first_error: Int[Tensor, " solutions"],
    ) -> None:
        """Adds solutions of a part."""
        hit = first_below(step_rewards, step_mask, self.threshold) == first_error
        row = self.parts.index(part)
        for column, kind in enumerate((first_error != NO_ERROR, first_error == NO_ERROR)):
            self.hits[row, column] += (hit & kind).sum()
            self.count[row, column] += kind.sum()

    def compute(self) -> dict[str, Tensor]:
        """`<part>/accuracy_erroneous`, `<part>/accuracy_correct`, `<part>/f1`; `mean_f1` over the parts that have rows."""
        accuracy = self.hits / self.count
        f1 = harmonic_mean(accuracy[:, 0], accuracy[:, 1])
        seen = self.count.sum(-1) > 0
        figures = {"mean_f1": f1[seen].mean()}
        for row, part in enumerate(self.parts):
            if seen[row]:
                figures[f"{part}/accuracy_erroneous"], figures[f"{part}/accuracy_correct"] = accuracy[row]
                figures[f"{part}/f1"] = f1[row]
        return figures
