"""Are a PRM's step rewards probabilities of being right, or can they be made so? Figures and a reliability diagram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repirl.applications.prm_report import Scored
from repirl.metrics.accumulate import CalibrationError
from repirl.metrics.calibration import Platt, brier_score, fit_platt


def platt_of(given: Scored) -> Platt | None:
    """From step rewards to probabilities, fitted on these solutions; None where all steps are right, or none is."""
    rewards, right = _labelled(given)
    return fit_platt(rewards, right) if right.any() and not right.all() else None


def calibration(given: Scored, platt: Platt | None) -> dict[str, Any]:
    """Figures over all labelled steps.

    right_steps: their share. mapped: of probabilities by `platt`. as_they_are: of the rewards themselves, where all are
    within [0, 1].
    """
    rewards, right = _labelled(given)
    found: dict[str, Any] = {"steps": len(rewards), "right_steps": float(right.double().mean())}
    if platt is not None:
        found["mapped"] = _figures(platt.probabilities(rewards), right)
    if len(rewards) and bool(((rewards >= 0) & (rewards <= 1)).all()):
        found["as_they_are"] = _figures(rewards, right)
    return found


def _labelled(given: Scored) -> tuple[Tensor, Tensor]:
    kept = given.labelled & given.mask
    return given.rewards[kept], ~given.is_wrong[kept]


def _figures(probabilities: Tensor, right: Tensor) -> dict[str, Any]:
    """How far the probabilities are off.

    ece: expected calibration error in ten bins. brier: mean squared error. brier_of_share: of the share of right steps said
    of every step, which knows nothing of any.
    """
    labels = right.double()
    error = CalibrationError()
    error.update(probabilities, labels)
    share = torch.full_like(labels, float(labels.mean()))
    return {
        "ece": float(error.compute()),
        "brier": float(brier_score(probabilities=probabilities.double(), labels=labels)),
        "brier_of_share": float(brier_score(probabilities=share, labels=labels)),
        "reliability": error.reliability(),
    }


def draw_reliability(sets: Mapping[str, Mapping[str, Any]], path: Path) -> bool:
    """Share of right steps against the probability said, a panel for each way to read rewards; False where there is none."""
    titles = {"as_they_are": "rewards as they are", "mapped": "rewards mapped to probabilities"}
    shown = [kind for kind in titles if any(kind in one for one in sets.values())]
    if not shown:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(shown), figsize=(4.4 * len(shown), 4), squeeze=False, layout="constrained")
    for axis, kind in zip(axes[0], shown, strict=True):
        axis.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        for number, (name, one) in enumerate(sets.items()):
            if kind in one:
                _draw_line(axis, one[kind], f"{name}: ECE {one[kind]['ece']:.3f}", f"C{number}")
        axis.set(xlabel="probability that the step is right", xlim=(0, 1), ylim=(0, 1), title=titles[kind])
        axis.grid(alpha=0.3)
        axis.legend(fontsize="x-small", loc="upper left")
    axes[0][0].set_ylabel("share of right steps")
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True


def _draw_line(axis: Any, figures: Mapping[str, Any], label: str, color: str) -> None:
    """A point a bin, the larger the more steps are in it."""
    rows: Sequence[Mapping[str, float]] = figures["reliability"]
    xs, ys = [row["probability"] for row in rows], [row["right"] for row in rows]
    most = max(row["count"] for row in rows)
    axis.plot(xs, ys, color=color, linewidth=1, label=label)
    axis.scatter(xs, ys, s=[8 + 60 * row["count"] / most for row in rows], color=color)
