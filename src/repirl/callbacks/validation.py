"""Validation before, during and after training, and figures that callbacks wait for in vain."""

import difflib
import re
from collections.abc import Iterable

from lightning.pytorch import Callback, LightningModule, Trainer


class Validation(Callback):
    """Validates at the start, every so many iterations, and at the end, each state of the policy once.

    Nothing is validated without a verifier, where the module needs one, or without validation data. A run that goes on from
    a checkpoint does not repeat the start.

    Args:
        every_n_iterations: iterations between two validations; None = as the trainer's `val_check_interval` and
            `check_val_every_n_epoch` say.
    """

    def __init__(self, every_n_iterations: int | None = 50) -> None:
        if every_n_iterations is not None and every_n_iterations < 1:
            raise ValueError(f"Validation: every_n_iterations must be at least 1, not {every_n_iterations}")
        self.every_n_iterations = every_n_iterations
        self._validated = -1  # iterations that the newest validated state has seen

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Sets the trainer's interval; the start policy's validation takes the place of its sanity check."""
        if stage != "fit" or not can_validate(pl_module):
            return
        trainer.num_sanity_val_steps = 0
        if self.every_n_iterations is not None:
            trainer.check_val_every_n_epoch, trainer.val_check_interval = None, self.every_n_iterations

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validates the start policy, and refuses callbacks that would wait for a figure that validation does not log."""
        if trainer.global_step == 0:
            self._validate(trainer, pl_module)
        figures = [name for name in trainer.callback_metrics if name.startswith("val/")]
        for callback in trainer.callbacks if figures else ():  # type: ignore[attr-defined]
            wanted = getattr(callback, "monitor", None) or ""
            if wanted.startswith("val/") and wanted not in figures:
                raise ValueError(not_logged(wanted, figures))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._validated != trainer.global_step:
            self._validate(trainer, pl_module)

    def _validate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As Lightning does within training; before the first iteration and after the last it has no state to keep."""
        if not trainer.enable_validation or trainer.fast_dev_run or not can_validate(pl_module):  # type: ignore[attr-defined]
            return
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True


def can_validate(module: LightningModule) -> bool:
    """Whether the module says that it has what a validation needs, such as a verifier."""
    return bool(getattr(module, "can_validate", False))


def unknown_monitor(error: BaseException) -> str | None:
    """What to say where a callback monitors a figure that nobody logs; None where the error is another."""
    text = str(error)
    name = re.search(r"monitor='([^']+)'|conditioned on metric `([^`]+)`", text)
    if name is None:
        return None
    wanted = name[1] or name[2]
    listed = text.partition("metrics: [" if name[1] else "the following:")[2]
    return not_logged(wanted, re.findall(r"['`](\w+/\w+)['`]", listed.partition("HINT")[0]))


def not_logged(wanted: str, names: Iterable[str]) -> str:
    """What to say where a callback monitors `wanted` and these names are logged: those of its kind are listed."""
    kind = [name for name in sorted(names) if name.partition("/")[0] == wanted.partition("/")[0]] or sorted(names)
    near = difflib.get_close_matches(wanted, kind, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"a callback monitors {wanted!r}, which is not logged; {hint}there is {', '.join(kind) or 'nothing yet'}"
