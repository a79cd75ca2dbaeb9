"""Every objective, estimator and setting for three seeded iterations: the digits before a change, and after it.

A change that should move no number is shown by it: the figures of each iteration, written with all digits, are compared
with those of the file. On another machine the last digits may differ; then write the file there first, at the older commit.

    python benchmarks/seeded_losses.py --write before.json      # at the commit before
    python benchmarks/seeded_losses.py --compare before.json    # after: names every figure that moved
    python benchmarks/seeded_losses.py --compare before.json --devices 2
"""

import argparse
import json
import logging
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.modules.tiny import ADAM, TEXT, EvenDigits, make_data, make_module, make_policy, run, with_experts  # noqa: E402

from repirl.distributed import rank  # noqa: E402
from repirl.learning.prm_objectives import IRL, Discriminator, Prime, StepCrossEntropy  # noqa: E402
from repirl.learning.prompt_filter import PromptFilter  # noqa: E402
from repirl.learning.schedule import Schedule  # noqa: E402
from repirl.learning.settings import Advantage, Surrogate  # noqa: E402
from repirl.models.prm import PRM  # noqa: E402
from repirl.modules.sft import SFT  # noqa: E402
from repirl.modules.strategies import ReplicatedStrategy  # noqa: E402
from repirl.objectives.estimators import OutcomeEstimator  # noqa: E402

ITERATIONS = 3
SGD = partial(torch.optim.SGD, lr=0.1)
Figures = list[dict[str, float]]

OBJECTIVES: dict[str, Callable[[], Any]] = {
    "irl sequence": IRL,
    "irl length_normalized": partial(IRL, weighting="length_normalized"),
    "irl per_position": partial(IRL, weighting="per_position"),
    "irl uniform": partial(IRL, weighting="uniform"),
    "irl batch": partial(IRL, scope="batch", experts_in_z=True),
    "irl Rbar, move, penalty": partial(IRL, rhat="Rbar", corrected="move", reward_penalty=0.1),
    "irl tempered, base uniform": partial(IRL, temperature=2.0, truncate=0.5, base_measure="uniform"),
    "airl sequence": Discriminator,
    "airl token, reference": partial(Discriminator, form="token", base_measure="reference"),
    "gail": partial(Discriminator, logit="gail"),
    "prime": Prime,
    "step cross-entropy": StepCrossEntropy,
}


def settings() -> dict[str, dict[str, Any]]:
    """Each case's settings of `RePIRL`, by name."""
    cases: dict[str, dict[str, Any]] = {name: {"objective": make()} for name, make in OBJECTIVES.items()}
    for kind in ("q_head", "logit_difference", "implicit", "head", "linear"):
        cases[f"prm {kind}"] = {"prm": PRM(kind=kind)}
    cases["prm step"] = {"prm": PRM(kind="linear", granularity="step")}
    cases["prm low rank, frozen"] = {"prm": PRM(rank=4, freeze_backbone=True)}
    for outcome in get_args(OutcomeEstimator):
        cases[f"outcome {outcome}"] = {"advantage": Advantage(outcome_estimator=outcome), "prm": None}
    for estimator in (*get_args(OutcomeEstimator), "prime", "position"):
        cases[f"process {estimator}"] = {"advantage": Advantage(prm_estimator=estimator, outcome_coef=0.0)}
    cases["both, discounted, scaled"] = {
        "advantage": Advantage(prm_coef=1.0, format_coef=0.5, prm_discount=0.9, reward_scale="std", alone="drop"),
    }
    cases["reward alone, not whitened"] = {"advantage": Advantage(maxent_coef=0.0, whiten=False, reward_scale="none")}
    for aggregation in ("token_mean", "sequence_mean", "sequence_sum", "constant"):
        cases[f"loss {aggregation}"] = {"surrogate": Surrogate(loss_aggregation=aggregation), "micro_batch_tokens": 40}
    cases["mini-batches, KL, dual clip"] = {
        "schedule": Schedule(2, 2, 2, 2),
        "surrogate": Surrogate(kl_coef=0.05, dual_clip=3.0, entropy_coef=0.01),
        "micro_batch_tokens": 40,
    }
    cases["PRM first, then frozen"] = {"schedule": Schedule(policy_starts=1, prm_stops=2)}
    cases["filtered"] = {"prompt_filter": PromptFilter(kind="strict"), "seed": 6}
    cases["half the batch"] = {"prompt_filter": PromptFilter(kind="reorder_half")}
    cases["without verifier"] = {"verifier": None}
    cases["adapters"] = {"policy": make_policy(lora={"r": 2, "target_modules": "all-linear"})}
    cases["bfloat16"] = {"policy": make_policy(dtype="bfloat16"), "policy_optimizer": ADAM, "prm_optimizer": ADAM}
    return cases


def figures(devices: int) -> dict[str, Figures]:
    """The figures of each iteration of each case, and at the end the sum of all |weight|."""
    strategy: Any = (lambda: ReplicatedStrategy(process_group_backend="gloo")) if devices > 1 else lambda: "auto"

    def of(module: Any) -> Figures:
        done = run(module, make_data(with_experts()), ITERATIONS, devices=devices, strategy=strategy())
        moved = sum(float(value.double().abs().sum()) for value in done.weights.values())
        return [*done.figures, {"weights": moved}]

    shared = {"verifier": EvenDigits(), "policy_optimizer": SGD, "prm_optimizer": SGD}
    logged = {name: of(make_module(**(shared | case))) for name, case in settings().items()}
    for name, budget in (("sft", 10**6), ("sft, micro-batches", 20)):
        module = SFT(policy=make_policy(), policy_optimizer=SGD, text=TEXT, micro_batch_tokens=budget)
        logged[name] = of(module)
    return logged


def differences(before: dict[str, Figures], after: dict[str, Figures]) -> list[str]:
    """One line for each figure that moved, came or went."""
    lines = [f"{name}: a case of one side only" for name in sorted(before.keys() ^ after.keys())]
    for name in before.keys() & after.keys():
        for step, (old, new) in enumerate(zip(before[name], after[name], strict=True)):
            for figure in sorted(old.keys() | new.keys()):
                first, second = old.get(figure, math.nan), new.get(figure, math.nan)
                if first != second and not (math.isnan(first) and math.isnan(second)):
                    lines.append(f"{name}, iteration {step}, {figure}: {first!r} -> {second!r}")
    return lines


def main() -> None:
    """Writes the figures, or compares them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--write", type=Path)
    way.add_argument("--compare", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    after = figures(arguments.devices)
    if rank():
        return
    if arguments.write:
        arguments.write.write_text(json.dumps(after, indent=1) + "\n", encoding="utf-8")
        return
    moved = differences(json.loads(arguments.compare.read_text(encoding="utf-8")), after)
    count = sum(len(one) for steps in after.values() for one in steps)
    print("\n".join([*moved, f"{len(after)} cases, {count} figures, {len(moved)} moved"]))
    raise SystemExit(bool(moved))


if __name__ == "__main__":
    main()
