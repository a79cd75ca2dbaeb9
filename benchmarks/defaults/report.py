"""The tables and figures of report.md from `results/`: tables.md, accuracy_and_prm.png.

python benchmarks/defaults/report.py
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl
import torch

from repirl.metrics import paired_t_interval

mpl.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).resolve().parent
STAGES = {"screen": "Screening", "confirm": "Confirmation"}
COLUMNS = {  # heading: (figure, what is subtracted from it)
    "sampled": ("study/sampled", None),
    "greedy": ("study/greedy", None),
    "wrong-step AUROC": ("study/wrong_step_auroc", None),
    "first error": ("study/first_error_accuracy", None),
    "best of 16": ("study/best_of_16", None),
    "tokens, change": ("study/tokens", "study/start_tokens"),
    "entropy": ("policy/entropy", None),
    "ESS share": ("prm/ess_share", None),
    "seconds": ("seconds", None),
}
REFERENCES = ("study/start_sampled", "study/random", "study/majority", "study/pass_at_16")
Rows = list[dict[str, str]]


def read(stage: str) -> dict[str, dict[str, Rows]]:
    """Rows by task and arm."""
    found: dict[str, dict[str, Rows]] = defaultdict(lambda: defaultdict(list))
    path = HERE / "results" / f"{stage}.csv"
    if path.is_file():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                found[row["task"]][row["arm"]].append(row)
    return found


def values(rows: Rows, name: str, minus: str | None) -> torch.Tensor:
    """One value a seed, without the seeds that lack it."""
    both = [(row.get(name), row.get(minus) if minus else "0") for row in rows]
    return torch.tensor([float(a) - float(b) for a, b in both if a and b], dtype=torch.float64)


def cell(rows: Rows, name: str, minus: str | None) -> str:
    """The value of a single seed, or the mean of several; from three on with its 95 % t interval."""
    found = values(rows, name, minus)
    digits = 1 if "tokens" in name else 0 if name == "seconds" else 3
    if not len(found):
        return ""
    middle = f"{float(found.mean()):.{digits}f}"
    if len(found) < 3 or name == "seconds":
        return middle
    low, high = paired_t_interval(found)
    return f"{middle} ({low:.{digits}f} to {high:.{digits}f})"


def table(task: str, arms: dict[str, Rows]) -> list[str]:
    """The arms of a task, the best sampled accuracy first."""
    ranked = sorted(arms, key=lambda arm: -float(values(arms[arm], "study/sampled", None).mean()))
    rows = [row for arm in arms.values() for row in arm]
    seeds = sorted({int(row["seed"]) for row in rows})
    given = {name: values(rows, name, None).mean() for name in REFERENCES}
    start, random, majority, passed = (f"{float(given[name]):.3f}" for name in REFERENCES)
    lines = [
        f"### {task}, seeds {', '.join(map(str, seeds))}",
        "",
        f"The start policy answers {start} right when sampled. Of its 16 held-out rollouts a problem, one at random is right "
        f"{random}, the majority {majority}, any {passed}.",
        "",
        "| arm | runs | " + " | ".join(COLUMNS) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for arm in ranked:
        cells = (cell(arms[arm], *column) for column in COLUMNS.values())
        lines.append(f"| `{arm}` | {len(arms[arm])} | {' | '.join(cells)} |")
    return [*lines, ""]


def draw(stages: dict[str, dict[str, dict[str, Rows]]], path: Path) -> None:
    """Sampled accuracy against wrong-step AUROC, a point an arm, a row a stage, a column a task.

    With several seeds a line spans them, and only arms with at least three are drawn.
    """
    tasks = sorted({task for found in stages.values() for task in found})
    figure, axes = plt.subplots(len(stages), len(tasks), figsize=(8 * len(tasks), 7 * len(stages)), squeeze=False)
    for (stage, found), row in zip(stages.items(), axes, strict=True):
        for task, axis in zip(tasks, row, strict=True):
            for arm, rows in found.get(task, {}).items():
                x, y = (values(rows, name, None) for name in ("study/wrong_step_auroc", "study/sampled"))
                if not len(x) or (stage == "confirm" and len(x) < 3):
                    continue
                at = float(x.mean()), float(y.mean())
                (point,) = axis.plot(*at, "o", markersize=5)
                axis.vlines(at[0], float(y.min()), float(y.max()), color=point.get_color(), alpha=0.5)
                axis.annotate(arm, at, fontsize=7, xytext=(4, 3), textcoords="offset points")
            axis.margins(x=0.2)
            axis.set(title=f"{STAGES[stage]}: {task}", xlabel="wrong-step AUROC of the PRM", ylabel="sampled accuracy")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def tables(stages: dict[str, dict[str, dict[str, Rows]]]) -> str:
    """All of tables.md."""
    lines = ["<!-- written by report.py -->", ""]
    for stage, tasks in stages.items():
        lines += [f"## {STAGES[stage]}", ""]
        for task, arms in sorted(tasks.items()):
            lines += table(task, arms)
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> None:
    """Writes both."""
    stages = {stage: tasks for stage in STAGES if (tasks := read(stage))}
    (HERE / "tables.md").write_text(tables(stages))
    draw(stages, HERE / "accuracy_and_prm.png")


if __name__ == "__main__":
    main()
