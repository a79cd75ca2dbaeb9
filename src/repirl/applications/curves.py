"""The quick start's table and picture."""

from pathlib import Path
from statistics import mean
from typing import Any

KINDS = ("sampled", "greedy")


def print_table(results: list[dict[str, Any]]) -> None:
    """Start and final accuracy of every run; with several seeds the mean, and each seed in brackets."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="accuracy on 500 held-out problems" + (f", {len(results)} seeds" if len(results) > 1 else ""))
    table.add_column("policy")
    for kind in KINDS:
        table.add_column(kind, justify="right")
    rows = [("start", [r["start"] for r in results])]
    rows += [(arm, [r["arms"][arm]["final"] for r in results]) for arm in results[0]["arms"]]
    for name, values in rows:
        table.add_row(name, *(_cell([v[kind] for v in values]) for kind in KINDS))
    Console().print(table)


def _cell(values: list[float]) -> str:
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
