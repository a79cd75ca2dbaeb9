"""`repirl quickstart`: a weak start policy, then rePIRL without any outcome label beside its rivals, in a few minutes.

Every run is an ordinary `repirl fit` in a process of its own; this program only makes the overlays that say where results
go, waits, and measures the saved policies on held-out problems, with the verifier that the runs did not have.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from repirl.applications.following import MEASURING, follow
from repirl.applications.processes import Processes, alone_in
from repirl.applications.sweep import parse_seeds
from repirl.config import ConfigError

REPIRL = "configs/quickstart.yaml"
STARTS = {
    "hard": ["configs/toy/start.yaml"],
    "easy": ["configs/toy/start.yaml", "configs/toy/overlays/easy_start.yaml"],
}
ARMS = {  # name: (folder, configurations)
    "rePIRL, PRM only": ("repirl", [REPIRL]),
    "rePIRL, outcome + PRM": ("both", [REPIRL, "configs/ablations/outcome_and_prm.yaml"]),
    "RLOO, outcome only": ("rloo", [REPIRL, "configs/ablations/outcome_only.yaml"]),
    "SFT on the same experts": ("sft", ["configs/toy/sft.yaml"]),
}
EASY_ITERATIONS = 200  # instead of the configurations' 140, where sampled accuracy from the easier start still rises
PROGRESS = {  # of a run, into its log: often, since the log is where it is read
    "class_path": "repirl.callbacks.progress.Progress",
    "init_args": {"every_s": 2.0},
}
CURVE_PROBLEMS, FINAL_PROBLEMS = 200, 500


def main(argv: Sequence[str]) -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="repirl quickstart", description=__doc__)
    parser.add_argument(
        "--seeds", default="1", help="such as 0-4 or 1,2,5, each a start policy and its runs (default: 1)"
    )
    parser.add_argument("--start", choices=list(STARTS), default="hard", help="how weak the start policy is")
    parser.add_argument("--output", default="outputs/quickstart", help="folder for everything that is written")
    parser.add_argument(
        "--iterations",
        type=count_of,
        help="of every run (default: the configurations' own number; from the easy start 200)",
    )
    parser.add_argument("--start-iterations", type=count_of, help="the same for the start policy")
    arguments = parser.parse_args(argv)
    seeds = parse_seeds(arguments.seeds)
    iterations = iterations_of(arguments.start, arguments.iterations)
    arms = [arm for arm in ARMS if arguments.start == "easy" or arm != "rePIRL, outcome + PRM"]
    needed = [*STARTS[arguments.start], *(path for arm in arms for path in ARMS[arm][1])]
    missing = [path for path in needed if not Path(path).is_file()]
    if missing:
        raise ConfigError(f"{missing[0]} is not here", "run `repirl quickstart` in the root of the repository")

    with alone_in(Path(arguments.output)):
        return _run_all(arguments, seeds, arms, iterations)


def _run_all(arguments: argparse.Namespace, seeds: list[int], arms: list[str], iterations: int | None) -> int:
    output = Path(arguments.output)
    began = time.perf_counter()
    cores = os.cpu_count() or 1
    processes = Processes()

    print(f"1. start policies (seeds {arguments.seeds}): facts learned wrong on purpose")
    threads = max(1, cores // len(seeds))
    with processes.threads(cores) as pool:
        configs = STARTS[arguments.start]
        overlays = [start_overlay(output, seed, configs, arguments.start_iterations) for seed in seeds]
        follow(processes, {path.parent: pool.submit(fit, processes, configs, path, threads) for path in overlays})
    print(f"2. {len(arms)} runs a seed from there, {cores} at a time, each measured on held-out problems when it ends")
    with processes.threads(cores) as pool:
        runs = {
            (seed, arm): pool.submit(run, processes, ARMS[arm][1], arm_overlay(output, seed, arm, iterations))
            for seed in seeds
            for arm in arms
        }
        starts = {seed: pool.submit(measured, processes, output / f"seed-{seed}" / "start") for seed in seeds}
        folders = {folder_of(output, seed, arm): future for (seed, arm), future in runs.items()}
        follow(processes, folders, besides=starts.values())
    results = []
    for seed in seeds:
        start = starts[seed].result()
        found = {arm: runs[seed, arm].result() for arm in arms}
        for of_arm in found.values():
            of_arm["curve"] = [*start["curve"], *of_arm["curve"]]
        results.append({"seed": seed, "start": start["final"], "arms": found})
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    from repirl.applications.curves import draw_curves, print_tables  # matplotlib: only now

    draw_curves(results, output / "accuracy.png")
    print_tables(results)
    print(f"curves: {output / 'accuracy.png'}; `tensorboard --logdir {output}`; figures: {output / 'results.json'}")
    print(f"took {time.perf_counter() - began:.0f} s")
    return 0


def count_of(text: str) -> int:
    """A number of iterations."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1")
    return int(text)


def iterations_of(start: str, given: int | None) -> int | None:
    """Iterations of every run; None = as its configurations say."""
    return EASY_ITERATIONS if given is None and start == "easy" else given


def start_overlay(output: Path, seed: int, configs: list[str], iterations: int | None) -> Path:
    """The overlay of a seed's start policy, which `configs` describe."""
    folder = output / f"seed-{seed}" / "start"
    trainers = [yaml.safe_load(Path(path).read_text()).get("trainer", {}) for path in configs]
    callbacks = [trainer for trainer in trainers if "callbacks" in trainer][-1]["callbacks"]
    callbacks[-1]["init_args"]["folder"] = str(folder)  # ExportPolicy; lists in overlays replace, so all are stated
    return write_overlay(
        folder,
        seed,
        {"default_root_dir": str(folder), "callbacks": [*callbacks, PROGRESS], **_steps(iterations)},
        {"policy": {"init_args": {"init_seed": seed}}},
    )


def folder_of(output: Path, seed: int, arm: str) -> Path:
    """Where one run writes."""
    return output / f"seed-{seed}" / ARMS[arm][0]


def arm_overlay(output: Path, seed: int, arm: str, iterations: int | None) -> Path:
    """The overlay of one run: where it starts, logs and saves."""
    folder = folder_of(output, seed, arm)
    where = {"save_dir": str(folder), "name": None, "version": ""}
    loggers = [
        {"class_path": f"lightning.pytorch.loggers.{kind}", "init_args": where}
        for kind in ("TensorBoardLogger", "CSVLogger")
    ]
    checkpoints = {
        "class_path": "repirl.callbacks.checkpoint.Checkpoint",
        "init_args": {
            "dirpath": str(folder / "checkpoints"),
            "filename": "{step}",
            "every_n_iterations": 20 if iterations is None else max(1, iterations // 7),
            "keep_all": True,
            "save_weights_only": True,
        },
    }
    return write_overlay(
        folder,
        seed,
        {
            "default_root_dir": str(folder),
            "logger": loggers,
            "callbacks": [checkpoints, PROGRESS],
            **_steps(iterations),
        },
        {"seed": seed, "policy": {"init_args": {"path": str(folder.parent / "start")}}},
    )


def write_overlay(folder: Path, seed: int, trainer: dict[str, Any], model: dict[str, Any]) -> Path:
    """Writes an overlay into an emptied run folder."""
    for old in [*folder.glob("checkpoints/*.ckpt"), *folder.glob("events.out.*"), *folder.glob("metrics.csv")]:
        old.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    overlay = {
        "seed_everything": seed,
        "trainer": trainer,
        "model": {"init_args": model},
        "data": {"init_args": {"seed": seed}},
    }
    path = folder / "overlay.yaml"
    path.write_text(yaml.safe_dump(overlay, sort_keys=False))
    return path


def _steps(iterations: int | None) -> dict[str, int]:
    return {} if iterations is None else {"max_steps": iterations}


def fit(processes: Processes, configs: list[str], overlay: Path, threads: int) -> None:
    """`repirl fit` in a process of its own; its output goes to a log beside the overlay."""
    words = ["fit", *(word for path in [*configs, str(overlay)] for word in ("-c", path))]
    print(f"   repirl {' '.join(words)}", flush=True)
    log = overlay.with_name("log.txt")
    if processes.repirl(words, log, threads):
        raise SystemExit(_failure("the run above", log))


def run(processes: Processes, configs: list[str], overlay: Path) -> dict[str, Any]:
    """Fits and measures."""
    fit(processes, configs, overlay, threads=1)
    return measured(processes, overlay.parent)


def measured(processes: Processes, place: Path) -> dict[str, Any]:
    """What `measure` finds, in a process of its own."""
    log = place / MEASURING
    if processes.call(log, 1, measure, place):
        raise SystemExit(_failure("measuring", log))
    found: dict[str, Any] = json.loads((place / "measured.json").read_text())
    return found


def _failure(what: str, log: Path) -> str:
    tail = "".join(log.read_text().splitlines(keepends=True)[-15:])
    return f"{tail}\n{what} failed; its whole output is in {log}"


def measure(place: Path) -> None:
    """Writes measured.json: accuracies of a run's saved policies, of the start policy alone in its own folder.

    Also for TensorBoard. Of a run also how well its last policy and PRM find wrong steps of the start policy's rollouts.
    """
    from torch.utils.tensorboard import SummaryWriter

    from repirl import checkpoints
    from repirl.applications.accuracy import accuracy
    from repirl.applications.trained import Trained, load
    from repirl.applications.wrong_steps import judged_rollouts
    from repirl.data.arithmetic import RunningSums
    from repirl.learning.settings import Text
    from repirl.models.policy import Policy

    text = Text(max_prompt_tokens=32, max_response_tokens=20)
    curve_set = RunningSums(CURVE_PROBLEMS, seed=3, split="val", solution=False).load()
    final_set = RunningSums(FINAL_PROBLEMS, seed=4, split="test", solution=False).load()
    policy = Policy(path=str(place.parent / "start")).load()
    steps = judged_rollouts(Trained(policy, None, text), final_set)
    curve: list[dict[str, float]] = []
    if place.name == "start":
        curve.append({"iteration": 0, **accuracy(policy, text, curve_set)})
    saved = {int(path.stem.removeprefix("step=")): path for path in place.glob("checkpoints/step=*.ckpt")}
    with SummaryWriter(str(place)) as writer:
        for iteration, path in sorted(saved.items()):
            state = checkpoints.read(path)["state_dict"]
            own = {k.removeprefix("policy."): v for k, v in state.items() if k.startswith("policy.")}
            policy.load_state_dict(own)
            curve.append({"iteration": iteration, **accuracy(policy, text, curve_set)})
            for name in ("greedy", "sampled"):
                writer.add_scalar(f"val/{name}_accuracy", curve[-1][name], iteration)
    final = accuracy(policy, text, final_set)
    if saved:
        final |= steps.judged_by(load(saved[max(saved)]))
    found = {"final": final, "curve": curve}
    (place / "measured.json").write_text(json.dumps(found))
