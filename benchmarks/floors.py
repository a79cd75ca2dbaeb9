"""How far decoding and the updates are from what the machine can do, what is wasted, and how time grows.

    python benchmarks/floors.py --parts decoding updates slopes
    python benchmarks/floors.py --parts padding --data FOLDER      # of GSM8K, as docs/data.md describes it

`decoding`: seconds over the floor, which is for every step the larger of arithmetic at the measured GEMM rate and of
reading the weights and the cached keys and values at the measured copy rate. `updates`: needed floating-point
operations a second of the PRM's and the policy's update, of log-probabilities and of scoring, as a share of the GEMM rate.
`padding`: padding tokens among those that went through the models, on the lengths of real problems and of four
model-written solutions each. `slopes`: of log seconds over log size. Rates are measured right beside each timing, and
the ratio is taken of the two: a busy machine slows both.

FOLDER holds math/gsm8k_test.jsonl (`id, problem, solution`) and traces/gsm8k_model_solutions.jsonl.gz (`id, steps`).
"""

import argparse
import gzip
import json
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import copy_rate, described, gemm_rate, seconds, sentence, table, use_clock, written
from workloads import (
    LLAMA,
    SMOLLM2,
    Coin,
    Unending,
    Work,
    apart,
    head_flops,
    iterate,
    module_of,
    needed,
    parameters,
    policy_of,
    shared,
    synthetic_prompts,
    trunk_flops,
    vocabulary,
)

from repirl.data.codec import ChatCodec
from repirl.learning.schedule import Schedule
from repirl.models.loading import load_tokenizer
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.modules.repirl import RePIRL
from repirl.rollout.transformers import InProcess
from repirl.structs import Expert, Problem, Prompt, Response, Verdict

CPU = torch.device("cpu")
DECODING = {  # the model and what it decodes
    "0.1M": ("0.1M", Work(8, 8, 64, 64)),
    "7M": ("7M", Work(8, 8, 64, 64)),
    "135M": ("135M", Work(2, 8, 64, 32)),
    "135M-wide": ("135M", Work(8, 8, 64, 32)),  # as many rows as the 7M has
}
UPDATES = {"7M": Work(8, 8, 64, 64), "135M": Work(2, 4, 64, 64)}
GOALS = {"decoding": 2.5, "updates": 0.60, "padding": 0.05, "slopes": 1.05}
PARTS = tuple(GOALS)


# ---- decoding


def decoding_floor(
    config: Any, work: Work, *, gemm: float, copy: float, weights: int, element: int
) -> dict[str, float]:
    """Seconds that a rollout of `work` needs at these rates, and what of it is arithmetic; a prompt is read once.

    weights: how many. element: bytes of a weight and of a cached number.
    """
    rows = work.prompts * work.samples
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kept = 2 * config.num_hidden_layers * config.num_key_value_heads * head * element  # bytes a cached token
    tokens, contexts = shared(work.prompt_tokens, [])
    flops = work.prompts * (trunk_flops(config, tokens, contexts) + head_flops(config, 1))
    floor = arithmetic = flops / gemm
    for step in range(1, work.response_tokens):
        flops = trunk_flops(config, rows, rows * (work.prompt_tokens + step)) + head_flops(config, rows)
        cached = work.prompts * work.prompt_tokens + rows * (step - 1)
        arithmetic += flops / gemm
        floor += max(flops / gemm, (weights * element + kept * cached) / copy)
    return {"floor": floor, "arithmetic": arithmetic}


def decoding(policy: Policy, work: Work, repeats: int, rates: Callable[[], tuple[float, float]]) -> dict[str, Any]:
    """Seconds of a rollout phase over its floor. rates: the GEMM and the copy rate, measured beside each repeat."""
    policy.load()
    prompts = [p.token_ids for p in synthetic_prompts(policy.tokenizer, work, 1)[0]]
    generator = Unending()
    settings = {"pad_id": policy.tokenizer.pad_token_id, "eos_ids": (), "max_response_tokens": work.response_tokens}
    generator.attach(policy.model, decode=policy.tokenizer.decode, **settings)
    run = partial(generator.generate, prompts, samples=work.samples, seeds=range(work.prompts))
    run()
    element = policy.head_weight.element_size()
    turns = []
    for _ in range(repeats):
        gemm, copy = rates()
        taken = seconds(run, policy.device, repeats=1, warm_up=0)[0]
        floor = decoding_floor(
            policy.model.config, work, gemm=gemm, copy=copy, weights=parameters(policy), element=element
        )
        turns.append({"seconds": taken, "gemm": gemm, "copy": copy, "ratio": taken / floor["floor"]} | floor)
    return {"work": vars(work), "parameters": parameters(policy), "turns": turns}


# ---- updates


def updates(
    module: RePIRL, work: Work, repeats: int, rate: Callable[[], float], accelerator: str = "cpu"
) -> dict[str, Any]:
    """Seconds of each phase, the GEMM rate beside each iteration, and what the phases need."""
    rates: list[float] = []
    module.policy.load()
    batches = synthetic_prompts(module.policy.tokenizer, work, 1 + repeats)
    taken = iterate(module, batches, between=lambda: rates.append(rate()), accelerator=accelerator)
    config = module.policy.model.config
    return {
        "work": vars(work),
        "parameters": parameters(module.policy),
        "iterations": taken[1:],
        "gemm": rates[1:],
        "flops": needed(config, work, shared),
        "flops_prompt_each_time": needed(config, work, apart),
    }


# ---- padding


class Recorded(InProcess):
    """Rollouts that were written before: their lengths are what matters."""

    def __init__(self, responses: dict[tuple[int, ...], list[Response]]) -> None:
        super().__init__()
        self.responses = responses

    def generate(
        self, prompts: Sequence[Sequence[int]], *, samples: int, seeds: Sequence[int], temperature: float = 1.0
    ) -> list[list[Response]]:
        """The first `samples` of each prompt."""
        return [self.responses[tuple(prompt)][:samples] for prompt in prompts]


class Right(Coin):
    """Everything is right: no expert is left out."""

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """One verdict a response."""
        return [Verdict(True, "equal") for _ in responses]


def _read(path: Path) -> list[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


def gsm8k(folder: Path, count: int) -> tuple[list[Prompt], dict[tuple[int, ...], list[Response]]]:
    """`count` problems with their human solution as expert, and four model-written solutions of each as rollouts.

    Lengths are those of SmolLM2's tokenizer and chat template; the tokens themselves are random ones of a small
    vocabulary, whose output layer costs next to nothing.
    """
    codec = ChatCodec(load_tokenizer(SMOLLM2))
    draw = random.Random(0)

    def alike(ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(draw.randrange(2, 100) for _ in ids)

    traces = defaultdict(list)
    for trace in _read(folder / "traces" / "gsm8k_model_solutions.jsonl.gz"):
        traces[trace["problem"]].append("\n".join(trace["steps"]))
    prompts, rollouts = [], {}
    for line in _read(folder / "math" / "gsm8k_test.jsonl"):
        texts = traces[line["problem"]]
        if len(prompts) == count or len(texts) < 4:
            continue
        ids = alike(codec.encode_prompt(line["problem"]))
        expert = Expert(line["solution"], alike(codec.encode_response(line["solution"])))
        prompts.append(Prompt(Problem(id=line["id"], text=line["problem"], answer="0"), ids, (expert,)))
        rollouts[ids] = [Response(alike(codec.encode_response(text)), text, True) for text in texts]
    return prompts, rollouts


def padding(folder: Path, prompts_an_iteration: int, iterations: int, budgets: Sequence[int]) -> dict[str, Any]:
    """Tokens that went through the input embeddings, and those of them that were padding."""
    prompts, rollouts = gsm8k(folder, prompts_an_iteration * iterations)
    rolled = [[len(r.token_ids) for r in rollouts[p.token_ids]] for p in prompts]
    found = {}
    for budget in budgets:
        tiny = LLAMA | {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        policy = Policy(config=tiny, tokens=vocabulary(102))
        module = RePIRL(
            policy=policy,
            prm=PRM(),
            verifier=Right(),
            samples=4,
            schedule=Schedule(prm_updates=1),
            rollout=Recorded(rollouts),
            micro_batch_tokens=budget,
        )
        module.configure_model()
        assert module.prm is not None
        seen: dict[str, list[int]] = defaultdict(lambda: [0, 0])

        def count(
            name: str, ids: torch.Tensor, seen: dict[str, list[int]] = seen, pad: int = module.codec.pad_id
        ) -> None:
            phase = f"{name}, {'update' if torch.is_grad_enabled() else 'scoring'}"
            seen[phase][0] += ids.numel()
            seen[phase][1] += int((ids == pad).sum())

        for name, model in (("policy", module.policy), ("PRM", module.prm.backbone)):
            embeddings = model.model.get_input_embeddings()
            embeddings.register_forward_pre_hook(lambda _, inputs, name=name, count=count: count(name, inputs[0]))
        batches = [prompts[i * prompts_an_iteration : (i + 1) * prompts_an_iteration] for i in range(iterations)]
        iterate(module, batches)
        found[str(budget)] = {
            "prompts": len(prompts),
            "prompt_tokens": sum(len(p.token_ids) for p in prompts),
            "rollout_tokens": sum(map(sum, rolled)),
            "expert_tokens": sum(len(e.token_ids) for p in prompts for e in p.experts),
            "longest": max(len(p.token_ids) + max(r) for p, r in zip(prompts, rolled, strict=True)),
            "phases": {phase: {"run": run, "padding": pads} for phase, (run, pads) in seen.items()},
        }
    return found


# ---- slopes


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the least-squares line through (log x, log y)."""
    x, y = ([math.log(point[i]) for point in points] for i in (0, 1))
    middle = statistics.mean(x)
    return sum((a - middle) * b for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)


SLOPES: dict[str, list[tuple[str, Work]]] = {
    "prompts": [("1M", Work(n, 4, 64, 32)) for n in (4, 8, 16, 32)],
    "K": [("1M", Work(4, n, 64, 32)) for n in (4, 8, 16, 32)],
    "parameters": [(size, Work(4, 4, 64, 32)) for size in ("0.1M", "1M", "7M", "30M")],
}


def slopes(repeats: int) -> dict[str, Any]:
    """Median seconds of an iteration at each size of each series, measured in turn."""
    points: dict[str, list[dict[str, float]]] = {}
    for name, series in SLOPES.items():
        points[name] = []
        for size, work in series:
            module = module_of(policy_of(size), work)
            batches = synthetic_prompts(module.policy.tokenizer, work, 1 + repeats)
            taken = iterate(module, batches)[1:]
            x = {"prompts": work.prompts, "K": work.samples}.get(name, parameters(module.policy))
            points[name].append({"x": x, "seconds": statistics.median(sum(t.values()) for t in taken)})
    return points


# ---- report


def _goal(part: str, value: float) -> str:
    return f"<= {GOALS[part]:g} {'met' if value <= GOALS[part] else 'missed'}"


def _spread(values: Sequence[float], form: str = ".2f") -> str:
    return f"**{statistics.median(values):{form}}** ({min(values):{form}} to {max(values):{form}})"


def decoding_lines(found: dict[str, Any]) -> str:
    """The table of decoding; the goal is for models of 7 M parameters and more."""
    head = ["model", "work", "GEMM, GFLOP/s", "copy, GB/s", "seconds", "floor", "of it arithmetic", "ratio", "goal"]
    rows = []
    for size, one in found.items():
        median = {key: statistics.median(t[key] for t in one["turns"]) for key in one["turns"][0]}
        ratios = [t["ratio"] for t in one["turns"]]
        rates = [f"{median['gemm'] / 1e9:.0f}", f"{median['copy'] / 1e9:.1f}"]
        times = [f"{median[key]:.3f}" for key in ("seconds", "floor", "arithmetic")]
        goal = _goal("decoding", statistics.median(ratios)) if one["parameters"] > 5e6 else ""
        rows.append([size, Work(**one["work"]), *rates, *times, _spread(ratios), goal])
    return table(head, rows)


def updates_lines(found: dict[str, Any], goal: float = GOALS["updates"]) -> str:
    """The table of update phases; the goal is for the updates of models of 100 M parameters and more."""
    head = ["model", "work", "phase", "seconds", "needed, TFLOP", "share of GEMM rate", "prompt counted anew", "goal"]
    rows = []
    for size, one in found.items():
        for phase, flops in one["flops"].items():
            taken = [i[phase] for i in one["iterations"]]
            shares = [flops / s / g for s, g in zip(taken, one["gemm"], strict=True)]
            middle = statistics.median(shares)
            anew = middle * one["flops_prompt_each_time"][phase] / flops
            judged = one["parameters"] > 1e8 and phase.endswith("update")
            verdict = f">= {goal:g} {'met' if middle >= goal else 'missed'}" if judged else ""
            cells = [f"{statistics.median(taken):.2f}", f"{flops / 1e12:.3f}", _spread(shares), f"{anew:.2f}"]
            rows.append([size, Work(**one["work"]), phase, *cells, verdict])
    return table(head, rows)


def padding_lines(found: dict[str, Any]) -> str:
    """The table of padding."""
    head = ["micro_batch_tokens", "phase", "tokens run", "padding", "share", "over prompts once", "goal"]
    rows = []
    for budget, one in found.items():
        for phase, tokens in one["phases"].items():
            share = tokens["padding"] / tokens["run"]
            expert = one["expert_tokens"] if phase in ("policy, scoring", "PRM, update") else 0
            once = tokens["run"] / (one["prompt_tokens"] + one["rollout_tokens"] + expert)
            cells = [f"{tokens['run']:,}", f"{tokens['padding']:,}", f"**{100 * share:.1f} %**", f"{once:.2f}"]
            rows.append([budget, phase, *cells, _goal("padding", share)])
    return table(head, rows)


def slopes_lines(found: dict[str, Any]) -> str:
    """The table of slopes."""
    rows = []
    for name, points in found.items():
        steep = slope([(p["x"], p["seconds"]) for p in points])
        shown = ", ".join(f"{p['x']:,.0f}: {p['seconds']:.2f} s" for p in points)
        rows.append([name, shown, f"**{steep:.2f}**", _goal("slopes", steep)])
    return table(["in", "seconds of an iteration", "slope", "goal"], rows)


LINES = {"decoding": decoding_lines, "updates": updates_lines, "padding": padding_lines, "slopes": slopes_lines}


def main() -> None:
    """Measures the parts that are asked for, keeps the others' last results, writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["decoding", "updates", "slopes"], choices=PARTS)
    parser.add_argument("--sizes", nargs="+", default=["7M", "135M", "135M-wide"], choices=list(DECODING))
    parser.add_argument("--data", type=Path, help="folder with GSM8K, for `padding`")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock", default="wall", choices=["wall", "cpu"], help="cpu: where others use the machine too"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/floors.md"))
    args = parser.parse_args()
    if "padding" in args.parts and args.data is None:
        parser.error("--parts padding needs --data FOLDER")

    torch.set_num_threads(args.threads)
    use_clock(args.clock)
    raw = args.out.with_suffix(".json")
    results = json.loads(raw.read_text(encoding="utf-8")) if raw.exists() else {}
    gemm = partial(gemm_rate, CPU, torch.float32, repeats=3)

    def rates() -> tuple[float, float]:
        return gemm(), copy_rate(CPU, 128, 3)

    fused = partial(torch.optim.AdamW, lr=1e-5, fused=True)
    optimizers = {"policy_optimizer": fused, "prm_optimizer": fused}
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "decoding": lambda: {
            size: decoding(policy_of(model), work, args.repeats, rates)
            for size, (model, work) in DECODING.items()
            if size in args.sizes
        },
        "updates": lambda: {
            size: updates(module_of(policy_of(size), UPDATES[size], **optimizers), UPDATES[size], args.repeats, gemm)
            for size in args.sizes
            if size in UPDATES
        },
        "padding": lambda: padding(args.data, 16, 4, (4096, 16384)),
        "slopes": lambda: slopes(max(1, args.repeats // 2)),
    }
    for part in args.parts:
        machine = described(CPU)
        results[part] = {"machine": machine, "repeats": args.repeats, "found": measures[part]()}
        command = f"python benchmarks/floors.py --threads {args.threads} --clock {args.clock}"
        text = f"# Floors, waste and slopes\n\n    {command}\n\n" + "\n".join(
            f"## {name.capitalize()}\n\n{sentence(one['machine'])}\n{LINES[name](one['found'])}"
            for name, one in results.items()
        )
        written(args.out, text, results)


if __name__ == "__main__":
    main()
