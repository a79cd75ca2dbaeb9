"""What repirl does on one GPU: does it agree with the CPU, how fast is it beside others, how near the machine's limits?

    python benchmarks/gpu_report.py                                  # 0.1 to 1.5 B parameters, bfloat16
    python benchmarks/gpu_report.py --sizes 0.5B --parts parity updates
    python benchmarks/gpu_report.py --device cpu --sizes tiny        # every line of it, in seconds, without a GPU

`parity`: log-probabilities, entropies, rewards and gradients against float32 on the CPU. `iterations`: seconds of an
iteration of repirl (`rloo`, `repirl` as in peers.py) beside the plain loop of peer_worker.py and, where it can be
imported or `--trl FOLDER` has it, TRL's RLOOTrainer. `updates`: floating-point operations a second of the update phases
over the measured matrix-product rate. `decoding`: seconds over the floor, as in floors.py. `memory`: the peak of each
phase. `sharded`: the same run with FSDP2 on the one device. `shared-base`: policy, PRM and reference on one base. All
weights are random but those of `learning`, a real run that is stopped half-way and gone on with; it alone needs the
packages of data sets, configuration files and answer checking.
"""

import argparse
import importlib.util
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from floors import decoding, decoding_lines, updates, updates_lines
from gpu_parts import learning, learning_lines, sharded, sharded_lines, shared_base, shared_base_lines
from machine import copy_rate, described, gemm_rate, sentence, table, use_clock, wait, written
from peers import Side, take_turns
from torch import Tensor
from workloads import (
    LLAMA,
    PHASES,
    SHAPES,
    Work,
    iterate,
    module_of,
    parameters,
    policy_of,
    synthetic_prompts,
    vocabulary,
)

from repirl.data.collate import collate_rows
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.modules.repirl import RePIRL
from repirl.structs import Rows

PARTS = ("parity", "iterations", "updates", "decoding", "memory", "sharded", "shared-base", "learning")
MFU_GOAL = 0.45
SHAPES["tiny"] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
WORK = {
    "tiny": Work(2, 2, 6, 4),
    "0.1B": Work(16, 8, 256, 256),
    "0.5B": Work(16, 8, 256, 256),
    "1.5B": Work(16, 8, 256, 256),
}
# Largest |difference| over the largest |value|; of gradients the norm of the difference over the norm.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
Dtype = str


# ---- parity


def parity_model(dtype: Dtype, device: torch.device) -> tuple[Policy, PRM]:
    """A policy with weights large enough that context matters, and a PRM whose head is not zero; the same everywhere."""
    shape = SHAPES["0.1M"] | {"num_key_value_heads": 2, "initializer_range": 0.1}
    policy = Policy(config=LLAMA | shape, tokens=vocabulary()).load()
    prm = PRM().build(policy)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        prm.head.action.weight.copy_(torch.randn(prm.head.action.weight.shape, generator=generator))
    return tuple(model.to(device, getattr(torch, dtype)) for model in (policy, prm))  # type: ignore[return-value]


def parity_rows(device: torch.device) -> Rows:
    """Prompts and responses of many lengths, some prompts with several responses."""
    draw = torch.Generator().manual_seed(2)

    def ids(length: int) -> list[int]:
        return torch.randint(2, 1000, (length,), generator=draw).tolist()

    prompts = [ids(length) for length in (3, 40, 17)]
    rows = [(prompt, ids(length)) for prompt in prompts for length in (1, 9, 33)]
    return collate_rows([p for p, _ in rows], [r for _, r in rows], 0, device)


def parity_values(dtype: Dtype, device: torch.device) -> dict[str, Tensor]:
    """Everything that is compared, in float32 on the CPU."""
    policy, prm = parity_model(dtype, device)
    rows = parity_rows(device)
    log_probs, entropies = policy(rows)
    weights = torch.randn(log_probs.shape, generator=torch.Generator().manual_seed(3)).to(device)
    (weights * log_probs + 0.01 * entropies).sum().backward()
    rewards = prm(rows)
    (weights * rewards).sum().backward()
    found = {"log-probabilities": log_probs, "entropies": entropies, "rewards": rewards}
    for name, model in (("policy", policy), ("PRM", prm)):
        found[f"gradient of the {name}"] = torch.cat(
            [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        )
    return {name: value.detach().float().cpu() for name, value in found.items()}


def parity(device: torch.device) -> dict[str, dict[str, float]]:
    """Relative differences from float32 on the CPU, of both precisions."""
    torch.backends.cuda.matmul.allow_tf32 = False
    exact = parity_values("float32", torch.device("cpu"))
    found: dict[str, dict[str, float]] = {}
    for dtype in TOLERANCE:
        values = parity_values(dtype, device)
        found[dtype] = {
            name: float(
                (values[name] - value).norm() / value.norm()
                if name.startswith("gradient")
                else (values[name] - value).abs().max() / value.abs().max()
            )
            for name, value in exact.items()
        }
    return found


# ---- iterations


def iterations(size: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every side, in turns. The sides are processes of their own, which share the device."""
    folder = args.out.parent / "models" / f"{size}-{args.dtype}"
    if not (folder / "config.json").exists():
        policy_of(size, args.dtype).load().save_pretrained(folder)
    common = {
        "folder": str(folder),
        "output": str(args.out.parent / "trainer"),
        "work": asdict(WORK[size]),
        "threads": args.threads,
        "clock": args.clock,
        "device": args.device,
        "dtype": args.dtype,
        "accumulation": args.accumulation,
        "iterations": args.warm_up + args.repeats + 1,
    }
    names = ["plain", "rloo", "repirl"]
    if args.trl or importlib.util.find_spec("trl"):
        names.append("trl")
    logs = args.out.parent
    sides = {name: Side(common | {"side": name}, logs / f"{size}-{name}.log", args.trl) for name in names}
    taken = take_turns(sides, args.warm_up, args.repeats)
    for side in sides.values():
        side.close()
    tokens = {i["tokens"] for found in taken.values() for i in found}
    work = WORK[size]
    assert tokens == {work.prompts * work.samples * work.response_tokens}, f"sides differ in their tokens: {tokens}"
    return {"work": asdict(work), "iterations": taken}


def iterations_lines(found: dict[str, Any]) -> str:
    """Seconds of each side, and ratios to the plain loop and to TRL."""
    rows = []
    for size, one in found.items():
        median = {side: statistics.median(i["seconds"] for i in taken) for side, taken in one["iterations"].items()}
        for side, value in median.items():
            ratios = [f"{value / median[peer]:.2f}" if peer in median else "" for peer in ("plain", "trl")]
            rows.append([size, Work(**one["work"]), side, f"{value:.3f}", *ratios])
    return table(["model", "work", "side", "seconds", "over plain", "over TRL"], rows)


# ---- memory


def highest(device: torch.device, *, anew: bool) -> int:
    """The most bytes held since it was last asked to start anew: on a GPU by PyTorch, else resident memory."""
    if device.type == "cuda":
        wait(device)
        found = torch.cuda.max_memory_allocated(device)
        if anew:
            torch.cuda.reset_peak_memory_stats(device)
        return found
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    found = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    if anew:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return found


def memory(size: str, args: argparse.Namespace) -> dict[str, Any]:
    """Peak bytes of each phase of the second iteration, optimiser states being there."""
    work = WORK[size]
    module = module_of(policy_of(size, args.dtype), work)
    peaks: dict[str, list[int]] = defaultdict(list)
    timed = module.recorder.timed

    @contextmanager
    def watched(phase: str, device: torch.device) -> Iterator[None]:
        highest(device, anew=True)
        with timed(phase, device):
            yield
        peaks[phase].append(highest(device, anew=True))

    module.recorder.timed = watched  # type: ignore[method-assign]
    module.policy.load()
    iterate(module, synthetic_prompts(module.policy.tokenizer, work, 2), accelerator=args.device)
    assert module.prm is not None
    count = parameters(module.policy) + parameters(module.prm)
    return {
        "work": asdict(work),
        "weights": count * module.policy.head_weight.element_size(),
        "peaks": {phase: values[-1] for phase, values in peaks.items()},
    }


def memory_lines(found: dict[str, Any], device: str) -> str:
    """Peaks in MiB."""
    what = "allocated on the device" if device == "cuda" else "resident memory of the whole process"
    head = ["model", "work", "weights of policy and PRM", *PHASES]
    rows = [
        [
            size,
            Work(**one["work"]),
            *(f"{value / 2**20:,.0f}" for value in (one["weights"], *(one["peaks"].get(p, 0) for p in PHASES))),
        ]
        for size, one in found.items()
    ]
    return f"MiB, {what}, the highest of each phase.\n\n" + table(head, rows)


# ---- report


def parity_lines(found: dict[str, dict[str, float]]) -> str:
    """Differences beside tolerances."""
    rows = [
        [
            name,
            *(
                f"{found[dtype][name]:.1e}{'' if found[dtype][name] <= TOLERANCE[dtype] else ' **beyond**'}"
                for dtype in found
            ),
        ]
        for name in next(iter(found.values()))
    ]
    text = "Difference from float32 on the CPU: the largest over the largest value; of gradients, norm over norm.\n\n"
    return text + table(["", *(f"{dtype}, at most {TOLERANCE[dtype]:g}" for dtype in found)], rows)


def report(raw: dict[str, Any]) -> str:
    """All parts as Markdown."""
    where = "one GPU" if raw["device"] == "cuda" else "the CPU (a dry run: it says nothing of a GPU)"
    lines = [f"# repirl on {where}\n", "    python benchmarks/gpu_report.py\n", sentence(raw["machine"])]
    writers = {
        "parity": parity_lines,
        "iterations": iterations_lines,
        "updates": partial(updates_lines, goal=MFU_GOAL),
        "decoding": decoding_lines,
        "memory": partial(memory_lines, device=raw["device"]),
        "sharded": sharded_lines,
        "shared-base": shared_base_lines,
        "learning": learning_lines,
    }
    lines += [
        f"## {part.capitalize()}\n\n{writers[part](raw['found'][part])}" for part in PARTS if part in raw["found"]
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures part by part, writing the report after each, so that what was found survives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--sizes", nargs="+", default=["0.1B", "0.5B", "1.5B"], choices=list(WORK))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--dtype", help="of the weights; default bfloat16 on a GPU, float32 on the CPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--accumulation", type=int, default=4, help="parts of the plain loop's and TRL's batch")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    parser.add_argument("--trl", type=Path, help="the folder that TRL was installed into, as in peers.py")
    parser.add_argument("--learning", nargs="+", metavar="CONFIG", default=["configs/gsm8k_smollm2.yaml"])
    parser.add_argument("--learning-iterations", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_report/report.md"))
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; --device cpu --sizes tiny runs every line of this without one")
    device = torch.device(args.device)
    args.dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    use_clock(args.clock)

    dtype = getattr(torch, args.dtype)
    sides = (4096, 8192) if args.device == "cuda" else (256,)
    megabytes = 1024 if args.device == "cuda" else 8
    gemm, copy = partial(gemm_rate, device, dtype, sides), partial(copy_rate, device, megabytes)
    fused = partial(torch.optim.AdamW, lr=1e-5, fused=True)

    def module(size: str) -> RePIRL:
        return module_of(policy_of(size, args.dtype), WORK[size], policy_optimizer=fused, prm_optimizer=fused)

    raw: dict[str, Any] = {"machine": described(device), "device": args.device, "dtype": args.dtype, "found": {}}
    measures = {
        "iterations": lambda size: iterations(size, args),
        "updates": lambda size: updates(module(size), WORK[size], args.repeats, gemm, args.device),
        "decoding": lambda size: decoding(
            _on(policy_of(size, args.dtype), device), WORK[size], args.repeats, lambda: (gemm(), copy())
        ),
        "memory": lambda size: memory(size, args),
        "sharded": lambda size: sharded(size, WORK[size], args, highest),
        "shared-base": lambda size: shared_base(size, WORK[size], args, highest),
    }
    for part in args.parts:
        if part in ("parity", "learning"):
            raw["found"][part] = parity(device) if part == "parity" else learning(args)
        else:
            raw["found"][part] = {}
            for size in args.sizes:
                raw["found"][part][size] = measures[part](size)
                if args.device == "cuda":
                    torch.cuda.empty_cache()
        args.out.with_suffix(".json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    written(args.out, report(raw), raw)


def _on(policy: Policy, device: torch.device) -> Policy:
    return policy.load().to(device)


if __name__ == "__main__":
    main()
