"""Ends a fit whose figures leave their bounds, such as one whose policy has learned to fool its reward."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from repirl.callbacks.probes import KINDS, RewardProbes
from repirl.callbacks.validation import can_validate
from repirl.distributed import any_rank
from repirl.modules.stopping import saved_now

LENGTH, ENTROPY, REWARD = "rollout/response_tokens", "policy/entropy", "rollout/reward"
ROLLOUTS, HOLLOW = "prm/reward_policy", tuple(f"probe/{kind}" for kind in KINDS)
"""Mean token rewards of the PRM: of rollouts, and of the hollow responses of `RewardProbes`."""
LEAD = "lead of a hollow response"
WATCHED = (LENGTH, ENTROPY, REWARD, ROLLOUTS, *HOLLOW)
WINDOW = 5
"""Iterations over which the reward before a validation is averaged."""


class Bounds:
    """What is out of bounds, figure by figure. Pure: it knows no trainer.

    Args: as in `Guards`.
    """

    def __init__(
        self, *, accuracy: str, max_drop: float | None, max_length_ratio: float | None, min_entropy: float | None,
        patience: int, max_hollow_lead: float | None = None,
    ) -> None:  # fmt: skip
        if max_drop is not None and not 0 < max_drop <= 1:
            raise ValueError(
                f"Guards: max_drop must be a part of 1, such as 0.1, not {max_drop}; null watches no accuracy"
            )
        if max_length_ratio is not None and not 1 < max_length_ratio < math.inf:
            raise ValueError(
                f"Guards: max_length_ratio must be above 1, not {max_length_ratio}; null watches no length"
            )
        if min_entropy is not None and not 0 < min_entropy < math.inf:
            raise ValueError(
                f"Guards: min_entropy must be a number of nats above 0, not {min_entropy}; null watches no entropy"
            )
        if max_hollow_lead is not None and not 0 <= max_hollow_lead < math.inf:
            raise ValueError(
                f"Guards: max_hollow_lead must be a reward of 0 or more, not {max_hollow_lead}; null watches no probes"
            )
        if patience < 1:
            raise ValueError(f"Guards: patience must be at least 1 iteration, not {patience}")
        if max_drop is None and max_length_ratio is None and min_entropy is None and max_hollow_lead is None:
            raise ValueError(
                "Guards: nothing is watched; set max_drop, max_length_ratio, min_entropy or max_hollow_lead, or remove the "
                "callback"
            )
        self.accuracy, self.max_drop, self.max_length_ratio = accuracy, max_drop, max_length_ratio
        self.min_entropy, self.max_hollow_lead, self.patience = min_entropy, max_hollow_lead, patience
        self.best: tuple[float, int] | None = None  # accuracy, and the iteration after which it was measured
        self.first_length: float | None = None
        self.rewards: list[float] = []  # of each iteration
        self.in_a_row = {LENGTH: 0, ENTROPY: 0, LEAD: 0}

    def validated(self, iteration: int, accuracy: float) -> str | None:
        """What is wrong with a held-out accuracy, measured after so many iterations; None where nothing is."""
        if self.max_drop is None or math.isnan(accuracy):
            return None
        if self.best is None or accuracy > self.best[0]:
            self.best = accuracy, iteration
        best, when = self.best
        if not accuracy < best - self.max_drop:
            return None
        fell = (
            f"{self.accuracy} fell from {best:.3f} (iteration {when}) to {accuracy:.3f}, by more than {self.max_drop:g}"
        )
        before, now = self._reward_at(when), self._reward_at(iteration)
        if before is None or now is None or not now > before:
            return fell
        return f"{fell}, while {REWARD} rose from {before:.3g} to {now:.3g}: the reward is exploited"

    def iterated(self, figures: Mapping[str, float]) -> str | None:
        """What is wrong with an iteration's figures, `patience` times in a row by now; None where nothing is."""
        reward = figures.get(REWARD, math.nan)
        if not math.isnan(reward):
            self.rewards.append(reward)
        # All are counted before one is told: a figure's row goes on while another is out of bounds.
        wrong = [self._length(figures), self._entropy(figures), self._hollow(figures)]
        return next((words for words in wrong if words is not None), None)

    def state(self) -> dict[str, Any]:
        """What has been seen, as plain values."""
        return {
            "best": None if self.best is None else list(self.best),
            "first_length": self.first_length,
            "rewards": list(self.rewards),
            "in_a_row": dict(self.in_a_row),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`."""
        best = state["best"]
        self.best = None if best is None else (float(best[0]), int(best[1]))
        self.first_length, self.rewards = state["first_length"], list(state["rewards"])
        self.in_a_row |= state["in_a_row"]  # a state of before a figure was watched lacks it

    def _length(self, figures: Mapping[str, float]) -> str | None:
        length = figures.get(LENGTH, math.nan)
        if self.first_length is None and length > 0:
            self.first_length = length
        if self.max_length_ratio is None or self.first_length is None or math.isnan(length):
            return None
        ratio = length / self.first_length
        if not self._is_long(LENGTH, not 1 / self.max_length_ratio <= ratio <= self.max_length_ratio):
            return None
        return (
            f"{LENGTH} is {length:.3g}, {ratio:.3g} of the first iteration's {self.first_length:.3g}, beyond a factor of "
            f"{self.max_length_ratio:g} either way"
        )

    def _entropy(self, figures: Mapping[str, float]) -> str | None:
        entropy = figures.get(ENTROPY, math.nan)
        if self.min_entropy is None or math.isnan(entropy) or not self._is_long(ENTROPY, entropy < self.min_entropy):
            return None
        return f"{ENTROPY} is {entropy:.3g} nats, below {self.min_entropy:g}"

    def _hollow(self, figures: Mapping[str, float]) -> str | None:
        """Of the hollow response that leads, as the last validation measured it, against this iteration's rollouts."""
        rollouts = figures.get(ROLLOUTS, math.nan)
        probed = [name for name in HOLLOW if not math.isnan(figures.get(name, math.nan))]
        if self.max_hollow_lead is None or math.isnan(rollouts) or not probed:
            return None
        first = max(probed, key=lambda name: figures[name])
        if not self._is_long(LEAD, figures[first] - rollouts > self.max_hollow_lead):
            return None
        return (
            f"{first} is {figures[first]:.3g}, above the {rollouts:.3g} of {ROLLOUTS} by more than "
            f"{self.max_hollow_lead:g}: a response that says nothing is rewarded above the rollouts, so that the reward is "
            "exploited or soon will be"
        )

    def _is_long(self, figure: str, beyond: bool) -> bool:
        self.in_a_row[figure] = self.in_a_row[figure] + 1 if beyond else 0
        return self.in_a_row[figure] >= self.patience

    def _reward_at(self, iteration: int) -> float | None:
        """Mean reward of the iterations up to this number of them; at 0 that of the first, which the start policy sampled."""
        window = self.rewards[max(0, iteration - WINDOW) : max(1, iteration)]
        return sum(window) / len(window) if window else None


class Guards(Callback):
    """Ends a fit when a watched figure leaves its bounds: saved as `last.ckpt`, told in two lines, exit status 0.

    A validation counts at once, the figures of iterations after `patience` of them in a row. All ranks end together. What
    runs at the end of training, such as exports and the last validation, still does.

    The accuracy is compared with its best so far, the start's included, where that is validated
    (repirl.callbacks.validation.Validation, which every `repirl fit` has, does so). The best of many noisy values is too
    high: with n problems and an accuracy p give `max_drop` at least 3 sqrt(p (1 - p) / n).

    Args:
        accuracy: the held-out figure, as validation logs it.
        max_drop: largest fall of it below its best so far, as a part of 1; None = it is not watched.
        max_length_ratio: largest ratio of a response's mean length to the first iteration's, either way; None = not watched.
        min_entropy: least mean entropy of a response token, in nats; None = not watched.
        patience: iterations in a row for which length, entropy or a hollow response must be beyond.
        max_hollow_lead: largest lead, in mean token reward, of a hollow response over the rollouts of an iteration; the
            hollow ones are those of `RewardProbes`, as last validated. None = not watched: where a policy is weak, a PRM that
            teaches it well may reward the end token above what it samples, so that a lead by itself is no fault.
    """

    def __init__(
        self,
        accuracy: str = "val/sampled_accuracy",
        max_drop: float | None = 0.1,
        max_length_ratio: float | None = 2.0,
        min_entropy: float | None = None,
        patience: int = 5,
        max_hollow_lead: float | None = None,
    ) -> None:
        self.bounds = Bounds(
            accuracy=accuracy,
            max_drop=max_drop,
            max_length_ratio=max_length_ratio,
            min_entropy=min_entropy,
            patience=patience,
            max_hollow_lead=max_hollow_lead,
        )
        # `Validation` refuses a monitored figure that is not logged, with the names that are.
        self.monitor = accuracy if max_drop is not None else None
        self.ended: str | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses to watch what is never measured."""
        self.ended = None
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        validates = can_validate(pl_module) and trainer.limit_val_batches != 0
        if self.monitor is not None and not validates:
            raise ValueError(
                f"Guards: {self.monitor} is watched, but nothing is validated: give the module a verifier and the data "
                "`val` problems with limit_val_batches above 0, or set max_drop to null"
            )
        if self.bounds.max_hollow_lead is None:
            return
        probes = any(isinstance(one, RewardProbes) for one in trainer.callbacks)  # type: ignore[attr-defined]
        if not (validates and probes and getattr(pl_module, "prm", None) is not None):
            raise ValueError(
                "Guards: max_hollow_lead is set, but no hollow response is scored: that takes a PRM, a validation and "
                "repirl.callbacks.probes.RewardProbes among trainer.callbacks; or set max_hollow_lead to null"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks at the iteration's figures."""
        figures = {name: float(trainer.callback_metrics.get(name, math.nan)) for name in WATCHED}
        self._end_if(self.bounds.iterated(figures), trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the held-out accuracy."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or self.monitor is None:
            return
        accuracy = float(trainer.callback_metrics.get(self.monitor, torch.tensor(math.nan)))
        self._end_if(self.bounds.validated(trainer.global_step, accuracy), trainer, pl_module)

    def _end_if(self, wrong: str | None, trainer: Trainer, pl_module: LightningModule) -> None:
        # The figures are of all ranks together, so that all find the same; the vote makes sure of it.
        if not any_rank(wrong is not None, pl_module.device) or self.ended is not None or trainer.should_stop:
            return
        self.ended = wrong or "another process found a figure out of bounds"
        saved = saved_now(trainer).splitlines()[0]
        if trainer.is_global_zero:
            print(
                f"guard: ended after iteration {trainer.global_step}: {self.ended}\n{saved}; {self._advice()}",
                file=sys.stderr,
                flush=True,
            )
        trainer.should_stop = True

    def _advice(self) -> str:
        best = self.bounds.best
        earlier = "" if best is None or best[1] == 0 else f"take a checkpoint of about iteration {best[1]}, or "
        return f"{earlier}start anew with advantage.maxent_coef 1, surrogate.kl_coef above 0, a lower rate or another reward"

    def state_dict(self) -> dict[str, Any]:
        """What has been seen so far, so that a resumed run is held to the same best and the same first length."""
        return self.bounds.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        self.bounds.restore(state_dict)
