"""Validation before, during and after training, through real runs."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping

from repirl.callbacks.checkpoint import Checkpoint
from repirl.callbacks.validation import Validation
from tests.modules.tiny import EvenDigits, Problems, Run, make_data, make_module, problems, run


def validated(every_n_iterations: int | None, steps: int, **options: Any) -> Run:
    data = make_data(val=Problems(problems(4, "test")))
    callbacks = [Validation(every_n_iterations), *options.pop("callbacks", [])]
    module = make_module(verifier=options.pop("verifier", EvenDigits()))
    return run(module, data, steps, callbacks=callbacks, **({"limit_val_batches": 1.0} | options))


def places(done: Run) -> list[str]:
    """What was logged, in order: t for an iteration, V for a validation."""
    return ["V" if "val/greedy_accuracy" in row else "t" for row in done.figures]


@pytest.mark.parametrize(
    ("every", "steps", "expected"), [(2, 5, "VttVttVtV"), (2, 4, "VttVttV"), (50, 3, "VtttV"), (1, 2, "VtVtV")]
)
def test_start_interval_and_end_are_validated_once_each(every: int, steps: int, expected: str) -> None:
    assert "".join(places(validated(every, steps))) == expected


def test_training_is_what_it_is_without_validation() -> None:
    """Weights and figures of all iterations, bit for bit."""
    with_it, without = validated(2, 3), validated(2, 3, limit_val_batches=0)
    assert "V" not in places(without)
    assert all((with_it.weights[name] == value).all() for name, value in without.weights.items())
    assert [row for row, kind in zip(with_it.figures, places(with_it), strict=True) if kind == "t"] == without.figures


def test_without_a_verifier_nothing_is_validated() -> None:
    assert places(validated(1, 2, verifier=None, limit_val_batches=0)) == ["t", "t"]


def test_the_interval_of_the_trainer_stays_where_none_is_given() -> None:
    done = validated(None, 4, val_check_interval=3, check_val_every_n_epoch=None)
    assert "".join(places(done)) == "VtttVtV"


def test_a_resumed_run_does_not_repeat_the_start(tmp_path: Path) -> None:
    saves = Checkpoint(str(tmp_path))
    first = validated(2, 2, callbacks=[saves], enable_checkpointing=True)
    assert "".join(places(first)) == "VttV"
    second = validated(2, 4, ckpt_path=tmp_path / "last.ckpt")
    assert "".join(places(second)) == "ttV"


def test_a_figure_that_validation_does_not_log_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match=r"monitors 'val/accuracy', which is not logged; did you mean 'val/greedy_acc"):
        validated(2, 2, callbacks=[EarlyStopping("val/accuracy", check_on_train_epoch_end=True)])


def test_bad_intervals_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Validation(0)
