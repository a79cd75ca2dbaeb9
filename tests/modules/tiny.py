"""Tiny problems, modules and runs: a one-layer llama on running sums, through a real Trainer on the CPU."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn

from repirl.data.arithmetic import RunningSums
from repirl.data.expert import ExpertData
from repirl.data.mixture import Mixture, MixturePart
from repirl.data.sources import Source
from repirl.learning.settings import Text
from repirl.models.heads import Head, LinearHead
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.modules.repirl import RePIRL
from repirl.structs import Problem, Verdict, Verifier

TOKENS = [*"0123456789", *"abcd", "\\boxed{", "}", "\n"]
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
SUMS_TEXT = Text(max_prompt_tokens=16, max_response_tokens=48)
TEXT = Text(max_prompt_tokens=16, max_response_tokens=10)
SGD = partial(torch.optim.SGD, lr=0.5)
ADAM = partial(torch.optim.AdamW, lr=1e-2)


class Problems(Source):
    """The given problems."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)

    def load(self) -> list[Problem]:
        return self.problems


class EvenDigits(Verifier):
    """Right are the written solutions, and responses with an even number of digits: untrained policies have both."""

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        return [self._one(problem, text) for problem, text in zip(problems, responses, strict=True)]

    def _one(self, problem: Problem, text: str) -> Verdict:
        right = text in problem.solutions or sum(c.isdigit() for c in text) % 2 == 0
        return Verdict(right, "equal" if right else "not_equal")

    def close(self) -> None:
        """Nothing to end."""


class Containing(Verifier):
    """Right are the written solutions, and responses that contain a text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        right = [
            self.text in text or text in problem.solutions for problem, text in zip(problems, responses, strict=True)
        ]
        return [Verdict(r, "equal" if r else "not_equal") for r in right]

    def close(self) -> None:
        """Nothing to end."""


class Always(Verifier):
    """The same verdict for everything."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        return [self.verdict for _ in responses]

    def close(self) -> None:
        """Nothing to end."""


RIGHT, WRONG = Always(Verdict(True, "equal")), Always(Verdict(False, "not_equal"))
BROKEN = Always(Verdict(None, "infra_error"))


def problems(count: int = 8, split: str = "train") -> list[Problem]:
    """Running sums of two or three additions."""
    return RunningSums(count, seed=3, min_steps=2, max_steps=3, split=split).load()  # type: ignore[arg-type]


def with_experts(count: int = 8) -> list[Problem]:
    """Prompts with one, two or three different expert solutions."""
    found = []
    for n, problem in enumerate(problems(count)):
        digits = random.Random(n)
        others = [f"\\boxed{{b{digits.randrange(10)}c{k}}}" for k in range(n % 3)]
        found.append(replace(problem, solutions=(*problem.solutions, *others)))
    return found


def half_with_experts(count: int = 8) -> list[Problem]:
    """Prompts of which every second one has expert solutions."""
    return [replace(p, solutions=p.solutions if n % 2 else ()) for n, p in enumerate(with_experts(count))]


def mixture() -> Mixture:
    """Of four prompts three are `mixed`, one of them with experts; one is `bare`, without, and with an instruction."""
    parts = {
        "mixed": MixturePart(Problems(half_with_experts()), weight=3, expert_share=1 / 3),
        "bare": MixturePart(Problems(half_with_experts()), instruction="d", expert_share=0),
    }
    return Mixture(parts)


def make_data(train: Sequence[Problem] | None = None, batch_prompts: int = 4, **options: Any) -> ExpertData:
    train = problems() if train is None else train
    return ExpertData(train=Problems(train), batch_prompts=batch_prompts, **options)


def make_policy(**options: Any) -> Policy:
    return Policy(config=LLAMA, tokens=TOKENS, **options)


def make_sums_model(**options: Any) -> Policy:
    """A language model that reads labelled sums (data/step_sources.py)."""
    return Policy(config=LLAMA | options, tokens=[*"0123456789", *"abcdefghij", "+", "=", "\\boxed{", "}", "\n"])


class DrawnLinear(LinearHead):
    """`linear` with weights drawn at random, where rewards of 0 would hide something."""

    def __init__(self, backbone: Policy, rank: int | None = None) -> None:
        Head.__init__(self, backbone, rank)
        self.score = nn.Linear(self.hidden_size, 1)


DRAWN_LINEAR = f"{__name__}.{DrawnLinear.__name__}"


def make_module(**options: Any) -> RePIRL:
    """rePIRL with a Q-head and SGD, unless `options` say otherwise."""
    settings: dict[str, Any] = {
        "policy": make_policy(),
        "prm": PRM(kind="q_head"),
        "policy_optimizer": SGD,
        "prm_optimizer": SGD,
        "samples": 3,
        "text": TEXT,
    }
    return RePIRL(**(settings | options))


class Memory(Logger):
    """Keeps the figures of each iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.figures: list[dict[str, float]] = []

    name = "memory"
    version = "0"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        # Seconds differ from run to run; Lightning counts epochs otherwise after a resume.
        kept = {name: value for name, value in metrics.items() if not name.startswith(("time/", "epoch"))}
        self.figures.append({**kept, "step": step})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Not of interest."""


@dataclass
class Run:
    """What is left of a run."""

    module: Any
    trainer: Trainer
    figures: list[dict[str, float]]

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.module.state_dict().items()}


def run(
    module: LightningModule,
    data: LightningDataModule | None = None,
    steps: int = 1,
    *,
    seed: int = 0,
    ckpt_path: Path | None = None,
    **options: Any,
) -> Run:
    """Trains for `steps` iterations."""
    seed_everything(seed, verbose=False)
    memory = Memory()
    trainer = Trainer(
        **(
            {
                "accelerator": "cpu",
                "devices": 1,
                "max_steps": steps,
                "max_epochs": -1,
                "logger": memory,
                "log_every_n_steps": 1,
                "limit_val_batches": 0,
                "num_sanity_val_steps": 0,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
            }
            | options
        )
    )
    trainer.fit(module, make_data() if data is None else data, ckpt_path=ckpt_path)
    return Run(module, trainer, memory.figures)


def start_weights(module: RePIRL) -> dict[str, Tensor]:
    """The weights with which such a module starts."""
    seed_everything(0, verbose=False)
    module.configure_model()
    return {name: value.clone() for name, value in module.state_dict().items()}


def distance(first: dict[str, Tensor], second: dict[str, Tensor], part: str = "") -> float:
    """The largest difference of any weight whose name starts with `part`."""
    assert first.keys() == second.keys()
    names = [name for name in first if name.startswith(part)]
    assert names
    return max(float((first[name] - second[name]).abs().max()) for name in names)
