"""Are rewards of rollouts that the PRM was just trained on biased, and does it matter?

    python benchmarks/defaults/reused.py --seeds 10-14 --start outputs/defaults/start/base/seed-10/policy

Arm `prm_first`: the default, which scores the rollouts of an iteration after its PRM update; it also samples fresh
rollouts of the same policy to the same prompts and logs `reused/gap`, mean R of the reused minus mean R of the fresh ones, in
nats a response, for all and for the shorter and longer half. Arm `policy_first`: scores, updates the policy, then the PRM.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml
from torch import Tensor

from repirl import config
from repirl.applications.sweep import main as sweep
from repirl.learning.ahead import Sampled
from repirl.learning.alternation import Alternation
from repirl.learning.batch import GlobalBatch
from repirl.modules.repirl import RePIRL
from repirl.structs import Prompt

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]

FRESH = 7919  # added to the seed of rollouts


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


def main() -> int:
    """Runs both arms."""
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
    return status


if __name__ == "__main__":
    sys.exit(main())
