"""What gpu_report.py asks of sharding, of one shared base, and of a run that learns and is gone on with."""

from __future__ import annotations

import argparse
import csv
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from machine import table
from shared_base import made
from workloads import LLAMA, SHAPES, Work, iterate, module_of, policy_of, synthetic_prompts, vocabulary

from repirl.distributed import full_values
from repirl.modules.strategies import ShardedStrategy

Peak = Callable[..., int]
FIGURES = ("rollout/accuracy", "val/greedy_accuracy", "val/sampled_accuracy", "prm/ranking_loss", "policy/entropy")


# ---- sharded weights


def sharded(size: str, work: Work, args: argparse.Namespace, highest: Peak) -> dict[str, Any]:
    """Two iterations in float32 on one device, with whole and with sharded weights: peak bytes, seconds, distance."""
    device, found, weights = torch.device(args.device), {}, []
    for name in ("whole", "sharded"):
        torch.manual_seed(0)
        module = module_of(policy_of(size), work)
        module.policy.load()
        highest(device, anew=True)
        start = time.perf_counter()
        strategy = ShardedStrategy() if name == "sharded" else "auto"
        iterate(module, synthetic_prompts(module.policy.tokenizer, work, 2), accelerator=args.device, strategy=strategy)
        found[name] = {"seconds": time.perf_counter() - start, "peak": highest(device, anew=True)}
        weights.append({key: value.float().cpu() for key, value in full_values(module.state_dict(), keep=True).items()})
        del module
    dist.destroy_process_group()
    whole, apart = weights
    moved = [(value - apart[key]).norm() ** 2 for key, value in whole.items() if value.is_floating_point()]
    norm = [value.norm() ** 2 for value in whole.values() if value.is_floating_point()]
    return {
        "work": vars(work),
        "runs": found,
        "distance": float(torch.stack(moved).sum().sqrt()) / math.sqrt(sum(norm)),
    }


def sharded_lines(found: dict[str, Any]) -> str:
    """Peaks, seconds, and the distance of the weights."""
    rows = [
        [
            size,
            Work(**one["work"]),
            name,
            f"{run['peak'] / 2**20:,.0f}",
            f"{run['seconds']:.1f}",
            f"{one['distance']:.1e}",
        ]
        for size, one in found.items()
        for name, run in one["runs"].items()
    ]
    text = (
        "Two iterations in float32 on one device. Distance: norm of the difference of all weights over their norm. It is not "
        "0: sums are taken in another order, and rollouts may differ from then on.\n\n"
    )
    return text + table(["model", "work", "weights", "peak, MiB", "seconds", "distance"], rows)


# ---- one shared base


def shared_base(size: str, work: Work, args: argparse.Namespace, highest: Peak) -> dict[str, Any]:
    """Peak and held bytes of policy, PRM and reference with LoRA: a base each, and one base."""
    device, found = torch.device(args.device), {}
    settings = {"config": LLAMA | SHAPES[size], "tokens": vocabulary(), "dtype": args.dtype}
    for kind in ("apart", "shared"):
        module = made(kind, rank=None, settings=settings, work=work)
        frozen = [p for p in module.parameters() if not p.requires_grad]
        before = [p.detach().cpu().clone() for p in frozen]
        held = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in module.parameters()}
        highest(device, anew=True)
        iterate(module, synthetic_prompts(module.policy.tokenizer, work, 2), accelerator=args.device)
        same = all(torch.equal(value, p.detach().cpu()) for value, p in zip(before, frozen, strict=True))
        found[kind] = {"weights": sum(held.values()), "peak": highest(device, anew=True), "base unchanged": same}
        del module, frozen
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return {"work": vars(work), "kinds": found}


def shared_base_lines(found: dict[str, Any]) -> str:
    """Both kinds beside each other."""
    rows = []
    for size, one in found.items():
        apart, shared = one["kinds"]["apart"], one["kinds"]["shared"]
        for name in ("weights", "peak"):
            values = [f"{kind[name] / 2**20:,.0f}" for kind in (apart, shared)]
            rows.append([size, Work(**one["work"]), f"{name}, MiB", *values, f"{shared[name] / apart[name]:.2f}"])
        rows.append([size, "", "base unchanged", apart["base unchanged"], shared["base unchanged"], ""])
    return table(["model", "work", "", "a base each", "one base", "ratio"], rows)


# ---- learning, in two parts


def learning(args: argparse.Namespace) -> dict[str, Any]:
    """A `repirl fit` that is stopped half-way and gone on with from its checkpoint: its figures at each iteration."""
    output = args.out.parent / "learning"
    half = args.learning_iterations // 2
    given = [word for path in args.learning for word in ("--config", path)]
    given += [f"--output={output}", f"--trainer.accelerator={'gpu' if args.device == 'cuda' else 'cpu'}"]
    given += ["--trainer.devices=1", "--trainer.enable_progress_bar=false"]
    seconds = []
    for steps, more in ((half, []), (2 * half, [f"--ckpt_path={output / 'checkpoints' / 'last.ckpt'}"])):
        command = [sys.executable, "-m", "repirl", "fit", *given, f"--trainer.max_steps={steps}", *more]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - start)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    return {"configs": args.learning, "seconds": seconds, "rows": [_rows(path) for path in _tables(output)]}


def _tables(output: Path) -> list[Path]:
    """The logs of the run, older ones first."""
    return sorted(output.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime_ns)


def _rows(path: Path) -> list[dict[str, float]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = [
            {name: float(row[name]) for name in ("step", *FIGURES) if row.get(name)} for row in csv.DictReader(file)
        ]
    return [row for row in rows if len(row) > 1]


def learning_lines(found: dict[str, Any]) -> str:
    """Means over each quarter of the iterations; where validated, the figures of that moment."""
    rows = [row for part in found["rows"] for row in part]
    last = max(row["step"] for row in rows) + 1
    quarters = [[row for row in rows if 4 * row["step"] // last == quarter] for quarter in range(4)]
    lines = [
        [name, *(_mean([row[name] for row in quarter if name in row]) for quarter in quarters)]
        for name in FIGURES
        if any(name in row for row in rows)
    ]
    took = " and ".join(f"{value:.0f}" for value in found["seconds"])
    text = f"`repirl fit` with {', '.join(found['configs'])}; stopped half-way and gone on with: {took} seconds.\n\n"
    return text + table(["figure, mean of a quarter of the run", "first", "second", "third", "last"], lines)


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.3f}" if values else ""
