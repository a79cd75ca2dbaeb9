"""Optimisers of the trained weights: float32 masters of half-precision weights, and whose settings a resume uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from repirl.distributed import placed_like

Constructor = Callable[[list[nn.Parameter]], Optimizer]
"""An optimiser class with its settings, without the weights."""
_HALF = (torch.bfloat16, torch.float16)
_MASTER = "repirl_master"  # the attribute by which a weight in half precision knows its master
_CLASS, _WEIGHTS = "repirl_class", "repirl_weights"  # what is stored beside PyTorch's own keys


def make_optimizer(
    constructor: Constructor, trained: Iterable[nn.Parameter], name: str, checkpoint: Callable[[], object]
) -> Optimizer:
    """The optimiser of those of the parameters that are trained.

    Weights in bfloat16 or float16 have a float32 master each, which the optimiser works on: their gradients are summed in
    the master's float32, and after each step they get its rounded value. A step at rate 2e-6 is below half a unit in the
    last place of nearly all bfloat16 weights, and would be lost.

    Its state holds the masters. Loading a state keeps the settings that this optimiser was made with, such as rates
    and decay: they are the user's.

    Args:
        constructor: the configured class with its settings.
        trained: parameters; those without `requires_grad` are left out.
        name: what messages call it.
        checkpoint: where a loaded state is from, for messages.

    Raises, when a state is loaded: ValueError where it is of another class, of other weights, or lacks what the
        settings need.
    """
    weights = [p for p in trained if p.requires_grad]
    masters = [_master(weight) if weight.dtype in _HALF else weight for weight in weights]
    optimizer = constructor(masters)
    halves = [(weight, master) for weight, master in zip(weights, masters, strict=True) if weight is not master]
    if halves:
        optimizer.register_step_post_hook(lambda *_: _write(halves))
    optimizer.register_state_dict_post_hook(partial(_describe, halves=bool(halves)))
    optimizer.register_load_state_dict_pre_hook(
        partial(_as_configured, constructor=constructor, name=name, checkpoint=checkpoint)
    )
    return optimizer


def placed_state(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A stored state with this rank's parts of what belongs to sharded weights."""
    weights = _weights(optimizer)
    of_weights = {
        index: {name: placed_like(value, weights[index]) for name, value in values.items()}
        for index, values in state["state"].items()
        if index < len(weights)
    }
    placed = {**state, "state": {**state["state"], **of_weights}}
    if _WEIGHTS in state:
        placed[_WEIGHTS] = [placed_like(*pair) for pair in zip(state[_WEIGHTS], weights, strict=False)]
    return placed


def _master(weight: nn.Parameter) -> nn.Parameter:
    """A new float32 copy of a weight, which gets its gradients from now on."""
    if not hasattr(weight, _MASTER):
        weight.register_post_accumulate_grad_hook(_hand_over)
    master = nn.Parameter(weight.detach().float())
    setattr(weight, _MASTER, master)
    return master


def _hand_over(weight: Tensor) -> None:
    """Adds the gradient to the master's."""
    master: nn.Parameter = getattr(weight, _MASTER)
    gradient, weight.grad = weight.grad, None
    if gradient is not None:
        master.grad = gradient.float() if master.grad is None else master.grad + gradient


@torch.no_grad()
def _write(halves: list[tuple[nn.Parameter, nn.Parameter]]) -> None:
    for weight, master in halves:
        weight.copy_(master)


def _weights(optimizer: Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _class_of(optimizer: Optimizer) -> str:
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def _describe(optimizer: Optimizer, state: dict[str, Any], *, halves: bool) -> None:
    """Adds the class and, where they are not the module's own weights, the masters to a state."""
    state[_CLASS] = _class_of(optimizer)
    if halves:
        state[_WEIGHTS] = [weight.detach() for weight in _weights(optimizer)]


def _as_configured(
    optimizer: Optimizer,
    state: dict[str, Any],
    *,
    constructor: Constructor,
    name: str,
    checkpoint: Callable[[], object],
) -> dict[str, Any]:
    """The state as it may be loaded: with the optimiser's own settings. The masters take their values here."""
    configured, saved = _class_of(optimizer), state.get(_CLASS)
    where = f"{name}: the checkpoint {checkpoint()}"
    if saved not in (configured, None):
        raise ValueError(
            f"{where} has the state of {saved}, the configuration names {configured}; name the same class to go on, or "
            "start a new run from the checkpoint's weights"
        )
    groups = state["param_groups"]
    counts = [sum(len(group["params"]) for group in some) for some in (groups, optimizer.param_groups)]
    if counts[0] != counts[1] or len(groups) != len(optimizer.param_groups):
        raise ValueError(
            f"{where} has the state of {counts[0]} trained weights, the configuration trains {counts[1]}; train the same "
            "layers or adapters to go on, or start a new run from the checkpoint's weights"
        )
    if missing := _missing(constructor, optimizer, state):
        raise ValueError(
            f"{where} lacks {', '.join(missing)}, which the configured settings of {configured} need; go on with the "
            "settings it was written with, or start a new run from the checkpoint's weights"
        )
    with torch.no_grad():
        for weight, value in zip(_weights(optimizer), state.get(_WEIGHTS, ()), strict=False):
            weight.copy_(value)
    kept = [{**group, "params": old["params"]} for group, old in zip(optimizer.param_groups, groups, strict=True)]
    return {"state": state["state"], "param_groups": kept}


def _missing(constructor: Constructor, optimizer: Optimizer, state: dict[str, Any]) -> list[str]:
    """What such an optimiser keeps of a weight after a step, and the state does not: AdamW's amsgrad, for example."""
    weights, missing = _weights(optimizer), set[str]()
    needed = {weight.ndim: _kept(constructor, weight.ndim) for weight in weights}
    for index, weight in enumerate(weights):
        if (kept := state["state"].get(index)) is not None:
            missing |= needed[weight.ndim] - kept.keys()
    return sorted(missing)


def _kept(constructor: Constructor, dimensions: int) -> set[str]:
    weight = nn.Parameter(torch.zeros((2,) * dimensions))
    weight.grad = torch.zeros_like(weight)
    optimizer = constructor([weight])
    optimizer.step(lambda: 0.0)
    return set(optimizer.state[weight])
