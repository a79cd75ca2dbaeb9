"""Two gloo processes with sharded weights make the same run as one process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from repirl.modules.strategies import require_explicit_gradients
from tests.distributed.launch import saved_by
from tests.distributed.test_two_processes import GLOBAL_FIGURES
from tests.distributed.two_processes import IMITATION, LABELLED, SETTINGS, train
from tests.modules.tiny import distance


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes found."""
    out = tmp_path_factory.mktemp("sharded") / "out.pt"
    found: dict[str, Any] = saved_by("tests.distributed.sharded", out, "--devices", "2")
    return found


@pytest.mark.parametrize("name", [*SETTINGS, *IMITATION, *LABELLED])
def test_two_sharded_processes_agree_with_one(name: str, of_two: dict[str, Any]) -> None:
    """To 1e-5 in weights and 1e-4 (of large figures 1e-5 of them) in figures: sums over ranks are taken in another order.

    Among them are a rank without rows ("filtered"), one prompt a rank, prompts with experts on one rank alone, and unequal
    numbers of micro-batches, with gradients summed after the last or after each.
    """
    one, two = train(name, 1), of_two[name]
    first, second = two["weights"]
    assert distance(first, second) == 0
    assert one["responses"] == two["responses"]
    (alone,) = one["weights"]
    assert distance(alone, first) < 1e-5
    for ours, theirs in zip(one["figures"], two["figures"], strict=True):
        for figure in [figure for figure in GLOBAL_FIGURES if figure in ours]:
            assert ours[figure] == pytest.approx(theirs[figure], abs=1e-4, rel=1e-5), figure


def test_each_process_holds_a_part(of_two: dict[str, Any]) -> None:
    first, second = of_two["shares"]
    assert first["policy"] == first["prm.backbone"] == pytest.approx(0.5, abs=0.02)
    for name in first:
        assert first[name] + second[name] == pytest.approx(1)


def test_other_ways_to_shard_are_refused_with_their_reason() -> None:
    """Lightning takes its FSDPStrategy on GPUs alone: here it is made, and asked of a trainer that has it."""
    instead = "set trainer.strategy.class_path to repirl.modules.strategies.ShardedStrategy"
    for strategy, reason in ((FSDPStrategy(), "manual optimisation, Lightning#19685"), (ModelParallelStrategy(), "")):
        trainer: Any = SimpleNamespace(world_size=2, strategy=strategy)
        with pytest.raises(ValueError, match=f"trainer.strategy is {type(strategy).__name__} on 2 processes") as error:
            require_explicit_gradients(trainer)
        assert reason in str(error.value)
        assert instead in str(error.value)
