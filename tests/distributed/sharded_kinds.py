"""Trains modules of other kinds sharded over two processes, or by one: `... out.pt`.

Adapters on copies of a base and on a shared one, a frozen backbone, heads that read the output layer, weights in bfloat16,
gradient checkpointing, and validation in between, in which ranks have unequal numbers of problems.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch

from repirl import Policy
from repirl.callbacks.export import ExportPolicy
from repirl.data.expert import ExpertData
from repirl.distributed import full_values, rank
from repirl.learning.prm_objectives import IRL
from repirl.learning.settings import Surrogate
from repirl.models.prm import PRM
from repirl.modules.strategies import ShardedStrategy
from tests.distributed.two_processes import SMALL_SGD
from tests.modules.tiny import EvenDigits, Problems, make_module, make_policy, problems, run, with_experts

LORA: dict[str, Any] = {"r": 2, "target_modules": "all-linear"}
HALF = ("bfloat16", "lora, bfloat16")
REFERENCE: dict[str, Any] = {"objective": IRL(base_measure="reference"), "surrogate": Surrogate(kl_coef=0.05)}


def kinds() -> dict[str, dict[str, Any]]:
    """Options of each module; those of a kind are made anew, since training changes them."""
    return {
        "lora": {"policy": make_policy(lora=LORA), "prm": PRM(kind="q_head"), **REFERENCE},
        "lora, shared base": {"policy": make_policy(lora=LORA), "prm": PRM(kind="implicit", lora=LORA), **REFERENCE},
        "lora, bfloat16": {"policy": make_policy(lora=LORA, dtype="bfloat16"), "prm": PRM(kind="q_head")},
        "frozen backbone": {"prm": PRM(kind="head", freeze_backbone=True), **REFERENCE},
        "logit difference": {"prm": PRM(kind="logit_difference"), "micro_batch_tokens": 40},
        "own backbone": {"prm": PRM(kind="implicit", backbone=make_policy(init_seed=1))},
        "bfloat16": {"policy": make_policy(dtype="bfloat16"), "prm": PRM(kind="q_head", rank=2), **REFERENCE},
        "checkpointing": {"policy": make_policy(gradient_checkpointing=True), "micro_batch_tokens": 40},
    }


def train(name: str, devices: int, folder: Path) -> dict[str, Any]:
    """Weights, figures and the exported model of a run with a validation after each iteration, and one after the run.

    There are two; one in bfloat16, whose roundings grow into other samples.
    """
    strategy = ShardedStrategy(process_group_backend="gloo") if devices > 1 else "auto"
    settings: dict[str, Any] = {"verifier": EvenDigits(), "policy_optimizer": SMALL_SGD, "prm_optimizer": SMALL_SGD}
    module = make_module(**(settings | kinds()[name]))
    data = ExpertData(train=Problems(with_experts()), val=Problems(problems(5, "test")), batch_prompts=4)
    export = ExportPolicy(str(folder / f"{name}-{devices}"))
    options: dict[str, Any] = {"limit_val_batches": None, "val_check_interval": 1, "callbacks": [export]}
    done = run(module, data, 1 if name in HALF else 2, devices=devices, strategy=strategy, **options)
    done.trainer.validate(done.module, data, verbose=False)  # the model is configured once more
    weights = full_values(done.weights, keep=True)
    exported = Policy(path=export.folder).load().model.state_dict() if rank() == 0 else {}  # which has written it
    return {"weights": weights, "figures": done.figures, "exported": exported}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = {name: train(name, 2, arguments.out.parent) for name in kinds()}
    if rank() == 0:
        torch.save(found, arguments.out)


if __name__ == "__main__":
    main()
