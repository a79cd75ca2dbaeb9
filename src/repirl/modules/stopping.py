"""SIGTERM and SIGINT end a run at the next iteration, all ranks together, with what was done saved and said.

Lightning's own handler starts a collective inside a signal handler, which meets whatever collective the rank is in: with
several processes that hangs. Here a handler only sets a flag; at the end of an iteration the ranks vote.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn

from repirl.distributed import gather_rows

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """A signal has ended the run. Its code is the exit status, 128 + signal: 143 or 130."""


class StopOnSignal(Callback):
    """Ends loops on SIGTERM or SIGINT after the iteration or batch at hand; the same signal again ends the process at once.

    A fit saves everything first, as `last.ckpt` in the folder of its checkpoints; without such a callback
    nothing is saved. All ranks end where any of them got a signal.
    """

    def __init__(self) -> None:
        self._received = 0  # the signal's number
        self._in_loop = False
        self._leaving: str | None = None

    # ---- signals ----

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Has Lightning put our handlers over its own; it takes them all away again at the end (private names)."""
        self._received, self._in_loop, self._leaving = 0, False, None
        connector = trainer._signal_connector
        register = connector.register_signal_handlers

        def register_ours() -> None:
            register()
            if threading.current_thread() is threading.main_thread():
                for number in SIGNALS:
                    signal.signal(number, self._handle)

        connector.register_signal_handlers = register_ours  # type: ignore[method-assign]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """No collective, no file, no lock in here: the rank may be anywhere."""
        if self._received == number or not self._in_loop:
            raise Stopped(128 + number)
        self._received = self._received or number
        name = signal.Signals(number).name
        with contextlib.suppress(OSError, RuntimeError):  # a closed or busy stderr must not break the iteration
            sys.stderr.write(
                f"{name}: stopping at the end of this iteration or batch; once more ends the process now\n"
            )

    # ---- loops ----

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._in_loop = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._in_loop = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave(trainer)
        self._in_loop = True

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._in_loop = True

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._in_loop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves now; the run is left at the next hook, when the iteration's figures are logged."""
        if self._any_received(trainer, pl_module):
            self._leaving = saved_now(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._leave(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if self._any_received(trainer, pl_module):
            training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
            self._leaving = saved_now(trainer) if training else ""
            self._leave(trainer)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._leave_evaluation(trainer, pl_module)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._leave_evaluation(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._in_loop = False  # nothing is voted on any more: what is written at the end can be ended at once

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._in_loop = False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._in_loop = False

    def _any_received(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Whether any rank got a signal; then all ranks have got it."""
        mine = torch.tensor([self._received], device=pl_module.device)
        of_any = int(gather_rows(mine).max())
        if of_any:  # never back to 0: a signal may have come since `mine` was read, and has its vote the next time
            self._received = of_any
        return of_any > 0

    def _leave_evaluation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._any_received(trainer, pl_module):
            self._leaving = ""
            self._leave(trainer)

    def _leave(self, trainer: Trainer) -> None:
        """Ends the run where that was decided. Raises Stopped."""
        if self._leaving is None:
            return
        if trainer.is_global_zero:
            what = f"stopped by {signal.Signals(self._received).name} after iteration {trainer.global_step}"
            print(f"{what}: {self._leaving or 'nothing to save'}", file=sys.stderr, flush=True)
        trainer.strategy.barrier("stopped")
        status = 128 + self._received
        if trainer.global_rank and _launched_by_lightning(trainer):
            status = 0  # a child that ends otherwise has its parent killed by Lightning's observer before it is done
        raise Stopped(status)


def saved_now(trainer: Trainer) -> str:
    """Saves everything as `last.ckpt`; what was saved and how to go on, for the user. All ranks must call it."""
    if not trainer.checkpoint_callbacks:
        return "nothing was saved, since trainer.enable_checkpointing is false"
    path = checkpoint_folder(trainer) / "last.ckpt"
    trainer.save_checkpoint(path, weights_only=False)
    return f"saved {path}\ngo on with the same command and --ckpt_path {path}"


def checkpoint_folder(trainer: Trainer) -> Path:
    """Where the first checkpoint callback writes that keeps the newest, not the best; else any, else the trainer's folder."""
    keeps_newest = (c for c in trainer.checkpoint_callbacks if getattr(c, "monitor", None) is None)
    callback = next(keeps_newest, trainer.checkpoint_callback)
    folder = callback.dirpath if isinstance(callback, ModelCheckpoint) else None
    return Path(folder or trainer.default_root_dir)


def _launched_by_lightning(trainer: Trainer) -> bool:
    strategy = trainer.strategy
    return isinstance(strategy, ParallelStrategy) and isinstance(strategy.cluster_environment, LightningEnvironment)
