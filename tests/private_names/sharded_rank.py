"""One gloo process with sharded weights, without repirl: what the names used for sharding do there.

`python -m tests.private_names.sharded_rank out.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader


class OneProcess(ModelParallelStrategy):
    """Told of seven processes; finds that there is one."""

    def setup_environment(self) -> None:
        setattr(self, "_data_parallel_size", 1)  # noqa: B010
        super().setup_environment()


class Sharded(LightningModule):
    """A sharded layer in a sharded model, and two more of them."""

    def configure_model(self) -> None:
        self.mesh = self.device_mesh["data_parallel"]
        self.model, self.other = (self._made(), self._made())

    def _made(self) -> Any:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        fully_shard(model[0], mesh=self.mesh)
        return fully_shard(model, mesh=self.mesh)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.model(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.1)


def runs_after_its_layer(model: Any, prepared: bool) -> bool:
    """Whether a model can run when its layer has run alone."""
    if prepared:
        model._get_fsdp_state()._lazy_init()
    model[0](torch.ones(1, 2))
    try:
        model(torch.ones(1, 2))
    except RuntimeError:
        return False
    return True


def main() -> None:
    module, quiet = Sharded(), {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    strategy = OneProcess(data_parallel_size=7, tensor_parallel_size=1, process_group_backend="gloo")
    trainer = Trainer(accelerator="cpu", devices=1, strategy=strategy, max_steps=1, enable_model_summary=False, **quiet)
    trainer.fit(module, DataLoader([torch.ones(2)], batch_size=1))
    said = {
        "mesh": module.mesh.size(),
        "unprepared": runs_after_its_layer(module.other, prepared=False),
        "prepared": runs_after_its_layer(module._made(), prepared=True),
    }
    Path(sys.argv[1]).write_text(json.dumps(said))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
