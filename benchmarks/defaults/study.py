"""The study behind the defaults: which switches of PRM-only rePIRL matter, on two tasks. See report.md.

    python benchmarks/defaults/study.py start                     # start policies
    python benchmarks/defaults/study.py screen                    # every arm, seed 0
    python benchmarks/defaults/study.py confirm                   # chosen arms, seeds 10 to 14
    python benchmarks/defaults/study.py own                       # a few arms, seeds 20 to 24, a start of its own for each
    python benchmarks/defaults/study.py screen --only head,prime --seeds 0 --iterations 5   # a reduced form
    python benchmarks/defaults/study.py collect                   # results of finished runs into results/, after a stop

Every stage can be stopped and started again: finished runs are kept, and what `results/` holds is not run again. A design
around a base (`base.yaml`): the full product of weighting, experts in Z and advantage estimator, and every other switch on
its own; then single switches around the arm that became the default. `a+b` is the arm a with the switches of b.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from pathlib import Path
from typing import Any

import yaml

from repirl.applications.sweep import Run, parse_seeds, result
from repirl.applications.sweep import main as sweep

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
KEPT = (
    "study/",
    "seconds",
    "prm/ess_share",
    "prm/ranking_loss",
    "policy/entropy",
    "rollout/accuracy",
    "rollout/truncated",
)
sys.path.insert(0, str(HERE.parents[1]))  # the configurations name benchmarks.defaults.measure
TASKS = {"paraphrased": [], "any_order": [HERE / "task_any_order.yaml"]}
SEEDS = {"screen": "0", "confirm": "10-14", "own": "20-24"}
STARTS = {
    "screen": 0,
    "confirm": 10,
}  # the start policy that all seeds of a stage share, one a task; `own` has one a seed
PRIME_PRM = {"kind": "implicit", "beta": 0.05}
ESTIMATORS = {"rloo": "rloo_per_step", "prime": "prime", "position": "position"}  # by what arms and results call them


def irl(**switches: Any) -> dict[str, Any]:
    """An overlay on the base's objective."""
    return {"objective": {"init_args": switches}}


def other(name: str, **switches: Any) -> dict[str, Any]:
    """Another objective than IRL."""
    return {"objective": {"class_path": f"repirl.learning.prm_objectives.{name}", "init_args": switches}}


def prm(**switches: Any) -> dict[str, Any]:
    """Another PRM."""
    return {"prm": {"init_args": switches}}


def product() -> dict[str, dict[str, Any]]:
    """Weighting x experts in Z x estimator; the base is per_position, off, prime."""
    arms = {}
    for weighting in ("sequence", "length_normalized", "per_position", "uniform"):
        for in_z in (False, True):
            for estimator in ("rloo", "prime"):
                name = f"{weighting}{'_z' if in_z else ''}_{estimator}"
                arms[name] = irl(weighting=weighting, experts_in_z=in_z) | {
                    "advantage": {"prm_estimator": ESTIMATORS[estimator]}
                }
    return arms


def maxent(
    weighting: str, in_z: bool, estimator: str, coefficient: float = 1.0, base_measure: str = "reference"
) -> dict[str, Any]:
    """The policy maximises -KL(q || b exp(R) / Z) instead of E[R]."""
    advantage = {"prm_estimator": ESTIMATORS[estimator], "maxent_coef": coefficient}
    return irl(weighting=weighting, experts_in_z=in_z, base_measure=base_measure) | {"advantage": advantage}


def joint(reward_scale: str) -> dict[str, Any]:
    """Outcome and PRM at 1 : 0.1; right rollouts are pseudo-experts that stay in the background set."""
    both = {"outcome_coef": 1.0, "prm_coef": 0.1, "maxent_coef": 1.0, "reward_scale": reward_scale}
    estimators = {"outcome_estimator": "rloo", "prm_estimator": "rloo_per_step"}
    return irl(weighting="sequence", base_measure="reference", corrected="copy") | {"advantage": both | estimators}


def policy_rate(rate: float) -> dict[str, Any]:
    """Another learning rate of the policy."""
    return {"policy_optimizer": {"init_args": {"lr": rate}}}


ARMS: dict[str, dict[str, Any]] = {
    **product(),
    # parameterisation
    "logit_difference": prm(kind="logit_difference"),
    "implicit": prm(kind="implicit"),
    "head": prm(kind="head"),
    "linear": prm(kind="linear"),
    "q_head_rank_8": prm(kind="q_head", rank=8),
    "steps": prm(granularity="step"),
    # scope, Rhat, temperature, truncation
    "sequence_batch": irl(weighting="sequence", scope="batch"),
    "paper": irl(weighting="sequence", scope="batch", rhat="Rbar") | prm(kind="head"),
    "sequence_rbar": irl(weighting="sequence", rhat="Rbar"),
    "uniform_rbar": irl(weighting="uniform", rhat="Rbar"),
    "sequence_tempered": irl(weighting="sequence", temperature=2.0),
    "sequence_truncated": irl(weighting="sequence", truncate=0.4),
    # base measure
    "reference": irl(base_measure="reference"),
    "sequence_z_reference": irl(weighting="sequence", experts_in_z=True, base_measure="reference"),
    "implicit_reference": irl(weighting="sequence", base_measure="reference") | prm(kind="implicit"),
    # the policy's objective: rewards with log b - log q
    **{
        f"maxent_{weighting}{'_z' if in_z else ''}_{estimator}": maxent(weighting, in_z, estimator)
        for weighting, in_z in (("per_position", False), ("sequence", False), ("sequence", True))
        for estimator in ("rloo", "prime", "position")
    },
    "maxent_uniform_base": maxent("per_position", False, "position", base_measure="uniform"),
    "maxent_logit_difference": maxent("sequence", False, "rloo") | prm(kind="logit_difference"),
    "maxent_implicit": maxent("sequence", False, "rloo") | prm(kind="implicit"),
    "maxent_half": maxent("per_position", False, "position", coefficient=0.5),
    # corrected trajectories: the only arms whose PRM sees outcomes
    "corrected_copy": irl(corrected="copy"),
    "corrected_move": irl(corrected="move"),
    "corrected_copy_expert_4": irl(corrected="copy", expert_weight=4.0),
    # rhythm and rates
    "prm_updates_1": {"schedule": {"prm_updates": 1}},
    "prm_updates_4": {"schedule": {"prm_updates": 4}},
    "prm_rate_x3": {"prm_optimizer": {"init_args": {"lr": 3.0e-3}}},
    "prm_rate_third": {"prm_optimizer": {"init_args": {"lr": 3.3e-4}}},
    # rewards to advantages
    "scale_none": {"advantage": {"reward_scale": "none"}},
    "scale_std": {"advantage": {"reward_scale": "std"}},
    "not_whitened": {"advantage": {"whiten": False}},
    "grpo": {"advantage": {"prm_estimator": "grpo"}},
    "position": {"advantage": {"prm_estimator": "position"}},
    "position_discounted": {"advantage": {"prm_estimator": "position", "prm_discount": 0.5}},
    "discounted": {"advantage": {"prm_discount": 0.5}},
    "penalty": irl(reward_penalty=0.05),
    "entropy": {"surrogate": {"entropy_coef": 0.001}},
    # other objectives
    "discriminator": other("Discriminator", corrected="ignore"),
    "discriminator_token": other("Discriminator", form="token", corrected="ignore"),
    "gail_token": other("Discriminator", logit="gail", form="token", corrected="ignore"),
    "prime": other("Prime") | {"prm": {"init_args": PRIME_PRM}},
    "outcome_only": {
        "prm": None,
        "advantage": {"outcome_coef": 1.0, "prm_coef": 0.0, "outcome_estimator": "rloo_per_step"},
    },
    # the pieces of the default's pair: the term with the uniform base measure, the reference without the term
    "maxent_sequence_uniform": maxent("sequence", False, "rloo", base_measure="uniform"),
    "sequence_reference_rloo": maxent("sequence", False, "rloo", coefficient=0.0),
    # both rewards with the defaults of `Advantage` and `IRL`: the PRM's scaled to a largest return of 1, or not at all
    "joint": joint("max_abs_return"),
    "joint_unscaled": joint("none"),
    "sft": {},  # imitation of the same experts: `sft`
    # the policy's learning rate instead of 1e-3
    "policy_rate_3e-4": policy_rate(3.0e-4),
    "policy_rate_1e-4": policy_rate(1.0e-4),
    "constant_rate": {"policy_scheduler": None},
    # data
    "experts_16": {},
    "experts_64": {},
    "wider": {"samples": 4},  # 32 prompts x 4 rollouts instead of 16 x 8
}
DATA: dict[str, dict[str, Any]] = {  # what an arm changes in the data
    "experts_16": {"train": {"init_args": {"count": 16}}},  # prompts with experts, and no others
    "experts_64": {"train": {"init_args": {"count": 64}}},
    "wider": {"batch_prompts": 32},
}
BASE = "per_position_prime"
DEFAULT = "maxent_sequence_rloo"
AROUND = [  # what is switched around the default
    *("q_head_rank_8", "head", "steps", "length_normalized_rloo", "uniform_rloo", "sequence_batch", "sequence_rbar"),
    *("sequence_tempered", "sequence_truncated", "paper", "corrected_copy", "corrected_move", "prm_updates_1"),
    *("prm_updates_4", "prm_rate_x3", "prm_rate_third", "scale_none", "scale_std", "not_whitened", "discounted"),
    *("penalty", "entropy", "discriminator_token", "experts_16", "experts_64", "wider"),
]
SCREENED = [*ARMS, *(f"{DEFAULT}+{name}" for name in AROUND)]
RATES = [f"outcome_only+{rate}" for rate in ("policy_rate_3e-4", "policy_rate_1e-4")]
CONFIRMED = [  # report.md says what they show
    *(DEFAULT, "maxent_per_position_rloo", "maxent_sequence_z_rloo", "maxent_logit_difference", "maxent_uniform_base"),
    *(BASE, "sequence_rloo", "logit_difference", "outcome_only"),
    *(
        "sft",
        "sft+constant_rate",
        "maxent_sequence_uniform",
        "sequence_reference_rloo",
        *RATES,
        "joint",
        "joint_unscaled",
    ),
]
OWN = ["sft", DEFAULT, "maxent_sequence_uniform", "sequence_reference_rloo", "outcome_only+policy_rate_3e-4"]
STAGES = {"screen": SCREENED, "confirm": CONFIRMED, "own": OWN}


def sft(base: dict[str, Any]) -> dict[str, Any]:
    """Imitation of the same experts from the same start: an optimiser step an iteration and no rollouts."""
    kept = ("policy", "policy_optimizer", "policy_scheduler", "text")
    arguments = {name: value for name, value in base["model"]["init_args"].items() if name in kept}
    return {"class_path": "repirl.modules.sft.SFT", "init_args": arguments}


def overlay(arm: str, start: Path) -> dict[str, Any]:
    """What one arm changes. start: the folder of its start policy."""
    changed: dict[str, Any] = {"init_args": ARMS[arm]}
    if arm == "sft":
        changed = sft(yaml.safe_load((HERE / "base.yaml").read_text()))
    policy = {"class_path": "repirl.Policy", "init_args": {"path": str(start)}}
    overlaid: dict[str, Any] = {"model": {**changed, "init_args": {**changed["init_args"], "policy": policy}}}
    if arm in DATA:
        overlaid["data"] = {"init_args": DATA[arm]}
    return overlaid


def overlays(output: Path, stage: str, task: str, seed: int, only: list[str]) -> list[str]:
    """The overlay files of every arm of a task, written to `output`, as the words that `repirl sweep` takes."""
    folder = output / stage / "arms" / task
    start = (
        output / "start" / ("base" if task == "paraphrased" else task) / f"seed-{STARTS.get(stage, seed)}" / "policy"
    )
    words = []
    for arm in only:
        files = [*TASKS[task]]
        for name in arm.split("+"):
            files.append(written(folder / f"{name}.yaml", overlay(name, start)))
        words.append("+".join(map(str, files)))
    return words


def written(path: Path, content: dict[str, Any]) -> Path:
    """The path of a YAML file with this content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def taught(output: Path, seed: int) -> list[str]:
    """What makes a start policy a seed's own: fresh weights, taught solutions, and which of the facts they have wrong.

    The starts that a stage shares differ by the order of the data alone.
    """
    if seed in STARTS.values():
        return []
    source = {"seed": seed, "facts_seed": seed}
    changed = {
        "model": {"init_args": {"policy": {"init_args": {"init_seed": seed}}}},
        "data": {"init_args": {"train": {"init_args": source}}},
    }
    return [str(written(output / "start" / f"taught-{seed}.yaml", changed))]


def experts(output: Path, stage: str, seed: int) -> list[str]:
    """Stage `own`: other problems and experts for each seed."""
    if stage in STARTS:
        return []
    changed = {"data": {"init_args": {"train": {"init_args": {"seed": 100 + seed}}}}}
    return [str(written(output / stage / f"experts-{seed}.yaml", changed))]


def collect(output: Path, stage: str) -> set[tuple[str, str, str]]:
    """Adds the finished runs of a stage to results/<stage>.csv; returns (task, arm, seed) of everything that is there."""
    path = RESULTS / f"{stage}.csv"
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    if path.is_file():
        with path.open(newline="") as file:
            rows = {(row["task"], row["arm"], row["seed"]): dict(row) for row in csv.DictReader(file)}
    for marker in sorted((output / stage).glob("*/*/seed-*/done.json")):
        folder = marker.parent
        task, seed = folder.parts[-3], folder.name.removeprefix("seed-")
        arm = "+".join(part for part in folder.parts[-2].split("+") if not part.startswith("task_"))
        found = result(Run(arm, int(seed), (), folder))
        assert found is not None
        kept = {name: f"{value:.5g}" for name, value in found.items() if name.startswith(KEPT) and value == value}
        rows[task, arm, seed] = {"task": task, "arm": arm, "seed": seed} | kept
    if rows:
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        RESULTS.mkdir(exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows[key] for key in sorted(rows))
    return set(rows)


def main() -> int:
    """Runs a stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["start", *SEEDS, "collect"])
    parser.add_argument("--only", help="comma-separated arms instead of the stage's own")
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma-separated (default: both)")
    parser.add_argument("--seeds", help="instead of the stage's own")
    parser.add_argument("--iterations", type=int, help="instead of the configuration's own; results/ stays as it is")
    parser.add_argument("--again", action="store_true", help="also what results/ holds, for figures that it lacks")
    parser.add_argument("--jobs", default="2")
    parser.add_argument("--output", type=Path, default=Path("outputs/defaults"))
    given = parser.parse_args()
    jobs = ["--jobs", given.jobs]
    if given.stage == "collect":
        for stage in SEEDS:
            print(f"{stage}: {len(collect(given.output, stage))} runs")
        return 0
    shorter = []
    if given.iterations:
        path = given.output / f"iterations-{given.iterations}.yaml"
        shorter = [str(written(path, {"trainer": {"max_steps": given.iterations}}))]
    tasks = given.tasks.split(",")
    if given.stage == "start":
        status = 0
        words = ["--with-base"] if "paraphrased" in tasks else []
        words += ["--overlays", str(HERE / "any_order.yaml")] if "any_order" in tasks else []
        for seed in parse_seeds(given.seeds or ",".join([*map(str, STARTS.values()), SEEDS["own"]])):
            base = ["--base", str(HERE / "start.yaml"), *taught(given.output, seed), *shorter]
            status |= sweep([*base, *words, "--seeds", str(seed), "--output", str(given.output / "start"), *jobs])
        return status
    names = given.only.split(",") if given.only else STAGES[given.stage]
    if unknown := [name for arm in names for name in arm.split("+") if name not in ARMS]:
        parser.error(f"unknown arm {unknown[0]}; there are {', '.join(ARMS)}")
    known = set() if shorter or given.again else collect(given.output, given.stage)
    status = 0
    for seed, task in itertools.product(parse_seeds(given.seeds or SEEDS[given.stage]), tasks):
        wanted = [name for name in names if (task, name, str(seed)) not in known]
        if wanted:
            base = ["--base", str(HERE / "base.yaml"), *experts(given.output, given.stage, seed), *shorter]
            words = ["--overlays", *overlays(given.output, given.stage, task, seed, wanted)]
            where = ["--seeds", str(seed), "--output", str(given.output / given.stage / task)]
            status |= sweep([*base, *words, *where, *jobs])
        if not shorter:
            collect(given.output, given.stage)
    return status


if __name__ == "__main__":
    sys.exit(main())
