"""Saves and resumes sharded runs: `... out.pt first|second FOLDER`.

`first` trains without a stop, and with one at iteration 2, by checkpoints of both kinds; `second` goes on from `alone.ckpt`,
which a single process has written at iteration 3.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch

from repirl import checkpoints
from repirl.callbacks.export import ExportPolicy
from repirl.distributed import full_values, rank
from repirl.models.prm import PRM
from repirl.modules.strategies import ShardedStrategy
from tests.modules.tiny import ADAM, EvenDigits, Run, make_data, make_module, run, with_experts

WHOLE, PARTS = "whole.ckpt", "parts.ckpt"


def module(**options: Any) -> Any:
    return make_module(
        prm=PRM(kind="implicit"),
        verifier=EvenDigits(),
        policy_optimizer=ADAM,
        prm_optimizer=ADAM,
        micro_batch_tokens=60,
        **options,
    )


def sharded(steps: int, parts: bool, **options: Any) -> Run:
    strategy = ShardedStrategy(process_group_backend="gloo", sharded_checkpoints=parts)
    return run(module(), make_data(with_experts()), steps, devices=2, strategy=strategy, **options)


def weights_of(done: Run) -> Any:
    return full_values(done.weights, keep=True)


def spoil(model: Any) -> None:
    """Makes a weight infinite on the second process alone."""
    if rank() == 1:
        with torch.no_grad():
            next(iter(model.parameters())).to_local().view(-1)[0] = torch.inf


def refusal_of_infinite_weights(path: Path) -> str:
    """What each process is told; the second one's weight is the cause."""
    done = sharded(1, parts=True)
    done.module.on_save_checkpoint = lambda checkpoint: None  # which would find it first
    spoil(done.module.policy)
    try:
        done.trainer.save_checkpoint(path)
    except (FloatingPointError, RuntimeError) as error:
        return str(error)
    return ""


def first(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"without a stop": weights_of(sharded(4, parts=False))}
    for parts, name in ((False, WHOLE), (True, PARTS)):
        half = sharded(2, parts, callbacks=[ExportPolicy(str(folder / f"export-{name}"))])
        half.trainer.save_checkpoint(folder / name)
        if parts:
            half.trainer.save_checkpoint(folder / name)  # in the place of the one before
        found[f"half {name}"] = weights_of(half)
        found[name] = weights_of(sharded(4, parts, ckpt_path=folder / name))
    found["read"] = checkpoints.read(folder / PARTS)["state_dict"]
    found["refusal"] = refusal_of_infinite_weights(folder / PARTS)
    return found


def second(folder: Path) -> dict[str, Any]:
    return {"gone on": weights_of(sharded(4, parts=False, ckpt_path=folder / "alone.ckpt"))}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("part", choices=("first", "second"))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = first(arguments.folder) if arguments.part == "first" else second(arguments.folder)
    if rank() == 0:
        torch.save(found, arguments.out)


if __name__ == "__main__":
    main()
