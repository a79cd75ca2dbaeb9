"""Figures that add up over batches and ranks: torchmetrics classes over the pure functions.

Each is used as any torchmetrics class: `update` with a batch, `compute` with all ranks, logged as an object by
`self.log("val/pass@8", metric)`. Ranks may have unequal numbers of values, or none, or never be updated. AUROC is ours
because torchmetrics takes scores outside [0, 1] for logits: its sigmoid ties large ones. So is the plain mean: torchmetrics
counts in float32, which ends at 2^24.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn
from torchmetrics import Metric

from repirl.metrics.answers import best_of_n, majority_vote, pass_at_k, weighted_vote
from repirl.metrics.calibration import brier_score, calibration_error
from repirl.metrics.comparison import bootstrap_interval
from repirl.metrics.prm import probe_figures
from repirl.metrics.ranking import auroc, auroc_within
from repirl.metrics.steps import first_error_accuracy

Answers = Sequence[Sequence[str | None]]
Outcomes = Sequence[Sequence[bool | None]]


class Accumulator(Metric):
    """A metric whose states are float64 on every rank and device, and that need not have anything to count."""

    full_state_update = False

    @property
    def dtype(self) -> torch.dtype:
        """float64. torchmetrics makes the empty state of a rank without values of it: it must be that of the others."""
        return torch.float64

    @property
    def update_called(self) -> bool:
        """True, so that nobody is warned where a rank has no values."""
        return True

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        """Moves the states and keeps their dtype: in a module cast to bfloat16 a count would stand still at 256."""

        def moved(state: Tensor) -> Tensor:
            other = fn(state)
            return other if other.dtype == state.dtype else state.to(other.device)

        return super()._apply(moved, exclude_state)

    def _joined(self, state: Tensor | list[Tensor]) -> Tensor:
        """A list state as one tensor, which it is already where ranks are synchronised."""
        if isinstance(state, Tensor):
            return state
        return torch.cat(state) if state else torch.zeros(0, dtype=torch.float64, device=self.device)


class MeanOfKnown(Accumulator):
    """Mean of all values; those that are unknown, NaN, are left out."""

    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Float[Tensor, "*rows"], weights: Num[Tensor, "*rows"] | None = None) -> None:
        """Adds values of any shape; each counts as often as its weight says, or once."""
        values = values.to(self.total)
        weights = torch.ones_like(values) if weights is None else weights.to(values)
        known = ~values.isnan()
        self.total = self.total + (values * weights)[known].sum()
        self.weight = self.weight + weights[known].sum()

    def compute(self) -> Tensor:
        """The mean; NaN where nothing is known."""
        return self.total / self.weight


class Rate(Accumulator):
    """Mean over problems, with a 95 % bootstrap interval; problems of which nothing is known, NaN, are left out."""

    values: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, values: Float[Tensor, " problems"]) -> None:
        """Adds one value a problem."""
        assert isinstance(self.values, list), "compute has ended before update"
        self.values.append(values[~values.isnan()].to(self.device, torch.float64))

    def compute(self) -> Tensor:
        """The mean; NaN where nothing is known."""
        return self._joined(self.values).mean()

    def interval(self) -> tuple[float, float]:
        """Its 95 % interval, over the problems of all ranks; every rank must call it. NaN where nothing is known."""
        with self.sync_context():
            known = self._joined(self.values)
        if not len(known):
            return math.nan, math.nan
        return bootstrap_interval(known.sort().values.cpu())  # in one order on any number of ranks: the seed is fixed


class PassAtK(Rate):
    """Chance that one of k samples is right, unbiased (`pass_at_k`); problems with fewer than k verdicts are left out."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def update(self, correct: Int[Tensor, " problems"], samples: Int[Tensor, " problems"]) -> None:  # type: ignore[override]
        """Adds problems of whose `samples` responses with a verdict `correct` are right."""
        super().update(pass_at_k(correct=correct, samples=samples, k=self.k))


class MajorityVote(Rate):
    """Share of problems whose most frequent answer is right (`majority_vote`)."""

    def update(self, answers: Answers, correct: Outcomes) -> None:  # type: ignore[override]
        """Adds problems: of each response its answer in normal form, None without one, and its verdict, None if unknown."""
        chosen = [majority_vote(row) for row in answers]
        super().update(_verdicts(chosen, correct))


class WeightedVote(Rate):
    """Share of problems whose answer with the largest sum of exp(score) is right (`weighted_vote`)."""

    def update(self, answers: Answers, scores: Sequence[Sequence[float]], correct: Outcomes) -> None:  # type: ignore[override]
        """Adds problems, as `MajorityVote` does, with a score of each response."""
        chosen = [weighted_vote(row, of_row) for row, of_row in zip(answers, scores, strict=True)]
        super().update(_verdicts(chosen, correct))


class BestOfN(Rate):
    """Share of problems whose highest-scoring response is right (`best_of_n`); ties count by their mean."""

    def update(self, scores: Float[Tensor, "problems n"], correct: Float[Tensor, "problems n"]) -> None:  # type: ignore[override]
        """Adds problems; `correct` is 1, 0 or NaN."""
        super().update(best_of_n(scores=scores, correct=correct))


class AUROC(Accumulator):
    """Probability that a positive scores higher than a negative, ties counted half, exactly (`auroc`)."""

    scores: list[Tensor] | Tensor
    positive: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("positive", [], dist_reduce_fx="cat")

    def update(self, scores: Float[Tensor, " n"], positive: Bool[Tensor, " n"]) -> None:
        """Adds scores of any size."""
        assert isinstance(self.scores, list)
        assert isinstance(self.positive, list)
        self.scores.append(scores.to(self.device, torch.float64))
        self.positive.append(positive.to(self.device, torch.float64))

    def compute(self) -> Tensor:
        """The AUROC; NaN without positives or negatives."""
        return auroc(self._joined(self.scores), self._joined(self.positive) == 1)


class AUROCWithin(AUROC):
    """The AUROC within each group, and their plain mean (`auroc_within`).

    Args:
        groups: their names, such as those of generators.
    """

    group: list[Tensor] | Tensor

    def __init__(self, groups: Sequence[str]) -> None:
        super().__init__()
        if not groups or len(set(groups)) < len(groups):
            raise ValueError(f"AUROCWithin: needs distinct groups, not {list(groups)}")
        self.groups = tuple(groups)
        self.add_state("group", [], dist_reduce_fx="cat")

    def update(self, scores: Float[Tensor, " n"], positive: Bool[Tensor, " n"], group: Sequence[str]) -> None:  # type: ignore[override]
        """Adds scores, each with the name of its group. Raises ValueError for an unknown one."""
        if unknown := set(group) - set(self.groups):
            raise ValueError(f"AUROCWithin: unknown group {min(unknown)!r}; there are {', '.join(self.groups)}")
        super().update(scores, positive)
        assert isinstance(self.group, list)
        places = [float(self.groups.index(one)) for one in group]
        self.group.append(torch.tensor(places, dtype=torch.float64, device=self.device))

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]
        """By group its AUROC, NaN without positives or negatives; `pooled` over all; `mean` over the groups that have one."""
        scores, positive = self._joined(self.scores), self._joined(self.positive) == 1
        within = auroc_within(scores, positive, self._joined(self.group).long(), len(self.groups))
        named = {f"within/{name}": value for name, value in zip(self.groups, within, strict=True)}
        return {**named, "mean": within.nanmean(), "pooled": auroc(scores, positive)}


class FirstErrorAccuracy(MeanOfKnown):
    """Share of the solutions with a wrong step whose lowest step is the first wrong one (`first_error_accuracy`)."""

    def update(  # type: ignore[override]
        self,
        step_rewards: Float[Tensor, "traces steps"],
        step_mask: Bool[Tensor, "traces steps"],
        is_wrong: Bool[Tensor, "traces steps"],
    ) -> None:
        """Adds solutions, as the function takes them."""
        share = first_error_accuracy(step_rewards=step_rewards, step_mask=step_mask, is_wrong=is_wrong)
        super().update(share, weights=(is_wrong & step_mask).any(-1).sum())


class CalibrationError(Accumulator):
    """Expected calibration error of probabilities, in `bins` of equal width (`calibration_error`)."""

    confidence: Tensor
    right: Tensor
    count: Tensor

    def __init__(self, bins: int = 10) -> None:
        super().__init__()
        if bins < 1:
            raise ValueError(f"CalibrationError: bins must be at least 1, not {bins}")
        self.bins = bins
        for name in ("confidence", "right", "count"):
            self.add_state(name, torch.zeros(bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probabilities: Float[Tensor, " n"], labels: Float[Tensor, " n"]) -> None:
        """Adds probabilities of being right, in [0, 1], with labels 1, 0, or NaN where unknown, which are left out."""
        _require_probabilities(probabilities, self)
        known = ~labels.isnan()
        probabilities, labels = probabilities[known], labels[known]
        place = (probabilities * self.bins).long().clamp(max=self.bins - 1)
        for state, values in (
            (self.confidence, probabilities),
            (self.right, labels),
            (self.count, torch.ones_like(labels)),
        ):
            state.index_add_(0, place, values.to(state))

    def compute(self) -> Tensor:
        """The error, 0 at best; NaN without values."""
        return calibration_error(confidence=self.confidence, right=self.right, count=self.count)

    def reliability(self) -> list[dict[str, float]]:
        """Of each bin that has values: their number, mean probability and share of right ones."""
        rows = zip(self.count.tolist(), self.confidence.tolist(), self.right.tolist(), strict=True)
        return [{"count": n, "probability": p / n, "right": r / n} for n, p, r in rows if n]


class BrierScore(MeanOfKnown):
    """Mean of (p - y)^2 for probabilities of being right (`brier_score`): 0 at best, .25 for p = 1/2 throughout."""

    def update(self, probabilities: Float[Tensor, " n"], labels: Float[Tensor, " n"]) -> None:  # type: ignore[override]
        """Adds probabilities and labels as `CalibrationError` does."""
        _require_probabilities(probabilities, self)
        known = ~labels.isnan()
        score = brier_score(probabilities=probabilities[known].double(), labels=labels[known].double())
        super().update(score, weights=known.sum())


class ProbeFigures(Accumulator):
    """How a PRM scores hollow responses against a real one of the same prompt (`probe_figures`).

    Args:
        kinds: names of the hollow responses.
    """

    means: list[Tensor]
    totals: list[Tensor]
    lengths: list[Tensor]

    def __init__(self, kinds: Sequence[str]) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        for name in ("means", "totals", "lengths"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self,
        *,
        means: Float[Tensor, "prompts kinds"],
        totals: Float[Tensor, "prompts kinds"],
        lengths: Float[Tensor, "prompts kinds"],
    ) -> None:
        """Adds prompts: mean reward, summed reward and length of the real response, then of each kind."""
        for state, values in ((self.means, means), (self.totals, totals), (self.lengths, lengths)):
            state.append(values.flatten().to(self.device, torch.float64))  # one dimension, as an empty state has

    def compute(self) -> dict[str, Tensor]:
        """The figures by name; NaN without prompts."""
        columns = 1 + len(self.kinds)
        means, totals, lengths = (self._joined(s).view(-1, columns) for s in (self.means, self.totals, self.lengths))
        return probe_figures(means=means, totals=totals, lengths=lengths, kinds=self.kinds)


def _require_probabilities(values: Tensor, metric: Metric) -> None:
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError(
            f"{type(metric).__name__}: a score outside [0, 1] is no probability, and one here is "
            f"{float(values[~((values >= 0) & (values <= 1))][0]):g}; take a sigmoid first"
        )


def _verdicts(chosen: Sequence[int | None], correct: Outcomes) -> Tensor:
    """Whether each chosen response is right: not where there is none to choose; NaN where nothing is known."""
    values = []
    for index, row in zip(chosen, correct, strict=True):
        verdict = None if all(one is None for one in row) else False if index is None else row[index]
        values.append(math.nan if verdict is None else float(verdict))
    return torch.tensor(values, dtype=torch.float64)
