"""Collects finished runs of the language model into results/, and draws them over iterations as language_model.png.

    python benchmarks/worth/language_model/curves.py [FOLDER]    # of the runs, by default outputs/language_model

results/language_model.csv has their figures, language_model_<arm>.csv the metrics.csv of those that are drawn.
"""

from __future__ import annotations

import csv
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks.worth.study import add_rows

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
ARMS = ("rloo", "prm_only", "rloo_and_prm", "prm_only_in_words")
PANELS = {
    "accuracy of rollouts": "rollout/accuracy",
    "ranking loss": "prm/ranking_loss",
    "AUROC, experts against rollouts": "prm/auroc_expert_policy",
    "AUROC, right against failed rollouts": "prm/auroc_correct_failed",
}
NEAR = 4  # iterations of a mean: one has 32 rollouts


def series(path: Path, figure: str) -> list[float]:
    """A figure of each iteration; NaN where it has none."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["rollout/accuracy"]]
    return [float(row.get(figure) or "nan") for row in rows]


def trailing_means(values: Sequence[float], near: int = NEAR) -> list[float]:
    """The mean of each value and those before it, `near` in all, without what is NaN; NaN where all are."""
    windows = [[v for v in values[max(0, i + 1 - near) : i + 1] if not math.isnan(v)] for i in range(len(values))]
    return [fmean(window) if window else math.nan for window in windows]


def collect(runs: Path, results: Path = RESULTS) -> None:
    """Adds the finished runs below <runs>/sft and <runs>/rl to the table, and copies what is drawn."""
    for stage in ("sft", "rl"):
        add_rows(results / "language_model.csv", runs / stage, ("worth/",), {"base": "sft"})
    for arm in ARMS:
        for marker in (runs / "rl" / arm).glob("seed-0/done.json"):
            shutil.copyfile(marker.with_name("metrics.csv"), results / f"language_model_{arm}.csv")


def main() -> None:
    """Collects and draws."""
    collect(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/language_model"))
    draw()


def draw() -> None:
    """Writes the figure."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(15, 3.4), layout="constrained")
    for axis, (title, name) in zip(axes, PANELS.items(), strict=True):
        for number, arm in enumerate(ARMS):
            path = RESULTS / f"language_model_{arm}.csv"
            if not path.is_file():
                continue
            values = series(path, name)
            axis.plot(values, ".", color=f"C{number}", alpha=0.4)
            axis.plot(trailing_means(values), color=f"C{number}", label=arm)
        axis.set(title=title, xlabel="iteration")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(HERE.parent / "language_model.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
