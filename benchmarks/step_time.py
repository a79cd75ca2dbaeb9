"""Seconds of each phase of one rePIRL iteration, on synthetic prompts.

Prompts and experts are random tokens of fixed length; rollouts cannot end early, so that every iteration does the same
work. A real Trainer runs it all; the figures are the module's own `time/*_s`, the median after warm-up.

    python benchmarks/step_time.py                              # 0.1 M parameters, seconds
    python benchmarks/step_time.py --model 7M --iterations 3
    python benchmarks/step_time.py --model HuggingFaceTB/SmolLM2-135M-Instruct --prompts 2 --samples 4
"""

import argparse
import json
import logging
import os
import platform
import random
import statistics
import string
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from transformers import PreTrainedModel

from repirl.data.loaders import PromptBatch
from repirl.models.policy import Policy
from repirl.models.prm import PRM, Kind
from repirl.modules.phases import Schedule
from repirl.modules.repirl import RePIRL
from repirl.modules.settings import Text
from repirl.rollout.transformers import InProcess
from repirl.structs import Expert, Problem, Prompt
from repirl.verifiers.math import MathVerifier

PHASES = ("rollout", "verify", "log_probs", "prm_update", "score", "policy_update")
SIZES = {  # without the embeddings of a larger vocabulary
    "0.1M": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "1M": {"hidden_size": 160, "intermediate_size": 432, "num_hidden_layers": 4, "num_attention_heads": 4},
    "7M": {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 6, "num_attention_heads": 5},
}
ANSWER = "\\boxed{5}"


class Unending(InProcess):
    """Rollouts of exactly max_response_tokens tokens: no token ends one."""

    def attach(
        self,
        model: PreTrainedModel,
        *,
        decode: Callable[[Sequence[int]], str],
        pad_id: int,
        eos_ids: Sequence[int],
        max_response_tokens: int,
    ) -> None:
        """Takes the weights, and no end token."""
        super().attach(model, decode=decode, pad_id=pad_id, eos_ids=(-1,), max_response_tokens=max_response_tokens)


class Batches:
    """The same number of prompts in every iteration, each with one expert."""

    def __init__(self, module: RePIRL, iterations: int, prompts: int, prompt_tokens: int, response_tokens: int) -> None:
        self.module, self.iterations, self.prompts = module, iterations, prompts
        self.prompt_tokens, self.response_tokens = prompt_tokens, response_tokens

    def __len__(self) -> int:
        return self.iterations

    def __iter__(self) -> Iterator[PromptBatch]:
        generator = random.Random(0)
        codec = self.module.codec
        answer, size = codec.encode_response(ANSWER), len(codec.tokenizer)
        for iteration in range(self.iterations):
            batch = []
            for number in range(self.prompts):
                tokens = [generator.randrange(4, size) for _ in range(self.prompt_tokens + self.response_tokens)]
                response = (*tokens[self.prompt_tokens + len(answer) :], *answer)
                problem = Problem(id=f"{iteration}/{number}", text="synthetic", answer="5")
                batch.append(Prompt(problem, tuple(tokens[: self.prompt_tokens]), (Expert(ANSWER, response, True),)))
            yield PromptBatch(batch)


class Collect(Callback):
    """Keeps the phase times of every iteration."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Reads what the module logged."""
        for phase in PHASES:
            self.seconds[phase].append(float(trainer.callback_metrics.get(f"time/{phase}_s", 0.0)))


def vocabulary(size: int) -> list[str]:
    """`size` tokens: printable ASCII first."""
    return (list(string.printable) + [chr(0x4E00 + i) for i in range(size)])[:size]


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Median seconds a phase, and what was measured."""
    seed_everything(0, verbose=False)
    if args.model in SIZES:
        config = {"model_type": "llama", "max_position_embeddings": 4096, "tie_word_embeddings": True}
        policy = Policy(config=config | SIZES[args.model], tokens=vocabulary(args.vocabulary))
    else:
        policy = Policy(path=args.model)
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
    collect = Collect()
    iterations = args.warm_up + args.iterations
    trainer = Trainer(
        accelerator=args.accelerator,
        devices=1,
        precision=args.precision,
        max_steps=iterations,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[collect],
    )
    trainer.fit(module, Batches(module, iterations, args.prompts, args.prompt_tokens, args.response_tokens))
    seconds = {phase: statistics.median(collect.seconds[phase][args.warm_up :]) for phase in PHASES}
    return {
        "settings": vars(args) | {"out": str(args.out)},
        "parameters": sum(p.numel() for p in policy.parameters()),
        "hardware": torch.cuda.get_device_name() if module.device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "seconds": seconds,
        "total_s": sum(seconds.values()),
        "response_tokens_per_s": args.prompts * args.samples * args.response_tokens / sum(seconds.values()),
    }


def main() -> None:
    """Measures, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="0.1M", help=f"{', '.join(SIZES)}, or a hub id, folder or GGUF file")
    parser.add_argument("--vocabulary", type=int, default=1024, help="of from-scratch models (default 1024)")
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

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    found = measure(args)
    total, seconds = found["total_s"], found["seconds"]
    print(f"{args.model} ({found['parameters']:,} parameters), {found['threads']} threads of {found['cores']} cores")
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
