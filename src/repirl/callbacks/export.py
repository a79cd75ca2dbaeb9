"""The trained policy as a plain Hugging Face folder."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from repirl.models.policy import Policy
from repirl.models.sharding import whole


class ExportPolicy(Callback):
    """Writes the policy's model and tokenizer when training ends.

    Args:
        folder: the target; made where missing, files of the same names are replaced.
        which: `last`, the policy at the end, or `best`, that of the best checkpoint by the figure that a ModelCheckpoint
            monitors; the last one where none was saved.
    """

    def __init__(self, folder: str, which: Literal["last", "best"] = "last") -> None:
        if Path(folder).is_file():
            raise ValueError(f"ExportPolicy: folder {folder!r} is a file")
        if which not in ("last", "best"):
            raise ValueError(f"ExportPolicy: which must be last or best, not {which!r}")
        self.folder, self.which = folder, which

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a module without a policy, and `best` where nothing says what is best."""
        if getattr(pl_module, "policy", None) is None:
            raise ValueError(f"ExportPolicy: {type(pl_module).__name__} has no `policy`; remove the callback")
        if stage == "fit" and self.which == "best" and not _monitoring(trainer):
            raise ValueError(
                "ExportPolicy: which=best needs a ModelCheckpoint with a `monitor`, such as val/greedy_accuracy; add one, or "
                "leave `which` out"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exports the policy as it is now and removes it again: what cannot be exported is known before training."""
        with whole(_policy(pl_module)):
            if trainer.is_global_zero:
                self._try(_policy(pl_module))

    def _try(self, policy: Policy) -> None:
        try:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            trial = TemporaryDirectory(dir=self.folder, prefix="trial-")
        except OSError as error:
            raise ValueError(f"ExportPolicy: folder {self.folder!r} cannot be written: {error}") from error
        with trial as folder:
            policy.save_pretrained(folder)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves, on rank zero; after the last validation, which may be the best one."""
        paths = [callback.best_model_path for callback in _monitoring(trainer)] if self.which == "best" else []
        best = next(filter(None, paths), None)
        with whole(_policy(pl_module)):
            if trainer.is_global_zero:
                policy = _policy(pl_module) if best is None else Policy.from_checkpoint(best)
                policy.save_pretrained(self.folder)


def _monitoring(trainer: Trainer) -> list[ModelCheckpoint]:
    callbacks = trainer.checkpoint_callbacks
    return [one for one in callbacks if isinstance(one, ModelCheckpoint) and one.monitor is not None]


def _policy(module: LightningModule) -> Policy:
    assert isinstance(module.policy, Policy)
    return module.policy
