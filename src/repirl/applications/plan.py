"""`repirl plan`: what a run will need of memory and time, before it is started.

    repirl plan --config configs/paper/math.yaml --processes 8 --memory 80

Nothing is downloaded but the models' config.json. Models of the same widths with one and two layers are run on this
machine; the rest is arithmetic, linear in layers and tokens. All lengths are the largest that the configuration allows.
Seconds are this machine's.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from repirl.applications.shallow import Figures, read
from repirl.config import ConfigError
from repirl.learning.alternation import Alternation
from repirl.models.log_probs import CHUNK_ELEMENTS

GIB = 2**30
EXPERTS = 1  # a prompt, in what is planned
KEPT = (
    "on a CPU the C library (glibc) keeps freed pieces: up to 1.4 times the peak was measured; with "
    "MALLOC_MMAP_THRESHOLD_=1048576 in the environment they are given back, and a run takes about a quarter longer"
)
PHASES = ("rollout", "log-probs", "PRM update", "policy update")


@dataclass(frozen=True)
class Batch:
    """The numbers that a configuration's batch settings lead to.

    prompts: an iteration, over all processes. samples: rollouts a prompt. prompt_tokens, response_tokens: largest lengths.
    micro_batch_tokens: in one forward-backward pass. rows: decoded at a time.
    """

    prompts: int
    processes: int
    samples: int
    prompt_tokens: int
    response_tokens: int
    micro_batch_tokens: int
    rows: int
    prm_steps: int
    policy_steps: int

    @property
    def own_prompts(self) -> int:
        """Prompts of the process that has most."""
        return -(-self.prompts // self.processes)

    def tokens(self, experts: int = 0) -> int:
        """Of one process, each prompt once, with so many experts a prompt."""
        return self.own_prompts * (self.prompt_tokens + (self.samples + experts) * self.response_tokens)

    def pass_tokens(self, experts: int = 0) -> int:
        """Of the largest micro-batch; at least one whole row."""
        return min(self.tokens(experts), max(self.micro_batch_tokens, self.prompt_tokens + self.response_tokens))


def memory(
    figures: Figures, batch: Batch, *, half: bool, base: float, shards: int = 1, on_cpu: bool = True
) -> dict[str, dict[str, float]]:
    """Bytes of one process by phase and part.

    half: weights of two bytes. base: what the program takes without models. shards: processes over which weights, gradients
    and optimiser are spread, gradients being summed after each pass. on_cpu: the memory of rollouts is not given back to
    later phases, being in small pieces.
    """
    shape, width = figures.shape, 2 if half else 4
    trained = figures.policy_trained + figures.prm_trained
    # Two moments. Trained half weights have float32 masters; where they are sharded their parts are float32 themselves.
    masters = trained * 4 if half and shards == 1 else 0
    weights = figures.held * width + (trained * (4 - width) if shards > 1 else 0)
    held = {"weights": weights / shards, "optimiser": (trained * 8 + masters) / shards, "program": base}
    n, with_experts = batch.pass_tokens(), batch.pass_tokens(EXPERTS)
    of_layer = (2 * shape.intermediate + 4 * shape.hidden) * width  # what one layer's pass needs meanwhile, a token
    trains_output = figures.policy_trained > shape.of_vocabulary
    chunk = min(CHUNK_ELEMENTS, n * shape.vocabulary) * 4
    rows = min(batch.rows, batch.own_prompts * batch.samples)
    room = batch.prompt_tokens + max(32, batch.response_tokens)
    layer = (figures.policy_held - shape.of_vocabulary) / shape.layers
    gathered, meanwhile = (
        {"gathered weights": count * width * (1 - 1 / shards)} if shards > 1 else {}
        for count in (figures.policy_held, shape.of_vocabulary + 2 * layer)
    )
    cache = rows * room * shape.layers * shape.kv_width * width
    rollout = held | gathered | {"cache": cache, "logits": 4 * rows * shape.vocabulary * 4}
    held = held | meanwhile | ({"cache": cache} if on_cpu else {})
    return {
        "rollout": rollout,
        "log-probs": held | {"activations": with_experts * of_layer, "logits": 2 * chunk},
        "PRM update": held
        | {"gradients": figures.prm_trained * 4 / shards, "activations": with_experts * (figures.prm_kept + of_layer)},
        "policy update": held
        | {
            "gradients": figures.policy_trained * 4 / shards,
            "activations": n * (figures.policy_kept + of_layer),
            "logits": 3 * chunk + (4 * shape.vocabulary * shape.hidden if trains_output else 0),
        },
    }


def advice(
    parts: dict[str, dict[str, float]], limit: float, *, checkpointing: bool, lora: bool, shared: bool
) -> list[str]:
    """What to change where a phase needs more than `limit` bytes; the largest part of the largest phase comes first."""
    phase = max(parts, key=lambda name: sum(parts[name].values()))
    over = sum(parts[phase].values()) - limit
    if over <= 0:
        return []
    less = "" if lora else "adapters (configs/scale/lora.yaml), or sharding over processes (configs/scale/fsdp.yaml)"
    words = {
        "activations": "a smaller model.micro_batch_tokens (same gradient, more passes)"
        + ("" if checkpointing else ", or policy.gradient_checkpointing=true"),
        "logits": "a smaller model.rollout.max_batch_rows"
        if phase == "rollout"
        else "a smaller model.micro_batch_tokens",
        "cache": "a smaller model.rollout.max_batch_rows, or an engine of its own (configs/scale/vllm.yaml)",
        "weights": "configs/scale/shared_base.yaml: policy, PRM and reference on one base" if not shared else "",
        "optimiser": less,
        "gradients": less,
    }
    largest = sorted(parts[phase].items(), key=lambda item: -item[1])
    told = dict.fromkeys(words[name] for name, _ in largest if words.get(name))
    return [f"the {phase} needs {over / GIB:.1f} GiB more than there is; what helps most comes first:", *told]


def table(parts: dict[str, dict[str, float]], seconds: dict[str, float]) -> str:
    """GiB by part and phase, and seconds."""
    names = list(dict.fromkeys(name for phase in parts.values() for name in phase))
    width = max(map(len, ["seconds an iteration", *names]))
    lines = [" " * width + "".join(f"{phase:>15}" for phase in PHASES)]
    for name in names:
        lines.append(f"{name:<{width}}" + "".join(_gib(parts[phase].get(name)) for phase in PHASES))
    lines.append(f"{'together, GiB':<{width}}" + "".join(_gib(sum(parts[phase].values())) for phase in PHASES))
    lines.append(f"{'seconds an iteration':<{width}}" + "".join(f"{seconds[phase]:>15.1f}" for phase in PHASES))
    return "\n".join(lines)


def _gib(value: float | None) -> str:
    return f"{'':>15}" if value is None else f"{value / GIB:>15.3f}"


# ---- from a configuration to the numbers


def batch_of(learning: Alternation, prompts: int, processes: int) -> Batch:
    """The batch numbers of an algorithm's settings."""
    text, schedule = learning.actor.text, learning.schedule
    rows = getattr(learning.actor.rollout, "max_batch_rows", 10**9)
    return Batch(
        prompts=prompts,
        processes=processes,
        samples=learning.samples,
        prompt_tokens=text.max_prompt_tokens,
        response_tokens=text.max_response_tokens,
        micro_batch_tokens=learning.policy_learner.micro_batch_tokens,
        rows=max(rows // learning.samples, 1) * learning.samples,
        prm_steps=0 if learning.prm_learner is None else schedule.prm_updates * schedule.prm_mini_batches,
        policy_steps=schedule.policy_steps,
    )


def seconds_of(figures: Figures, batch: Batch, learning: Alternation) -> dict[str, float]:
    """Seconds of an iteration by phase, on a machine like this one, if every length were the largest."""
    passes = 1 + learning.needs_reference
    schedule = learning.schedule
    return {
        "rollout": batch.own_prompts * batch.samples * batch.response_tokens * figures.decode,
        "log-probs": passes * batch.tokens(EXPERTS) * figures.policy_forward,
        "PRM update": schedule.prm_updates * batch.tokens(EXPERTS) * figures.prm_backward
        + batch.tokens() * figures.prm_forward,
        "policy update": schedule.policy_updates * batch.tokens() * figures.policy_backward,
    }


def sentence(batch: Batch) -> str:
    """The batch numbers in words."""
    own = f", {batch.own_prompts} prompts a process" if batch.processes > 1 else ""
    return (
        f"an iteration: {batch.prompts} prompts x {batch.samples} rollouts = {batch.prompts * batch.samples}{own}; "
        f"{batch.prm_steps} optimiser steps of the PRM, {batch.policy_steps} of the policy\n"
        f"a process: at most {batch.tokens():,} tokens of rollouts an iteration, in passes of at most "
        f"{batch.pass_tokens():,}"
    )


def resident() -> float:
    """Bytes of memory that this process has taken at most so far."""
    status = Path("/proc/self/status")  # there, since Linux's ru_maxrss begins at what the parent process had taken
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def keeps_freed_memory() -> bool:
    """Whether this program's C library keeps large freed blocks, as glibc does unless its environment says otherwise."""
    return platform.libc_ver()[0] == "glibc" and "MALLOC_MMAP_THRESHOLD_" not in os.environ


def main(argv: Sequence[str]) -> int:
    """Prints the plan; the exit status is 1 where it does not fit."""
    parser = argparse.ArgumentParser(
        prog="repirl plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-c", "--config", action="append", default=[], help="as for fit; may be repeated")
    parser.add_argument("--processes", type=int, help="processes, one a device (default: trainer.devices x num_nodes)")
    parser.add_argument(
        "--memory", type=float, help="GiB that a process may use: says what to change where it needs more"
    )
    given, words = parser.parse_known_args(argv)
    if not given.config:
        raise ConfigError("repirl plan: no configuration given", "repirl plan --config configs/quickstart.yaml")
    from repirl.build import constructed, explained
    from repirl.modules.repirl import RePIRL

    made = constructed([*(f"--config={path}" for path in given.config), *words])
    if not isinstance(made.module, RePIRL):
        raise ConfigError(
            f"repirl plan: the model is {type(made.module).__name__}", "give a configuration of repirl.RePIRL"
        )
    trainer = made.configuration.get("trainer") or {}
    processes = given.processes or _number(trainer.get("devices")) * _number(trainer.get("num_nodes"))
    learning, base = made.module.alternation, resident()
    batch = batch_of(learning, getattr(made.data, "batch_prompts", 1), processes)
    with explained():
        figures = read(learning)
    policy = learning.policy_learner.model
    strategy = trainer.get("strategy")
    sharded = isinstance(strategy, dict) and "Sharded" in str(strategy.get("class_path"))
    on_cpu = trainer.get("accelerator") == "cpu" or not torch.cuda.is_available()
    parts = memory(
        figures,
        batch,
        half=policy.dtype != "float32",
        base=base,
        shards=processes if sharded else 1,
        on_cpu=on_cpu,
    )
    print(f"{_millions(figures.held)} weights held, {_millions(figures.policy_trained)} of the policy and "
          f"{_millions(figures.prm_trained)} of the PRM trained")  # fmt: skip
    print(sentence(batch), "\n", sep="")
    print(table(parts, seconds_of(figures, batch, learning)))
    peak = max(sum(phase.values()) for phase in parts.values())
    print(f"\npeak: {peak / GIB:.2f} GiB a process")
    if on_cpu and keeps_freed_memory():
        print(KEPT)
    told = advice(
        parts,
        (given.memory or float("inf")) * GIB,
        checkpointing=policy.gradient_checkpointing,
        lora=policy.lora is not None,
        shared=learning.prm_learner is not None and learning.prm_learner.model.lora is not None,
    )
    print(*told, sep="\n- ", end="\n" if told else "")
    return 1 if told else 0


def _number(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 1


def _millions(count: float) -> str:
    return f"{count / 1e6:,.2f} M" if count < 1e9 else f"{count / 1e9:,.2f} B"
