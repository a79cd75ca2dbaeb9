"""The trained policy as a plain Hugging Face folder."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer


class ExportPolicy(Callback):
    """Writes the policy's model and tokenizer when training ends.

    Args:
        folder: where to; made where missing, files of the same names are replaced.
    """

    def __init__(self, folder: str) -> None:
        if Path(folder).is_file():
            raise ValueError(f"ExportPolicy: folder {folder!r} is a file")
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves, on rank zero."""
        policy = getattr(pl_module, "policy", None)
        if policy is None:
            raise ValueError(f"ExportPolicy: {type(pl_module).__name__} has no `policy`; remove the callback")
        if trainer.is_global_zero:
            policy.save_pretrained(self.folder)
