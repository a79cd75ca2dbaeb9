"""The run's own state on disk, often enough to go on from."""

import logging
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

_log = logging.getLogger(__name__)


class Checkpoint(ModelCheckpoint):
    """Saves the run every so many iterations and at its end; the newest file replaces the previous one unless all are kept.

    How files are written and checked is the module's (modules/saving.py), also for Lightning's own ModelCheckpoint.

    Args:
        dirpath: folder; None = `checkpoints` in the log folder.
        filename: name without .ckpt; {step} in it is the number of iterations done.
        every_n_iterations: iterations between two files.
        keep_all: keep every file; then `filename` needs {step}.
        save_weights_only: leave out optimisers and data state: smaller, but `fit` cannot go on from it.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        filename: str = "last",
        every_n_iterations: int = 50,
        keep_all: bool = False,
        save_weights_only: bool = False,
    ) -> None:
        if every_n_iterations < 1:
            raise ValueError(f"Checkpoint: every_n_iterations must be at least 1, not {every_n_iterations}")
        if keep_all and "{step" not in filename:
            raise ValueError(f"Checkpoint: with keep_all every file needs its own name: put {{step}} into {filename!r}")
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            every_n_train_steps=every_n_iterations,
            save_top_k=-1 if keep_all else 1,
            save_weights_only=save_weights_only,
            enable_version_counter=False,
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says where files of an earlier run will be replaced."""
        there = sorted(Path(self.dirpath).glob("*.ckpt")) if self.dirpath and not trainer.ckpt_path else []
        if there and trainer.is_global_zero:
            _log.warning(
                "%s holds %s of an earlier run, which this run replaces; give another `output` to keep it, or go on from "
                "it with --ckpt_path",
                self.dirpath,
                there[-1].name,
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the end, whatever the number of iterations."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
