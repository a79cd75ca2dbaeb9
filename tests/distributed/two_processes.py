"""Trains tiny modules on any number of processes and saves what came of it: `... out.pt --devices 2`."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy, Strategy

from repirl.data.expert import ExpertData
from repirl.data.step_data import StepLabelData
from repirl.data.step_sources import LabelledSums
from repirl.distributed import full_values, gather_objects, rank
from repirl.learning import learner
from repirl.learning.prm_objectives import IRL, Discriminator, Prime, StepCrossEntropy
from repirl.learning.prompt_filter import PromptFilter
from repirl.learning.schedule import Schedule
from repirl.learning.settings import Advantage, Surrogate
from repirl.models.prm import PRM
from repirl.modules.prm import SupervisedPRM
from repirl.modules.sft import SFT
from repirl.modules.strategies import ReplicatedStrategy
from repirl.rollout.transformers import InProcess
from repirl.structs import Prompt, Response
from tests.modules.tiny import (
    DRAWN_LINEAR,
    SGD,
    SUMS_TEXT,
    TEXT,
    EvenDigits,
    make_data,
    make_module,
    make_policy,
    make_sums_model,
    mixture,
    run,
    with_experts,
)

ITERATIONS = 2
SMALL_SGD = partial(torch.optim.SGD, lr=0.1)
FILTER = PromptFilter(kind="strict")
SETTINGS: dict[str, dict[str, Any]] = {
    "scope prompt": {"objective": IRL(scope="prompt")},
    "scope batch": {"objective": IRL(scope="batch")},
    "per position, reference": {"objective": IRL(weighting="per_position", base_measure="reference")},
    "discriminator": {"objective": Discriminator()},
    "prime": {"objective": Prime()},
    "steps": {"objective": StepCrossEntropy()},
    "sequence mean": {"surrogate": Surrogate(loss_aggregation="sequence_mean"), "micro_batch_tokens": 40},
    "constant": {"surrogate": Surrogate(loss_aggregation="constant", loss_length=7), "micro_batch_tokens": 40},
    "filtered": {"prompt_filter": FILTER, "seed": 6},  # keeps one prompt of four: a rank has no rows at all
    "mini-batches": {
        "prompt_filter": FILTER,
        "seed": 4,  # keeps the first and the last of four prompts: one a rank, and one a mini-batch
        "schedule": Schedule(2, 2, 1, 2),
        "surrogate": Surrogate(kl_coef=0.05),
        "micro_batch_tokens": 40,
        "prm_optimizer": partial(torch.optim.SGD, lr=0.01),  # its gradient's norm is 35: larger steps multiply rounding
    },
    "majority and certainty": {"outcomes": "majority", "advantage": Advantage(certainty_coef=1.0)},
    "ahead": {"schedule": Schedule(rollouts_ahead=1)},  # the first iteration only samples
    # One prompt of four has experts, on the one rank or the other; right rollouts are no experts.
    "mixture": {"objective": IRL(corrected="ignore"), "micro_batch_tokens": 24},
}


IMITATION = ("sft", "sft, micro-batches")  # ranks have different numbers of micro-batches
LABELLED = ("step labels", "step labels, micro-batches")  # and of steps


class Remembering(InProcess):
    """Keeps all responses, by the seed that decided them."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, list[Response]] = {}

    def generate(self, prompts: Sequence[Sequence[int]], *, seeds: Sequence[int], **options: Any) -> Any:
        found = super().generate(prompts, seeds=seeds, **options)
        self.kept.update(zip(seeds, found, strict=True))
        return found


class Watching(Callback):
    """Keeps source and number of experts of each prompt that this rank is given, iteration by iteration."""

    def __init__(self) -> None:
        self.prompts: list[list[tuple[str, int]]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.prompts.append([(one.dataset, len(one.experts)) for one in batch if isinstance(one, Prompt)])


@contextmanager
def counted_micro_batches() -> Iterator[list[int]]:
    """How many micro-batches this rank's own rows take, call by call."""
    counts: list[int] = []
    original = learner.micro_batches

    def counting(*rows: Any, **options: Any) -> Any:
        made = original(*rows, **options)
        counts.append(len(made))
        return made

    learner.micro_batches = counting
    try:
        yield counts
    finally:
        learner.micro_batches = original


def train(name: str, devices: int, strategy: Strategy | None = None) -> dict[str, Any]:
    """Weights, figures, responses, prompts and micro-batches of all ranks, and how many rows each rank had.

    strategy: None = replicas, where there are several processes.
    """
    remembering = Remembering()
    if strategy is None and devices > 1:
        strategy = ReplicatedStrategy(process_group_backend="gloo")
    if name.startswith("sft"):
        budget = 20 if "micro-batches" in name else 10**6
        module: Any = SFT(policy=make_policy(), policy_optimizer=SMALL_SGD, text=TEXT, micro_batch_tokens=budget)
    elif name in LABELLED:
        budget = 30 if "micro-batches" in name else 10**6
        module = SupervisedPRM(
            PRM(DRAWN_LINEAR, backbone=make_sums_model()),
            prm_optimizer=SMALL_SGD,
            text=SUMS_TEXT,
            micro_batch_tokens=budget,
        )
    else:
        module = make_module(
            prm=PRM(kind=DRAWN_LINEAR),
            verifier=EvenDigits(),
            rollout=remembering,
            **{"policy_optimizer": SMALL_SGD, "prm_optimizer": SMALL_SGD} | SETTINGS[name],
        )
    # Each process has its own seed: the weights that start differently must be made equal by the strategy.
    own = int(os.environ.get("LOCAL_RANK", "0"))
    watching = Watching()
    data: Any = make_data(with_experts())
    if name in LABELLED:
        sums = LabelledSums(8, 1, error_rate=0.4, min_steps=1, max_steps=4)
        data = StepLabelData(sums, {"one": LabelledSums(3, 1, error_rate=0.4, split="val"),
                                    "other": LabelledSums(1, 2, error_rate=1, split="val")}, batch_solutions=4)  # fmt: skip
    if name == "mixture":
        data = ExpertData(mixture(), batch_prompts=4)
    options: dict[str, Any] = {"devices": devices, "strategy": strategy or "auto", "callbacks": [watching]}
    if name in LABELLED:
        options |= {"limit_val_batches": 1.0, "val_check_interval": 2, "check_val_every_n_epoch": None}
    with counted_micro_batches() as micro_batches:
        done = run(module, data, ITERATIONS, seed=own, **options)
    parts = gather_objects([remembering.kept])
    weights = gather_objects([full_values(done.weights, keep=True)])
    return {
        "weights": weights,
        "figures": done.figures,
        "responses": {seed: row for part in parts for seed, row in part.items()},
        "shares": [len(part) for part in parts],
        "prompts": gather_objects([watching.prompts]),
        "micro_batches": gather_objects([micro_batches]),
    }


def refusal(devices: int) -> str:
    """What plain DDP is told."""
    module = make_module(policy_optimizer=SGD)
    try:
        run(module, devices=devices, strategy=DDPStrategy(process_group_backend="gloo"))
    except ValueError as error:
        return str(error)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--devices", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found: dict[str, Any] = {name: train(name, arguments.devices) for name in [*SETTINGS, *IMITATION, *LABELLED]}
    found["refusal"] = refusal(arguments.devices)
    if rank() == 0:
        torch.save(found, arguments.out)


if __name__ == "__main__":
    main()
