"""Checkpoints of sharded runs, whole and in parts: resumed by as many processes, by one, and by more again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from repirl import Policy, checkpoints
from tests.distributed.launch import saved_by
from tests.distributed.sharded_saving import PARTS, WHOLE, module
from tests.modules.tiny import distance, make_data, run, with_experts

PROGRAM = "tests.distributed.sharded_saving"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded_saving")


@pytest.fixture(scope="module")
def of_two(folder: Path) -> dict[str, Any]:
    """What two processes found."""
    found: dict[str, Any] = saved_by(PROGRAM, folder / "first.pt", "first", str(folder))
    return found


@pytest.mark.parametrize("name", [WHOLE, PARTS])
def test_a_resume_by_as_many_processes_is_exact(name: str, of_two: dict[str, Any]) -> None:
    assert distance(of_two[name], of_two["without a stop"]) == 0
    assert distance(of_two[f"half {name}"], of_two["without a stop"]) > 1e-3  # there was something left to learn


def test_parts_are_read_as_the_whole(of_two: dict[str, Any], folder: Path) -> None:
    """By anything that reads checkpoints: here one process, and a policy alone."""
    whole, parts = checkpoints.read(folder / WHOLE), checkpoints.read(folder / PARTS)
    assert distance(whole["state_dict"], parts["state_dict"]) == 0
    assert whole["optimizer_states"][0]["state"].keys() == parts["optimizer_states"][0]["state"].keys()
    moments = [state["optimizer_states"][0]["state"][0]["exp_avg"] for state in (whole, parts)]
    assert torch.equal(*moments)
    for name in (WHOLE, PARTS):
        policy = Policy.from_checkpoint(folder / name)
        expected = {n.removeprefix("policy."): v for n, v in of_two[f"half {name}"].items() if n.startswith("policy.")}
        assert distance(dict(policy.state_dict()), expected) == 0


def test_one_process_goes_on_and_two_again(of_two: dict[str, Any], folder: Path) -> None:
    """To 1e-4 in weights after two more iterations of Adam: sums over ranks are taken in another order."""
    for name in (WHOLE, PARTS):
        alone = run(module(), make_data(with_experts()), 3, ckpt_path=folder / name)
    alone.trainer.save_checkpoint(folder / "alone.ckpt")
    found = saved_by(PROGRAM, folder / "second.pt", "second", str(folder))
    assert distance(found["gone on"], of_two["without a stop"]) < 1e-4


def test_the_exported_policy_is_the_trained_one(of_two: dict[str, Any], folder: Path) -> None:
    exported = Policy(path=str(folder / f"export-{WHOLE}")).load().model.state_dict()
    for name, value in exported.items():
        assert torch.equal(value, of_two[f"half {WHOLE}"][f"policy.model.{name}"]), name


def test_a_save_that_fails_on_one_process_leaves_the_one_before(of_two: dict[str, Any], folder: Path) -> None:
    assert of_two["refusal"] == "another process failed, and said why; nothing was written"
    assert distance(checkpoints.read(folder / PARTS)["state_dict"], of_two["read"]) == 0


def test_parts_without_their_checkpoint_change_nothing_and_missing_or_damaged_ones_are_named(
    of_two: dict[str, Any], folder: Path
) -> None:
    path, before = folder / PARTS, of_two["read"]
    checkpoints.write_parts([Tensor([1.0])], path, "unfinished", 0)  # a process was killed here
    assert distance(checkpoints.read(path)["state_dict"], before) == 0
    checkpoints.remove_parts(path, keep=torch.load(path, weights_only=True)[checkpoints.PARTS]["folder"])
    first, second = sorted((folder / f"{PARTS}.parts").rglob("*.ckpt"))
    content = bytearray(second.read_bytes())
    largest = max(torch.load(second, weights_only=True)["parts"], key=Tensor.numel)
    content[content.index(largest.numpy().tobytes()) + 5] ^= 1
    second.write_bytes(content)
    with pytest.raises(ValueError, match=r"1\.ckpt' is damaged"):
        checkpoints.read(path)
    first.unlink()
    with pytest.raises(
        ValueError, match=r"saved in 2 parts, of which .*0\.ckpt' is missing: copy the folder parts\.ckpt"
    ):
        checkpoints.read(path)
