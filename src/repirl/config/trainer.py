"""Settings of Lightning's trainer that mean nothing here, or something else, and what to set instead."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from repirl.config import ConfigError

_INSTEAD = {
    "gradient_clip_val": "set model.policy_clip_norm and model.prm_clip_norm, the largest gradient norm of each model",
    "accumulate_grad_batches": (
        "an iteration's gradient is of all its prompts: set data.batch_prompts, their number, and "
        "model.micro_batch_tokens, which bounds memory and changes no result"
    ),
}
"""Trainer setting that Lightning cannot follow with manual optimisation -> what to do."""
_NEUTRAL = {"gradient_clip_val": None, "accumulate_grad_batches": 1}


def require_own_settings(trainer: Any) -> None:
    """Raises ConfigError where a fit has no end, or a setting that would have no effect.

    Without an end Lightning would go on for a thousand passes over the prompts.
    """
    ends = trainer.max_steps != -1, trainer.max_epochs is not None, trainer.max_time, trainer.fast_dev_run
    if not any(ends):
        raise ConfigError(
            "nothing ends the run: neither trainer.max_steps nor trainer.max_epochs is set",
            "give trainer.max_steps, the number of iterations, or trainer.max_epochs, passes over the prompts; -1 is no end",
        )
    for name, todo in _INSTEAD.items():
        if (value := trainer.get(name)) not in (None, _NEUTRAL[name]):
            raise ConfigError(
                f"trainer.{name}={value} has no effect: policy and PRM have optimisers of their own", todo
            )


def asks_for_replicas(trainer: Mapping[str, Any]) -> bool:
    """Whether the trainer's strategy is Lightning's replication, by name or because there are several devices.

    Raises:
        ConfigError: it is Lightning's sharding.
    """
    strategy, devices = trainer.get("strategy", "auto"), trainer.get("devices", "auto")
    if isinstance(strategy, str) and strategy.startswith(("fsdp", "deepspeed")):
        raise ConfigError(
            f"trainer.strategy {strategy!r} fails where two models have optimisers of their own",
            "set it to repirl.modules.strategies.ShardedStrategy",
        )
    several = trainer.get("num_nodes", 1) > 1 or (len(devices) if isinstance(devices, list) else _number(devices)) > 1
    by_name = strategy in ("ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
    return by_name or (several and isinstance(strategy, str) and strategy == "auto")


def _number(devices: Any) -> int:
    return int(devices) if re.fullmatch(r"\d+", str(devices)) else 1
