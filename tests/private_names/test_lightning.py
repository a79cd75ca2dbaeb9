"""Canaries for the private names of Lightning (docs/private-names.md).

Libraries are imported inside the tests: where a name is gone, its canary is to say so, not the import of this file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.private_names.table import ROOT, canary

# ---- counting, figures, signals ----


def fit(module: Any, steps: int = 3, width: int = 2, **options: Any) -> Any:
    """A Trainer that has trained the module on so many batches."""
    from lightning.pytorch import Trainer
    from torch.utils.data import DataLoader

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", devices=1, enable_model_summary=False, max_epochs=1, **(quiet | options))
    trainer.fit(module, DataLoader([torch.ones(width)] * steps, batch_size=1))
    return trainer


def manual_module(before: Any, after: Any) -> Any:
    """Two optimiser steps a batch; `before` and `after` are told the trainer in each of them."""
    from lightning.pytorch import LightningModule

    class Manual(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.layer = nn.Linear(2, 1)

        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            before(self.trainer)
            if batch_idx == 0:
                self.log("of_the_first", 1.0)
            for _ in range(2):
                self.manual_backward(self.layer(batch).sum())
                self.optimizers().step()
            after(self.trainer)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Manual()


def nothing(*_: Any) -> None:
    """Does nothing."""


@canary(
    "Strategy._lightning_optimizers",
    "LightningOptimizer._on_before_step",
    "LightningOptimizer._on_after_step",
    "_ManualOptimization.optim_step_progress",
)
def test_steps_are_counted_by_the_optimisers_hooks_and_the_progress_of_the_manual_loop() -> None:
    def uncount(trainer: Any) -> None:
        (optimizer,) = trainer.strategy._lightning_optimizers
        assert callable(optimizer._on_before_step)
        assert callable(optimizer._on_after_step)
        optimizer._on_before_step = optimizer._on_after_step = nothing

    def count(trainer: Any) -> None:
        progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()

    assert fit(manual_module(nothing, nothing)).global_step == 6  # 3 batches, two steps each
    assert fit(manual_module(uncount, nothing)).global_step == 0
    assert fit(manual_module(uncount, count)).global_step == 3


@canary("_TrainingEpochLoop._results")
def test_a_figure_is_logged_again_unless_results_are_reset() -> None:
    from tests.modules.tiny import Memory

    def forget(trainer: Any) -> None:
        trainer.fit_loop.epoch_loop._results.reset(metrics=False, fx="training_step")

    def iterations(before: Any) -> list[int]:
        memory = Memory()
        fit(manual_module(before, nothing), logger=memory, log_every_n_steps=1)
        return [n for n, figures in enumerate(memory.figures) if "of_the_first" in figures]

    assert iterations(nothing) == [0, 1, 2]
    assert iterations(forget) == [0]


@canary("Trainer._signal_connector", "_SignalConnector.register_signal_handlers")
def test_handlers_set_after_lightnings_are_in_force_and_taken_away() -> None:
    from lightning.pytorch import Callback

    def ours(number: int, frame: Any) -> None:
        """Ours."""

    class Ours(Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            connector = trainer._signal_connector
            register = connector.register_signal_handlers

            def register_ours() -> None:
                register()
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, ours)

            connector.register_signal_handlers = register_ours

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    during: list[Any] = []

    def look(trainer: Any) -> None:
        during.extend(signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT))

    fit(manual_module(look, nothing), steps=1, callbacks=[Ours()])
    assert during == [ours, ours]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


# ---- processes, command line, checkpoints ----


@canary("overrides.distributed._sync_module_states", "DDPStrategy.configure_ddp", "_Launcher.kill")
def test_two_processes_start_equal_and_unwrapped_and_one_can_end_the_other(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "tests.private_names.lightning_ranks", str(tmp_path / "said.json")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads((tmp_path / "said.json").read_text())
    # the number with which each was made; then weights and buffers, which are rank 0's
    assert [values[:5] for values in said["ranks"]] == [[0, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert said["wrapped"] is False
    assert said["ended_by"] == signal.SIGKILL


@canary(
    "LightningCLI._subcommand_parsers",
    "LightningCLI._parse_ckpt_path",
    "LightningCLI._run_subcommand",
    "LightningCLI._instantiate_trainer",
    "ArgumentParser._actions",
)
def test_the_command_line_goes_through_these_methods_in_this_order() -> None:
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.demos.boring_classes import BoringModel

    calls: list[str] = []

    class CLI(LightningCLI):
        def _parse_ckpt_path(self) -> None:
            assert self.config.get("fit.ckpt_path") == "missing.ckpt"
            calls.append("parsed")

        def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
            assert config["max_steps"] == 1
            calls.append("trainer")
            return super()._instantiate_trainer(config, [*callbacks, Callback()])

        def _run_subcommand(self, subcommand: str) -> None:
            self.config_init[subcommand]["ckpt_path"] = None
            super()._run_subcommand(subcommand)
            calls.append(f"{subcommand} ran")

    settings = {"max_steps": "1", "logger": "false", "enable_checkpointing": "false", "enable_progress_bar": "false"}
    options = [f"--trainer.{name}={value}" for name, value in settings.items()]
    cli = CLI(BoringModel, save_config_callback=None, args=["fit", "--ckpt_path=missing.ckpt", *options])
    assert calls == ["parsed", "trainer", "fit ran"]
    assert cli.trainer.global_step == 1
    assert type(cli.trainer.callbacks[0]) is Callback
    assert "max_steps: 1" in cli._subcommand_parsers["fit"].dump(cli.config["fit"], skip_none=False)
    options = [action.dest for action in cli._subcommand_parsers["fit"]._actions if action.option_strings]
    assert {"trainer.max_steps", "ckpt_path"} <= set(options)


@canary("Trainer._checkpoint_connector", "_CheckpointConnector.dump_checkpoint")
def test_a_checkpoint_is_made_without_a_file() -> None:
    from lightning.pytorch.demos.boring_classes import BoringModel

    trainer = fit(BoringModel(), width=32)
    made = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    assert made["global_step"] == 3
    assert made["loops"]["fit_loop"] == trainer.fit_loop.state_dict()
    assert {"state_dict", "optimizer_states", "callbacks"} <= made.keys()


@canary(
    "ModelCheckpoint._should_skip_saving_checkpoint",
    "ModelCheckpoint._save_topk_checkpoint",
    "ModelCheckpoint._monitor_candidates",
)
@pytest.mark.parametrize(("steps", "saved_at"), [(3, [2, 3]), (4, [2, 4])])
def test_the_end_is_saved_once(steps: int, saved_at: list[int], tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.demos.boring_classes import BoringModel

    class Saving(ModelCheckpoint):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            if not self._should_skip_saving_checkpoint(trainer):
                candidates = self._monitor_candidates(trainer)
                assert int(candidates["step"]) == trainer.global_step
                self._save_topk_checkpoint(trainer, candidates)

        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            steps_saved.append(checkpoint["global_step"])

    steps_saved: list[int] = []
    saving = Saving(tmp_path, "last", every_n_train_steps=2, save_top_k=1, enable_version_counter=False)
    fit(BoringModel(), steps, width=32, enable_checkpointing=True, callbacks=[saving])
    assert steps_saved == saved_at
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
