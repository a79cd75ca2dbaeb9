"""Tables and figure of the study from results/: writes tables.md, draws contrasts.png.

python benchmarks/worth/report.py
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch

from repirl.metrics import equivalence, exact_sign_flip, holm, paired_t_interval

HERE = Path(__file__).resolve().parent
CELLS = ("few_experts", "many_experts")
ARMS = (
    "sft",
    "sft_longer",
    "rloo_from_start",
    "rloo",
    "prm_only",
    "prm_only_longer",
    "prm_only_slow",
    "prm_only_still",
    "prm_only_swapped",
    "rloo_and_prm",
    "rloo_and_frozen",
    "rloo_and_kl",
    "rloo_and_prm_no_kl",
    "rloo_and_prm_slow",
    "sft_styled",
    "sft_styled_half",
    "styled_half",
)
CONTRASTS = (("prm_only", "sft"), ("rloo_and_prm", "rloo"), ("rloo_and_prm", "rloo_and_frozen"))
UNPLANNED = (
    ("rloo", "sft"), ("rloo_and_prm", "sft"), ("rloo_and_prm", "rloo_and_kl"), ("rloo_and_kl", "rloo"),
    ("rloo_and_prm_no_kl", "rloo"), ("rloo_and_prm_no_kl", "rloo_and_prm"), ("sft_longer", "sft"),
    ("rloo", "sft_longer"), ("rloo_and_prm_slow", "rloo"), ("rloo_and_prm_slow", "rloo_and_prm"),
    ("styled_half", "sft_styled"), ("styled_half", "sft_styled_half"),
)  # fmt: skip
SFT_ALONE = {  # what further runs of SFT are called here
    "many_experts_longer": ("many_experts", "sft_longer"),
    "styled": ("few_experts", "sft_styled"),
    "styled_half": ("few_experts", "sft_styled_half"),
}
OTHER_RATES = ("rloo_and_prm-0.001", "rloo_and_frozen-0.0003")  # of the erratum in plan.md
SOURCES = ("prm", "policy_over_start", "policy_over_own_start")
RANKING = ("wrong_step_auroc", "first_error_accuracy", "correct_failed_auroc_sum", "best_of_n")
SFT_BESIDE_REMEDIES = ("few_experts", "first_half", "styled_half", "styled")
MARGIN = 0.05
SEEDS, TUNING = range(30, 38), (10, 11)

Runs = Mapping[int, Mapping[str, str]]
"""Figures by seed."""
Values = Mapping[tuple[str, str], Runs]
"""Runs by cell and arm."""


@dataclass(frozen=True)
class Contrast:
    """Arm - other in a cell, paired by seed: n seeds, mean and 95 % t interval, sign-flip p-value, equivalence within .05.

    holm: the p-value corrected for all planned contrasts.
    """

    cell: str
    name: str
    n: int
    mean: float
    low: float
    high: float
    p: float
    equivalence: float
    holm: float = 1.0


def read(folder: Path = HERE / "results") -> Values:
    """The runs of the confirmation."""
    values: dict[tuple[str, str], dict[int, dict[str, str]]] = {}
    for path in (folder / "sft.csv", folder / "rl.csv", folder / "remedies.csv"):
        if path.is_file():
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    cell, _, arm = row["run"].partition("-")
                    cell, arm = SFT_ALONE.get(cell, (cell, arm))
                    if int(row["seed"]) in SEEDS:
                        values.setdefault((cell, arm or "sft"), {})[int(row["seed"])] = row
    return values


def differences(values: Values, cell: str, arm: str, other: str, figure: str) -> torch.Tensor:
    """Arm - other of each seed that both have."""
    first, second = values.get((cell, arm), {}), values.get((cell, other), {})
    both = sorted(first.keys() & second.keys())
    return torch.tensor([float(first[s][figure]) - float(second[s][figure]) for s in both], dtype=torch.float64)


def contrasts(
    values: Values, pairs: Sequence[tuple[str, str]] = CONTRASTS, figure: str = "worth/sampled"
) -> list[Contrast]:
    """These contrasts in both cells, where there are at least two seeds; corrected for their number."""
    rows = []
    for cell, (arm, other) in product(CELLS, pairs):
        paired = differences(values, cell, arm, other, figure)
        if len(paired) < 2:
            continue
        low, high = paired_t_interval(paired)
        p, same = exact_sign_flip(paired), equivalence(paired, margin=MARGIN).p_value
        rows.append(Contrast(cell, f"{arm} - {other}", len(paired), float(paired.mean()), low, high, p, same))
    adjusted = holm([row.p for row in rows])
    return [replace(row, holm=value) for row, value in zip(rows, adjusted, strict=True)]


def table_of_contrasts(rows: Sequence[Contrast]) -> str:
    """Markdown, a row each."""
    lines = ["| cell | contrast | n | mean | 95 % t interval | p | Holm | equivalence |", _rule(8)]
    for row in rows:
        interval = f"{row.low:+.3f} to {row.high:+.3f}"
        tests = f"{row.p:.3f} | {row.holm:.3f} | {row.equivalence:.3f}"
        lines.append(f"| `{row.cell}` | `{row.name}` | {row.n} | {row.mean:+.3f} | {interval} | {tests} |")
    return "\n".join(lines)


def table_of_arms(values: Values, arms: Sequence[str]) -> str:
    """Markdown: accuracy of each, and the ranking loss of the last iteration; a PRM that knows nothing has ln 9 = 2.2."""
    lines = ["| cell | arm | n | sampled | greedy | every step right | last ranking loss |", _rule(7)]
    names = ("worth/sampled", "worth/greedy", "worth/every_step", "prm/ranking_loss")
    for cell, arm in product(CELLS, arms):
        if runs := values.get((cell, arm)):
            figures = " | ".join(_mean_and_range(runs, name) for name in names)
            lines.append(f"| `{cell}` | `{arm}` | {len(runs)} | {figures} |")
    return "\n".join(lines)


def table_of_judges(values: Values) -> str:
    """Markdown: how each process reward ranks steps and responses."""
    lines = ["| cell | run | process reward | wrong step | first error | right response | best of n |", _rule(7)]
    for (cell, arm), source in product(product(CELLS, ARMS), SOURCES):
        runs = values.get((cell, arm), {})
        if (arm, source) == ("rloo_and_kl", "prm"):  # it is 0
            continue
        if any(run.get(f"worth/{source}/{RANKING[0]}") for run in runs.values()):
            figures = " | ".join(_mean_and_range(runs, f"worth/{source}/{name}") for name in RANKING)
            lines.append(f"| `{cell}` | `{arm}` | `{source}` | {figures} |")
    return "\n".join(lines)


def tables(values: Values) -> str:
    """Everything there is, a section each."""
    sections = {
        "Planned contrasts": table_of_contrasts(contrasts(values)),
        "The same of greedy accuracy": table_of_contrasts(contrasts(values, figure="worth/greedy")),
        "The same of the share of samples whose every step is right": table_of_contrasts(
            contrasts(values, figure="worth/every_step")
        ),
        "Contrasts that were not planned": table_of_contrasts(contrasts(values, UNPLANNED)),
        "The same of greedy accuracy, not planned either": table_of_contrasts(
            contrasts(values, UNPLANNED, figure="worth/greedy")
        ),
        "Accuracy: mean and range over seeds": table_of_arms(values, ARMS),
        "Two arms at another rate": table_of_arms(values, OTHER_RATES),
        "Process rewards as judges: mean and range over seeds": table_of_judges(values),
        "Remedies, and SFT alone with its log-ratio: mean and range over two seeds": remedies(),
    }
    return "<!-- written by report.py -->\n" + "".join(f"\n## {title}\n\n{text}\n" for title, text in sections.items())


REMEDY_FIGURES = {
    "sampled": "worth/sampled",
    "wrong step": "worth/{source}/wrong_step_auroc",
    "right response": "worth/{source}/correct_failed_auroc_sum",
    "expert against right": "worth/{source}/expert_correct_auroc_sum",
    "ESS share": "prm/ess_share",
}


def remedies(folder: Path = HERE / "results") -> str:
    """Markdown: a row a remedy with its PRM, and SFT alone with its log-ratio: mean and range over the tuning's seeds.

    The share of the effective sample size is of the last iteration of training.
    """
    by_run: dict[tuple[str, str], dict[int, dict[str, str]]] = {}
    with (folder / "remedies.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if int(row["seed"]) in TUNING:
                by_run.setdefault((row["run"].partition("-")[2], "prm"), {})[int(row["seed"])] = row
    with (folder / "sft.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if int(row["seed"]) in TUNING and row["run"] in SFT_BESIDE_REMEDIES:
                by_run.setdefault((f"SFT, {row['run']}", "policy_over_start"), {})[int(row["seed"])] = row
    lines = ["| run | n | " + " | ".join(REMEDY_FIGURES) + " |", _rule(2 + len(REMEDY_FIGURES))]
    for (run, source), runs in by_run.items():
        figures = " | ".join(_mean_and_range(runs, name.format(source=source)) for name in REMEDY_FIGURES.values())
        lines.append(f"| `{run}` | {len(runs)} | {figures} |")
    return "\n".join(lines)


def _rule(columns: int) -> str:
    return "|" + "---|" * columns


def _mean_and_range(runs: Runs, figure: str) -> str:
    values = [float(run[figure]) for run in runs.values() if run.get(figure)]
    return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else "-"


def draw(rows: list[Contrast], path: Path) -> None:
    """The contrasts with their intervals, and the margin."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 0.6 * len(rows) + 1))
    for place, row in enumerate(reversed(rows)):
        axes.plot([row.low, row.high], [place, place], color="tab:blue" if row.cell == CELLS[0] else "tab:orange")
        axes.plot(row.mean, place, "o", color="black")
    axes.set_yticks(range(len(rows)), [f"{row.name}\n{row.cell}" for row in reversed(rows)])
    axes.axvline(0, color="gray", linewidth=0.8)
    axes.axvspan(-MARGIN, MARGIN, color="gray", alpha=0.15)
    axes.set_xlabel("difference in sampled accuracy\n95 % t interval over seeds; grey: less than .05")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Writes both."""
    confirmed = read()
    (HERE / "tables.md").write_text(tables(confirmed))
    draw(contrasts(confirmed), HERE / "contrasts.png")


if __name__ == "__main__":
    main()
