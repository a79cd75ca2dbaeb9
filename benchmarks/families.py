"""The families of problems that benchmarks/search.py and benchmarks/ttt.py run on.

`sums`: the quick start's running sums of two-letter facts. `dial`: word problems about the hand of a dial, with solutions
of written-out steps in three wordings (worth/task.py). Both have a start policy from scratch that has been taught solutions
with wrong facts, and a PRM by the quick start's PRM-only run from there. Seeds have their own start, PRM and problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from repirl import config
from repirl.applications.sweep import main as sweep

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
START = "{folder}/../../../start/base/seed-{seed}/policy"  # as a later stage's run sees it


@dataclass(frozen=True)
class Family:
    """A family of problems.

    start: configuration of its start policy. search: of `repirl search` on it. source: class of its problems.
    unsolved: the setting of `source` that leaves solutions out. text: the most tokens of prompt and response.
    own_start: what the studies change in `start`, for every seed.
    """

    start: Path
    search: Path
    source: str
    unsolved: Mapping[str, Any]
    text: Mapping[str, int]
    own_start: Mapping[str, Any]

    def problems(self, count: int, seed: str, split: str) -> dict[str, Any]:
        """So many without solutions, as a source of a configuration."""
        init = {"count": count, "seed": seed, "split": split, **self.unsolved}
        return {"class_path": self.source, "init_args": init}

    def start_overlay(self, steps: int) -> dict[str, Any]:
        """Of `start`: so many steps at most."""
        return config.merge(dict(self.own_start), {"trainer": {"max_steps": steps, "enable_progress_bar": False}})

    def prm_overlay(self, iterations: int, every: int) -> dict[str, Any]:
        """Of configs/quickstart.yaml: the PRM-only run from the seed's start; a checkpoint every so many iterations."""
        saves = {"dirpath": "{folder}/checkpoints", "filename": "{step}", "every_n_iterations": every}
        saves |= {"keep_all": True, "save_weights_only": True}
        problems = {"class_path": self.source, "init_args": {"count": 4000, "seed": "1{seed}", "split": "train"}}
        return {
            "trainer": {
                "max_steps": iterations,
                "enable_progress_bar": False,
                "callbacks": [{"class_path": "repirl.callbacks.checkpoint.Checkpoint", "init_args": saves}],
            },
            "model": {"init_args": {"policy": {"init_args": {"path": START}}, "text": dict(self.text)}},
            "data": {"init_args": {"train": problems}},
        }


_EARLY_STOPPING = {"monitor": "sft/loss", "stopping_threshold": 0.09, "patience": 1000}
FAMILIES = {
    "sums": Family(
        start=CONFIGS / "toy" / "start.yaml",
        search=CONFIGS / "search" / "quickstart.yaml",
        source="repirl.data.arithmetic.RunningSums",
        unsolved={"solution": False},
        text={"max_prompt_tokens": 32, "max_response_tokens": 20},
        own_start={  # fewer wrong facts than the quick start's, and weights and problems of the seed's own
            "trainer": {
                "callbacks": [
                    {
                        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
                        "init_args": {**_EARLY_STOPPING, "check_on_train_epoch_end": True},
                    },
                    {"class_path": "repirl.callbacks.export.ExportPolicy", "init_args": {"folder": "{folder}/policy"}},
                ]
            },
            "model": {
                "init_args": {
                    "policy": {"init_args": {"init_seed": "{seed}"}},
                    "policy_optimizer": {"init_args": {"lr": 2.0e-3, "betas": [0.9, 0.98]}},
                }
            },
            "data": {"init_args": {"train": {"init_args": {"wrong_facts": 40, "seed": "{seed}"}}}},
        },
    ),
    "dial": Family(
        start=ROOT / "benchmarks" / "worth" / "start.yaml",
        search=ROOT / "benchmarks" / "worth" / "search.yaml",
        source="benchmarks.worth.task.DialProblems",
        unsolved={"with_solutions": 0},
        text={"max_prompt_tokens": 32, "max_response_tokens": 64},
        own_start={},
    ),
}


def written(folder: Path, name: str, overlay: Mapping[str, Any]) -> str:
    """The path of the overlay's file."""
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(overlay), sort_keys=False))
    return str(path)


def swept(output: Path, stage: str, base: Sequence[Path | str], overlays: Sequence[str], seed: int) -> None:
    """Runs what is not done of a stage. Raises SystemExit where a run fails."""
    words = ["--base", *map(str, base), "--seeds", str(seed), "--jobs", "1", "--output", str(output / stage)]
    if sweep([*words, *(["--overlays", *overlays] if overlays else ["--with-base"])]):
        raise SystemExit(f"a run of {output / stage} failed; its log.txt says why")


def made_start(output: Path, family: Family, seed: int, steps: int) -> Path:
    """The folder of a seed's start policy, made where it is missing."""
    overlay = written(output / "overlays", "start", family.start_overlay(steps))
    swept(output, "start", [family.start, overlay], [], seed)
    return output / "start" / "base" / f"seed-{seed}" / "policy"


def made_prm(output: Path, family: Family, seed: int, iterations: int, every: int) -> dict[int, Path]:
    """Checkpoints by iteration of the PRM-only run of a seed, which is made where it is missing."""
    overlay = written(output / "overlays", "prm", family.prm_overlay(iterations, every))
    swept(output, "prm", [CONFIGS / "quickstart.yaml", overlay], [], seed)
    saved = (output / "prm" / "base" / f"seed-{seed}" / "checkpoints").glob("step=*.ckpt")
    return {int(path.stem.removeprefix("step=")): path for path in saved}
