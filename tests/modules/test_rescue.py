"""An exception in a fit: what is saved, and that a resumed run goes on from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from repirl import checkpoints
from repirl.callbacks.checkpoint import Checkpoint
from repirl.modules.repirl import RePIRL
from repirl.modules.sft import SFT
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


class Broken(RuntimeError):
    """What breaks these runs."""


def breaking(function: Callable[..., Any], at: int) -> Callable[..., Any]:
    """The function, which raises in its call number `at`."""
    calls = []

    def called(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise Broken("broken on purpose")
        return function(*args, **kwargs)

    return called


def module(**options: Any) -> RePIRL:
    return make_module(policy_optimizer=ADAM, prm_optimizer=ADAM, verifier=EvenDigits(), eval_samples=1, **options)


def saving(folder: Path, *callbacks: Callback) -> dict[str, Any]:
    return {
        "callbacks": [*callbacks, Checkpoint(dirpath=str(folder), every_n_iterations=100)],
        "enable_checkpointing": True,
    }


@pytest.mark.parametrize("done", [1, 2, 3])  # two iterations an epoch: within one, at its end, after it
@pytest.mark.parametrize("place", ["roll_out", "with_log_probs"])
def test_before_any_update_a_resumed_run_goes_on_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, done: int
) -> None:
    whole = run(module(), steps=5)
    broken = module()
    setattr(broken.alternation, place, breaking(getattr(broken.alternation, place), done + 1))
    with pytest.raises(Broken):
        run(broken, steps=5, **saving(tmp_path))
    assert f"saved {tmp_path / 'last.ckpt'}: iteration {done}\n" in capsys.readouterr().err
    assert checkpoints.read(tmp_path / "last.ckpt")["global_step"] == done
    rest = run(module(), steps=5, seed=9, ckpt_path=tmp_path / "last.ckpt")
    assert distance(rest.weights, whole.weights) == 0
    assert rest.figures == whole.figures[done:]


def test_after_an_update_the_weights_are_kept_and_the_iteration_is_done_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The prompts of the third iteration come again; its PRM has had the update already, the policy has not."""
    drawn: list[list[str]] = []

    class Drawing(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            drawn.append([prompt.problem.id for prompt in batch])

    broken = module()
    broken.alternation.update_policy = breaking(broken.alternation.update_policy, 3)  # type: ignore[method-assign]
    with pytest.raises(Broken):
        run(broken, steps=5, **saving(tmp_path, Drawing()))
    path = tmp_path / "unfinished.ckpt"
    said = f"saved {path}: iteration 2, with updates of the next, which a resumed run does again\n"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "last.ckpt").exists()
    kept, weights = checkpoints.read(path), broken.state_dict()
    assert kept["global_step"] == 2
    assert all(torch.equal(kept["state_dict"][name], value) for name, value in weights.items())
    two = run(module(), steps=2).weights
    changed = {name.split(".")[0] for name in two if not torch.equal(two[name], weights[name])}
    assert changed == {"prm"}
    third = drawn[2]
    drawn.clear()
    rest = run(module(), steps=5, ckpt_path=path, callbacks=[Drawing()])
    assert drawn[0] == third
    assert [row["step"] for row in rest.figures] == [2, 3, 4]


def test_what_is_saved_already_is_not_written_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = module()
    broken.alternation.update_policy = breaking(broken.alternation.update_policy, 3)  # type: ignore[method-assign]
    every = {"callbacks": [Checkpoint(dirpath=str(tmp_path), every_n_iterations=1)], "enable_checkpointing": True}
    with pytest.raises(Broken):
        run(broken, steps=5, **every)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert "saved " not in capsys.readouterr().err


def test_sft_and_a_broken_validation(tmp_path: Path) -> None:
    def data() -> Any:
        return make_data(val=Problems(problems(4, "val")))

    often = {"limit_val_batches": 1.0, "check_val_every_n_epoch": None, "val_check_interval": 1}
    broken = SFT(policy=make_policy(), policy_optimizer=ADAM, text=TEXT)
    broken.validation_step = breaking(broken.validation_step, 3)  # type: ignore[method-assign]
    with pytest.raises(Broken):
        run(broken, data(), steps=5, **often, **saving(tmp_path))
    kept = checkpoints.read(tmp_path / "last.ckpt")
    assert kept["global_step"] == 3
    whole = run(SFT(policy=make_policy(), policy_optimizer=ADAM, text=TEXT), data(), steps=3, **often).weights
    assert distance(kept["state_dict"], whole) == 0


def test_broken_weights_are_not_saved_and_the_exception_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = module()
    update = broken.alternation.update_prm

    def ruin(batch: Any) -> None:
        update(batch)
        if broken.global_step == 1:
            next(broken.prm.parameters()).data.fill_(torch.nan)  # type: ignore[union-attr]
            raise Broken("after NaN")

    broken.alternation.update_prm = ruin  # type: ignore[method-assign]
    with pytest.raises(Broken, match="after NaN"):
        run(broken, steps=5, **saving(tmp_path))
    assert f"{tmp_path / 'unfinished.ckpt'} was not saved: iteration 1: the " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["first iteration", "no checkpoints", "ahead"])
def test_nothing_is_saved_where_there_is_nothing_exact(tmp_path: Path, kind: str) -> None:
    from repirl.learning.schedule import Schedule

    options = {"schedule": Schedule(rollouts_ahead=1)} if kind == "ahead" else {}
    broken = module(**options)
    at = 1 if kind == "first iteration" else 3
    broken.alternation.update_prm = breaking(broken.alternation.update_prm, at)  # type: ignore[method-assign]
    with pytest.raises(Broken):
        run(broken, steps=5, default_root_dir=tmp_path, **({} if kind == "no checkpoints" else saving(tmp_path)))
    assert list(tmp_path.iterdir()) == []
