"""The trained policy as a plain Hugging Face folder."""

from pathlib import Path
from tempfile import TemporaryDirectory

from lightning.pytorch import Callback, LightningModule, Trainer

from repirl.models.policy import Policy
from repirl.models.sharding import whole


class ExportPolicy(Callback):
    """Writes the policy's model and tokenizer when training ends.

    Args:
        folder: where to; made where missing, files of the same names are replaced.
    """

    def __init__(self, folder: str) -> None:
        if Path(folder).is_file():
            raise ValueError(f"ExportPolicy: folder {folder!r} is a file")
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a module without a policy."""
        if getattr(pl_module, "policy", None) is None:
            raise ValueError(f"ExportPolicy: {type(pl_module).__name__} has no `policy`; remove the callback")

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

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves, on rank zero."""
        with whole(_policy(pl_module)):
            if trainer.is_global_zero:
                _policy(pl_module).save_pretrained(self.folder)


def _policy(module: LightningModule) -> Policy:
    assert isinstance(module.policy, Policy)
    return module.policy
