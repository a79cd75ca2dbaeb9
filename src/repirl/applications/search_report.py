"""What searches found, as figures of each problem, curves over n and cost, and a drawing."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from repirl.applications.searching import SAMPLED
from repirl.metrics.comparison import mean_interval
from repirl.metrics.selection import (
    aggregated,
    expected_best_of_n,
    expected_pass,
    expected_vote,
    exponential_weights,
    subsets_of,
)

Selection = Literal["random", "majority_vote", "best_of_n", "weighted_vote", "exp_weighted_vote", "pass_at_n"]
SELECTIONS: tuple[Selection, ...] = get_args(Selection)
VOTES = ("majority_vote", "weighted_vote", "exp_weighted_vote")
BY_REWARD = ("best_of_n", "weighted_vote", "exp_weighted_vote")
COSTS = ("generated_tokens", "policy_tokens", "prm_tokens")
COLUMNS = ("method", "n", "problems", "accuracy", "low", "high", *COSTS, "operations")
OPERATIONS = (
    "2 x parameters x tokens, of the policy and of the PRM, embeddings among the parameters: policy_tokens are those sampled "
    "and those read before them, each prefix of a beam anew; prm_tokens are those read, problem and prefix anew each time"
)

Outcome = dict[str, Any]
"""One problem by one method and n: id, method, n, accuracy (expected, 0 to 1), and the tokens of `COSTS`."""


def outcomes_of(
    unit: Mapping[str, Any],
    selections: Sequence[str],
    sizes: Sequence[int],
    *,
    aggregation: str,
    subsets: int,
    seed: int,
) -> list[Outcome]:
    """What one problem's samples, or its beams, are expected to give. Empty where a verdict is unknown.

    Args:
        unit: a problem's samples or beams (searching.py).
        selections: ways to choose among samples.
        sizes: numbers of samples to choose from.
        aggregation: of step rewards.
        subsets: most subsets of samples that a vote is averaged over.
        seed: of their choice.
    """
    samples = unit["samples"]
    if any(sample["right"] is None for sample in samples):
        return []
    right = torch.tensor([float(sample["right"]) for sample in samples], dtype=torch.float64)
    if unit["method"] != SAMPLED:
        return [_outcome(unit, unit["method"], unit["n"], _best_beam(samples, right, aggregation), unit["spent"])]
    number = int.from_bytes(hashlib.blake2b(unit["id"].encode(), digest_size=6).digest(), "little")
    found = []
    for n in sizes:
        drawn = subsets_of(len(samples), n, most=subsets, seed=seed + number)
        for selection in selections:
            accuracy = _expected(selection, samples, right, n, aggregation, drawn)
            found.append(_outcome(unit, selection, n, accuracy, _cost_of(unit, selection, n)))
    return found


def _expected(
    selection: str, samples: Sequence[Mapping[str, Any]], right: Tensor, n: int, aggregation: str, drawn: Tensor
) -> float:
    if selection == "random":
        return float(right.mean())
    if selection == "pass_at_n":
        return expected_pass(right=right, n=n)
    scores = _scores(samples, aggregation) if selection in BY_REWARD else torch.ones_like(right)
    if selection == "best_of_n":
        return expected_best_of_n(scores=scores, right=right, n=n)
    weights = exponential_weights(scores) if selection == "exp_weighted_vote" else scores
    answers = [None if score == -math.inf else s["answer"] for s, score in zip(samples, scores, strict=True)]  # unread
    return expected_vote(answers=answers, weights=weights, right=right, subsets=drawn)


def _scores(samples: Sequence[Mapping[str, Any]], aggregation: str) -> Tensor:
    values = [aggregated(s["step_rewards"], aggregation, s.get("rewarded_tokens")) for s in samples]
    return torch.tensor(values, dtype=torch.float64)


def _best_beam(samples: Sequence[Mapping[str, Any]], right: Tensor, aggregation: str) -> float:
    """Whether the beam of the highest score is right; one that ended by itself goes before those cut at the limit."""
    finished = torch.tensor([sample["finished"] for sample in samples])
    scores = _scores(samples, aggregation)
    if finished.any():
        scores, right = scores[finished], right[finished]
    return expected_best_of_n(scores=scores, right=right, n=len(scores))


def _cost_of(unit: Mapping[str, Any], selection: str, n: int) -> dict[str, float | None]:
    """What n of the samples cost on average: the prompt once, and the PRM where it is asked."""
    share = n / len(unit["samples"])
    generated, prm = unit["spent"]["generated_tokens"], unit["spent"]["prm_tokens"]
    own = None if generated is None else generated * share
    asked = selection in BY_REWARD
    return {
        "generated_tokens": own,
        "policy_tokens": None if own is None or unit["prompt_tokens"] is None else unit["prompt_tokens"] + own,
        "prm_tokens": (None if prm is None else prm * share) if asked else 0.0,
    }


def _outcome(
    unit: Mapping[str, Any], method: str, n: int, accuracy: float, cost: Mapping[str, float | None]
) -> Outcome:
    return {"id": unit["id"], "method": method, "n": n, "accuracy": accuracy} | {name: cost[name] for name in COSTS}


def curves_of(
    outcomes: Sequence[Outcome], *, policy_parameters: int | None, prm_parameters: int | None, seed: int
) -> list[dict[str, Any]]:
    """A row a method and n: mean over problems with its interval, mean cost a problem; None where something is unknown."""
    groups: dict[tuple[str, int], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome["method"], outcome["n"]), []).append(outcome)
    rows = []
    for (method, n), group in groups.items():
        values = torch.tensor([outcome["accuracy"] for outcome in group], dtype=torch.float64)
        low, high = mean_interval(values, resamples=2000, seed=seed)
        costs = {name: _mean([outcome[name] for outcome in group]) for name in COSTS}
        row: dict[str, Any] = {"method": method, "n": n, "problems": len(group), "accuracy": float(values.mean())}
        row |= {"low": low, "high": high} | costs
        row["operations"] = _operations(policy_parameters, costs["policy_tokens"], prm_parameters, costs["prm_tokens"])
        rows.append(row)
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _operations(
    policy: int | None, policy_tokens: float | None, prm: int | None, prm_tokens: float | None
) -> float | None:
    if policy is None or policy_tokens is None or prm_tokens is None or (prm is None and prm_tokens):
        return None
    return 2 * (policy * policy_tokens + (prm or 0) * prm_tokens)


def write_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The curves as a table; a cell is empty where nothing is known."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(row[name]) for name in COLUMNS})


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else value


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy against n, sampled tokens and operations, a line a method with its interval."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    axes_of = {"n": "n", "generated_tokens": "tokens sampled a problem", "operations": "operations a problem"}
    shown = {name: label for name, label in axes_of.items() if any(row[name] is not None for row in rows)}
    figure, axes = plt.subplots(1, len(shown), figsize=(4.2 * len(shown), 3.8), sharey=True, layout="constrained")
    for axis, (name, label) in zip([axes] if len(shown) == 1 else axes, shown.items(), strict=True):
        for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
            points = [row for row in rows if row["method"] == method and row[name] is not None]
            xs = [row[name] for row in points]
            axis.plot(xs, [r["accuracy"] for r in points], color=f"C{number}", marker="o", markersize=3, label=method)
            axis.fill_between(
                xs, [r["low"] for r in points], [r["high"] for r in points], color=f"C{number}", alpha=0.12, linewidth=0
            )
        axis.set_xscale("log", base=2 if name == "n" else 10)
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.set(xlabel=label, ylim=(-0.02, 1.02))
        axis.grid(alpha=0.3)
    first = figure.axes[0]
    first.set_ylabel("accuracy")
    first.legend(fontsize="x-small")
    figure.savefig(path, dpi=150)
    plt.close(figure)
