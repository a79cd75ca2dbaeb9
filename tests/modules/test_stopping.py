"""Signals to a run in this process: what is saved, what goes on, how it ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from repirl import checkpoints
from repirl.callbacks.checkpoint import Checkpoint
from repirl.modules import stopping
from repirl.modules.sft import SFT
from repirl.modules.stopping import Stopped
from tests.modules.tiny import (
    ADAM,
    TEXT,
    EvenDigits,
    Problems,
    distance,
    make_data,
    make_module,
    make_policy,
    problems,
    run,
)


class Signalling(Callback):
    """Sends this process a signal at a place: a hook's name and the number of times it must have been reached."""

    def __init__(self, hook: str, at: int, number: int, times: int = 1) -> None:
        self.at, self.number, self.times, self.seen = at, number, times, 0
        setattr(self, hook, self._reached)

    def _reached(self, *args: Any, **kwargs: Any) -> None:
        self.seen += 1
        if self.seen == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


def module(kind: str) -> Any:
    if kind == "sft":
        return SFT(policy=make_policy(), policy_optimizer=ADAM, text=TEXT)
    return make_module(policy_optimizer=ADAM, prm_optimizer=ADAM, verifier=EvenDigits(), eval_samples=1)


def options(folder: Path, *callbacks: Callback) -> dict[str, Any]:
    saving = Checkpoint(dirpath=str(folder), every_n_iterations=100)
    return {"callbacks": [*callbacks, saving], "enable_checkpointing": True}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("kind", ["repirl", "sft"])
@pytest.mark.parametrize("at", [1, 2, 3])  # two iterations an epoch: within one, at its end, after it
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, status: int, kind: str, at: int
) -> None:
    whole = run(module(kind), steps=5)
    with pytest.raises(Stopped) as ended:
        run(module(kind), steps=5, **options(tmp_path, Signalling("on_train_batch_start", at, number)))
    assert ended.value.code == status
    said = capsys.readouterr().err
    assert f"stopped by {signal.Signals(number).name} after iteration {at}: saved {tmp_path / 'last.ckpt'}" in said
    assert checkpoints.read(tmp_path / "last.ckpt")["global_step"] == at
    rest = run(module(kind), steps=5, seed=9, ckpt_path=tmp_path / "last.ckpt")
    assert distance(rest.weights, whole.weights) == 0
    assert rest.figures == whole.figures[at:]


def test_the_figures_of_the_last_iteration_are_logged(tmp_path: Path) -> None:
    from tests.modules.tiny import Memory

    memory = Memory()
    with pytest.raises(Stopped):
        run(
            module("repirl"),
            steps=5,
            logger=memory,
            **options(tmp_path, Signalling("on_train_batch_start", 2, signal.SIGTERM)),
        )
    assert [figures["step"] for figures in memory.figures] == [0, 1]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_run_stopped_in_validation_trains_on_exactly_and_its_next_validations_are_whole(
    tmp_path: Path, batch: int
) -> None:
    def data() -> Any:
        return make_data(val=Problems(problems(4, "val")), eval_batch_prompts=2)

    often = {"limit_val_batches": 1.0, "check_val_every_n_epoch": None, "val_check_interval": 1}
    whole = run(module("repirl"), data(), steps=4, **often)
    place = Signalling("on_validation_batch_start", 2 + batch, signal.SIGTERM)  # in the second iteration's validation
    with pytest.raises(Stopped):
        run(module("repirl"), data(), steps=4, **often, **options(tmp_path, place))
    assert checkpoints.read(tmp_path / "last.ckpt")["global_step"] == 2
    rest = run(module("repirl"), data(), steps=4, ckpt_path=tmp_path / "last.ckpt", **often)
    assert distance(rest.weights, whole.weights) == 0
    wanted = [row for row in whole.figures if row["step"] >= 2]
    assert [row for row in rest.figures if row["step"] >= 2] == wanted
    assert sum("val/greedy_accuracy" in row for row in wanted) == 2


def test_a_signal_in_the_middle_of_a_vote_counts_in_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    votes = []

    def gather(mine: torch.Tensor) -> torch.Tensor:
        votes.append(int(mine))
        if len(votes) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return mine

    monkeypatch.setattr(stopping, "gather_rows", gather)
    with pytest.raises(Stopped):
        run(module("sft"), steps=9, **options(tmp_path))
    assert votes == [0, 0, 15]


def test_without_checkpoints_it_says_that_nothing_was_saved(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Stopped):
        run(module("sft"), steps=5, callbacks=[Signalling("on_train_batch_start", 2, signal.SIGTERM)])
    assert "nothing was saved, since trainer.enable_checkpointing is false" in capsys.readouterr().err


def test_the_same_signal_again_ends_the_process_within_the_iteration(tmp_path: Path) -> None:
    twice = Signalling("on_train_batch_start", 2, signal.SIGINT, times=2)
    with pytest.raises(Stopped) as ended:
        run(module("sft"), steps=5, **options(tmp_path, twice))
    assert ended.value.code == 130
    assert not (tmp_path / "last.ckpt").exists()


@pytest.mark.parametrize("loop", ["validate", "predict"])
def test_evaluation_ends_at_the_next_batch(loop: str, capsys: pytest.CaptureFixture[str]) -> None:
    hook = {"validate": "on_validation_batch_start", "predict": "on_predict_batch_start"}[loop]
    sources = {"val": Problems(problems(4, "val")), "predict": Problems(problems(4, "test"))}
    place = Signalling(hook, 1, signal.SIGTERM)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, callbacks=[place])
    with pytest.raises(Stopped):
        getattr(trainer, loop)(module("repirl"), make_data(eval_batch_prompts=1, **sources))
    assert place.seen == 1
    assert "nothing to save" in capsys.readouterr().err


def test_the_handlers_are_taken_away_again(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    run(module("sft"), steps=1)
    with pytest.raises(Stopped):
        run(module("sft"), steps=5, **options(tmp_path, Signalling("on_train_batch_start", 1, signal.SIGTERM)))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert torch.is_grad_enabled()
