"""How large may a step of a pretrained PRM be? Its ranking loss over a few iterations, by rate, weights, head and beta.

    PYTHONPATH=. repirl fit --config benchmarks/worth/language_model/start.yaml
    PYTHONPATH=. python benchmarks/worth/language_model/prm_steps.py      # about an hour of one core

The PRM alone is learned, as in arms/prm_only.yaml, from 2 prompts x 8 rollouts an iteration and in two updates each; the
policy stays the start, so that all settings see the same rollouts and the loss can rise by the PRM's own steps alone. At the
first update all rewards are 0 and the loss is ln 9 = 2.20, as with a PRM that knows nothing. Finished runs are kept.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from repirl.applications.sweep import main as sweep

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))  # the configurations name benchmarks.worth
LOSS = "prm/ranking_loss"


@dataclass(frozen=True)
class Setting:
    """One run. warmup: iterations over which the rate rises. beta: of `logit_difference`. All weights: without adapters."""

    kind: str
    adapters: bool
    rate: float
    warmup: int = 0
    beta: float = 1.0

    @property
    def name(self) -> str:
        """Of its overlay and folder."""
        weights = "adapters" if self.adapters else "all"
        besides = (f"-warm{self.warmup}" if self.warmup else "") + (f"-beta{self.beta:g}" if self.beta != 1 else "")
        return f"{self.kind}-{weights}-{self.rate:g}{besides}"


SETTINGS = [
    Setting("q_head", adapters=False, rate=2e-6),
    Setting("q_head", adapters=False, rate=2e-5),
    Setting("q_head", adapters=True, rate=1e-4),
    Setting("logit_difference", adapters=False, rate=2e-6),
    Setting("logit_difference", adapters=False, rate=2e-5),
    Setting("logit_difference", adapters=False, rate=2e-5, warmup=4),
    Setting("logit_difference", adapters=False, rate=2e-5, beta=0.1),
    Setting("logit_difference", adapters=True, rate=1e-4),
    Setting("logit_difference", adapters=True, rate=1e-4, beta=0.1),
]


def overlay(setting: Setting, iterations: int) -> dict[str, Any]:
    """Of rl.yaml and arms/prm_only.yaml: the PRM of the setting, a policy that stays, nothing measured beside the loss."""
    schedule = {
        "class_path": "repirl.learning.learning_rate.WarmupDecay",
        "init_args": {"decay": "constant", "warmup": setting.warmup},
    }
    model: dict[str, Any] = {
        "prm": {"init_args": {"kind": setting.kind, "beta": setting.beta}},  # a copy of the policy
        "prm_optimizer": {"init_args": {"lr": setting.rate}},
        "prm_scheduler": schedule,
        "schedule": {"policy_updates": 0},
    }
    if not setting.adapters:
        model["policy"] = {"init_args": {"lora": None}}
    return {
        "trainer": {"max_steps": iterations, "callbacks": []},
        "model": {"init_args": model},
        "data": {"init_args": {"batch_prompts": 2}},
    }


def losses(folder: Path) -> list[float]:
    """The ranking loss of each iteration, the mean of its updates, of a run's metrics.csv."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row[LOSS]) for row in csv.DictReader(file) if row.get(LOSS)]


def table(found: Mapping[str, Sequence[float]]) -> str:
    """Markdown: first, second, largest and last loss of each run; knowing nothing has ln 9 = 2.20."""
    lines = ["| PRM, weights, rate | first | second | largest | last |", "|---|---|---|---|---|"]
    for name, values in found.items():
        shown = " | ".join(f"{value:.2f}" for value in (*values[:2], max(values), values[-1]))
        lines.append(f"| `{name}` | {shown} |")
    return "\n".join(lines)


def main() -> int:
    """Runs what is missing, then tells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--settings", help="names, comma-separated (default: all)")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--output", type=Path, default=Path("outputs/language_model/prm_steps"))
    given = parser.parse_args()
    by_name = {setting.name: setting for setting in SETTINGS}
    names = given.settings.split(",") if given.settings else list(by_name)
    given.output.mkdir(parents=True, exist_ok=True)
    for name in names:
        (given.output / f"{name}.yaml").write_text(yaml.safe_dump(overlay(by_name[name], given.iterations)))
    base = [str(HERE / "rl.yaml"), str(HERE / "arms" / "prm_only.yaml")]
    overlays = [str(given.output / f"{name}.yaml") for name in names]
    words = ["--base", *base, "--overlays", *overlays, "--seeds", given.seed, "--jobs", "1"]
    status = sweep([*words, "--output", str(given.output)])
    done = {name: given.output / name / f"seed-{given.seed}" for name in by_name}
    found = {name: losses(folder) for name, folder in done.items() if (folder / "done.json").is_file()}
    (given.output / "prm_steps.json").write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    return status


if __name__ == "__main__":
    sys.exit(main())
