"""The only LightningCLI. Importing it imports Lightning; `repirl.__main__` does so when a subcommand needs it."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from repirl import config
from repirl.build import explained, raised_in
from repirl.callbacks.checkpoint import Checkpoint
from repirl.callbacks.progress import Progress
from repirl.config.errors import explain
from repirl.distributed import lost_process
from repirl.folders import claimed
from repirl.modules.answering import Answering
from repirl.modules.saving import newest_checkpoint
from repirl.modules.strategies import end_launched

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # they are about Lightning's own calls
for _noise in (  # Lightning's own calls, and advice that does not apply to this module
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*in eval mode at the start of training.*",
    r".*no pre-optimization state was saved.*",
):
    warnings.filterwarnings("ignore", message=_noise)
_OWN_CODE = Path(__file__).parent
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
        merged = [f"--config={config.dump(given.files)}"] if given.files else []
        try:
            self.config = parser.parse_args([*given.command, *merged, *given.rest])
        except argparse.ArgumentError as error:
            chosen = self._subcommand_parsers.get(given.command[0], parser) if given.command else parser
            options = [action.dest for action in chosen._actions if action.option_strings]
            explain(str(error), given.final, given.where, options)

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
            _require_end(self.config.fit.trainer)
        try:
            with claimed(self._written_folders() if subcommand == "fit" else ()):
                super()._run_subcommand(subcommand)
        except (ValueError, FloatingPointError, OSError) as error:
            if isinstance(error, config.ConfigError) or not _is_told(error):
                raise
            raise config.ConfigError(f"{subcommand} stopped: {error}", self._advice(error)) from error
        except RuntimeError as error:
            if (what := lost_process(error)) is None:
                raise
            end_launched(self.trainer)
            raise config.ConfigError(f"{subcommand} stopped: {what}", self._advice(error)) from error

    def _written_folders(self) -> list[Path]:
        """Where the run will write: of its loggers, checkpoints and exports. Of several processes the first claims them."""
        if self.trainer.global_rank:
            return []
        given: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it from outside
        callbacks = [getattr(c, "dirpath", None) or getattr(c, "folder", None) for c in given]
        logs = [logger.log_dir or logger.save_dir for logger in self.trainer.loggers]
        return [Path(folder) for folder in (*callbacks, *logs) if folder]

    def _advice(self, error: BaseException) -> str:
        """What to do: where there is a checkpoint, from where to go on."""
        found = newest_checkpoint(self.trainer)
        if found is None or isinstance(error, ValueError):
            return "REPIRL_TRACEBACK=1 shows where it was found"
        change = ", after a change" if isinstance(error, FloatingPointError) else ""
        return f"the newest checkpoint is {found}: go on from it with --ckpt_path{change}"

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Saves and shows progress by our own callbacks where the user has named none."""
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        if config.get("enable_checkpointing") is not False and not any(isinstance(c, ModelCheckpoint) for c in given):
            callbacks = [*callbacks, Checkpoint()]
        if config.get("enable_progress_bar") is False:
            config["callbacks"] = [c for c in given if not isinstance(c, Progress)]
        elif not any(isinstance(c, ProgressBar) for c in given):
            callbacks = [*callbacks, Progress()]
        return super()._instantiate_trainer(config, callbacks)

    def instantiate_classes(self) -> None:
        """Builds data, model and trainer; a value that a constructor refuses is the user's to correct."""
        with explained():
            super().instantiate_classes()
        if isinstance(self.model, Answering):
            values = self.config.get(str(self.subcommand), self.config)
            parser = self._subcommand_parsers.get(str(self.subcommand), self.parser)
            self.model.configuration = parser.dump(values, skip_none=False)


def _require_end(trainer: Any) -> None:
    """Raises ConfigError where nothing ends a run: Lightning would go on for a thousand passes over the prompts."""
    ends = trainer.max_steps != -1, trainer.max_epochs is not None, trainer.max_time, trainer.fast_dev_run
    if not any(ends):
        raise config.ConfigError(
            "nothing ends the run: neither trainer.max_steps nor trainer.max_epochs is set",
            "give trainer.max_steps, the number of iterations, or trainer.max_epochs, passes over the prompts; -1 is no end",
        )


def _is_told(error: BaseException) -> bool:
    """Whether our own code has raised it, whose messages are for the user, or the disk has."""
    by_disk = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT)
    return by_disk or Path(raised_in(error)).is_relative_to(_OWN_CODE)


def _show_information() -> None:
    """Messages of level INFO too: what became of the data, what holds programs. Not where logging is set up already."""
    log = logging.getLogger("repirl")
    if not log.hasHandlers():
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)
