"""Two processes of which one alone has a bound that does not hold: `... out.pt`."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch

from repirl.callbacks.checkpoint import Checkpoint
from repirl.callbacks.guards import Guards
from repirl.distributed import gather_objects, rank
from repirl.modules.strategies import ReplicatedStrategy
from tests.modules.tiny import EvenDigits, make_data, make_module, run


def main() -> None:
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    out = Path(sys.argv[1])
    floor = 100.0 if os.environ.get("LOCAL_RANK") == "1" else 1e-9
    guard = Guards(max_drop=None, max_length_ratio=None, min_entropy=floor, patience=3)
    options: dict[str, Any] = {
        "devices": 2,
        "strategy": ReplicatedStrategy(process_group_backend="gloo"),
        "callbacks": [guard, Checkpoint(str(out.parent), every_n_iterations=100)],
        "enable_checkpointing": True,
    }
    done = run(make_module(verifier=EvenDigits()), make_data(), 8, **options)
    found = gather_objects([(done.trainer.global_step, guard.ended)])
    if rank() == 0:
        torch.save(found, out)


if __name__ == "__main__":
    main()
