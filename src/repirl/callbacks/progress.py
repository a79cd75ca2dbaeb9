"""Where a run is, as a line in a terminal or as lines of a log."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, Timer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from repirl.data.loaders import EvalLoader
from repirl.learning.recorder import Recorder
from repirl.progress.line import REFRESH_S, Line
from repirl.progress.pace import Pace, time_left
from repirl.progress.words import progress_line
from repirl.structs import Prompt


class Progress(ProgressBar):
    """Shows where `fit`, `validate`, `test` and `predict` are, in place of Lightning's progress bar.

    In a terminal one line is written over itself; elsewhere a line of its own is written to standard error at most every
    `every_s` seconds, and one at the end. Of several processes the first shows it.

    - The count is that of iterations done, for an evaluation of problems. Without `max_steps` the total follows from
      `max_epochs`; where there is neither, none is shown.
    - The phase is the part of the iteration that is under way; in a validation its own count.
    - The figures are those logged with `prog_bar=True`.
    - Tokens a second are the response tokens of the last 20 iterations over their wall seconds, all phases together: the
      tokens sampled or, where nothing is sampled, the experts' tokens trained on. For an evaluation they are the tokens
      sampled so far. With several processes those of the first are counted, times the number of processes.
    - The time left is that of the iterations to come at the median of the last 20, and of the validations to come as
      measured; at most what `max_time` leaves.

    Args:
        every_s: seconds between two lines where the output is no terminal.
    """

    def __init__(self, every_s: float = 10.0) -> None:
        if not every_s >= 0:
            raise ValueError(f"Progress: every_s must not be negative, not {every_s}")
        super().__init__()
        self._enabled = True
        self._line = Line(every_s)
        self._figures: Mapping[str, float] = {}
        self._read_at = -math.inf
        self._fit: _Fit | None = None
        self._evaluation: _Evaluation | None = None

    def disable(self) -> None:
        """Shows nothing from now on."""
        self._enabled = False
        self._line.close()

    def enable(self) -> None:
        """Shows again."""
        self._enabled = True

    # ---- training ----

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._enabled:
            return
        self._figures, self._fit = {}, _Fit(sampled_tokens(pl_module))
        recorder = getattr(pl_module, "recorder", None)
        if isinstance(recorder, Recorder):
            recorder.on_phase = self._on_phase
        self._line.open()

    def _on_phase(self, phase: str) -> None:
        if self._fit is not None:
            self._fit.phase = phase
            self._show(rarely=(self._fit.pace.seconds or 1.0) >= 1.0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._enabled or self._fit is None:
            return
        self._fit.end_iteration(sampled_tokens(pl_module), expert_tokens(batch), trainer.world_size)
        if time.monotonic() - self._read_at >= REFRESH_S:
            self._read_figures()
        self._show(rarely=(self._fit.pace.seconds or 1.0) >= 1.0)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last line: after the validation that other callbacks make when training ends."""
        if self._fit is not None:
            self._read_figures()
            self._line.close(self._fit_line(took=time.monotonic() - self._fit.began))
        self._forget(pl_module)

    # ---- evaluation ----

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._enabled:
            self._figures = {}
            self._line.open()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._begin_evaluation(pl_module, trainer.val_dataloaders, batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_evaluation(pl_module, trainer.test_dataloaders, trainer.num_test_batches)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_evaluation(pl_module, trainer.predict_dataloaders, trainer.num_predict_batches)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._evaluation is not None:
            self._evaluation.done_batches(dataloader_idx, batch_idx + 1)
            self._evaluation.tokens = sampled_tokens(pl_module) * trainer.world_size
            self._show()

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._evaluation is None:
            return
        if trainer.state.fn == TrainerFn.FITTING:
            if self._fit is not None:
                self._fit.end_validation(self._evaluation.elapsed, sampled_tokens(pl_module))
            self._evaluation = None
            return
        self._read_figures()
        self._line.close(self._evaluation_line(took=self._evaluation.elapsed))
        self._forget(pl_module)

    on_test_end = on_predict_end = on_validation_end

    def _begin_evaluation(self, pl_module: LightningModule, loaders: Any, batches: int | float | Sequence[Any]) -> None:
        if not self._enabled:
            return
        limits = list(batches) if isinstance(batches, Sequence) else [batches]
        self._evaluation = _Evaluation(_flat(loaders), limits, sampled_tokens(pl_module) * self.trainer.world_size)
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._figures = {}
        self._line.open()
        self._show()

    # ---- ends ----

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves the last word to what ended the run."""
        self._forget(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._forget(pl_module)

    def _forget(self, pl_module: LightningModule) -> None:
        recorder = getattr(pl_module, "recorder", None)
        if isinstance(recorder, Recorder):
            recorder.on_phase = None
        self._fit = self._evaluation = None
        self._line.close()

    # ---- lines ----

    def _read_figures(self) -> None:
        self._read_at = time.monotonic()
        self._figures = {name: float(value) for name, value in self.trainer.progress_bar_metrics.items()}

    def _show(self, *, rarely: bool = False) -> None:
        if self._line.due(rarely=rarely):
            fits = self.trainer.state.fn == TrainerFn.FITTING
            self._line.show(self._fit_line() if fits else self._evaluation_line())

    def _fit_line(self, took: float | None = None) -> str:
        done, total = self.trainer.global_step, total_iterations(self.trainer)
        fit, evaluation = self._fit, self._evaluation
        phase, left, rate = "", None, None
        if fit is not None:
            phase, rate = fit.phase, fit.pace.rate
            elapsed = fit.elapsed if evaluation is None else 0.0  # validation is between two iterations
            left = None if total is None else fit.pace.left(max(total - done, 0), elapsed)
        if evaluation is not None:
            phase, rate = f"{'sanity check' if fit is None else 'validate'} {evaluation.count}", evaluation.rate
            left = None if left is None or evaluation.left is None else left + evaluation.left
        return progress_line(
            "fit",
            done=done,
            total=total,
            phase=phase if took is None else "",
            figures=self._figures,
            rate=rate,
            left=_least(left, time_allowed(self.trainer)) if took is None else None,
            took=took,
            width=self._line.width,
        )

    def _evaluation_line(self, took: float | None = None) -> str:
        evaluation = self._evaluation
        assert evaluation is not None
        assert self.trainer.state.fn is not None
        return progress_line(
            self.trainer.state.fn.value,
            done=evaluation.done,
            total=evaluation.total,
            figures=self._figures,
            rate=evaluation.rate,
            left=evaluation.left if took is None else None,
            took=took,
            width=self._line.width,
        )


class _Fit:
    """A training loop's pace. Tokens are those that this process has sampled until now."""

    def __init__(self, tokens: int) -> None:
        self.pace, self.phase = Pace(), ""
        self.began = self._since = time.monotonic()
        self._tokens = tokens

    @property
    def elapsed(self) -> float:
        """Seconds of the iteration under way, without validation."""
        return time.monotonic() - self._since

    def end_iteration(self, tokens: int, of_experts: int, processes: int) -> None:
        self.pace.add(self.elapsed, ((tokens - self._tokens) or of_experts) * processes)
        self._since, self._tokens, self.phase = time.monotonic(), tokens, ""

    def end_validation(self, seconds: float, tokens: int) -> None:
        self.pace.add_validation(seconds)
        self._since, self._tokens = self._since + seconds, tokens


@dataclass
class _Evaluation:
    """An evaluation's loop over loaders, of each of which at most `limits` batches are used. Tokens: sampled until now."""

    loaders: Sequence[Any]
    limits: Sequence[int | float]
    tokens: int

    def __post_init__(self) -> None:
        self._began, self._tokens_before = time.monotonic(), self.tokens
        self.done = 0
        totals = [problems_in(*pair) for pair in zip(self.loaders, self.limits, strict=False)]
        self._before = [sum(totals[:index]) for index in range(len(totals) + 1)]
        self.total = int(self._before[-1]) if totals and math.isfinite(self._before[-1]) else None

    def done_batches(self, loader: int, batches: int) -> None:
        self.done = int(self._before[loader] + problems_in(self.loaders[loader], batches))

    @property
    def count(self) -> str:
        return f"{self.done}" if self.total is None else f"{self.done}/{self.total}"

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    @property
    def rate(self) -> float | None:
        sampled = self.tokens - self._tokens_before
        return sampled / self.elapsed if sampled else None

    @property
    def left(self) -> float | None:
        return None if self.total is None else time_left(done=self.done, total=self.total, elapsed=self.elapsed)


def problems_in(loader: Any, batches: int | float) -> int | float:
    """Number of problems in a loader's first so many batches; the number of batches where it does not know."""
    return loader.problems_in(int(batches)) if isinstance(loader, EvalLoader) else batches


def total_iterations(trainer: Trainer) -> int | None:
    """The iteration at which the trainer will stop, by its steps or epochs; None where it has no such limit."""
    limits = [trainer.max_steps] if trainer.max_steps > 0 else []
    batches = trainer.num_training_batches
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and math.isfinite(batches):
        limits.append(trainer.max_epochs * math.ceil(batches / trainer.accumulate_grad_batches))
    return min(limits, default=None)


def time_allowed(trainer: Trainer) -> float | None:
    """Seconds that `max_time` leaves; None without it."""
    timer = next((one for one in trainer.callbacks if isinstance(one, Timer)), None)  # type: ignore[attr-defined]
    return None if timer is None else timer.time_remaining()


def sampled_tokens(pl_module: LightningModule) -> int:
    """Number of response tokens that this process has sampled so far."""
    return int(getattr(getattr(pl_module, "actor", None), "sampled_tokens", 0))


def expert_tokens(batch: Any) -> int:
    """Number of tokens of the experts of a batch; 0 where it holds none."""
    prompts = [one for one in batch if isinstance(one, Prompt)] if isinstance(batch, list) else []
    return sum(len(expert.token_ids) for prompt in prompts for expert in prompt.experts)


def _least(*seconds: float | None) -> float | None:
    return min((one for one in seconds if one is not None), default=None)


def _flat(loaders: Any) -> list[Any]:
    """Loaders of a trainer, which may have one, none, or several under names."""
    return [] if loaders is None else CombinedLoader(loaders, "sequential").flattened
