"""From a configuration, and the weights of a checkpoint, to module and data: what every subcommand starts from."""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from repirl import checkpoints, config
from repirl.config.errors import explain
from repirl.modules.answering import Answering
from repirl.modules.saving import require_fitting


@dataclass(frozen=True)
class Built:
    """What a configuration describes. data: None where it names none. configuration: the merged mapping."""

    module: Answering
    data: LightningDataModule | None
    configuration: dict[str, Any]


def constructed(arguments: Sequence[str]) -> Built:
    """The module, without its weights, and the data of `--config` files and command-line overrides.

    What concerns the trainer alone (`trainer`, `ckpt_path`) may stand in the files and is not read here.

    Args:
        arguments: as after `repirl fit`: `["--config", "run.yaml", "--model.samples=8"]`.

    Raises:
        ConfigError: a file, key or value is wrong.
    """
    merged = config.merged(arguments)
    parser = LightningArgumentParser(prog="repirl", exit_on_error=False)
    parser.add_lightning_class_args(Answering, "model", subclass_mode=True)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)
    described = {key: value for key, value in merged.final.items() if key in ("model", "data")}
    try:
        parsed = parser.parse_object(described)
    except argparse.ArgumentError as error:
        explain(str(error), merged.final, merged.where, parser)
    with explained():
        made = parser.instantiate_classes(parsed)
    return Built(made.model, made.get("data"), merged.final)


def build(arguments: Sequence[str], *, checkpoint: Path | None = None) -> Built:
    """As `constructed`, with the module's weights loaded.

    `seed_everything`, where it is a number, decides what is drawn at random, such as a PRM's head; the caller's random state
    stays as it was.

    Args:
        arguments: as after `repirl fit`.
        checkpoint: whose weights the module gets; None = those that it starts training with.

    Raises:
        ConfigError: also where the checkpoint is missing, damaged or of another module.
    """
    made = constructed(arguments)
    seed = made.configuration.get("seed_everything")
    with explained(), torch.random.fork_rng():
        if type(seed) is int:
            torch.manual_seed(seed)
        made.module.configure_model()
    if checkpoint is not None:
        load_weights(made.module, checkpoint)
    return replace(made, module=made.module.eval())


def load_weights(module: Answering, path: Path) -> None:
    """Gives a configured module the weights of a checkpoint. Raises ConfigError where they are not such a module's."""
    try:
        stored = checkpoints.read(path)
        require_fitting(module, stored, f"checkpoint {str(path)!r}")
    except ValueError as error:
        raise config.ConfigError(str(error), "give the configuration with which it was trained") from error
    module.load_state_dict(stored["state_dict"])


@contextmanager
def explained() -> Iterator[None]:
    """Tells what a constructor in the block refuses, a value of the user's, in two lines."""
    try:
        yield
    except Exception as error:
        cause = _origin(error)
        if isinstance(cause, config.ConfigError):
            raise cause from cause.__cause__
        if not isinstance(cause, (ValueError, MisconfigurationException)):
            raise cause from cause.__cause__
        raise config.ConfigError(
            f"cannot build what the configuration describes: {cause}",
            f"{_advice(str(cause))} (REPIRL_TRACEBACK=1 shows where it was refused)",
        ) from error


def _advice(message: str) -> str:
    """What to do about what Lightning says of devices; else that the setting is wrong."""
    if "backend found" in message or "accelerator" in message.lower():
        return "this machine has no such device: set trainer.accelerator to cpu, or to auto, and trainer.devices to 1 or more"
    return "correct that setting"


def raised_in(error: BaseException) -> str:
    """The file whose line raised it."""
    return traceback.extract_tb(error.__traceback__)[-1].filename


def _origin(error: BaseException) -> BaseException:
    """What a constructor raised, below the errors in which the argument parser wraps it."""
    while (inner := error.__cause__ or error.__context__) and "jsonargparse" in raised_in(error):
        error = inner
    return error
