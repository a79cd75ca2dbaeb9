"""Learning rates: the optimiser of a module that names none, and schedules that are stepped once an iteration."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from inspect import signature
from typing import Any, Literal

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.optimizer import ParamsT

from repirl.distributed import warn_once

Constructor = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]
"""A scheduler class with its settings, without the optimiser."""
Decay = Literal["constant", "linear", "cosine"]


class FineTuningAdamW(torch.optim.AdamW):
    """AdamW for pretrained weights: PyTorch's own default rate, 1e-3, destroys them, and its decay pulls them to 0.

    Args: as in `torch.optim.AdamW`. The rate is one to start from; 1e-6 to 1e-5 is usual.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-6,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


class WarmupDecay(LRScheduler):
    """A rise over the first iterations, then a decay to the end of training; factors of the optimiser's own rate.

    In iteration i, counted from 0: (i + 1) / warmup for i < warmup. Then with p = (i - warmup) / (iterations - warmup), at
    most 1: floor + (1 - floor) d(p), where d is 1 - p (`linear`), (1 + cos(pi p)) / 2 (`cosine`) or 1 (`constant`).

    Args:
        optimizer: the optimiser whose rates are set.
        decay: the shape after the warm-up.
        warmup: iterations of the rise.
        iterations: the iteration at which the rate has fallen to its floor; None = the trainer's max_steps.
        floor: the last rate as a share of the full one.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        decay: Decay = "linear",
        warmup: int = 0,
        iterations: int | None = None,
        floor: float = 0.0,
    ) -> None:
        if warmup < 0 or not 0 <= floor <= 1:
            raise ValueError(
                f"WarmupDecay: warmup must not be negative and floor between 0 and 1, not {warmup}, {floor}"
            )
        self.decay, self.warmup, self.floor = decay, warmup, floor
        self.iterations: int | None = None
        if iterations is not None:
            self.end_at(iterations)
        super().__init__(optimizer)

    def end_at(self, iterations: int) -> None:
        """Takes the number of iterations, where it was not given."""
        if self.decay != "constant" and iterations <= self.warmup:
            raise ValueError(
                f"WarmupDecay: {iterations} iterations leave none for a {self.decay} decay after a warm-up of {self.warmup}; "
                "set iterations, or trainer.max_steps, above the warm-up, or decay to 'constant'"
            )
        self.iterations = iterations

    def factor(self, iteration: int) -> float:
        """Of the full rate, in this iteration."""
        if iteration < self.warmup:
            return (iteration + 1) / self.warmup
        if self.decay == "constant" or self.iterations is None:
            return 1.0
        left = max(0.0, 1 - (iteration - self.warmup) / (self.iterations - self.warmup))
        shape = left if self.decay == "linear" else (1 - math.cos(math.pi * left)) / 2
        return self.floor + (1 - self.floor) * shape

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rate of each parameter group in the iteration `last_epoch`."""
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]


class Schedules:
    """The learning-rate schedulers of a module, by the optimiser's name.

    A resumed run goes on where a schedule was, with the settings and full rates of its own configuration.
    """

    def __init__(self) -> None:
        self._configured: dict[str, tuple[LRScheduler, dict[str, Any]]] = {}

    def add(self, name: str, constructor: Constructor, optimizer: Optimizer, max_steps: int) -> LRScheduler:
        """Makes the scheduler of an optimiser.

        Raises ValueError for a scheduler that follows a metric, or one that must know the end and does not.
        """
        scheduler = constructor(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ValueError(
                f"{name}_scheduler: ReduceLROnPlateau follows a metric, and schedules are stepped once an iteration; name "
                "another, such as repirl.learning.learning_rate.WarmupDecay"
            )
        if isinstance(scheduler, WarmupDecay) and scheduler.iterations is None and scheduler.decay != "constant":
            if max_steps < 1:
                raise ValueError(f"{name}_scheduler: its decay needs trainer.max_steps, or iterations of its own")
            scheduler.end_at(max_steps)
        self._configured[name] = scheduler, _settings(scheduler)
        return scheduler

    def go_on(self, iteration: int) -> None:
        """Before the first iteration of a run, resumed or not: says what is not as in the checkpoint, and follows it.

        iteration: the number of those behind it.
        """
        for name, (scheduler, configured) in self._configured.items():
            stored = _settings(scheduler)
            if scheduler.last_epoch != iteration and isinstance(scheduler, WarmupDecay):
                scheduler.last_epoch = iteration
            elif scheduler.last_epoch != iteration:
                warn_once(
                    f"{name}_scheduler: the checkpoint of iteration {iteration} has no such schedule; "
                    f"{type(scheduler).__name__} starts at its iteration {scheduler.last_epoch}. "
                    f"WarmupDecay would start at {iteration}"
                )
            changed = {key for key in configured if key != "base_lrs" and stored[key] != configured[key]}
            for key in sorted(changed):
                warn_once(
                    f"{name}_scheduler: {key} is {configured[key]} now and was {stored[key]} in the checkpoint. The schedule "
                    f"goes on from iteration {iteration} with {configured[key]}, so that its rate may jump"
                )
            vars(scheduler).update(configured)
            groups = scheduler.optimizer.param_groups
            for group, rate in zip(groups, _rates(scheduler, stored, configured), strict=True):
                group["lr"] = rate
            for group, base in zip(groups, configured.get("base_lrs", ()), strict=False):
                group["initial_lr"] = base

    def step(self) -> None:
        """Ends an iteration."""
        with warnings.catch_warnings():
            # An iteration need not update: no prompt was kept, or policy or PRM is not trained yet.
            warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler.step\(\)` before")
            for scheduler, _ in self._configured.values():
                scheduler.step()


def _rates(scheduler: LRScheduler, settings: dict[str, Any], configured: dict[str, Any]) -> list[float | torch.Tensor]:
    """The rates of the coming iteration: as stored, times configured over stored full rates; ours by its formula."""
    if isinstance(scheduler, WarmupDecay):
        return scheduler.get_lr()
    rates, stored = list(scheduler.get_last_lr()), settings.get("base_lrs")
    if stored is None or stored == configured["base_lrs"]:
        return rates
    full = zip(rates, configured["base_lrs"], stored, strict=True)
    return [rate * new / old if old else new for rate, new, old in full]


def rate_of(optimizer: Optimizer) -> float:
    """The learning rate of its first parameter group."""
    return float(optimizer.param_groups[0]["lr"])


def _settings(scheduler: LRScheduler) -> dict[str, Any]:
    """What a scheduler was made with, as far as it keeps it, and the full rates; not how far it has come."""
    kept = {*signature(type(scheduler)).parameters, "base_lrs"} - {"optimizer", "last_epoch"}
    return {name: value for name, value in vars(scheduler).items() if name in kept}
