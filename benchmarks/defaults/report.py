"""The tables and figures of report.md from `results/`: tables.md, accuracy_and_prm.png.

python benchmarks/defaults/report.py
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl
import torch

from repirl.metrics import paired_t_interval

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.defaults.contrasts import Rows, table_of_contrasts  # noqa: E402

mpl.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

STAGES = {"screen": "Screening", "confirm": "Confirmation", "own": "A start policy of its own for each seed"}
LOG_RATIO = "study/policy_log_ratio/"
COLUMNS = {  # heading: (figure, what is subtracted from it)
    "sampled": ("study/sampled", None),
    "greedy": ("study/greedy", None),
    "PRM: wrong-step AUROC": ("study/wrong_step_auroc", None),
    "first error": ("study/first_error_accuracy", None),
    "best of 16": ("study/best_of_16", None),
    "log q/b: wrong-step AUROC": (f"{LOG_RATIO}wrong_step_auroc", None),
    "log q/b: first error": (f"{LOG_RATIO}first_error_accuracy", None),
    "log q/b: best of 16": (f"{LOG_RATIO}best_of_16", None),
    "tokens, change": ("study/tokens", "study/start_tokens"),
    "entropy": ("policy/entropy", None),
    "ESS share": ("prm/ess_share", None),
    "seconds": ("seconds", None),
}
REFERENCES = ("study/start_sampled", "study/random", "study/majority", "study/pass_at_16")


def read(stage: str) -> dict[str, dict[str, Rows]]:
    """Rows by task and arm."""
    found: dict[str, dict[str, Rows]] = defaultdict(lambda: defaultdict(list))
    path = HERE / "results" / f"{stage}.csv"
    if path.is_file():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                found[row["task"]][row["arm"]].append(row)
    return found


def values(rows: Rows, name: str, minus: str | None = None) -> list[float]:
    """One value a seed, without the seeds that lack it."""
    both = [(row.get(name), row.get(minus) if minus else "0") for row in rows]
    return [float(a) - float(b) for a, b in both if a and b]


def cell(rows: Rows, name: str, minus: str | None) -> str:
    """The mean over seeds; of three or more with the half-width of its t interval."""
    found = values(rows, name, minus)
    digits = 1 if "tokens" in name else 0 if name == "seconds" else 3
    if not found:
        return ""
    if len(found) < 3 or name == "seconds":
        return f"{statistics.mean(found):.{digits}f}"
    low, high = paired_t_interval(torch.tensor(found, dtype=torch.float64))
    return f"{statistics.mean(found):.{digits}f} ± {(high - low) / 2:.{digits}f}"


def table(task: str, arms: dict[str, Rows], own_starts: bool) -> list[str]:
    """The arms of a task, the best sampled accuracy first; then the contrasts."""
    ranked = sorted(arms, key=lambda arm: -statistics.mean(values(arms[arm], "study/sampled")))
    rows = [row for arm in arms.values() for row in arm]
    seeds = sorted({int(row["seed"]) for row in rows})
    start, random, majority, passed = (f"{statistics.mean(values(rows, name)):.3f}" for name in REFERENCES)
    starts = "The start policies answer" if own_starts else "The start policy answers"
    lines = [
        f"### {task}, seeds {', '.join(map(str, seeds))}",
        "",
        f"{starts} {start} right when sampled. Of 16 held-out rollouts a problem, one at random is right {random}, the "
        f"majority {majority}, any {passed}.",
        "",
        "| arm | runs | " + " | ".join(COLUMNS) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for arm in ranked:
        cells = (cell(arms[arm], *column) for column in COLUMNS.values())
        lines.append(f"| `{arm}` | {len(arms[arm])} | {' | '.join(cells)} |")
    return [*lines, "", *table_of_contrasts(arms)]


def draw(stages: dict[str, dict[str, dict[str, Rows]]], path: Path) -> None:
    """Sampled accuracy against wrong-step AUROC, a point an arm, a row a stage, a column a task.

    A square is an arm without a PRM, judged by its policy's log q - log b. With several seeds a line spans them, and only
    arms with at least three are drawn.
    """
    tasks = sorted({task for found in stages.values() for task in found})
    figure, axes = plt.subplots(len(stages), len(tasks), figsize=(8 * len(tasks), 7 * len(stages)), squeeze=False)
    for (stage, found), row in zip(stages.items(), axes, strict=True):
        for task, axis in zip(tasks, row, strict=True):
            for arm, rows in found.get(task, {}).items():
                x, marker = values(rows, "study/wrong_step_auroc"), "o"
                if not x:
                    x, marker = values(rows, f"{LOG_RATIO}wrong_step_auroc"), "s"
                y = values(rows, "study/sampled")
                if not x or (stage != "screen" and len(x) < 3):
                    continue
                at = statistics.mean(x), statistics.mean(y)
                (point,) = axis.plot(*at, marker, markersize=5)
                axis.vlines(at[0], min(y), max(y), color=point.get_color(), alpha=0.5)
                axis.annotate(arm, at, fontsize=7, xytext=(4, 3), textcoords="offset points")
            axis.margins(x=0.2)
            axis.set(title=f"{STAGES[stage]}: {task}", xlabel="wrong-step AUROC", ylabel="sampled accuracy")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def tables(stages: dict[str, dict[str, dict[str, Rows]]]) -> str:
    """All of tables.md."""
    lines = ["<!-- written by report.py -->", ""]
    for stage, tasks in stages.items():
        lines += [f"## {STAGES[stage]}", ""]
        for task, arms in sorted(tasks.items()):
            lines += table(task, arms, own_starts=stage == "own")
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> None:
    """Writes both."""
    stages = {stage: tasks for stage in STAGES if (tasks := read(stage))}
    (HERE / "tables.md").write_text(tables(stages))
    draw(stages, HERE / "accuracy_and_prm.png")


if __name__ == "__main__":
    main()
