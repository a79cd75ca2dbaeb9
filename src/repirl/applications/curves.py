"""The quick start's tables and picture."""

from pathlib import Path
from statistics import mean
from typing import Any

KINDS = ("sampled", "greedy")


def print_tables(results: list[dict[str, Any]]) -> None:
    """Start and final accuracy of every run; then how well its policy's log-ratio and its PRM find wrong steps."""
    several = f", {len(results)} seeds" if len(results) > 1 else ""
    starts = {"start": [result["start"] for result in results]}
    runs = {arm: [result["arms"][arm]["final"] for result in results] for arm in results[0]["arms"]}
    _print("accuracy on 500 held-out problems" + several, "policy", {kind: kind for kind in KINDS}, starts | runs)
    judges = {"wrong_steps_log_ratio": "log q - log q_start", "wrong_steps_prm": "learned PRM"}
    _print("wrong steps of the start policy, AUROC" + several, "process reward of", judges, runs)


def _print(title: str, first: str, columns: dict[str, str], rows: dict[str, list[dict[str, float]]]) -> None:
    """A row each of what was found, one a seed: with several the mean, and each in brackets."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    table.add_column(first)
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for name, found in rows.items():
        table.add_row(name, *(_cell([values[key] for values in found if key in values]) for key in columns))
    Console().print(table)


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    each = " ".join(f"{v:.3f}" for v in values)
    return each if len(values) == 1 else f"{mean(values):.3f} ({each})"


def draw_curves(results: list[dict[str, Any]], path: Path) -> None:
    """Accuracy over iterations, a panel for sampled and one for greedy answers; a line a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, kind in zip(axes, KINDS, strict=True):
        for number, arm in enumerate(results[0]["arms"]):
            for r, result in enumerate(results):
                points = result["arms"][arm]["curve"]
                label = arm if r == 0 else None
                xs, ys = [p["iteration"] for p in points], [p[kind] for p in points]
                axis.plot(xs, ys, color=f"C{number}", label=label, marker="o", markersize=3)
        axis.set(xlabel="iteration", title=f"{kind} answers", ylim=(-0.02, 1.02))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy, held-out problems")
    axes[1].legend(loc="center right", fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)
