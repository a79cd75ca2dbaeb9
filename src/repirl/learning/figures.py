"""The figures of an evaluation as metric objects, one for each data set and name, which add up over batches and ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from repirl.data.mixture import AVERAGE
from repirl.distributed import gather_objects
from repirl.learning.records import Answer, ProblemRecord
from repirl.metrics.accumulate import AUROC, BestOfN, MajorityVote, MeanOfKnown, PassAtK, Rate, WeightedVote

Measured = tuple[str, Sequence[Any]]
"""A figure's name within its data set, and what its metric's `update` takes."""


class EvaluationFigures(nn.Module):
    """Metrics by name, made when they are first needed: names follow from data sets, samples and whether there is a PRM.

    greedy_ and sampled_: accuracy (of sampled responses the mean over problems: pass@1), tokens, truncated, unparsable
    (shares). With K samples: pass@k for k = 2, 4, ... and K; maj@K. With PRM scores: best@K, weighted@K and the AUROC of
    correct against failed samples. Each rate of right answers has its 95 % bootstrap interval over problems, _low and
    _high. Responses without a verdict are left out of rates of right answers; a figure of nothing is left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict()
        self._names: list[str] = []  # of the metrics, in their order
        self.place: Tensor
        self.register_buffer("place", torch.zeros(0), persistent=False)  # metrics are made where the module is

    def reset(self) -> None:
        """Forgets what was added."""
        self.metrics, self._names = nn.ModuleDict(), []

    def update(self, records: Sequence[ProblemRecord]) -> None:
        """Adds problems, each to the figures of its data set."""
        for dataset in dict.fromkeys(record.dataset for record in records):
            of_set = [record for record in records if record.dataset == dataset]
            for figure, arguments in measured(of_set):
                placed = [a.to(self.place.device) if isinstance(a, Tensor) else a for a in arguments]
                self._metric(f"{dataset}/{figure}" if dataset else figure).update(*placed)

    def computed(self) -> dict[str, tuple[str, Metric, float]]:
        """Of each figure of which something is known: the metric's key in `metrics`, itself, and its value over all ranks.

        Every rank must call it; one may not have met every data set.
        """
        for name in dict.fromkeys(gather_objects(self._names)):
            self._metric(name)
        values = {name: float(self._metric(name).compute()) for name in sorted(self._names)}
        return {
            name: (_key(name), self._metric(name), value) for name, value in values.items() if not math.isnan(value)
        }

    def results(self) -> dict[str, float]:
        """All figures over all ranks: with intervals, and averaged over data sets where there are several."""
        computed = self.computed()
        return {name: value for name, (_, _, value) in computed.items()} | self.derived(computed)

    def derived(self, computed: dict[str, tuple[str, Metric, float]]) -> dict[str, float]:
        """Intervals of rates, and averages over data sets of what all of them have."""
        intervals: dict[str, float] = {}
        for name, (_, metric, _) in computed.items():
            if isinstance(metric, Rate):
                intervals[f"{name}_low"], intervals[f"{name}_high"] = metric.interval()
        datasets = dict.fromkeys(name.rpartition("/")[0] for name in self._names)
        if len(datasets) < 2:
            return intervals
        figures = dict.fromkeys(name.rpartition("/")[2] for name in computed)
        of_sets = {f: [f"{d}/{f}" if d else f for d in datasets] for f in figures}
        averages = {
            f"{AVERAGE}/{figure}": sum(computed[name][2] for name in names) / len(names)
            for figure, names in of_sets.items()
            if all(name in computed for name in names)
        }
        return intervals | averages

    def _metric(self, name: str) -> Metric:
        key = _key(name)
        if key not in self.metrics:
            self._names.append(name)
            self.metrics[key] = metric_of(name.rpartition("/")[2]).to(self.place.device)
        metric = self.metrics[key]
        assert isinstance(metric, Metric)
        return metric


def metric_of(figure: str) -> Metric:
    """An empty metric for a figure, by its name."""
    kind, _, number = figure.partition("@")
    if number:
        kinds = {"maj": MajorityVote, "weighted": WeightedVote, "best": BestOfN}
        return PassAtK(int(number)) if kind == "pass" else kinds[kind]()
    if figure.startswith("auroc"):
        return AUROC()
    return Rate() if figure.endswith("_accuracy") else MeanOfKnown()


def measured(records: Sequence[ProblemRecord]) -> Iterator[Measured]:
    """What the records of one data set add to its figures."""
    greedy = [record.greedy for record in records if record.greedy is not None]
    sampled = [answer for record in records for answer in record.samples]
    yield from _of_kind("greedy", greedy, [[answer] for answer in greedy])
    yield from _of_kind("sampled", sampled, [record.samples for record in records])
    groups = [record.samples for record in records if record.samples]
    voting = [record.samples for record in records if record.samples and record.votes]
    count = max(map(len, groups), default=0)
    scored = bool(sampled) and all(answer.prm_mean_reward is not None for answer in sampled)
    if count > 1:
        right, known = (torch.tensor([f(_known(group)) for group in groups]) for f in (sum, len))
        for k in sorted({2**power for power in range(1, count.bit_length()) if 2**power < count} | {count}):
            yield f"pass@{k}", (right, known)
        if voting:
            answers, verdicts = [[a.answer for a in g] for g in voting], [[a.correct for a in g] for g in voting]
            yield f"maj@{count}", (answers, verdicts)
            if scored:
                yield f"weighted@{count}", (answers, [_scores(group) for group in voting], verdicts)
    if scored:
        yield from _of_scores(groups, count)


def _of_kind(kind: str, answers: Sequence[Answer], groups: Sequence[Sequence[Answer]]) -> Iterator[Measured]:
    if not answers:
        return
    yield f"{kind}_accuracy", (torch.tensor([_accuracy(group) for group in groups], dtype=torch.float64),)
    for figure, values in (
        ("tokens", [float(answer.tokens) for answer in answers]),
        ("truncated", [float(not answer.finished) for answer in answers]),
        ("unparsable", [float(not answer.readable) for answer in answers]),
    ):
        yield f"{kind}_{figure}", (torch.tensor(values, dtype=torch.float64),)


def _of_scores(groups: Sequence[Sequence[Answer]], count: int) -> Iterator[Measured]:
    """How the PRM's mean reward chooses among the samples, and separates right from wrong ones."""
    pairs = [(score, a.correct) for group in groups for score, a in zip(_scores(group), group, strict=True)]
    known = [(score, correct) for score, correct in pairs if correct is not None]
    yield "auroc_correct_failed", (torch.tensor([s for s, _ in known]), torch.tensor([c for _, c in known]).bool())
    for size in dict.fromkeys(map(len, groups)) if count > 1 else ():
        of_size = [group for group in groups if len(group) == size]
        outcomes = [[math.nan if a.correct is None else float(a.correct) for a in group] for group in of_size]
        yield f"best@{count}", (torch.tensor([_scores(group) for group in of_size]), torch.tensor(outcomes))


def _scores(group: Sequence[Answer]) -> list[float]:
    scores = [answer.prm_mean_reward for answer in group]
    return [score for score in scores if score is not None]


def _known(group: Sequence[Answer]) -> list[bool]:
    return [answer.correct for answer in group if answer.correct is not None]


def _accuracy(group: Sequence[Answer]) -> float:
    """Share of right answers among those with a verdict; NaN where there is none."""
    known = _known(group)
    return sum(known) / len(known) if known else math.nan


def _key(name: str) -> str:
    """The name as a module may have it, without a point; no two names have one key."""
    return name.replace("_", "__").replace(".", "_d")
