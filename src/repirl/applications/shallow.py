"""What the models of a module take, read off the same module with one and two layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from repirl.learning.alternation import Alternation
from repirl.models.footprint import (
    SMALL_VOCABULARY,
    Linear,
    Shape,
    config_of,
    rows_of_lengths,
    saved_bytes,
    seconds,
    shallow,
    shape_of,
)
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.rollout.transformers import InProcess
from repirl.structs import Rows

SAMPLE_TOKENS = 1024  # of the rows that are run
DECODED = 24


@dataclass(frozen=True)
class Figures:
    """What a module's models take. Weights are numbers; kept: bytes that a pass keeps for its backward pass, a token.

    forward, backward: seconds a token, backward with its forward. decode: seconds a row and token. Of the PRM 0 without one.
    """

    shape: Shape
    held: float
    policy_held: float
    policy_trained: float
    prm_trained: float
    policy_kept: float
    prm_kept: float
    policy_forward: float
    policy_backward: float
    prm_forward: float
    prm_backward: float
    decode: float


@dataclass(frozen=True)
class _Shallow:
    policy: Policy
    prm: PRM | None
    reference: Policy | None


def read(learning: Alternation) -> Figures:
    """The figures of the module whose algorithm this is; its weights need not be loaded."""
    policy = learning.policy_learner.model
    config = config_of(policy)
    shape = shape_of(config)
    one, two = (_made(learning, config, layers) for layers in (1, 2))
    rows, tokens = _rows(learning)

    def line(of: Callable[[_Shallow], float]) -> float:
        return Linear.through(of(one), of(two)).at(shape.layers)

    def weights(*parts: str, trained: bool = False) -> float:
        return line(lambda made: _count([getattr(made, part) for part in parts], trained, shape.vocabulary))

    def kept(part: str, checkpointing: bool) -> float:
        through = Linear.through(*(saved_bytes(getattr(made, part), rows) / tokens for made in (one, two)))
        if not checkpointing:
            return through.at(shape.layers)
        width = 2 if policy.dtype != "float32" else 4
        return (
            through.at(1) + (shape.layers - 1) * shape.hidden * width
        )  # one layer's at a time, and what goes into each

    def clocked(part: str, work: Callable[[nn.Module], object]) -> float:
        return line(lambda made: seconds(lambda: work(getattr(made, part))) / tokens)

    def forward(model: nn.Module) -> object:
        with torch.no_grad():
            return model(rows)

    def backward(model: nn.Module) -> object:
        values = model(rows)
        (values if isinstance(values, torch.Tensor) else values[0]).sum().backward()
        model.zero_grad()
        return None

    output = _output_seconds(shape)
    has_prm = one.prm is not None
    return Figures(
        shape=shape,
        held=weights("policy", "prm", "reference"),
        policy_held=weights("policy"),
        policy_trained=weights("policy", trained=True),
        prm_trained=weights("prm", trained=True) if has_prm else 0.0,
        policy_kept=kept("policy", policy.gradient_checkpointing),
        prm_kept=kept("prm", policy.gradient_checkpointing) if has_prm else 0.0,
        policy_forward=clocked("policy", forward) + output,
        policy_backward=clocked("policy", backward) + 4 * output,
        prm_forward=clocked("prm", forward) if has_prm else 0.0,
        prm_backward=clocked("prm", backward) if has_prm else 0.0,
        decode=line(lambda made: _decode_seconds(made.policy, rows)) + output,
    )


def _made(learning: Alternation, config: dict[str, Any], layers: int) -> _Shallow:
    policy = shallow(learning.policy_learner.model, config, layers)
    prm = None
    if learning.prm_learner is not None:
        given = learning.prm_learner.model
        prm = PRM(
            given.kind,
            backbone=None if given.backbone is None else shallow(given.backbone, config_of(given.backbone), layers),
            beta=given.beta,
            rank=given.rank,
            granularity=given.granularity,
            freeze_backbone=given.freeze_backbone,
            lora=given.lora,
        ).build(policy)
    held = None if prm is None else prm.policy_at_start
    needed = learning.needs_reference and held is None
    return _Shallow(policy, prm, policy.start() if needed else held)


def _rows(learning: Alternation) -> tuple[Rows, int]:
    """One prompt with its samples, lengths in the configuration's proportion, and its tokens, the prompt's once."""
    text, samples = learning.actor.text, learning.samples
    together = text.max_prompt_tokens + samples * text.max_response_tokens
    share = min(1.0, SAMPLE_TOKENS / together)
    prompt, response = max(2, int(share * text.max_prompt_tokens)), max(2, int(share * text.max_response_tokens))
    return rows_of_lengths(1, samples, prompt, response), prompt + samples * response


def _count(parts: list[nn.Module | None], trained: bool, vocabulary: int) -> float:
    """Weights of the modules, each once, with rows of a vocabulary in full size."""
    own = {id(p): p for part in parts if part is not None for p in part.parameters() if p.requires_grad or not trained}
    return sum(
        p.numel() * (vocabulary / SMALL_VOCABULARY if p.shape[0] == SMALL_VOCABULARY else 1) for p in own.values()
    )


def _decode_seconds(policy: Policy, rows: Rows) -> float:
    """A row and token, with the samples of one prompt decoded together."""
    generator = InProcess()
    generator.attach(policy.model, decode=lambda ids: "", pad_id=0, eos_ids=(-1,), max_response_tokens=DECODED)
    prompt = rows.prompt_ids[0].tolist()
    count = len(rows.response_ids)
    spent = seconds(lambda: generator.generate([prompt], samples=count, seeds=[0]), repeats=2)
    return spent / (count * DECODED)


def _output_seconds(shape: Shape) -> float:
    """A token's product with the output layer of the full vocabulary, by one with a part of it."""
    part = min(shape.vocabulary, 4096)
    states, weight = torch.randn(256, shape.hidden), torch.randn(part, shape.hidden)
    return seconds(lambda: states @ weight.T) / 256 * shape.vocabulary / part
