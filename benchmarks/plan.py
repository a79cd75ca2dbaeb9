"""Peak memory as `repirl plan` says it and as it is: whole runs of fixed lengths on the CPU, each in a process of its own.

    python benchmarks/plan.py

In one thread: on busy cores two wait for each other in every small product, and memory is the same. Prints a table; what is
measured is the largest resident set of the process, twice: as the system's C library keeps memory, and with blocks of 1 MiB
and more given back at once (docs/scaling.md).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.workloads import Work, iterate, module_of, policy_of, synthetic_prompts

from repirl.applications.plan import GIB, batch_of, memory, resident
from repirl.applications.shallow import read
from repirl.learning.prm_objectives import IRL
from repirl.models.policy import Policy
from repirl.modules.repirl import RePIRL

GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
LORA = {"r": 16, "target_modules": "all-linear"}
CASES: dict[str, tuple[str, Work, dict[str, Any]]] = {
    "7M, 8 x 8 rollouts of 64": ("7M", Work(8, 8, 64, 64), {}),
    "7M, micro-batches of 2,048": ("7M", Work(8, 8, 64, 64), {"micro_batch_tokens": 2048}),
    "30M, 4 x 8 rollouts of 128": ("30M", Work(4, 8, 64, 128), {}),
    "30M, reference": ("30M", Work(4, 8, 64, 128), {"objective": IRL()}),
    "135M shape, 2 x 4 rollouts of 64": ("0.1B", Work(2, 4, 64, 64), {}),
    "135M shape, LoRA": ("0.1B", Work(4, 8, 64, 64), {"lora": LORA}),
    "135M shape, checkpointing": ("0.1B", Work(4, 8, 64, 64), {"gradient_checkpointing": True}),
    "135M shape, bfloat16": ("0.1B", Work(2, 4, 64, 64), {"dtype": "bfloat16"}),
}


def made(name: str) -> tuple[RePIRL, Work]:
    """The case's module and work."""
    size, work, settings = CASES[name]
    of_policy = {key: settings[key] for key in ("lora", "gradient_checkpointing", "dtype") if key in settings}
    others = {key: value for key, value in settings.items() if key not in of_policy}
    plain = policy_of(size)
    policy = Policy(config=plain.config, tokens=plain._tokens, **of_policy)
    return module_of(policy, work, **others), work


def one(name: str, kind: str) -> float:
    """GiB, planned or measured."""
    torch.set_num_threads(1)
    base = resident()
    module, work = made(name)
    if kind == "planned":
        batch = batch_of(module.alternation, work.prompts, 1)
        parts = memory(read(module.alternation), batch, half=module.policy.dtype != "float32", base=base)
        return max(sum(phase.values()) for phase in parts.values()) / GIB
    module.configure_model()
    iterate(module, synthetic_prompts(module.policy.tokenizer, work, 3))
    return resident() / GIB


def in_a_process(name: str, kind: str, environment: dict[str, str]) -> float:
    """`one` in a process of its own. Raises SystemExit with what it said where it failed."""
    command = [sys.executable, __file__, "--one", name, kind]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Every case three times, or one figure of one case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("CASE", "KIND"))
    parser.add_argument("--only", default="", help="cases whose name contains this")
    given = parser.parse_args()
    if given.one:
        print(one(*given.one))
        return
    print(
        "| case | planned, GiB | measured, given back | ratio | measured, as it is | ratio |\n|---|---|---|---|---|---|"
    )
    for name in CASES:
        if given.only not in name:
            continue
        planned = in_a_process(name, "planned", {})
        measured = [in_a_process(name, "measured", how) for how in (GIVEN_BACK, {})]
        ratios = " | ".join(f"{value:.2f} | {planned / value:.2f}" for value in measured)
        print(f"| {name} | {planned:.2f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
