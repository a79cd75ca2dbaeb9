"""Seconds of each phase of one rePIRL iteration, on synthetic prompts.

Prompts and experts are random tokens of fixed length; rollouts cannot end early, so that every iteration does the same
work. A real Trainer runs it all; the figures are the module's own `time/*_s`, the median after warm-up.

    python benchmarks/step_time.py                              # 0.1 M parameters, seconds
    python benchmarks/step_time.py --model 7M --iterations 3
    python benchmarks/step_time.py --model 135M --prompts 2 --samples 4
"""

import argparse
import json
import statistics
from pathlib import Path

from machine import described
from workloads import PHASES, SHAPES, Unending, Work, iterate, parameters, policy_of, synthetic_prompts

from repirl.learning.schedule import Schedule
from repirl.learning.settings import Text
from repirl.models.heads import Kind
from repirl.models.prm import PRM
from repirl.modules.repirl import RePIRL
from repirl.verifiers.math import MathVerifier


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Median seconds a phase, and what was measured."""
    work = Work(args.prompts, args.samples, args.prompt_tokens, args.response_tokens)
    policy = policy_of(args.model)
    module = RePIRL(
        policy=policy,
        prm=None if args.prm == "none" else PRM(kind=args.prm),
        verifier=MathVerifier(),
        samples=args.samples,
        text=Text(max_prompt_tokens=args.prompt_tokens, max_response_tokens=args.response_tokens),
        schedule=Schedule(prm_updates=args.prm_updates),
        rollout=Unending(),
        micro_batch_tokens=args.micro_batch_tokens,
    )
    batches = synthetic_prompts(policy.tokenizer, work, args.warm_up + args.iterations, answer="\\boxed{5}")
    taken = iterate(module, batches, accelerator=args.accelerator, precision=args.precision)[args.warm_up :]
    seconds = {phase: statistics.median(one[phase] for one in taken) for phase in PHASES}
    return {
        "settings": vars(args) | {"out": str(args.out)},
        "machine": described(module.device),
        "parameters": parameters(policy),
        "seconds": seconds,
        "total_s": sum(seconds.values()),
        "response_tokens_per_s": args.prompts * args.samples * args.response_tokens / sum(seconds.values()),
    }


def main() -> None:
    """Measures, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="0.1M", help=f"{', '.join(SHAPES)}, 135M, or a hub id, folder or GGUF file")
    parser.add_argument("--prm", default="q_head", choices=[*Kind.__args__, "none"])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8, help="rollouts a prompt (K)")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--response-tokens", type=int, default=64)
    parser.add_argument("--prm-updates", type=int, default=1)
    parser.add_argument("--micro-batch-tokens", type=int, default=16384)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--out", type=Path, default=Path("outputs/step_time.json"))
    args = parser.parse_args()

    found = measure(args)
    total, seconds = found["total_s"], found["seconds"]
    machine = found["machine"]
    print(
        f"{args.model} ({found['parameters']:,} parameters), {machine['threads']} threads of {machine['cores']} cores"
    )
    tokens = f"{args.prompt_tokens} + {args.response_tokens} tokens"
    print(f"{args.prompts} prompts x {args.samples} rollouts, {tokens}, PRM {args.prm}")
    for phase in PHASES:
        print(f"  {phase:<14} {seconds[phase]:8.3f} s  {100 * seconds[phase] / total:5.1f} %")
    print(f"  {'total':<14} {total:8.3f} s  {found['response_tokens_per_s']:.0f} response tokens/s")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
