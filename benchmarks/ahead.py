"""What sampling one iteration ahead saves: seconds an iteration beside taking turns, alternating runs on one machine.

    python benchmarks/ahead.py --start outputs/quickstart/seed-1/start --pairs 3

`engine`: a generator that takes as long as training and leaves this machine's cores to it, as an engine on other devices
does: it samples once, and from then on waits so long and gives these responses again. `in process`: the sampling thread and
training share the cores.
The configuration is the quick start's. Prints a table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback

from repirl import config
from repirl.rollout.transformers import InProcess
from repirl.structs import Response

HERE = Path(__file__).resolve().parent
FIRST = 3  # iterations before the clock starts


class Engine(InProcess):
    """Samples once, then gives the same responses again after `seconds`, whatever the prompts: good for the clock alone."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.sampled = seconds, list[list[Response]]()

    def generate(self, prompts: Sequence[Sequence[int]], **how: Any) -> list[list[Response]]:
        """As `InProcess` the first time. Raises ValueError where the number of prompts changes."""
        if not self.sampled:
            self.sampled = super().generate(prompts, **how)
        if len(prompts) != len(self.sampled):
            raise ValueError(f"{len(prompts)} prompts after {len(self.sampled)}")
        time.sleep(self.seconds)
        return self.sampled


class Clock(Callback):
    """Writes the time at the end of each iteration to a file."""

    def __init__(self, path: str) -> None:
        self.path, self.times = Path(path), list[float]()

    def on_train_batch_end(self, *args: Any) -> None:
        """Looks at the clock."""
        self.times.append(time.perf_counter())

    def on_train_end(self, *args: Any) -> None:
        """Writes."""
        self.path.write_text("\n".join(map(str, self.times)))


def seconds_an_iteration(start: str, iterations: int, folder: Path, *, ahead: int, engine: float | None) -> float:
    """Wall time from the end of iteration FIRST to the end of the last, over their number."""
    merged = config.load([HERE.parent / "configs" / "quickstart.yaml"])
    settings = merged["model"]["init_args"]
    settings["policy"]["init_args"]["path"] = start
    settings["schedule"]["rollouts_ahead"] = ahead
    if engine is not None:
        settings["rollout"] = {"class_path": "benchmarks.ahead.Engine", "init_args": {"seconds": engine}}
    merged["trainer"] |= {
        "max_steps": iterations,
        "default_root_dir": str(folder),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "callbacks": [{"class_path": "benchmarks.ahead.Clock", "init_args": {"path": str(folder / "times")}}],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(merged))
    command = [sys.executable, "-m", "repirl", "fit", "--config", str(folder / "run.yaml")]
    subprocess.run(
        command,
        check=True,
        cwd=HERE.parent,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": f"{HERE.parent}:{HERE.parent / 'src'}"},
    )
    times = [float(line) for line in (folder / "times").read_text().split()]
    return (times[-1] - times[FIRST - 1]) / (len(times) - FIRST)


def main() -> None:
    """Alternates the two, in pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", required=True, help="folder of the start policy")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("outputs/ahead"))
    given = parser.parse_args()

    def measured(name: str, **how: Any) -> float:
        return seconds_an_iteration(given.start, given.iterations, given.output / name, **how)

    training = measured("first", ahead=0, engine=0.0)
    print("| sampler | turns, s | ahead, s | ahead / turns, median and range |\n|---|---|---|---|")
    for sampler, engine in (("engine", training), ("in process", None)):
        pairs = [
            (measured("turns", ahead=0, engine=engine), measured("ahead", ahead=1, engine=engine))
            for _ in range(given.pairs)
        ]
        ratios = sorted(b / a for a, b in pairs)
        first, second = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| {sampler} | {first:.2f} | {second:.2f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
