"""Is a PRM from demonstrations worth asking at test time? Selection and search on two families of problems.

    python benchmarks/search.py --seeds 40-44                                      # about ten minutes a seed on one core
    python benchmarks/search.py --family dial --seeds 30,31,35-37 --problems 100 --output outputs/search_dial
    python benchmarks/search.py --seeds 40 --iterations 6 --start-iterations 60 --problems 10   # does it run

`sums` are the quick start's running sums: for each seed a start policy, and from there the PRM-only run of
`configs/quickstart.yaml` and SFT with the same experts, unless they are there. `dial` are word problems, with the PRM-only
runs of another study (families.py). Then `repirl search` on held-out problems in cells, each the policy that samples and
the PRM that scores:

- `early`: both of an early checkpoint (--early, by default the second that is kept);
- `late_prm`: the early policy, the PRM of the last checkpoint, which has not seen such mistakes for long (docs/score.md);
- `late`: both of the last;
- `early_ratio`, of `sums` alone: the early policy, and SFT's log-ratio `log pi_SFT - log pi_start` as the PRM, of the SFT
  with the same experts from the same start;
- `sft_ratio`: the policy after SFT, and its log-ratio.

Written to <output>/report.json, with a drawing in curves.png. Printed, of each cell and n: the difference in accuracy of the
PRM's ways to choose from majority vote and from random choice, and of beam search and DVTS from best of n at equal sampled
tokens: best of n at the number of samples that cost as much, linear between whole numbers. A difference is the mean over
problems of a seed, paired by problem; the interval is Student's t over seeds (metrics/paired.py). Of one seed there is none.

A stop costs what runs at that moment: finished runs and searches are kept, and a search goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.families import FAMILIES, worth_policy, worth_prms

from repirl.__main__ import main as repirl
from repirl.applications import quickstart
from repirl.applications.processes import Processes
from repirl.applications.search_report import SELECTIONS, outcomes_of
from repirl.applications.search_stored import read_stored
from repirl.applications.sweep import parse_seeds
from repirl.metrics.paired import paired_t_interval

ARM, SFT = "rePIRL, PRM only", "SFT on the same experts"  # of the quick start
TITLES = {
    "early": "early policy and PRM",
    "late_prm": "early policy, last PRM",
    "late": "last policy and PRM",
    "early_ratio": "early policy, SFT's log-ratio",
    "sft_ratio": "SFT and its log-ratio",
}
BY_PRM = ("best_of_n", "weighted_vote", "exp_weighted_vote")
BASELINES = ("majority_vote", "random")
SIZES, BEAMS = (2, 4, 8, 16), (4, 8, 16)
SAMPLES = 32  # a problem: beams cost more than as many samples where they end late


def quickstart_run(seed: int, arm: str, arguments: argparse.Namespace) -> dict[int, Path]:
    """Checkpoints by iteration of an arm of the quick start, hard start; made where the run is missing.

    Raises SystemExit where it is there with other numbers of iterations.
    """
    folder = quickstart.folder_of(arguments.output, seed, arm)
    marker = folder / "trained.json"
    sizes = {"iterations": arguments.iterations, "start_iterations": arguments.start_iterations}
    if marker.is_file() and (made := json.loads(marker.read_text())) != sizes:
        raise SystemExit(f"{folder} is of {made}, not of {sizes}; name another --output")
    if not marker.is_file():
        processes = Processes()
        configs = quickstart.STARTS["hard"]
        with processes.threads(1):
            if not (folder.parent / "start" / "config.json").is_file():
                overlay = quickstart.start_overlay(arguments.output, seed, configs, arguments.start_iterations)
                quickstart.fit(processes, configs, overlay, 1)
            overlay = quickstart.arm_overlay(arguments.output, seed, arm, arguments.iterations)
            quickstart.fit(processes, quickstart.ARMS[arm][1], overlay, 1)
        marker.write_text(json.dumps(sizes) + "\n")
    return {int(path.stem.removeprefix("step=")): path for path in (folder / "checkpoints").glob("step=*.ckpt")}


def policies_of(seed: int, arguments: argparse.Namespace) -> tuple[Path, Path]:
    """Folders of the start policy and of the policy after SFT; the latter of `sums` is made where it is missing."""
    if arguments.family == "dial":
        return worth_policy(arguments.worth, seed, "start/base"), worth_policy(arguments.worth, seed)
    saved = quickstart_run(seed, SFT, arguments)
    folder = arguments.output / f"seed-{seed}"
    sft = folder / "sft" / "policy"
    if not sft.is_dir():
        repirl(["export", "--checkpoint", str(saved[max(saved)]), "--output", str(sft)])
    return folder / "start", sft


def models_of(seed: int, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Of each cell: the words of `repirl search` for the policy that samples and the PRM. Raises SystemExit."""
    dial = arguments.family == "dial"
    saved = worth_prms(arguments.worth, seed) if dial else quickstart_run(seed, ARM, arguments)
    last = max(saved)
    early = arguments.early or sorted(saved)[1]
    if early not in saved or early == last:
        raise SystemExit(f"--early {early}: seed {seed} has checkpoints {sorted(saved)}; give one before the last")
    start, sft = policies_of(seed, arguments)
    text = [f"--text.{name}={most}" for name, most in FAMILIES[arguments.family].text.items()]
    ratio = ["--prm", str(sft), "--kind", "implicit", "--reference", str(start)]
    pairs = {"early": (early, early), "late_prm": (early, last), "late": (last, last)}
    cells = {cell: ["--checkpoint", str(saved[p]), "--prm", str(saved[r])] for cell, (p, r) in pairs.items()}
    if not dial:  # the early policy of `dial` is SFT's after few iterations
        cells["early_ratio"] = ["--checkpoint", str(saved[early]), *ratio]
    return cells | {"sft_ratio": ["--policy", str(sft), *text, *ratio]}


def searched(folder: Path, seed: int, models: Sequence[str], arguments: argparse.Namespace) -> Path:
    """The folder of a cell's search with the policy and the PRM that `models` name, made where it is missing."""
    if not (folder / "samples.jsonl").is_file():
        words = [*models, "--output", str(folder), f"--seed={seed}"]
        words += [f"--problems.init_args.count={arguments.problems}", f"--samples={SAMPLES}", f"--beams={list(BEAMS)}"]
        repirl(["search", "-c", str(FAMILIES[arguments.family].search), *words])
    return folder


def differences(folder: Path) -> dict[str, float]:
    """Of one search: mean over its problems of what the PRM's way has over another, by name."""
    found: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for line in (folder / "problems.jsonl").read_text().splitlines():
        one = json.loads(line)
        found.setdefault((one["method"], one["n"]), {})[one["id"]] = one
    pairs: dict[str, list[float]] = {}
    for n in SIZES:
        for method in BY_PRM:
            for baseline in BASELINES:
                for name, one in found[method, n].items():
                    difference = one["accuracy"] - found[baseline, n][name]["accuracy"]
                    pairs.setdefault(f"{method} - {baseline}, n = {n}", []).append(difference)
    by_n = _best_of_every_n(folder)
    for method in ("beam_search", "dvts"):
        for n in BEAMS:
            for name, one in found[method, n].items():
                equal = _at(by_n[name], one["generated_tokens"])
                pairs.setdefault(f"{method} - best_of_n at equal tokens, {n} beams", []).append(one["accuracy"] - equal)
    accuracies = {f"accuracy of {m}, n = {n}": [o["accuracy"] for o in of.values()] for (m, n), of in found.items()}
    return {name: sum(values) / len(values) for name, values in (accuracies | pairs).items()}


def _best_of_every_n(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """(sampled tokens, expected accuracy) of best of n for every n up to the number of samples, of each problem."""
    settings = json.loads((folder / "search.json").read_text())["settings"]
    curves = {}
    for group in read_stored(str(folder / "samples.jsonl"), "newline"):
        samples = [dict(one.row) for one in group]
        tokens = sum(sample["generated_tokens"] for sample in samples)
        unit = {"id": group[0].problem.id, "method": "sampled", "samples": samples, "prompt_tokens": 0}
        unit["spent"] = {"generated_tokens": tokens, "prm_tokens": 0}
        sizes = range(1, len(samples) + 1)
        found = outcomes_of(unit, ["best_of_n"], sizes, aggregation=settings["aggregation"], subsets=1, seed=0)
        curves[unit["id"]] = [(one["generated_tokens"], one["accuracy"]) for one in found]
    return curves


def _at(curve: Sequence[tuple[float, float]], tokens: float) -> float:
    """A curve's accuracy at so many tokens, linear between its points; its first or last beyond them."""
    for (x, y), (after, higher) in pairwise(curve):
        if tokens <= after:
            return y + (higher - y) * max(0.0, (tokens - x) / (after - x))
    return curve[-1][1]


def summary(by_seed: Sequence[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Mean over seeds with its 95 % t interval, and each seed."""
    rows = {}
    for name in by_seed[0]:
        values = [one[name] for one in by_seed]
        low, high = paired_t_interval(torch.tensor(values)) if len(values) > 1 else (math.nan, math.nan)
        rows[name] = {"mean": sum(values) / len(values), "low": low, "high": high, "seeds": values}
    return rows


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(FAMILIES), default="sums")
    parser.add_argument("--seeds", default="40-44")
    parser.add_argument("--output", type=Path, default=Path("outputs/search_study"))
    parser.add_argument("--worth", type=Path, default=Path("outputs/worth"), help="of `dial`: that study's runs")
    parser.add_argument("--early", type=int, help="iteration of the early checkpoint")
    parser.add_argument("--iterations", type=int, help="of training, for a trial")
    parser.add_argument("--start-iterations", type=int, help="the same for the start policy")
    parser.add_argument("--problems", type=int, default=200)
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    for seed in parse_seeds(arguments.seeds):
        for cell, words in models_of(seed, arguments).items():
            folder = arguments.output / f"seed-{seed}" / "search" / cell
            found.setdefault(cell, []).append(differences(searched(folder, seed, words, arguments)))
    report = {cell: summary(by_seed) for cell, by_seed in found.items()}
    settings = {"family": arguments.family, "seeds": arguments.seeds, "problems": arguments.problems}
    plain = json.dumps({**settings, "cells": report}, indent=1)
    (arguments.output / "report.json").write_text(plain.replace("NaN", "null") + "\n")
    draw(report, arguments.output / "curves.png")
    for cell, rows in report.items():
        print(f"\n{cell}")
        for name, row in rows.items():
            if " - " in name:
                interval = "" if math.isnan(row["low"]) else f"  ({row['low']:+.3f} to {row['high']:+.3f})"
                print(f"  {name:<58} {row['mean']:+.3f}{interval}")


def draw(report: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """Accuracy against n, a panel a cell and a line a way to choose: means over seeds, a dot each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.7 * len(report), 3.6), layout="constrained")
    panels = figure.subplots(1, len(report), sharey=True)
    for panel, cell in zip(panels, report, strict=True):
        for method in ("pass_at_n", *BY_PRM, *BASELINES):
            sizes = [n for n in (1, *SIZES) if f"accuracy of {method}, n = {n}" in report[cell]]
            rows = [report[cell][f"accuracy of {method}, n = {n}"] for n in sizes]
            (line,) = panel.plot(sizes, [row["mean"] for row in rows], label=method.replace("_", " "))
            for n, row in zip(sizes, rows, strict=True):
                panel.plot([n] * len(row["seeds"]), row["seeds"], ".", markersize=3, color=line.get_color())
        panel.set(title=TITLES[cell], xlabel="samples n", xscale="log", xticks=[1, *SIZES], ylim=(0, 1.02))
        panel.set_xticklabels([str(n) for n in (1, *SIZES)])
        panel.minorticks_off()
    panels[0].set_ylabel("accuracy on held-out problems")
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    figure.savefig(path, dpi=110)


assert set(BY_PRM) | set(BASELINES) < set(SELECTIONS)
if __name__ == "__main__":
    main()
