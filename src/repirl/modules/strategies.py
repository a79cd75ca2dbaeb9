"""How several processes train one module: the strategies, and what is asked of them."""

import secrets
import signal
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch.optim import Optimizer

from repirl.distributed import full_values, placed_like
from repirl.learning.optimizers import placed_state
from repirl.modules.saving import write_in_parts


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


class ShardedStrategy(ModelParallelStrategy):
    """Each process holds a part of every weight, gradient and optimiser state (FSDP2, models/sharding.py).

    Args:
        process_group_backend, timeout_s: as in `ReplicatedStrategy`.
        sums_each_pass: sum gradients over processes after each micro-batch, not after the last alone: more traffic, and no
            process holds a whole gradient in between.
        sharded_checkpoints: each process writes its parts into a file in a folder beside the checkpoint
            (repirl/checkpoints.py), instead of the first one writing whole tensors, gathered on it one after the other.
    """

    def __init__(
        self,
        process_group_backend: str | None = None,
        timeout_s: float = 1800.0,
        sums_each_pass: bool = False,
        sharded_checkpoints: bool = False,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            process_group_backend=process_group_backend,
            timeout=timedelta(seconds=timeout_s),
        )
        self.sums_each_pass, self.sharded_checkpoints = sums_each_pass, sharded_checkpoints

    def setup_environment(self) -> None:
        """All processes share the weights, on all nodes."""
        setattr(self, "_data_parallel_size", self.num_nodes * self.num_processes)  # noqa: B010
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Optimisers are restored as everywhere else: checkpoints are the same."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights: in parts, or whole on the first process and nothing on the others. All must call it."""
        assert self.lightning_module is not None
        first: dict[int, str] = {}
        named = self.lightning_module.named_parameters(remove_duplicate=False)
        name_of = {name: first.setdefault(id(parameter), name) for name, parameter in named}
        state = self.lightning_module.state_dict()
        once = {name: value for name, value in state.items() if name_of.get(name, name) == name}
        values = self._for_a_checkpoint(once)
        return {name: values[name_of.get(name, name)] for name in state} if values else {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state, in the same way. All must call it."""
        return self._for_a_checkpoint(Strategy.optimizer_state(self, optimizer))

    def _for_a_checkpoint(self, values: dict[str, Any]) -> dict[str, Any]:
        gathered: dict[str, Any] = values
        if not self.sharded_checkpoints:
            gathered = full_values(values, keep=self.is_global_zero)
        return gathered

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """By the first process, as without sharding, or by all. The checkpoint before stays until this one is whole."""
        write = partial(Strategy.save_checkpoint, self)
        if not self.sharded_checkpoints:
            write(checkpoint, filepath, storage_options)
            return
        path, folder = self.broadcast((filepath, secrets.token_hex(4)))
        write_in_parts(checkpoint, path, folder, write, self.root_device)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Everything, by every process."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Takes this process's parts."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        parts = {name: placed_like(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(parts, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes this process's parts."""
        pairs = zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        Strategy.load_optimizer_state_dict(
            self, {"optimizer_states": [placed_state(optimizer, state) for optimizer, state in pairs]}
        )


def end_launched(trainer: Trainer) -> None:
    """Kills the processes that this one has started, also stopped ones: they would stay."""
    if trainer.strategy.launcher is not None:
        trainer.strategy.launcher.kill(signal.SIGKILL)


def require_explicit_gradients(trainer: Trainer) -> None:
    """Raises ValueError where several processes would train by a strategy that sums gradients otherwise."""
    strategy = trainer.strategy
    if trainer.world_size == 1 or isinstance(strategy, ReplicatedStrategy | ShardedStrategy):
        return
    name, instead = type(strategy).__name__, "repirl.modules.strategies.ReplicatedStrategy"
    reason = ""
    if isinstance(strategy, FSDPStrategy):
        reason = ", which fails where one model of two is in a backward pass (manual optimisation, Lightning#19685)"
    if isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
        instead = "repirl.modules.strategies.ShardedStrategy"
    raise ValueError(
        f"trainer.strategy is {name} on {trainer.world_size} processes{reason}; set trainer.strategy.class_path to {instead}"
    )
