"""What an exception leaves of a fit: everything up to the last whole iteration."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from repirl.learning.ahead import AheadActor
from repirl.modules.stopping import checkpoint_folder
from repirl.modules.strategies import ShardedStrategy


class SaveOnException(Callback):
    """Saves a fit that an exception ends; a resumed run does the unfinished iteration again.

    Before the first update of that iteration the weights are those of the last whole one: the file is `last.ckpt`, and a
    resumed run goes on exactly. After it the file is `unfinished.ckpt` and holds the weights as they are; `last.ckpt` stays.
    Where the last whole iteration is saved already, nothing is written.

    The first process saves, alone: the others may be gone. So nothing is saved of sharded weights, which take all
    processes, nor of a run that samples ahead, whose rollouts are used up; nor of weights that are NaN.
    """

    def __init__(self) -> None:
        self._position: dict[str, Any] | None = None  # of loops and data at the end of the last whole iteration
        self._updated = False  # since then

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the position; weights are not copied."""
        self._position, self._updated = _position(trainer), False

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._updated = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._position is None or not isinstance(exception, Exception) or not _can_save(trainer, pl_module):
            return
        if getattr(trainer.strategy.checkpoint_io, "saved_at", None) == trainer.global_step:
            return
        path = checkpoint_folder(trainer) / ("unfinished.ckpt" if self._updated else "last.ckpt")
        updates = ", with updates of the next, which a resumed run does again" if self._updated else ""
        try:
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            checkpoint["loops"]["fit_loop"] = self._position["fit_loop"]
            trainer.strategy.save_checkpoint(checkpoint | self._position["data"], path)
            said = f"saved {path}: iteration {trainer.global_step}{updates}"
        except Exception as error:  # a full disk, a lost device, NaN: the exception at hand is what the user must see
            said = f"{path} was not saved: {error}"
        print(said, file=sys.stderr, flush=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._position = None


def _position(trainer: Trainer) -> dict[str, Any]:
    data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
    read: dict[str, Any] = getattr(data, "state_dict", dict)()
    return {"fit_loop": trainer.fit_loop.state_dict(), "data": {type(data).__qualname__: read} if read else {}}


def _can_save(trainer: Trainer, pl_module: LightningModule) -> bool:
    ahead = isinstance(getattr(pl_module, "actor", None), AheadActor)
    sharded = isinstance(trainer.strategy, ShardedStrategy)
    return bool(trainer.checkpoint_callbacks) and trainer.is_global_zero and not ahead and not sharded
