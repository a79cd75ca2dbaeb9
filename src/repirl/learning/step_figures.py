"""The figures of a validation by labelled steps, as metric objects that add up over batches and ranks."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from repirl.data.mixture import AVERAGE
from repirl.data.step_rows import LabelledRows
from repirl.distributed import gather_objects
from repirl.metrics.accumulate import AUROC, FirstErrorAccuracy, MeanOfKnown
from repirl.metrics.process_bench import NO_ERROR, ProcessBench
from repirl.objectives.prm import step_cross_entropy_coefficients

THRESHOLD = 0.0  # a step reward below it says that the step is wrong with probability above 1/2
_PART = "all"


class _OfOneSet(nn.Module):
    """The metrics of one set."""

    def __init__(self) -> None:
        super().__init__()
        self.loss, self.auroc = MeanOfKnown(), AUROC()
        self.first_error, self.bench = FirstErrorAccuracy(), ProcessBench(THRESHOLD, [_PART])

    def update(self, given: LabelledRows, rewards: Float[Tensor, "rows time"]) -> None:
        ends, wrong, whole = given.ends, given.is_wrong, given.whole
        loss = step_cross_entropy_coefficients(
            rewards=rewards, labels=given.targets, ends=ends, response_mask=given.rows.response_mask
        )
        self.loss.update(loss.loss, weights=torch.tensor(loss.cells))
        self.auroc.update(-rewards[ends], wrong[ends])
        # Where labels end at the first wrong step it is the last of those that are read, and falling rewards would find it.
        self.first_error.update(step_rewards=rewards[whole], step_mask=ends[whole], is_wrong=wrong[whole])
        first = torch.where(wrong.any(-1), wrong.int().argmax(-1), NO_ERROR)
        self.bench.update(_PART, step_rewards=rewards, step_mask=ends, first_error=first)

    def computed(self) -> dict[str, float]:
        bench = {name.removeprefix(f"{_PART}/"): value for name, value in self.bench.compute().items()}
        found: dict[str, Tensor] = {
            "loss": self.loss.compute(),
            "wrong_step_auroc": self.auroc.compute(),
            "first_error_accuracy": self.first_error.compute(),
            **{name: bench[name] for name in ("f1", "accuracy_erroneous", "accuracy_correct") if name in bench},
        }
        return {name: float(value) for name, value in found.items()}


class StepFigures(nn.Module):
    """Loss, AUROC of wrong steps, accuracy of the first error, and ProcessBench's figures, of each set.

    A step is held for wrong where its reward is below 0. The accuracy of the first error is over solutions whose labels
    go on after it. A figure of nothing is left out. Of several sets there are means.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sets = nn.ModuleDict()

    def reset(self) -> None:
        """Forgets what was added."""
        self.sets = nn.ModuleDict()

    def update(self, dataset: str, given: LabelledRows, rewards: Float[Tensor, "rows time"]) -> None:
        """Adds solutions of a set, with the reward of each labelled step at its last token."""
        self._of(dataset).to(rewards.device).update(given, rewards)

    def results(self) -> dict[str, float]:
        """All figures over all ranks, by name. Every rank must call it; one may not have met every set."""
        names = sorted(set(gather_objects([key.removeprefix(_PREFIX) for key in self.sets])))
        of_sets = {name: self._of(name).computed() for name in names}
        found = {f"{name}/{key}" if name else key: v for name, one in of_sets.items() for key, v in one.items()}
        if len(of_sets) > 1:
            keys = list(dict.fromkeys(key for one in of_sets.values() for key in one))
            values = {key: [one.get(key, math.nan) for one in of_sets.values()] for key in keys}
            found |= {f"{AVERAGE}/{key}": sum(some) / len(some) for key, some in values.items()}
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def _of(self, dataset: str) -> _OfOneSet:
        key = _PREFIX + dataset
        if key not in self.sets:
            self.sets[key] = _OfOneSet()
        found = self.sets[key]
        assert isinstance(found, _OfOneSet)
        return found


_PREFIX = "set "
"""Names of modules must not be empty, nor those of a module's own attributes."""
