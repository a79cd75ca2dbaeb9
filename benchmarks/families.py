"""The families of problems that benchmarks/search.py and benchmarks/ttt.py run on, with their start policies and PRMs.

`sums`: the quick start's running sums. `dial`: word problems about the hand of a dial, with solutions of written-out steps in
three wordings (worth/task.py); start policy and PRM are those of the study of the PRM's worth, many experts, which comes
first and leaves them in a folder W:

    python benchmarks/worth/study.py start --seeds 35 --output W
    python benchmarks/worth/study.py sft --seeds 35 --output W
    python benchmarks/worth/study.py rl --seeds 35 --output W --cells many_experts --arms prm_only --again
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"


@dataclass(frozen=True)
class Family:
    """A family of problems.

    source: class of its problems. unsolved: the setting of it that leaves solutions out. text: the most tokens of prompt
    and response. search: configuration of `repirl search`.
    """

    source: str
    unsolved: Mapping[str, Any]
    text: Mapping[str, int]
    search: Path

    def problems(self, count: int, seed: str, split: str) -> dict[str, Any]:
        """So many without solutions, as a source of a configuration."""
        init = {"count": count, "seed": seed, "split": split, **self.unsolved}
        return {"class_path": self.source, "init_args": init}


FAMILIES = {
    "sums": Family(
        source="repirl.data.arithmetic.RunningSums",
        unsolved={"solution": False},
        text={"max_prompt_tokens": 32, "max_response_tokens": 20},
        search=CONFIGS / "search" / "quickstart.yaml",
    ),
    "dial": Family(
        source="benchmarks.worth.task.DialProblems",
        unsolved={"with_solutions": 0},
        text={"max_prompt_tokens": 32, "max_response_tokens": 64},
        search=ROOT / "benchmarks" / "worth" / "search.yaml",
    ),
}


def worth_policy(worth: Path, seed: int | str, stage: str = "sft/many_experts") -> Path:
    """The folder of a policy of the study of worth: after SFT, or of `start/base`."""
    return worth / stage / f"seed-{seed}" / "policy"


def worth_prms(worth: Path, seed: int | str) -> dict[int, Path]:
    """Checkpoints by iteration of its PRM-only run. Raises SystemExit where there is none."""
    folder = worth / "rl" / "many_experts-prm_only" / f"seed-{seed}" / "checkpoints"
    saved = {int(path.stem.removeprefix("step=")): path for path in folder.glob("step=*.ckpt")}
    if not saved:
        raise SystemExit(f"no checkpoint in {folder}: benchmarks/families.py says which runs come first")
    return saved
