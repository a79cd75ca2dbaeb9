"""Learners in Lightning: its precision, scaler and hooks around their passes and steps."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import Optimizer

from repirl.learning.learner import Learner


class LightningEngine:
    """Passes and steps of one learner by a module with manual optimisation.

    Before Lightning steps an optimiser it calls the module's `on_before_optimizer_step`, where gradients are unscaled also
    under fp16: there the module calls `reduce`.
    """

    def __init__(self, module: LightningModule, index: int) -> None:
        self.module, self.index = module, index

    def backward(self, loss: Tensor) -> None:
        """Adds the loss's gradient, scaled as the precision asks."""
        self.module.manual_backward(loss)

    def step(self) -> None:
        """One step of the module's optimiser of this index."""
        optimizers = self.module.optimizers()
        optimizer = optimizers[self.index] if isinstance(optimizers, list) else optimizers
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def connect(module: LightningModule, learners: list[Learner]) -> None:
    """Has each learner learn by the module's optimiser of the same place."""
    for index, learner in enumerate(learners):
        learner.sums_each_pass = getattr(module.trainer.strategy, "sums_each_pass", False)
        learner.engine = LightningEngine(module, index)


def reduce(module: LightningModule, learners: list[Learner], optimizer: Optimizer) -> None:
    """Sums and clips the gradients of the learner to which the optimiser belongs."""
    index = [id(one) for one in module.trainer.optimizers].index(id(optimizer))
    learners[index].reduce_gradients(optimizer, scaled=module.trainer.precision == "16-mixed")
