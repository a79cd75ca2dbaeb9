"""Test-time training: what does a frozen PRM teach on prompts without an answer, beside its rivals?

    python benchmarks/ttt.py --seeds 51-55                  # about seven minutes of one core a seed
    python benchmarks/ttt.py --family dial --seeds 30,31,35-37 --output outputs/ttt_dial \
        --arms prm,prm_maxent,majority,outcome,prm_and_outcome --hard-arms outcome,prm_and_outcome  # after families.py's
    python benchmarks/ttt.py --seeds 51 --reduced           # does it run

`sums` are the quick start's running sums, `dial` are word problems, whose start policies (after SFT) and PRMs another study
leaves (families.py). Fixed before the run; each seed has its own start, PRM and problems. Of `sums`:

1. a start policy, by SFT on solutions in which 40 of 100 facts are mostly wrong;
2. a PRM: 40 iterations of the quick start's PRM-only run from there. Its policy is thrown away;
   and its rivals with the same experts: `sft`, the quick start's SFT run from there, of as many steps, and `sft_ratio`,
   which follows log pi_SFT - log pi_start in the place of the PRM of `prm_maxent`;

and of both:

3. from the start anew, 60 iterations of each arm of `configs/ttt/` (20 of `dial`), on 2,000 other problems;
4. the hard problems: of 400 further ones those that the start fails in 16 samples (`repirl search`, `repirl hard`); half of
   them train, the other half measures. Arms: the PRM, gold answers, both.

No arm ends early, so that curves have one length. The guard of `configs/ttt/base.yaml` is asked afterwards, of the figures
as they were logged: when would it have spoken? Problems have answers here, for `rollout/accuracy`; arms with `outcomes`
majority or withheld do not learn from them (tests/learning/test_outcomes.py).

Written to <output>: ttt.json with every curve, ttt.png, and the printed table: sampled accuracy (temperature 1) on held-out
problems, differences from the start and from gold answers, paired by seed, with Student's t interval over seeds
(metrics/paired.py); of one seed there is none. A stop costs what runs at that moment: finished runs are kept.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.families import CONFIGS, FAMILIES, Family, worth_policy, worth_prms

from repirl import config
from repirl.__main__ import main as repirl
from repirl.applications.sweep import main as sweep
from repirl.applications.sweep import parse_seeds
from repirl.callbacks.guards import LENGTH, REWARD, Bounds
from repirl.metrics.paired import paired_t_interval

ARMS = (
    "prm",
    "prm_maxent",
    "majority",
    "certainty",
    "outcome",
    "prm_and_outcome",
    "sft_ratio",
)  # configs/ttt/<arm>.yaml
ALL_ARMS = (*ARMS, "sft")
SFT_ARMS = ("sft", "sft_ratio")  # of `sums` alone; the start policy of `dial` had SFT on the PRM's experts
HARD_ARMS = ("prm_maxent", "outcome", "prm_and_outcome")
FRESH, HARD = "val/sampled_accuracy", "val/hard/sampled_accuracy"
START = "{folder}/../../../start/base/seed-{seed}/policy"
FULL = {
    "start": 1500,
    "prm": 40,
    "arms": 60,
    "every": 10,
    "train": 2000,
    "held_out": 200,
    "searched": 400,
    "samples": 16,
    "least_hard": 40,  # fewer tell nothing: the seed has no hard arms then
}
SIZES = {"sums": FULL, "dial": FULL | {"arms": 20}}  # a run of `dial` costs several of `sums`
REDUCED = {
    "start": 3,
    "prm": 1,
    "arms": 2,
    "every": 1,
    "train": 32,
    "held_out": 4,
    "searched": 40,
    "samples": 2,
    "least_hard": 2,
}

Sizes = Mapping[str, int]
Curve = Sequence[tuple[int, float]]
"""Accuracy after so many iterations."""


# ---- configurations ----


def start_overlay(sizes: Sizes) -> dict[str, Any]:
    """Of configs/toy/start.yaml: fewer wrong facts, and weights and problems of the seed's own."""
    stop = {"monitor": "sft/loss", "stopping_threshold": 0.09, "patience": 1000, "check_on_train_epoch_end": True}
    return {
        "trainer": {
            "max_steps": sizes["start"],
            "enable_progress_bar": False,
            "callbacks": [
                {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": stop},
                {"class_path": "repirl.callbacks.export.ExportPolicy", "init_args": {"folder": "{folder}/policy"}},
            ],
        },
        "model": {
            "init_args": {
                "policy": {"init_args": {"init_seed": "{seed}"}},
                "policy_optimizer": {"init_args": {"lr": 2.0e-3, "betas": [0.9, 0.98]}},
            }
        },
        "data": {"init_args": {"train": {"init_args": {"wrong_facts": 40, "seed": "{seed}"}}}},
    }


def prm_overlay(sizes: Sizes) -> dict[str, Any]:
    """Of configs/quickstart.yaml: few iterations from the seed's start, of which the checkpoint is kept."""
    saves = {"dirpath": "{folder}/checkpoints", "every_n_iterations": sizes["prm"], "save_weights_only": True}
    return {
        "trainer": {
            "max_steps": sizes["prm"],
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "repirl.callbacks.checkpoint.Checkpoint", "init_args": saves}],
        },
        "model": {"init_args": {"policy": {"init_args": {"path": START}}}},
        "data": {"init_args": {"train": {"init_args": {"seed": "1{seed}"}}}},
    }


def sft_overlay(family: Family, start: str, sizes: Sizes) -> dict[str, Any]:
    """Of configs/toy/sft.yaml: as many steps as the PRM had iterations, on its experts, measured as the arms are."""
    model = {
        "policy": {"init_args": {"path": start}},
        "verifier": {"class_path": "repirl.verifiers.exact.ExactVerifier"},
        "eval_samples": 4,
    }
    callbacks = [
        {"class_path": "repirl.callbacks.validation.Validation", "init_args": {"every_n_iterations": sizes["every"]}},
        {"class_path": "repirl.callbacks.export.ExportPolicy", "init_args": {"folder": "{folder}/policy"}},
    ]
    val = family.problems(sizes["held_out"], "3{seed}", "test")
    return {
        "trainer": {
            "max_steps": sizes["prm"],
            "limit_val_batches": 1.0,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "callbacks": callbacks,
        },
        "model": {"init_args": model},
        "data": {"init_args": {"train": {"init_args": {"seed": "1{seed}"}}, "val": val}},
    }


@dataclass(frozen=True)
class Models:
    """Where a seed's start policy, PRM and, of `sums`, policy after SFT are."""

    start: str
    prm: str
    sft: str = ""


def arm_overlay(arm: str, family: Family, models: Models, sizes: Sizes, *, hard: bool) -> dict[str, Any]:
    """An arm of configs/ttt/ with the seed's start, PRM and problems; on fresh or on hard problems."""
    own = config.load([CONFIGS / "ttt" / f"{arm}.yaml"])
    model: dict[str, Any] = {"policy": {"init_args": {"path": models.start}}, "text": dict(family.text)}
    if arm == "sft_ratio":
        paths = {"backbone": models.sft, "reference": models.start}
        model["prm"] = {"init_args": {name: {"init_args": {"path": path}} for name, path in paths.items()}}
    elif "prm" in own["model"]["init_args"]:
        model["prm"] = {"init_args": {"weights": models.prm}}
    fresh = family.problems(sizes["held_out"], "3{seed}", "test")
    data: dict[str, Any] = {"train": family.problems(sizes["train"], "2{seed}", "train"), "val": fresh}
    if hard:
        table = "repirl.data.sources.Table"
        train, held_out = (
            {"class_path": table, "init_args": {"path": f"{{folder}}/../../../hard/seed-{{seed}}/{name}.jsonl"}}
            for name in ("train", "held_out")
        )
        data = {"train": train, "val": {"fresh": fresh, "hard": held_out}}
    validates = {"every_n_iterations": sizes["every"]}
    trainer = {
        "max_steps": sizes["arms"],
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "callbacks": [{"class_path": "repirl.callbacks.validation.Validation", "init_args": validates}],
    }
    return config.merge(own, {"trainer": trainer, "model": {"init_args": model}, "data": {"init_args": data}})


def written(folder: Path, name: str, overlay: Mapping[str, Any]) -> str:
    """The path of the overlay's file."""
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(overlay), sort_keys=False))
    return str(path)


# ---- runs ----


def swept(output: Path, stage: str, base: Sequence[Path | str], overlays: Sequence[str], seed: int) -> None:
    """Runs what is not done of a stage. Raises SystemExit where a run fails."""
    words = ["--base", *map(str, base), "--seeds", str(seed), "--jobs", "1", "--output", str(output / stage)]
    if sweep([*words, *(["--overlays", *overlays] if overlays else ["--with-base"])]):
        raise SystemExit(f"a run of {output / stage} failed; its log.txt says why")


def made_hard(output: Path, family: Family, start: str, seed: int, sizes: Sizes) -> Path | None:
    """The folder with train.jsonl and held_out.jsonl, the problems that the seed's start fails in all samples; None: few."""
    folder = output / "hard" / f"seed-{seed}"
    if (folder / "held_out.jsonl").is_file():
        return folder
    words = ["--policy", start, "--output", str(folder), f"--seed={seed}", "--methods=[pass_at_n]"]
    words += [f"--n=[{sizes['samples']}]", *(f"--text.{name}={most}" for name, most in family.text.items())]
    words += [f"--problems.init_args.count={sizes['searched']}", f"--problems.init_args.seed=4{seed}"]
    words += ["--problems.init_args.split=train"]
    if not (folder / "samples.jsonl").is_file():
        repirl(["search", "-c", str(family.search), *words])
    if not (folder / "hard.jsonl").is_file():
        repirl(["hard", "--samples", str(folder / "samples.jsonl"), "--output", str(folder / "hard.jsonl")])
    lines = (folder / "hard.jsonl").read_text().splitlines(keepends=True)
    if len(lines) < sizes["least_hard"]:
        return None
    half = len(lines) // 2
    (folder / "train.jsonl").write_text("".join(lines[:half]))
    (folder / "held_out.jsonl").write_text("".join(lines[half:]))
    return folder


def models_of(given: argparse.Namespace, seed: int, sizes: Sizes) -> Models:
    """A seed's start policy and PRM; those of `sums` are made where they are missing."""
    if given.family == "dial":
        saved = worth_prms(given.worth, seed)
        return Models(str(worth_policy(given.worth, seed).resolve()), str(saved[max(saved)].resolve()))
    made, output = given.output / "overlays", given.output.resolve()
    swept(output, "start", [CONFIGS / "toy" / "start.yaml", written(made, "start", start_overlay(sizes))], [], seed)
    swept(output, "prm", [CONFIGS / "quickstart.yaml", written(made, "prm", prm_overlay(sizes))], [], seed)
    prm = output / "prm" / "base" / f"seed-{seed}" / "checkpoints" / "last.ckpt"
    return Models(
        str(output / "start" / "base" / f"seed-{seed}" / "policy"),
        str(prm),
        str(output / "arms" / "sft" / f"seed-{seed}" / "policy"),
    )


def run_seed(given: argparse.Namespace, seed: int, sizes: Sizes, arms: Sequence[str], hard_arms: Sequence[str]) -> None:
    """Start, PRM, arms, hard problems and their arms, as far as they are not done."""
    family, output, made = FAMILIES[given.family], given.output, given.output / "overlays" / f"seed-{seed}"
    models = models_of(given, seed, sizes)
    base = [CONFIGS / "ttt" / "base.yaml"]
    if {*arms} & {*SFT_ARMS}:
        overlay = written(made / "arms", "sft", sft_overlay(family, models.start, sizes))
        swept(output, "arms", [CONFIGS / "toy" / "sft.yaml"], [overlay], seed)
    followed = [arm for arm in arms if arm != "sft"]
    overlays = [written(made / "arms", arm, arm_overlay(arm, family, models, sizes, hard=False)) for arm in followed]
    if overlays:
        swept(output, "arms", base, overlays, seed)
    if hard_arms and made_hard(output, family, models.start, seed, sizes) is None:
        print(f"seed {seed}: fewer than {sizes['least_hard']} hard problems, no hard arms")
    elif hard_arms:
        overlays = [
            written(made / "hard_arms", arm, arm_overlay(arm, family, models, sizes, hard=True)) for arm in hard_arms
        ]
        without_val = config.load(base)
        del without_val["data"]["init_args"]["val"]  # one source there, two by name here: an overlay would merge them
        swept(output, "hard_arms", [written(made, "hard_base", without_val)], overlays, seed)


# ---- what they found ----


def curve_of(path: Path, figure: str) -> tuple[list[tuple[int, float]], dict[str, Any]]:
    """Held-out accuracy by iterations done, and what the guard of base.yaml would have said and when, of a metrics.csv."""
    callbacks = config.load([CONFIGS / "ttt" / "base.yaml"])["trainer"]["callbacks"]
    (settings,) = [one["init_args"] for one in callbacks if one["class_path"].endswith("Guards")]
    bounds = Bounds(**({"min_entropy": None, "patience": 5} | settings | {"accuracy": figure}))
    curve: list[tuple[int, float]] = []
    iteration, spoke, first_words = 0, None, None
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            words = None
            if row.get(figure):
                curve.append((iteration, float(row[figure])))
                words = bounds.validated(iteration, curve[-1][1])
            elif row.get("sft/loss"):  # imitation has no reward for a guard to watch
                iteration += 1
            elif row.get(REWARD):
                iteration += 1
                figures = {name: float(row[name]) for name in (LENGTH, REWARD, "policy/entropy") if row.get(name)}
                words = bounds.iterated(figures)
            if words is not None and spoke is None:
                spoke, first_words = iteration, words
    said = {"guard_iteration": spoke, "guard": first_words}
    if rewards := bounds.rewards:
        said |= {"reward_first": rewards[0], "reward_last": sum(rewards[-5:]) / len(rewards[-5:])}
    return curve, said


def collected(output: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Every finished run of these seeds: stage -> arm -> seed -> curve and guard."""
    found: dict[str, Any] = {"arms": {}, "hard_arms": {}}
    for stage, figure in (("arms", FRESH), ("hard_arms", HARD)):
        for marker in sorted((output / stage).glob("*/seed-*/done.json")):
            arm, seed = marker.parts[-3], int(marker.parts[-2].removeprefix("seed-"))
            if seed in seeds:
                curve, said = curve_of(marker.with_name("metrics.csv"), figure)
                seconds = json.loads(marker.read_text())["seconds"]
                found[stage].setdefault(arm, {})[str(seed)] = {"curve": curve, "seconds": seconds, **said}
    return {stage: {arm: runs[arm] for arm in ALL_ARMS if arm in runs} for stage, runs in found.items()}


def difference(values: Sequence[float]) -> dict[str, float]:
    """Mean and 95 % t interval of paired differences; of one there is no interval."""
    low, high = paired_t_interval(torch.tensor(values)) if len(values) > 1 else (math.nan, math.nan)
    return {"mean": sum(values) / len(values), "low": low, "high": high}


def rows_of(runs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row an arm: start and last accuracy, means over seeds; differences from start and from `outcome`; guards' words."""
    rows = []
    gold = runs.get("outcome", {})
    for arm, by_seed in runs.items():
        last = {seed: run["curve"][-1][1] for seed, run in by_seed.items()}
        start = {seed: run["curve"][0][1] for seed, run in by_seed.items()}
        both = [seed for seed in last if seed in gold]
        against = [last[seed] - gold[seed]["curve"][-1][1] for seed in both]
        rows.append(
            {
                "arm": arm,
                "n": len(last),
                "start": sum(start.values()) / len(start),
                "best": sum(max(value for _, value in run["curve"]) for run in by_seed.values()) / len(by_seed),
                "last": sum(last.values()) / len(last),
                "from_start": difference([last[seed] - start[seed] for seed in last]),
                "from_outcome": difference(against) if against and arm != "outcome" else None,
                "spoke": {seed: run["guard_iteration"] for seed, run in by_seed.items() if run["guard"]},
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| arm | n | start | best | last | last - start | last - gold answers | guard: seed at iteration |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        spoke = ", ".join(f"{seed} at {iteration}" for seed, iteration in row["spoke"].items()) or "-"
        cells = [f"`{row['arm']}`", str(row["n"]), *(f"{row[name]:.3f}" for name in ("start", "best", "last"))]
        lines.append("| " + " | ".join([*cells, _shown(row["from_start"]), _shown(row["from_outcome"]), spoke]) + " |")
    return "\n".join(lines)


def _shown(value: Mapping[str, float] | None) -> str:
    if value is None:
        return "-"
    interval = "" if math.isnan(value["low"]) else f" ({value['low']:+.3f} to {value['high']:+.3f})"
    return f"{value['mean']:+.3f}{interval}"


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Held-out accuracy over iterations, a panel a stage: thick means over seeds, thin each, crosses where guards spoke."""
    from matplotlib.figure import Figure

    titles = {"arms": "fresh problems", "hard_arms": "problems that the start fails 16 times"}
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for panel, stage in zip(figure.subplots(1, 2), titles, strict=True):
        for arm, by_seed in found[stage].items():
            curves = [run["curve"] for run in by_seed.values()]
            steps = [iteration for iteration, _ in curves[0]]
            mean = [sum(curve[i][1] for curve in curves) / len(curves) for i in range(len(steps))]
            color = f"C{ALL_ARMS.index(arm)}"  # the same in both panels
            panel.plot(steps, mean, linewidth=2, label=arm, color=color)
            for run in by_seed.values():
                panel.plot(*zip(*run["curve"], strict=True), linewidth=0.5, color=color)
                if run["guard_iteration"] is not None:
                    at = min(run["curve"], key=lambda point: abs(point[0] - run["guard_iteration"]))
                    panel.plot(*at, "x", color=color)
        panel.set(title=titles[stage], xlabel="iterations", ylim=(0, None))
        panel.legend(fontsize=7)
    figure.axes[0].set_ylabel("sampled accuracy, held out")
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is missing, then tells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(FAMILIES), default="sums")
    parser.add_argument("--seeds", default="51-55")
    parser.add_argument("--arms", help="default: all, of `dial` without those of SFT")
    parser.add_argument("--hard-arms", default=",".join(HARD_ARMS), help="empty leaves the hard problems out")
    parser.add_argument("--output", type=Path, default=Path("outputs/ttt_study"))
    parser.add_argument("--worth", type=Path, default=Path("outputs/worth"), help="of `dial`: that study's runs")
    parser.add_argument("--reduced", action="store_true", help="a few steps on a few problems: does it run")
    given = parser.parse_args(arguments)
    known = [arm for arm in ALL_ARMS if given.family == "sums" or arm not in SFT_ARMS]
    chosen = ",".join(known) if given.arms is None else given.arms
    arms, hard_arms = ([name for name in text.split(",") if name] for text in (chosen, given.hard_arms))
    if unknown := sorted(({*arms} - {*known}) | ({*hard_arms} - ({*known} - {"sft"}))):
        parser.error(f"no arm of {given.family} is called {unknown[0]!r}; there are {', '.join(known)}")
    sizes, seeds = REDUCED if given.reduced else SIZES[given.family], parse_seeds(given.seeds)
    for seed in seeds:
        run_seed(given, seed, sizes, arms, hard_arms)
    found = collected(given.output, seeds)
    report = {"family": given.family, "seeds": seeds, "sizes": dict(sizes), **found}
    (given.output / "ttt.json").write_text(json.dumps(report, indent=1).replace("NaN", "null") + "\n")
    draw(found, given.output / "ttt.png")
    for stage, runs in ((name, found[name]) for name in ("arms", "hard_arms") if found[name]):
        print(f"\n{stage}\n{table(rows_of(runs))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
