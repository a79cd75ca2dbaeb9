"""Trains with sharded weights and rollouts by servers: `... out.pt ADDRESS ADDRESS`, one for each process."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch

from repirl.distributed import full_values, rank
from repirl.learning.schedule import Schedule
from repirl.modules.strategies import ShardedStrategy
from repirl.rollout.vllm import VLLM
from tests.modules.tiny import ADAM, EvenDigits, make_data, make_module, make_policy, run, with_experts

LORA = {"r": 2, "target_modules": "all-linear"}
KINDS: dict[str, tuple[Any, Schedule]] = {
    "all weights": (None, Schedule()),
    "adapters": (LORA, Schedule()),
    "ahead": (None, Schedule(rollouts_ahead=1)),
}
STEPS = 3


def train(kind: str, addresses: list[str]) -> dict[str, Any]:
    """The weights after three iterations; each must have passed the probe of what its engine samples from."""
    lora, schedule = KINDS[kind]
    made = make_module(
        policy=make_policy(lora=lora),
        verifier=EvenDigits(),
        policy_optimizer=ADAM,
        prm_optimizer=ADAM,
        schedule=schedule,
        rollout=VLLM(server=addresses),
    )
    alone = len(addresses) == 1
    options: dict[str, Any] = {} if alone else {"devices": 2, "strategy": ShardedStrategy("gloo")}
    done = run(made, make_data(with_experts()), STEPS, **options)
    return {"weights": full_values(done.weights, keep=True), "figures": done.figures}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("addresses", nargs="+")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = {kind: train(kind, arguments.addresses) for kind in KINDS}
    if rank() == 0:
        torch.save(found, arguments.out)


if __name__ == "__main__":
    main()
