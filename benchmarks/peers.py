"""Seconds of an iteration of repirl beside TRL's RLOOTrainer, on the same weights, prompts, lengths, threads and precision.

    pip install --no-deps --target outputs/trl trl==1.16.0      # what else it needs, repirl has installed
    python benchmarks/peers.py                                  # all sizes; about an hour with one thread
    python benchmarks/peers.py --sizes 7M --rows rloo repirl --threads 1 --clock cpu     # on a busy machine

Every side is a process of its own that keeps its model; they take turns, one iteration each, so that a busy machine is
busy for all. `rloo`: outcome reward only. `repirl`: a PRM of the policy's size with its own backbone, updated once,
one expert a prompt, rescoring, one policy update. `defaults`: everything as shipped (AdamW not fused, a reference
policy). Each is compared with TRL's *RLOO* iteration. `1M-long` has prompts of 256 tokens instead of 64. A size that was
measured before with the same settings and commit is not measured again (`--again` does).

`operations` is the ratio that counted floating-point operations alone would give: a rollout costs one forward pass over its
rows, a backward pass two; repirl runs a prompt once for all its rollouts, TRL once for each.

TRL's settings: beta 0, no gradient checkpointing, float32, fused AdamW, no logging, no end token, and the faster of
one batch of all rows and four accumulated ones, which is tried first.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from machine import commit, described, sentence, table, written
from workloads import Work, apart, needed, parameters, policy_of, shared

GOALS = {"rloo": 0.33, "repirl": 0.70, "defaults": 0.70}
SIZES = {  # the model and what an iteration does
    "0.1M": ("0.1M", Work(8, 8, 64, 64)),
    "1M": ("1M", Work(8, 8, 64, 64)),
    "1M-long": ("1M", Work(8, 8, 256, 64)),
    "7M": ("7M", Work(8, 8, 64, 64)),
    "135M": ("135M", Work(4, 4, 64, 32)),  # a step of the peer takes half a minute on two cores
}


class Side:
    """A training process that does one iteration at a time."""

    def __init__(self, settings: dict[str, Any], log: Path, trl: Path | None = None) -> None:
        here = Path(__file__).parent
        environment = os.environ | {
            "OMP_NUM_THREADS": str(settings["threads"]),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(
                [str(here.parent / "src"), str(here), *([str(trl.resolve())] if trl else [])]
            ),
        }
        self.log = log
        with log.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(here / "peer_worker.py"), json.dumps(settings)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._read()

    def iteration(self) -> dict[str, Any]:
        """What the side says of the iteration that it does now; returns when it waits for the next."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        answer = self._read()
        self._read()
        return answer

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            tail = self.log.read_text(encoding="utf-8")[-2000:]
            raise RuntimeError(f"a side ended with status {self.process.wait()}, see {self.log}:\n{tail}")
        record: dict[str, Any] = json.loads(line)
        return record

    def close(self) -> None:
        """Ends the process: it waits for a line, and gets the end of the stream."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def take_turns(sides: dict[str, Side], warm_up: int, steps: int) -> dict[str, list[dict[str, Any]]]:
    """The iterations of every side after warm-up, one each in turn."""
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for turn in range(warm_up + steps):
        for name, side in sides.items():
            answer = side.iteration()
            if turn >= warm_up:
                taken[name].append(answer)
    return taken


def measure(size: str, args: argparse.Namespace) -> dict[str, Any]:
    """All sides of one size."""
    (model, work), folder = SIZES[size], args.out / "models" / size
    policy = policy_of(model).load()
    if not (folder / "config.json").exists():
        policy.save_pretrained(folder)
    common = {
        "folder": str(folder),
        "output": str(args.out / "trainer"),
        "work": asdict(work),
        "device": "cpu",
        "dtype": "float32",
        "threads": args.threads,
        "clock": args.clock,
        "iterations": args.warm_up + max(args.steps, args.tries) + 1,
    }

    def side(name: str, accumulation: int = 1) -> Side:
        settings = common | {"side": name, "accumulation": accumulation}
        return Side(settings, args.out / f"{size}-{name}-{accumulation}.log", args.trl)

    tried = {}
    peers = {str(parts): side("trl", parts) for parts in (1, 4)}
    for parts, iterations in take_turns(peers, args.warm_up, args.tries).items():
        tried[parts] = statistics.median(i["seconds"] for i in iterations)
    for peer in peers.values():
        peer.close()
    fastest = min(tried, key=lambda parts: tried[parts])

    sides = {"trl": side("trl", int(fastest))} | {row: side(row) for row in args.rows}
    taken = take_turns(sides, args.warm_up, args.steps)
    for one in sides.values():
        one.close()
    tokens = {i["tokens"] for iterations in taken.values() for i in iterations}
    assert tokens == {work.prompts * work.samples * work.response_tokens}, f"sides differ in their tokens: {tokens}"
    return {
        "size": size,
        "parameters": parameters(policy),
        "operations": {side: operations(policy.model.config, work, side) for side in ("trl", *args.rows)},
        "work": asdict(work),
        "trl_accumulation_s": tried,
        "iterations": taken,
    }


def operations(config: Any, work: Work, side: str) -> float:
    """Floating-point operations of an iteration."""
    phases = needed(config, work, apart if side == "trl" else shared)
    rollout = phases["policy_update"] / 3
    again = {"defaults": phases["log_probs"]}  # of the reference
    of_prm = 0 if side in ("trl", "rloo") else phases["log_probs"] + phases["prm_update"] + phases["score"]
    return rollout + of_prm + again.get(side, 0.0) + phases["policy_update"]


def row(found: dict[str, Any], name: str) -> list[str]:
    """The line of one row of one size."""
    ours, peer = ([i["seconds"] for i in found["iterations"][side]] for side in (name, "trl"))
    ratios = sorted(a / b for a, b in zip(ours, peer, strict=True))
    ratio = statistics.median(ours) / statistics.median(peer)
    phases = found["iterations"][name][0]["phases"]
    medians = {p: statistics.median(i["phases"][p] for i in found["iterations"][name]) for p in phases}
    return [
        f"{found['size']} ({found['parameters']:,})",
        name,
        f"{statistics.median(ours):.2f}",
        f"{statistics.median(peer):.2f}",
        f"**{ratio:.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        f"{found['operations'][name] / found['operations']['trl']:.2f}",
        f"{GOALS[name]:.2f} {'met' if ratio <= GOALS[name] else 'missed'}",
        ", ".join(f"{p} {s:.2f}" for p, s in medians.items() if s >= 0.005),
    ]


def report(results: dict[str, dict[str, Any]], args: argparse.Namespace) -> str:
    """All sizes as Markdown."""
    head = [
        "parameters",
        "row",
        "repirl, s",
        "TRL RLOO, s",
        "ratio (of single turns)",
        "operations",
        "goal",
        "phases, s",
    ]
    rows = [row(found, name) for found in results.values() for name in found["iterations"] if name != "trl"]
    lines = [
        "# repirl beside TRL\n",
        f"    python benchmarks/peers.py --threads {args.threads} --clock {args.clock}\n",
    ]
    for size, found in results.items():
        tried = ", ".join(f"{parts} parts {seconds:.2f} s" for parts, seconds in found["trl_accumulation_s"].items())
        counts = len(found["iterations"]["trl"])
        lines.append(
            f"- {size}: {Work(**found['work'])}; medians of {counts} iterations. TRL's batch in {tried}: the faster."
        )
        lines.append(f"  {sentence(found['machine']).strip()} TRL {found['trl']}.")
    return "\n".join(lines) + "\n\n" + table(head, rows)


def main() -> None:
    """Measures what has not been measured, writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["1M", "1M-long", "7M", "135M"], choices=list(SIZES))
    parser.add_argument("--rows", nargs="+", default=list(GOALS), choices=list(GOALS))
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--tries", type=int, default=2, help="iterations to choose TRL's batch by")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock", default="wall", choices=["wall", "cpu"], help="cpu: where others use the machine too"
    )
    parser.add_argument("--trl", type=Path, default=Path("outputs/trl"), help="the folder that TRL was installed into")
    parser.add_argument("--again", action="store_true", help="measure anew what has been measured")
    parser.add_argument("--out", type=Path, default=Path("outputs/peers"))
    args = parser.parse_args()

    installed = [folder.name for folder in args.trl.glob("trl-*.dist-info")]
    if not installed:
        raise SystemExit(f"no TRL in {args.trl}: run `pip install --no-deps --target {args.trl} trl==1.16.0`")
    torch.set_num_threads(args.threads)
    results = {}
    for size in args.sizes:
        raw = args.out / f"{size}.json"
        key = [commit(), args.rows, args.steps, args.warm_up, args.threads, args.clock, installed]
        known = json.loads(raw.read_text(encoding="utf-8")) if raw.exists() else {}
        if args.again or known.get("key") != key:
            args.out.mkdir(parents=True, exist_ok=True)
            machine = described(torch.device("cpu")) | {"clock": "CPU" if args.clock == "cpu" else "wall"}
            trl = installed[0].split("-")[1].removesuffix(".dist")
            known = measure(size, args) | {"key": key, "machine": machine, "trl": trl}
            raw.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        results[size] = known
    written(args.out / "report.md", report(results, args), results)


if __name__ == "__main__":
    main()
