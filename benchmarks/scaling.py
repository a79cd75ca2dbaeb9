"""Memory and communication of an iteration on 1 to 64 GPUs, on paper: the tables of docs/scaling.md.

    python benchmarks/scaling.py

The paper's batch (configs/paper/math.yaml) with Qwen2.5's shapes, bfloat16 and gradient checkpointing. Memory is that of
`repirl plan` (repirl/applications/plan.py), with weights and activations by arithmetic instead of shallow models.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from repirl.applications.plan import GIB, Batch, memory
from repirl.applications.shallow import Figures
from repirl.models.footprint import Shape

GPUS = (1, 2, 4, 8, 16, 32, 64)
BASE = 1.5 * GIB  # a CUDA context and its libraries
RANK = 16


@dataclass(frozen=True)
class Model:
    """A dense decoder: grouped attention, three matrices in the feed-forward layer. heads_width: of keys or values."""

    layers: int
    hidden: int
    intermediate: int
    heads_width: int
    vocabulary: int
    tied: bool

    @property
    def shape(self) -> Shape:
        """As `repirl plan` has it."""
        kv = 2 * self.heads_width
        return Shape(self.layers, self.hidden, self.vocabulary, self.intermediate, kv, self.tied)

    @property
    def weights(self) -> int:
        """All, but for biases and norms."""
        h, kv = self.hidden, self.heads_width
        return self.layers * (2 * h * h + 2 * h * kv + 3 * h * self.intermediate) + self.shape.of_vocabulary

    @property
    def adapters(self) -> int:
        """LoRA of rank RANK on all linear layers."""
        h, kv, inner = self.hidden, self.heads_width, self.intermediate
        return self.layers * RANK * (2 * (h + h) + 2 * (h + kv) + 3 * (h + inner))

    def kept(self, *, checkpointing: bool) -> float:
        """Numbers that a pass keeps for its backward pass, a token: of one layer, and what goes into each other one."""
        of_layer = 4 * self.intermediate + 10 * self.hidden
        return of_layer + (self.layers - 1) * self.hidden if checkpointing else self.layers * of_layer


MODELS = {
    "3 B": Model(36, 2048, 11008, 256, 151_936, True),
    "7 B": Model(28, 3584, 18944, 512, 152_064, False),
    "14 B": Model(48, 5120, 13824, 1024, 152_064, False),
    "32 B": Model(64, 5120, 27648, 1024, 152_064, False),
}


def batch(gpus: int) -> Batch:
    """The paper's, over so many processes."""
    return Batch(
        prompts=128,
        processes=gpus,
        samples=4,
        prompt_tokens=1535,
        response_tokens=3000,
        micro_batch_tokens=16384,
        rows=128,
        prm_steps=4,
        policy_steps=4,
    )


def figures(model: Model, *, adapters: bool) -> Figures:
    """Policy and PRM, each with weights of its own, or as adapters on one base."""
    trained = model.adapters if adapters else model.weights
    held = model.weights + 2 * model.adapters if adapters else 2 * model.weights
    kept = 2.0 * model.kept(checkpointing=True)
    seconds = dict.fromkeys(
        ("policy_forward", "policy_backward", "prm_forward", "prm_backward", "decode"), 0.0
    )  # not on paper
    return Figures(
        shape=model.shape,
        held=held,
        policy_held=model.weights + (model.adapters if adapters else 0),
        policy_trained=trained,
        prm_trained=trained,
        policy_kept=kept,
        prm_kept=kept,
        **seconds,
    )


def peak(model: Model, gpus: int, *, adapters: bool) -> float:
    """Bytes of one process: sharded where all weights are trained, else with the base whole on each."""
    shards = 1 if adapters else gpus
    parts = memory(figures(model, adapters=adapters), batch(gpus), half=True, base=BASE, shards=shards, on_cpu=False)
    return max(sum(phase.values()) for phase in parts.values())


@dataclass(frozen=True)
class Passes:
    """Of one process and iteration. evaluations: without gradient, of policy and PRM; training: with, of each."""

    policy_evaluations: int
    prm_evaluations: int
    policy_training: int
    prm_training: int


def passes(of: Batch, experts: int = 1) -> Passes:
    """Log-probabilities once; the PRM without gradient before its update, unless one pass serves both, and for scores."""
    with_experts, rollouts = (max(1, -(-of.tokens(n) // of.micro_batch_tokens)) for n in (experts, 0))
    prm = max(with_experts, of.prm_steps)
    one_serves_both = prm == of.prm_steps
    return Passes(
        policy_evaluations=with_experts,
        prm_evaluations=(0 if one_serves_both else prm) + rollouts,
        policy_training=max(rollouts, of.policy_steps),
        prm_training=prm,
    )


def sharded_traffic(layers: float, rest: float, of: Passes, gpus: int, *, width: int) -> float:
    """Bytes that one process receives in an iteration, policy and PRM having so many weights in layers and outside them.

    Layers are gathered for each forward and each backward pass, what is outside them for both at once; the policy's once
    more for rollouts. Gradients are summed in float32 after each backward pass.
    """
    training = of.policy_training + of.prm_training
    once = 1 + of.policy_evaluations + of.prm_evaluations + training
    gathered = (layers + rest) * once + layers * training
    return (gathered * width + (layers + rest) * training * 4) * (gpus - 1) / gpus


def replicated_traffic(trained: float, steps: int, gpus: int) -> float:
    """Bytes that one process receives: the gradients, summed by a ring in two rounds, in float32 each step."""
    return 2 * trained * 4 * steps * (gpus - 1) / gpus


def traffic(model: Model, gpus: int, *, adapters: bool) -> float:
    """Bytes that one process receives in an iteration."""
    if adapters:
        return replicated_traffic(model.adapters, 8, gpus)  # four steps of each model
    rest = model.shape.of_vocabulary
    return sharded_traffic(model.weights - rest, rest, passes(batch(gpus)), gpus, width=2)


def table(*, adapters: bool) -> str:
    """GiB of memory / GiB received in an iteration, by model and number of GPUs."""
    lines = ["| GPUs | " + " | ".join(map(str, GPUS)) + " |", "|---" * (len(GPUS) + 1) + "|"]
    for name, model in MODELS.items():
        cells = [
            f"{peak(model, n, adapters=adapters) / GIB:.0f} / {_short(traffic(model, n, adapters=adapters) / GIB)}"
            for n in GPUS
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def main() -> None:
    """Both tables."""
    print("All weights trained, sharded:\n")
    print(table(adapters=False))
    print("\nAdapters on one base, whole on each GPU:\n")
    print(table(adapters=True))


if __name__ == "__main__":
    main()
