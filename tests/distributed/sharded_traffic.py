"""Counts the bytes that weights and gradients of a sharded run bring to a process: `... out.pt PASSES`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from repirl.distributed import rank
from repirl.learning.schedule import Schedule
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.modules.strategies import ShardedStrategy
from tests.modules.tiny import LLAMA, TOKENS, EvenDigits, make_data, make_module, run, with_experts

received = {"weights": 0, "gradients": 0}


def count() -> None:
    """Has FSDP's two collectives counted."""
    gather, scatter = dist.all_gather_single, dist.reduce_scatter_single

    def gathered(output: Any, input: Any, **options: Any) -> Any:
        received["weights"] += output.nbytes - input.nbytes
        return gather(output, input, **options)

    def scattered(output: Any, input: Any, **options: Any) -> Any:
        received["gradients"] += input.nbytes - output.nbytes
        return scatter(output, input, **options)

    dist.all_gather_single, dist.reduce_scatter_single = gathered, scattered


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("steps", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    count()
    schedule = Schedule(prm_updates=1, prm_mini_batches=arguments.steps, policy_mini_batches=arguments.steps)
    policy = Policy(config=LLAMA | {"tie_word_embeddings": True}, tokens=TOKENS)  # else a PRM has fewer gradients
    module = make_module(
        policy=policy, prm=PRM(kind="linear"), verifier=EvenDigits(), micro_batch_tokens=10_000, schedule=schedule
    )
    strategy = ShardedStrategy("gloo", sums_each_pass=True)
    done = run(module, make_data(with_experts()), 1, devices=2, strategy=strategy)
    if rank() == 0:
        layers = sum(p.numel() for p in done.module.policy.model.model.layers.parameters())
        every = sum(p.numel() for p in done.module.policy.parameters())
        torch.save(received | {"layers": layers, "rest": every - layers}, arguments.out)


if __name__ == "__main__":
    main()
