"""What a PRM from demonstrations is worth: the runs of the study. plan.md says what is compared.

    python benchmarks/worth/study.py start --seeds 30-37       # start policies, one a seed
    python benchmarks/worth/study.py sft --seeds 30-37         # SFT of each, in both cells
    python benchmarks/worth/study.py rl --seeds 30-37          # every planned arm from there; --arms names further ones
    python benchmarks/worth/study.py sft --tune --seeds 10,11  # every rate instead of the chosen one; likewise rl
    python benchmarks/worth/study.py sft --seeds 10,11 --cells few_experts,first_half,styled_half,styled    # before remedies:
    python benchmarks/worth/study.py remedies --seeds 10,11    # other ways to learn the PRM, on seeds of the tuning
    python benchmarks/worth/study.py sft --cells many_experts_longer    # is SFT with many experts trained to its end?
    python benchmarks/worth/study.py collect                   # finished runs into results/, after a stop

Every stage can be stopped and started again: finished runs are kept, and what results/ holds is not run again. Rates are
in chosen.yaml. A run is an ordinary `repirl fit` of start.yaml, sft.yaml or rl.yaml with overlays from arms/ and from here.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from repirl import config
from repirl.applications.sweep import Run, parse_seeds, result
from repirl.applications.sweep import main as sweep

HERE = Path(__file__).resolve().parent
RESULTS, ARMS, CHOSEN = HERE / "results", HERE / "arms", HERE / "chosen.yaml"
sys.path.insert(0, str(HERE.parents[1]))  # the configurations name benchmarks.worth

CELLS: dict[str, dict[str, Any]] = {  # what the training problems are
    "few_experts": {"count": 2064, "with_solutions": 64},
    "many_experts": {"count": 2000},
}
SFT_ALONE: dict[str, dict[str, Any]] = {
    "first_half": {"count": 2064, "with_solutions": 32},  # of few experts: the PRM of a remedy has the other half
    "styled_half": {"count": 2064, "with_solutions": 32, "wording": 1},
    "styled": {"count": 2064, "with_solutions": 64, "wording": 1},  # what a remedy of two halves is to be compared with
    "many_experts_longer": {"count": 2000},  # three times the steps
}
LIKE = {  # whose rate they have
    **dict.fromkeys(("first_half", "styled_half", "styled"), "few_experts"),
    "many_experts_longer": "many_experts",
}
EXPERT_SHARE = {
    "few_experts": 0.5,
    "many_experts": 1.0,
}  # of the prompts of an iteration, where a PRM learns from experts
REMEDIES = (
    "prm_only", "prm_only_whole", "prm_only_twins", "prm_only_slow", "prm_only_half", "styled_half",
    "styled_weak", "prm_only_still",
)  # fmt: skip
PROMPTS_WITH_EXPERTS = (
    *REMEDIES,
    "prm_only_swapped",
    "prm_only_longer",
    "prm_only_as_many",
    "rloo_and_prm",
    "rloo_and_prm_no_kl",
    "rloo_and_prm_slow",
    "rloo_and_kl",
)  # at EXPERT_SHARE
STARTS = {  # where arms start that do not start from SFT on their cell's experts
    "rloo_from_start": "start/base",
    "prm_only_half": "sft/first_half",
    "styled_half": "sft/styled_half",
    "styled_weak": "start/base",
}
SFT_STEPS = dict.fromkeys(("few_experts", "first_half", "styled_half", "styled"), 60)
SFT_STEPS |= {"many_experts": 400, "many_experts_longer": 1200}
SFT_RATES = {"few_experts": (1e-4, 3e-4, 1e-3), "many_experts": (3e-4, 1e-3, 3e-3)}
RL_RATES = (1e-4, 3e-4, 1e-3)
PLANNED = ("rloo_from_start", "rloo", "prm_only", "rloo_and_prm", "rloo_and_frozen")
FURTHER = (
    "prm_only_swapped", "prm_only_longer", "prm_only_as_many", "rloo_and_kl", "rloo_and_prm_no_kl", "rloo_and_prm_slow",
)  # fmt: skip
RL_ARMS = (*PLANNED, *FURTHER)
BASES = dict.fromkeys(REMEDIES, ("prm_only",)) | {
    "prm_only_longer": ("prm_only",),
    "prm_only_as_many": ("prm_only",),
    "rloo_and_prm_slow": ("rloo_and_prm", "prm_only_slow"),
}  # below an arm's own file
KEPT = ("worth/", "seconds", "prm/auroc", "prm/ess_share", "prm/ranking_loss", "rollout/accuracy", "rollout/truncated")


def overlay(stage: str, cell: str, arm: str, rate: float) -> dict[str, Any]:
    """What a run changes in sft.yaml or rl.yaml: its data, where it starts, its rate."""
    model: dict[str, Any] = {"policy_optimizer": {"init_args": {"lr": rate}}}
    data: dict[str, Any] = {"train": {"init_args": (CELLS | SFT_ALONE)[cell]}}
    if stage != "sft":
        start = STARTS.get(arm, f"sft/{cell}")
        model["policy"] = {"init_args": {"path": f"{{folder}}/../../../{start}/seed-{{seed}}/policy"}}
        if arm in PROMPTS_WITH_EXPERTS:
            data["expert_share"] = EXPERT_SHARE[cell]
    return {"model": {"init_args": model}, "data": {"init_args": data}}


def runs_of(stage: str, cells: list[str], arms: list[str], *, tune: bool) -> dict[str, tuple[str, str, float]]:
    """Cell, arm and rate of each run's name."""
    chosen = yaml.safe_load(CHOSEN.read_text()) if CHOSEN.is_file() else {}
    runs = {}
    for cell in cells:
        for arm in arms:
            name = cell if stage == "sft" else f"{cell}-{arm}"
            rates = (SFT_RATES[cell] if stage == "sft" else RL_RATES) if tune else (rate_of(chosen, cell, arm),)
            for rate in rates:
                runs[f"{name}-{rate:g}" if tune else name] = cell, arm, rate
    return runs


def rate_of(chosen: dict[str, dict[str, Any]], cell: str, arm: str) -> float:
    """The chosen rate; a cell of SFT alone has that of the cell it is like, and a remedy that of `prm_only`."""
    own = chosen[LIKE.get(cell, cell)]
    return float(own[arm if arm in own else "prm_only"])


def overlays(
    stage: str, runs: dict[str, tuple[str, str, float]], output: Path, iterations: int | None
) -> dict[str, str]:
    """Words for `repirl sweep` by name: one overlay file a run, with its arm's own settings."""
    words = {}
    for name, (cell, arm, rate) in runs.items():
        path = output / stage / "arms" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        files = [ARMS / f"{one}.yaml" for one in dict.fromkeys((*BASES.get(arm, ()), arm))]
        own = config.load([file for file in files if file.is_file()])
        merged = config.merge(own, overlay(stage, cell, arm, rate))
        if iterations or stage == "sft":
            merged["trainer"] = {"max_steps": iterations or SFT_STEPS[cell]}
        path.write_text(yaml.safe_dump(merged, sort_keys=False))
        words[name] = str(path)
    return words


def collect(output: Path, stage: str) -> set[tuple[str, str]]:
    """Adds the finished runs of a stage to results/<stage>.csv; returns (run, seed) of everything that is there."""
    return add_rows(RESULTS / f"{stage}.csv", output / stage, KEPT)


def add_rows(
    path: Path, runs: Path, kept: tuple[str, ...], names: Mapping[str, str] | None = None
) -> set[tuple[str, str]]:
    """Adds the finished runs of a sweep's folder to a table; returns (run, seed) of everything that is there.

    kept: beginnings of the figures' names. names: what runs are called in the table, where it is not their arm.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    if path.is_file():
        with path.open(newline="") as file:
            rows = {(row["run"], row["seed"]): dict(row) for row in csv.DictReader(file)}
    for marker in sorted(runs.glob("*/seed-*/done.json")):
        arm, seed = marker.parts[-3], marker.parts[-2].removeprefix("seed-")
        name = (names or {}).get(arm, arm)
        figures = result(Run(arm, int(seed), (), marker.parent))
        assert figures is not None
        shown = {key: f"{value:.5g}" for key, value in figures.items() if key.startswith(kept) and value == value}
        rows[name, seed] = {"run": name, "seed": seed} | shown
    if rows:
        path.parent.mkdir(exist_ok=True)
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows[key] for key in sorted(rows))
    return set(rows)


def reduced(stage: str, iterations: int, output: Path) -> Path:
    """The stage's configuration with few iterations and few problems to measure on."""
    smaller = config.load([HERE / f"{stage}.yaml"])
    smaller["trainer"]["max_steps"] = iterations
    for callback in smaller["trainer"]["callbacks"]:
        if callback["class_path"].endswith("WorthMeasures"):
            for problems, count in (("answered", 8), ("scored", 4), ("unseen", 16)):
                callback["init_args"][problems]["init_args"]["count"] = count
    if stage == "start":  # the others' problems are their cell's
        smaller["data"]["init_args"]["train"]["init_args"]["count"] = 500
    path = output / f"{stage}-{iterations}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(smaller))
    return path


def main() -> int:
    """Runs a stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["start", "sft", "rl", "remedies", "collect"])
    parser.add_argument("--seeds", default="30-37", help="such as 0-4 or 1,2,5 (default: 30-37, the confirmation's)")
    parser.add_argument("--tune", action="store_true", help="every rate, not the chosen one")
    parser.add_argument("--cells", help="comma-separated (default: both; of remedies few_experts)")
    further = ", ".join(FURTHER)
    parser.add_argument("--arms", help=f"of rl and of remedies (default: all that were planned); of rl also {further}")
    parser.add_argument(
        "--iterations", type=int, help="a reduced form: so many, and few problems; results/ stays as it is"
    )
    parser.add_argument("--again", action="store_true", help="also what results/ holds, such as for its checkpoints")
    parser.add_argument("--jobs", default="2")
    parser.add_argument("--output", type=Path, default=Path("outputs/worth"))
    given = parser.parse_args()
    if given.stage == "collect":
        for stage in ("sft", "rl", "remedies"):
            print(f"{stage}: {len(collect(given.output, stage))} runs")
        return 0
    described = "rl" if given.stage == "remedies" else given.stage
    base = [str(reduced(described, given.iterations, given.output) if given.iterations else HERE / f"{described}.yaml")]
    where = ["--output", str(given.output / given.stage), "--jobs", given.jobs]
    if given.stage == "start":
        return sweep(["--base", *base, "--with-base", "--seeds", given.seeds, *where])
    remedies = given.stage == "remedies"
    by_default = REMEDIES if remedies else PLANNED
    arms = ["sft"] if given.stage == "sft" else given.arms.split(",") if given.arms else list(by_default)
    cells = given.cells.split(",") if given.cells else ["few_experts"] if remedies else list(CELLS)
    runs = runs_of(given.stage, cells, arms, tune=given.tune)
    words = overlays(given.stage, runs, given.output, given.iterations)
    known = set() if given.iterations else collect(given.output, given.stage)
    status = 0
    for seed in parse_seeds(given.seeds):
        wanted = [
            word for name, word in words.items() if (name, str(seed)) not in known or is_start(given) or given.again
        ]
        if wanted:
            status |= sweep(["--base", *base, "--overlays", *wanted, "--seeds", str(seed), *where])
        if not given.iterations:
            collect(given.output, given.stage)
    return status


def is_start(given: argparse.Namespace) -> bool:
    """Whether others start from the runs: they are made again where their policies are gone, whatever results/ holds."""
    return given.stage == "sft" and not given.tune


if __name__ == "__main__":
    sys.exit(main())
