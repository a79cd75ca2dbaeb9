"""Memory of one shared base against three models of their own: SmolLM2-135M with LoRA, same batches, on the CPU.

    python benchmarks/shared_base.py

`apart`: policy, PRM and reference hold a base each. `shared`: adapters on one base, the reference is the base. Each is a
process of its own that trains two iterations of 4 prompts x 4 rollouts in micro-batches. Prints a table; the peak is the
largest resident set, less what the program takes before any model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

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


def made(kind: str) -> RePIRL:
    """The module of one kind, its weights loaded."""
    prm = PRM(lora=LORA) if kind == "shared" else PRM(backbone=Policy(path=SMOLLM2, lora=LORA))
    module = RePIRL(
        policy=Policy(path=SMOLLM2, lora=LORA),
        prm=prm,
        verifier=Coin(),
        samples=WORK.samples,
        text=Text(template="plain", max_prompt_tokens=WORK.prompt_tokens, max_response_tokens=WORK.response_tokens),
        rollout=Unending(),
        objective=IRL(),
        micro_batch_tokens=MICRO_BATCH,
    )
    if kind == "apart":
        module.reference = Policy(path=SMOLLM2).load().requires_grad_(False)
    module.configure_model()
    return module


def one(kind: str) -> dict[str, float]:
    """Bytes held by weights, the peak, and whether the base is bit-identical after training."""
    program = resident()
    module = made(kind)
    held = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in module.parameters()}
    frozen = [p for p in module.parameters() if not p.requires_grad]
    before = stamp_of(frozen)
    iterate(module, synthetic_prompts(module.policy.tokenizer, WORK, 2))
    same = stamp_of(frozen) == before
    return {"weights": sum(held.values()) / GIB, "peak": (resident() - program) / GIB, "base unchanged": float(same)}


def main() -> None:
    """Both kinds, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", choices=["apart", "shared"])
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one)))
        return
    figures = {}
    for kind in ("apart", "shared"):
        done = subprocess.run([sys.executable, __file__, "--one", kind], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        figures[kind] = json.loads(done.stdout.splitlines()[-1])
    print("| | apart | shared | shared / apart |\n|---|---|---|---|")
    for name in ("weights", "peak"):
        apart, shared = figures["apart"][name], figures["shared"][name]
        print(f"| {name}, GiB | {apart:.2f} | {shared:.2f} | {shared / apart:.2f} |")
    print(
        f"| base unchanged | {bool(figures['apart']['base unchanged'])} | {bool(figures['shared']['base unchanged'])} | |"
    )


if __name__ == "__main__":
    main()
