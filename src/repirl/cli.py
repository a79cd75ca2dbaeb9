"""The only LightningCLI. Importing it imports Lightning; `repirl.__main__` does so when a subcommand needs it."""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from repirl import config
from repirl.build import explained, raised_in
from repirl.callbacks.checkpoint import Checkpoint
from repirl.callbacks.progress import Progress
from repirl.callbacks.records import EvaluationFigures
from repirl.callbacks.rollouts import RolloutTexts
from repirl.callbacks.validation import Validation, unknown_monitor
from repirl.config.errors import explain, refuse_unknown
from repirl.config.trainer import asks_for_replicas, require_own_settings
from repirl.distributed import lost_process
from repirl.folders import claimed
from repirl.modules.base import RunModule
from repirl.modules.saving import newest_checkpoint
from repirl.modules.strategies import ReplicatedStrategy, end_launched

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # they are about Lightning's own calls
for _noise in (  # Lightning's own calls, and advice that does not apply to this module
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*in eval mode at the start of training.*",
    r".*no pre-optimization state was saved.*",
    r".*recommended to use `self.log\(.*sync_dist=True.*",  # what is logged so is the same on all ranks already
    r".*does not have many workers.*",  # loaders hold tokens: nothing to do in parallel
    r".*Already found a `peft_config` attribute.*",  # two models, each with adapters, share one base
    r".*Checkpoint directory .* exists and is not empty.*",  # our own message says what becomes of what is there
):
    warnings.filterwarnings("ignore", message=_noise)
_OWN_CODE = Path(__file__).parent
_TRACEBACK = "REPIRL_TRACEBACK=1 shows where it was found"
_CKPT_WORDS = ("best", "last", "hpc", "registry")


class RepirlCLI(LightningCLI):
    """`repirl fit | validate | test | predict`: YAML files, merged left to right, then command-line overrides."""

    def __init__(self, args: Sequence[str], *, run: bool = True) -> None:
        """Parses, builds and (with `run`) executes the subcommand in args[0]; without `run`, args has no subcommand."""
        _show_information()
        super().__init__(
            model_class=LightningModule,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_kwargs={"prog": "repirl", "allow_abbrev": False, "exit_on_error": False},
            auto_configure_optimizers=False,
            trainer_defaults={"log_every_n_steps": 1},  # an iteration is long; Lightning's 50 would hide short runs
            args=list(args),
            run=run,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Merges the `--config` files ourselves and explains errors in two lines."""
        assert isinstance(args, list)
        given = config.merged(args)
        try:
            self.config = _parsed(parser, given)
        except argparse.ArgumentError as error:
            chosen = self._subcommand_parsers.get(given.command[0], parser) if given.command else parser
            explain(str(error), given.final, given.where, chosen)
        refuse_unknown(
            (key for key, place in given.where.items() if place == config.COMMAND_LINE), given.final, given.where
        )

    def _parse_ckpt_path(self) -> None:
        """Checks that the checkpoint exists. Its hyper-parameters never override what the user passed."""
        path = self.config.get(f"{self.config.get('subcommand')}.ckpt_path")
        if path is None or path in _CKPT_WORDS or "://" in str(path) or Path(path).exists():
            return
        raise config.ConfigError(
            f"--ckpt_path: {str(path)!r} does not exist",
            f"give an existing checkpoint, or one of {', '.join(_CKPT_WORDS)}, or leave --ckpt_path out",
        )

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs it; what our own code refuses (data, weights, a NaN) is told in two lines too, and a lost process."""
        if subcommand == "fit":
            require_own_settings(self.config.fit.trainer)
        try:
            with claimed(self._written_folders() if subcommand == "fit" else ()):
                super()._run_subcommand(subcommand)
        except (ValueError, FloatingPointError, OSError) as error:
            if isinstance(error, config.ConfigError):
                raise
            if not _is_told(error):
                self._say_newest()
                raise
            raise config.ConfigError(*_two_lines(f"{subcommand} stopped: {error}", self._advice(error))) from error
        except (RuntimeError, MisconfigurationException) as error:
            lost = lost_process(error) if isinstance(error, RuntimeError) else None
            if lost is not None:
                end_launched(self.trainer)
            if (what := lost or unknown_monitor(error)) is None:
                self._say_newest()
                raise
            raise config.ConfigError(*_two_lines(f"{subcommand} stopped: {what}", self._advice(error))) from error
        except Exception:
            self._say_newest()
            raise

    def _say_newest(self) -> None:
        """Before a traceback: from where to go on."""
        if (found := newest_checkpoint(self.trainer)) is not None and self.trainer.is_global_zero:
            print(f"the newest checkpoint is {found}: go on from it with --ckpt_path", file=sys.stderr, flush=True)

    def _written_folders(self) -> list[Path]:
        """Where the run will write: of its loggers, checkpoints and exports. Of several processes the first claims them."""
        if self.trainer.global_rank:
            return []
        given: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it from outside
        callbacks = [getattr(c, "dirpath", None) or getattr(c, "folder", None) for c in given]
        logs = [logger.log_dir or logger.save_dir for logger in self.trainer.loggers]
        return [Path(folder) for folder in (*callbacks, *logs) if folder]

    def _advice(self, error: BaseException) -> str:
        """From where to go on, where there is a checkpoint and the fault is not one of the settings or data."""
        found = newest_checkpoint(self.trainer)
        if found is None or isinstance(error, ValueError):
            return ""
        change = ", after a change" if isinstance(error, FloatingPointError) else ""
        return f"the newest checkpoint is {found}: go on from it with --ckpt_path{change}"

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Saves, validates and shows progress by our own callbacks where the user has named none."""
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        if asks_for_replicas(config):
            config["strategy"] = ReplicatedStrategy()
        root, subcommand = config.get("default_root_dir"), str(self.subcommand)
        if config.get("enable_checkpointing") is not False and not any(isinstance(c, ModelCheckpoint) for c in given):
            callbacks = [*callbacks, Checkpoint(dirpath=None if root is None else f"{root}/checkpoints")]
        if root is not None and subcommand in ("validate", "test"):
            callbacks = [*callbacks, EvaluationFigures(f"{root}/{subcommand}.json")]
        if root is not None and subcommand == "fit" and not any(isinstance(c, RolloutTexts) for c in given):
            callbacks = [*callbacks, RolloutTexts(f"{root}/rollouts.jsonl")]
        if config.get("enable_progress_bar") is False:
            config["callbacks"] = [c for c in given if not isinstance(c, Progress)]
        elif not any(isinstance(c, ProgressBar) for c in given):
            callbacks = [*callbacks, Progress()]
        if not any(isinstance(c, Validation) for c in given):
            by_trainer = config.get("val_check_interval") is not None or config.get("check_val_every_n_epoch") != 1
            callbacks = [*callbacks, Validation(None if by_trainer else 50)]
        return super()._instantiate_trainer(config, callbacks)

    def instantiate_classes(self) -> None:
        """Builds data, model and trainer; a value that a constructor refuses is the user's to correct."""
        with explained():
            super().instantiate_classes()
        if isinstance(self.model, RunModule):
            values = self.config.get(str(self.subcommand), self.config)
            parser = self._subcommand_parsers.get(str(self.subcommand), self.parser)
            self.model.configuration = parser.dump(values, skip_none=False)


def _parsed(parser: LightningArgumentParser, given: config.Merged) -> Any:
    """What the parser makes of it; of a second reading where it refuses the first."""
    try:
        return _read(parser, given)
    except argparse.ArgumentError:
        with contextlib.suppress(argparse.ArgumentError):
            return _read(parser, config.settled(given))
        raise


def _read(parser: LightningArgumentParser, given: config.Merged) -> Any:
    merged = [f"--config={config.dump(given.files)}"] if given.files else []
    return parser.parse_args([*given.command, *merged, *given.rest])


def _is_told(error: BaseException) -> bool:
    """Whether our own code has raised it, whose messages are for the user, or the disk has."""
    by_disk = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT)
    return by_disk or Path(raised_in(error)).is_relative_to(_OWN_CODE)


def _two_lines(message: str, advice: str) -> tuple[str, str]:
    """What is wrong, and what to do: the advice, else what the message has after its first clause."""
    if advice:
        return message, advice
    what, _, todo = (re.sub(r"(?<=[^.]); |\. (?=[A-Z])", "\n", message, count=1)).partition("\n")
    return what, f"{todo} ({_TRACEBACK})" if todo else _TRACEBACK


def _is_news(record: logging.LogRecord) -> bool:
    """Not advertisements, nor devices that nobody asked for."""
    return not re.match(r"💡|.*Tip:|TPU available|HPU available", record.getMessage())


def _show_information() -> None:
    """Messages of level INFO too: what became of the data, what holds programs. Not where logging is set up already."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_is_news)
    log = logging.getLogger("repirl")
    if not log.hasHandlers():
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)
