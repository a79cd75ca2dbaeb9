"""What an evaluation found of each problem, and the figures that follow from it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repirl.metrics import auroc, best_of_n, bootstrap_interval, majority_vote, pass_at_k, weighted_vote


@dataclass(frozen=True, slots=True)
class Answer:
    """One response to a problem.

    answer: its final answer in normal form, None where there is none, and for programs. correct, status: the verdict,
    None without a verifier. finished: ended by itself, not at the limit. prm_mean_reward: None without a PRM.
    """

    response: str
    answer: str | None
    correct: bool | None
    status: str | None
    tokens: int
    finished: bool
    readable: bool
    prm_mean_reward: float | None = None


@dataclass(frozen=True, slots=True)
class ProblemRecord:
    """The responses to one problem.

    place: its position in the evaluation. dataset: empty for a set without a name. votes: its answers can be voted on;
    programs cannot.
    """

    place: tuple[int, int]
    dataset: str
    id: str
    votes: bool
    greedy: Answer | None
    samples: tuple[Answer, ...]


def summarise(records: Sequence[ProblemRecord]) -> dict[str, float]:
    """Figures of each data set, named <dataset>/<figure>, and their average over sets where there are several.

    greedy_ and sampled_: accuracy (of sampled responses the mean over problems: pass@1), tokens, truncated, unparsable
    (shares). With K samples: pass@k for k = 2, 4, ... and K; maj@K. With PRM scores: best@K, weighted@K and the AUROC of
    correct against failed samples. Each rate of right answers has its 95 % bootstrap interval over problems, _low and
    _high. Responses without a verdict are left out of rates of right answers; a figure of nothing is left out.
    """
    datasets = dict.fromkeys(record.dataset for record in records)
    found = {name: _figures([record for record in records if record.dataset == name]) for name in datasets}
    named = {f"{name}/{figure}" if name else figure: v for name, one in found.items() for figure, v in one.items()}
    if len(datasets) > 1:
        shared = [figure for figure in next(iter(found.values())) if all(figure in one for one in found.values())]
        for figure in shared:
            if not figure.endswith(("_low", "_high")):
                named[f"average/{figure}"] = sum(one[figure] for one in found.values()) / len(found)
    return named


def _figures(records: Sequence[ProblemRecord]) -> dict[str, float]:
    greedy = [record.greedy for record in records if record.greedy is not None]
    sampled = [answer for record in records for answer in record.samples]
    found: dict[str, float] = {}
    for kind, answers, groups in (
        ("greedy", greedy, [(answer,) for answer in greedy]),
        ("sampled", sampled, [record.samples for record in records]),
    ):
        found |= _rate(f"{kind}_accuracy", [_accuracy(group) for group in groups])
        found |= _mean(f"{kind}_tokens", [float(answer.tokens) for answer in answers])
        found |= _mean(f"{kind}_truncated", [float(not answer.finished) for answer in answers])
        found |= _mean(f"{kind}_unparsable", [float(not answer.readable) for answer in answers])
    groups = [record.samples for record in records if record.samples]
    voting = [record.samples for record in records if record.samples and record.votes]
    count = max(map(len, groups), default=0)
    if count > 1:
        known = [[answer.correct for answer in group if answer.correct is not None] for group in groups]
        right, of = (torch.tensor([f(outcomes) for outcomes in known]) for f in (sum, len))
        for k in sorted({2**power for power in range(1, count.bit_length()) if 2**power < count} | {count}):
            found |= _rate(f"pass@{k}", pass_at_k(correct=right, samples=of, k=k).tolist())
        found |= _rate(f"maj@{count}", [_outcome(group, majority_vote(_answers(group))) for group in voting])
    if all(answer.prm_mean_reward is not None for answer in sampled):
        found |= _prm_figures(groups, voting, count)
    return found


def _prm_figures(
    groups: Sequence[Sequence[Answer]], voting: Sequence[Sequence[Answer]], count: int
) -> dict[str, float]:
    """How the PRM's mean reward chooses among the samples, and separates right from wrong ones."""
    pairs = torch.tensor([(_score(a), float(a.correct)) for g in groups for a in g if a.correct is not None])
    found: dict[str, float] = {}
    if len(pairs) and 0 < pairs[:, 1].mean() < 1:
        found["auroc_correct_failed"] = float(auroc(pairs[:, 0], pairs[:, 1] == 1))
    if count > 1:
        found |= _rate(f"best@{count}", [_best(group) for group in groups])
        chosen = [weighted_vote(_answers(group), [_score(answer) for answer in group]) for group in voting]
        found |= _rate(f"weighted@{count}", [_outcome(g, index) for g, index in zip(voting, chosen, strict=True)])
    return found


def _score(answer: Answer) -> float:
    assert answer.prm_mean_reward is not None
    return answer.prm_mean_reward


def _answers(group: Sequence[Answer]) -> list[str | None]:
    return [answer.answer for answer in group]


def _accuracy(group: Iterable[Answer]) -> float:
    """Share of right answers among those with a verdict; NaN where there is none."""
    known = [answer.correct for answer in group if answer.correct is not None]
    return sum(known) / len(known) if known else math.nan


def _best(group: Sequence[Answer]) -> float:
    outcomes = [math.nan if answer.correct is None else float(answer.correct) for answer in group]
    scores = torch.tensor([[_score(answer) for answer in group]])
    return float(best_of_n(scores=scores, correct=torch.tensor([outcomes])))


def _outcome(group: Sequence[Answer], chosen: int | None) -> float:
    """Whether the chosen response is right: not where there is none to choose; NaN where nothing is known."""
    if all(answer.correct is None for answer in group):
        return math.nan
    correct = False if chosen is None else group[chosen].correct
    return math.nan if correct is None else float(correct)


def _mean(name: str, values: Sequence[float]) -> dict[str, float]:
    return {name: sum(values) / len(values)} if values else {}


def _rate(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean and interval over problems; NaN, unknown, is left out."""
    known: Tensor = torch.tensor([value for value in values if not math.isnan(value)], dtype=torch.float64)
    if not len(known):
        return {}
    low, high = bootstrap_interval(known)
    return {name: float(known.mean()), f"{name}_low": low, f"{name}_high": high}
