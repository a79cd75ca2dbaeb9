"""Two processes by Lightning's own launcher, without repirl: what the names used in modules/strategies.py do there.

`python -m tests.private_names.lightning_ranks out.json`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader


class Unwrapped(DDPStrategy):
    """Copies rank 0's values instead of wrapping the module."""

    def configure_ddp(self) -> None:
        assert self.model is not None
        _sync_module_states(self.model)


class FilledByRank(LightningModule):
    """A weight and a buffer that hold the number of their process; says what they hold when training starts."""

    def __init__(self) -> None:
        super().__init__()
        number = float(os.environ.get("LOCAL_RANK", "0"))
        self.weight = torch.nn.Parameter(torch.full((2,), number))
        self.register_buffer("count", torch.full((2,), number))
        self.before = number
        self.said: dict[str, Any] = {}

    def on_train_start(self) -> None:
        values = [self.before, *self.weight.tolist(), *self.get_buffer("count").tolist(), float(os.getpid())]
        of_ranks = [torch.empty(len(values), dtype=torch.float64) for _ in range(dist.get_world_size())]
        dist.all_gather(of_ranks, torch.tensor(values, dtype=torch.float64))
        self.said = {
            "ranks": [one.tolist() for one in of_ranks],
            "wrapped": self.trainer.strategy.model is not self,
        }

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight * batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main() -> None:
    module, quiet = FilledByRank(), {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=Unwrapped(process_group_backend="gloo"),
        max_steps=1,
        enable_model_summary=False,
        **quiet,
    )
    trainer.fit(module, DataLoader([torch.ones(2)] * 4, batch_size=1))
    if trainer.global_rank:
        time.sleep(600)  # until it is killed
    other = int(module.said["ranks"][1][-1])
    assert trainer.strategy.launcher is not None
    trainer.strategy.launcher.kill(signal.SIGKILL)
    _, status = os.waitpid(other, 0)
    module.said["ended_by"] = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    Path(sys.argv[1]).write_text(json.dumps(module.said))
    os._exit(0)  # before Lightning's observer finds the child gone and ends this process too


if __name__ == "__main__":
    main()
