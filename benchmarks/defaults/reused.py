"""Are rewards of rollouts that the PRM was just trained on biased, and does it matter?

    python benchmarks/defaults/reused.py --seeds 10-14 --start outputs/defaults/start/base/seed-10/policy

Arm `prm_first`: the default, which scores the rollouts of an iteration after its PRM update; it also samples fresh
rollouts of the same policy to the same prompts and logs `reused/gap`, mean R of the reused minus mean R of the fresh ones, in
nats a response, for all and for the shorter and longer half. Arm `policy_first`: scores, updates the policy, then the PRM.
Every figure is written to results/reused.csv, a row a run: gaps as means over the iterations of a window. Printed are means
over seeds with Student's t interval.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch
import yaml
from torch import Tensor

from repirl import config
from repirl.applications.sweep import main as sweep
from repirl.learning.ahead import Sampled
from repirl.learning.alternation import Alternation
from repirl.learning.batch import GlobalBatch
from repirl.metrics.paired import paired_t_interval
from repirl.modules.repirl import RePIRL
from repirl.structs import Prompt

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]

FRESH = 7919  # added to the seed of rollouts
GAPS = ("gap", "gap_shorter", "gap_longer")
WINDOWS = ((1, 10), (11, 50), (51, 100))  # iterations, both ends included
FINAL = ("study/sampled", "study/greedy", "study/wrong_step_auroc")


def sampled_batch(learning: Alternation, prompts: list[Prompt]) -> GlobalBatch:
    """Rollouts and experts of an iteration with their log-probabilities."""
    sampled = learning.roll_out(prompts)
    assert sampled is not None
    return learning.with_log_probs(learning.keep(learning.collect(sampled)))


class FreshRollouts(RePIRL):
    """RePIRL that also samples fresh rollouts after the PRM's update, and logs how their rewards differ."""

    def training_step(self, prompts: list[Prompt], batch_idx: int) -> None:
        """One iteration; the fresh rollouts train nothing."""
        learning = self.alternation
        self._begin()
        batch = sampled_batch(learning, prompts)
        learning.update_prm(batch)
        key = learning.seed + FRESH, learning.recorder.iteration
        drawn = learning.actor.sample(prompts, range(len(prompts)), samples=learning.samples, key=key, temperature=1.0)
        fresh = learning.collect(Sampled(prompts, drawn))
        self.recorder.add("reused", gaps(*self._scored(batch), *self._scored(fresh)))
        learning.update_policy(learning.with_advantages(batch))
        self._end()

    def _scored(self, batch: GlobalBatch) -> tuple[Tensor, Tensor]:
        """R and the length of every rollout."""
        assert self.alternation.prm_learner is not None
        rewards = self.alternation.prm_learner.score(batch)
        return rewards.sum(-1)[~batch.is_expert], batch.response_mask.sum(-1)[~batch.is_expert]


def gaps(reused: Tensor, of_reused: Tensor, fresh: Tensor, of_fresh: Tensor) -> dict[str, Tensor]:
    """Mean R of reused less that of fresh rollouts, in nats: of all, and by length where both have such rollouts.

    of_...: their lengths. Longer are those above the median of the fresh ones.
    """
    middle = of_fresh.median()
    found = {"gap": reused.mean() - fresh.mean()}
    for name, longer in (("gap_shorter", False), ("gap_longer", True)):
        ours, theirs = reused[(of_reused > middle) == longer], fresh[(of_fresh > middle) == longer]
        if len(ours) and len(theirs):
            found[name] = ours.mean() - theirs.mean()
    return found


class PolicyFirst(RePIRL):
    """RePIRL that updates the PRM last: the rollouts that it scores are new to it."""

    def training_step(self, prompts: list[Prompt], batch_idx: int) -> None:
        """One iteration."""
        learning = self.alternation
        self._begin()
        batch = sampled_batch(learning, prompts)
        learning.update_policy(learning.with_advantages(batch))
        learning.update_prm(batch)
        self._end()


def figures(rows: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Of a run's metrics.csv: its last figures, and the mean gap of the iterations of each window, where it has any."""
    found = {name: float([row[name] for row in rows if row[name]][-1]) for name in FINAL}
    iterations = [row for row in rows if row["rollout/reward"]]
    for first, last in WINDOWS:
        for name in GAPS:
            values = [float(row[f"reused/{name}"]) for row in iterations[first - 1 : last] if row.get(f"reused/{name}")]
            if values:
                found[f"{name}_{first}_to_{last}"] = fmean(values)
    return found


def told(output: Path) -> str:
    """Writes results/reused.csv of the finished runs; what it shows."""
    runs: dict[str, dict[str, dict[str, float]]] = {}
    for marker in sorted(output.glob("*/base/seed-*/done.json")):
        with marker.with_name("metrics.csv").open(newline="") as file:
            runs.setdefault(marker.parts[-4], {})[marker.parts[-2]] = figures(list(csv.DictReader(file)))
    names = list(dict.fromkeys(name for by_seed in runs.values() for run in by_seed.values() for name in run))
    with (HERE / "results" / "reused.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["arm", "seed", *names])
        for arm, by_seed in runs.items():
            for seed, run in by_seed.items():
                cells = [f"{run[name]:.4g}" if name in run else "" for name in names]
                writer.writerow([arm, seed.removeprefix("seed-"), *cells])
    lines = [
        f"{arm} {name}: {interval([run[name] for run in by_seed.values() if name in run])}"
        for arm, by_seed in runs.items()
        for name in names
    ]
    first, second = (runs.get(arm, {}) for arm in ("prm_first", "policy_first"))
    both = [seed for seed in first if seed in second]
    lines += [
        f"prm_first - policy_first {name}: {interval([first[s][name] - second[s][name] for s in both])}"
        for name in FINAL
    ]
    return "\n".join(lines)


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % t interval over seeds."""
    if len(values) < 2:
        return "-" if not values else f"{values[0]:+.3f} (n = 1)"
    low, high = paired_t_interval(torch.tensor(values, dtype=torch.float64))
    return f"{fmean(values):+.3f} ({low:+.3f} to {high:+.3f}; n = {len(values)})"


def main() -> int:
    """Runs both arms, as far as they are not done, and tells."""
    from benchmarks.defaults.study import ARMS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="10-14")
    parser.add_argument("--start", required=True, help="folder of the start policy")
    parser.add_argument("--jobs", default="2")
    parser.add_argument("--output", type=Path, default=Path("outputs/reused"))
    given = parser.parse_args()
    base = config.load([HERE / "base.yaml"])
    arm = {"model": {"init_args": ARMS["maxent_sequence_rloo"] | {"policy": {"init_args": {"path": given.start}}}}}
    given.output.mkdir(parents=True, exist_ok=True)
    words = []
    for name, kind in (("prm_first", FreshRollouts), ("policy_first", PolicyFirst)):
        merged = config.merge(base, arm)
        merged["model"]["class_path"] = f"benchmarks.defaults.reused.{kind.__name__}"
        merged["model"]["init_args"]["advantage"]["reward_scale"] = "none"
        words.append(given.output / f"{name}.yaml")
        words[-1].write_text(yaml.safe_dump(merged, sort_keys=False))
    status = 0
    for path in words:
        folder = str(given.output / path.stem)
        status |= sweep(
            ["--base", str(path), "--with-base", "--seeds", given.seeds, "--jobs", given.jobs, "--output", folder]
        )
    print(told(given.output))
    return status


if __name__ == "__main__":
    sys.exit(main())
