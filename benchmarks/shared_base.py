"""Memory of one shared base against three models of their own: SmolLM2-135M with LoRA, same batches, on the CPU.

    python benchmarks/shared_base.py
    python benchmarks/shared_base.py --rank 32 --checkpointing

`apart`: policy, PRM and reference hold a base each. `shared`: adapters on one base, the reference is the base. Each is a
process of its own that trains two iterations of 4 prompts x 4 rollouts in micro-batches, in one thread: on busy cores two
wait for each other in every small product, and memory is the same. Prints a table; the peak is the largest resident set, less
what the program takes before any model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.workloads import SMOLLM2, Coin, Unending, Work, iterate, synthetic_prompts

from repirl.applications.plan import GIB, resident
from repirl.learning.prm_objectives import IRL
from repirl.learning.settings import Text
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.modules.repirl import RePIRL
from repirl.weights import stamp_of

LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
WORK = Work(prompts=4, samples=4, prompt_tokens=48, response_tokens=48)
MICRO_BATCH = 256


def made(kind: str, *, rank: int | None, settings: dict[str, Any], work: Work = WORK) -> RePIRL:
    """The module of one kind, its weights loaded; settings: of the base model."""
    adapted = settings | {"lora": LORA}
    backbone = None if kind == "shared" else Policy(**adapted)
    prm = PRM(backbone=backbone, lora=LORA if kind == "shared" else None, rank=rank)
    module = RePIRL(
        policy=Policy(**adapted),
        prm=prm,
        verifier=Coin(),
        samples=work.samples,
        text=Text(template="plain", max_prompt_tokens=work.prompt_tokens, max_response_tokens=work.response_tokens),
        rollout=Unending(),
        objective=IRL(),
        micro_batch_tokens=MICRO_BATCH,
    )
    if kind == "apart":
        module.reference = Policy(**settings).load().requires_grad_(False)
    module.configure_model()
    return module


def one(kind: str, rank: int | None, checkpointing: bool) -> dict[str, float]:
    """GiB held by weights, the peak of loading and that of all, and whether the base is bit-identical after training."""
    torch.set_num_threads(1)
    program = resident()
    module = made(kind, rank=rank, settings={"path": SMOLLM2, "gradient_checkpointing": checkpointing})
    loaded = resident() - program
    held = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in module.parameters()}
    frozen = [p for p in module.parameters() if not p.requires_grad]
    before = stamp_of(frozen)
    iterate(module, synthetic_prompts(module.policy.tokenizer, WORK, 2))
    same = stamp_of(frozen) == before
    return {
        "weights": sum(held.values()) / GIB,
        "loading": loaded / GIB,
        "peak": (resident() - program) / GIB,
        "base unchanged": float(same),
    }


def main() -> None:
    """Both kinds, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", choices=["apart", "shared"])
    parser.add_argument("--rank", type=int, help="of the PRM's head (default: a weight for each token and channel)")
    parser.add_argument("--checkpointing", action="store_true", help="of activations, in all that is trained")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given.rank, given.checkpointing)))
        return
    figures = {}
    for kind in ("apart", "shared"):
        command = [sys.executable, __file__, "--one", kind, *sys.argv[1:]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        figures[kind] = json.loads(done.stdout.splitlines()[-1])
    print("| | apart | shared | shared / apart |\n|---|---|---|---|")
    for name in ("weights", "loading", "peak"):
        apart, shared = figures["apart"][name], figures["shared"][name]
        print(f"| {name}, GiB | {apart:.2f} | {shared:.2f} | {shared / apart:.2f} |")
    print(
        f"| base unchanged | {bool(figures['apart']['base unchanged'])} | {bool(figures['shared']['base unchanged'])} | |"
    )


if __name__ == "__main__":
    main()
