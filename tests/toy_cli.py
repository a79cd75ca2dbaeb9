"""A tiny LightningModule and data module, enough to drive the command line."""

from dataclasses import dataclass

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader


class Baseline:
    """A component, so that configurations nest."""

    def __init__(self, decay: float = 0.5, scale: float = 1.0) -> None:
        self.decay, self.scale = decay, scale


class Other(Baseline):
    """A second component that accepts one argument of the first, `scale`, and not the other."""

    def __init__(self, scale: float = 2.0) -> None:
        super().__init__(scale=scale)


@dataclass(frozen=True)
class Settings:
    """A group of settings."""

    clip: float | int = 0.5

    def __post_init__(self) -> None:
        if self.clip < 0:
            raise ValueError(f"clip must not be negative, like {self.clip}")


class ToyModel(LightningModule):
    """Fits a line; says at each start what it was built with."""

    def __init__(self, baseline: Baseline, samples: int = 2, settings: Settings = Settings()) -> None:
        super().__init__()
        if samples < 1:
            raise ValueError(f"samples must be at least 1, not {samples}")
        self.save_hyperparameters(ignore=["baseline", "settings"])
        self.baseline, self.samples = baseline, samples
        self.line = torch.nn.Linear(1, 1)

    def on_fit_start(self) -> None:
        print(f"fit: {type(self.baseline).__name__} scale={self.baseline.scale} samples={self.samples}")

    def on_validation_start(self) -> None:
        print(f"validate: samples={self.samples}")

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.line(batch) - 2 * batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ToyData(LightningDataModule):
    """A few numbers."""

    def __init__(self, rows: int = 4) -> None:
        super().__init__()
        self.rows = rows

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.arange(self.rows, dtype=torch.float32)[:, None])  # type: ignore[arg-type]

    val_dataloader = train_dataloader


class BrokenData(LightningDataModule):
    """Has a bug."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 1 / 0
