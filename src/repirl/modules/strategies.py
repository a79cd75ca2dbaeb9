"""How several processes train one module: the strategy, and what is asked of it."""

import signal
from datetime import timedelta

from lightning.pytorch import Trainer
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.strategies import DDPStrategy


class ReplicatedStrategy(DDPStrategy):
    """One replica per process without DDP's wrapper: gradients are summed explicitly, once per optimiser step.

    The wrapper reduces in backward hooks, which hang or double when ranks run different numbers of micro-batches, and
    fails when a backward pass touches only one of two sub-models.

    Args:
        process_group_backend: `gloo` or `nccl`; None = by the device.
        timeout_s: seconds that a process waits for the others before it gives up; one may be slower than another by as
            much (longer responses, a busy verifier).
    """

    def __init__(self, process_group_backend: str | None = None, timeout_s: float = 1800.0) -> None:
        super().__init__(process_group_backend=process_group_backend, timeout=timedelta(seconds=timeout_s))

    def configure_ddp(self) -> None:
        """Copies rank 0's weights to all ranks instead of wrapping the module."""
        assert self.model is not None
        _sync_module_states(self.model)


def end_launched(trainer: Trainer) -> None:
    """Kills the processes that this one has started, also stopped ones: they would stay."""
    if trainer.strategy.launcher is not None:
        trainer.strategy.launcher.kill(signal.SIGKILL)


def require_explicit_gradients(trainer: Trainer) -> None:
    """Raises ValueError where several processes would train without `ReplicatedStrategy`."""
    if trainer.world_size > 1 and not isinstance(trainer.strategy, ReplicatedStrategy):
        raise ValueError(
            f"trainer.strategy is {type(trainer.strategy).__name__} on {trainer.world_size} processes; "
            "set trainer.strategy.class_path to repirl.modules.strategies.ReplicatedStrategy"
        )
