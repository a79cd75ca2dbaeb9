"""Trains tiny modules sharded over processes and saves what came of it: `... folder --devices 2`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch

from repirl.distributed import gather_objects, rank
from repirl.models.prm import PRM
from repirl.modules.strategies import ShardedStrategy
from tests.distributed.two_processes import IMITATION, LABELLED, SETTINGS, train
from tests.modules.tiny import make_module, run


def shares() -> dict[str, float]:
    """What share of each model's trained weights this process holds."""
    module: Any = make_module(prm=PRM(kind="linear"))
    done = run(module, devices=2, strategy=ShardedStrategy(process_group_backend="gloo"))
    models = {"policy": done.module.policy, "prm.backbone": done.module.prm.backbone, "prm.head": done.module.prm.head}
    return {name: share_of(list(model.parameters())) for name, model in models.items()}


def share_of(parameters: list[Any]) -> float:
    return sum(p.to_local().numel() for p in parameters) / sum(p.numel() for p in parameters)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--devices", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found: dict[str, Any] = {}
    for name in [*SETTINGS, *IMITATION, *LABELLED]:
        strategy = ShardedStrategy(process_group_backend="gloo", sums_each_pass="micro-batches" in name)
        found[name] = train(name, arguments.devices, strategy)
    found["shares"] = gather_objects([shares()])
    if rank() == 0:
        torch.save(found, arguments.out)


if __name__ == "__main__":
    main()
