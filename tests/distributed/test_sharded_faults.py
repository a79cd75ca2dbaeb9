"""Kills, a full disk and damaged files against checkpoints in parts, of runs that sample one iteration ahead."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from repirl import checkpoints
from tests.distributed.sharded_faults import AHEAD, FLUSHES, STEPS, FullDisk, KilledAtFlush, ended, started
from tests.distributed.sharded_saving import module
from tests.modules.tiny import distance, make_data, run, with_experts
from tests.test_checkpoints import same

SAVED = ("global_step", "state_dict", "optimizer_states", "ExpertData", "rollouts_ahead")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed, with the checkpoints of all iterations."""
    folder = tmp_path_factory.mktemp("whole")
    assert ended(started(folder, "{step}", keep_all=True)) == [0, 0]
    return folder


def state(path: Path) -> dict[str, Any]:
    """What a run goes on from."""
    content = checkpoints.read(path)
    return {name: content[name] for name in SAVED}


def prompts(folder: Path, rank: int) -> list[str]:
    """Iteration and prompts, a line an iteration."""
    return (folder / f"prompts-{rank}.txt").read_text().splitlines()


def require_going_on(folder: Path, whole: Path, kept: int) -> None:
    """The run goes on from its checkpoint of iteration `kept`, ends as if nothing had happened, and leaves one save."""
    for rank in (0, 1):
        (folder / f"prompts-{rank}.txt").unlink()
    assert ended(started(folder, ckpt_path=folder / "last.ckpt")) == [0, 0]
    assert same(state(folder / "last.ckpt"), state(whole / f"step={STEPS}.ckpt"))
    for rank in (0, 1):
        assert prompts(folder, rank) == prompts(whole, rank)[kept:]  # none repeated, none skipped
    assert len(list((folder / "last.ckpt.parts").iterdir())) == 1
    assert not list(folder.rglob("*.part"))


@pytest.mark.parametrize(
    ("rank", "number", "kept"),
    [
        (0, 1, 2),  # own part half written, the other process's perhaps too
        (1, 1, 2),
        (1, 2, 2),  # own part whole, not yet the save
        (0, 2, 2),
        (0, 3, 2),  # all parts whole, the checkpoint half written
        (0, 4, 3),  # the checkpoint in its place, the parts before not yet removed
    ],
)
def test_a_kill_at_any_point_of_a_save_leaves_a_whole_checkpoint(
    whole: Path, tmp_path: Path, rank: int, number: int, kept: int
) -> None:
    """In the third save. What is there is that of the undisturbed run's iteration, bit by bit."""
    statuses = ended(started(tmp_path, fault=KilledAtFlush(rank, 2 * FLUSHES[rank] + number)))
    assert statuses[rank] == -9
    assert same(state(tmp_path / "last.ckpt"), state(whole / f"step={kept}.ckpt"))
    for of_rank in (0, 1):
        assert prompts(tmp_path, of_rank) == prompts(whole, of_rank)[:3]
    if (rank, number) == (0, 3):
        require_going_on(tmp_path, whole, kept)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_kill_at_a_random_moment_leaves_a_whole_checkpoint(whole: Path, tmp_path: Path, seed: int) -> None:
    wait, began = random.Random(seed).uniform(0, 0.4), list[float]()

    def now() -> bool:
        if not began and (tmp_path / "last.ckpt").exists():
            began.append(time.monotonic())
        return bool(began) and time.monotonic() > began[0] + wait

    ended(started(tmp_path), when=now)
    assert began
    found = state(tmp_path / "last.ckpt")
    assert same(found, state(whole / f"step={found['global_step']}.ckpt"))


def test_a_full_disk_ends_the_run_with_the_checkpoint_before_and_no_rest(whole: Path, tmp_path: Path) -> None:
    """Of the second process alone, in the third iteration."""
    statuses = ended(started(tmp_path, fault=FullDisk(rank=1, iteration=2)))
    assert 1 in statuses
    assert same(state(tmp_path / "last.ckpt"), state(whole / "step=2.ckpt"))
    assert len(list((tmp_path / "last.ckpt.parts").iterdir())) == 1
    assert "could not be written: File too large" in (tmp_path / "log-1.txt").read_text()
    require_going_on(tmp_path, whole, 2)


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "of another save"])
def test_a_damaged_part_is_named_with_the_newest_whole_checkpoint(whole: Path, tmp_path: Path, damage: str) -> None:
    """Of four iterations the last two are damaged; the second is offered, and the first is not."""
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    parts = {step: next((folder / f"step={step}.ckpt.parts").rglob("1.ckpt")) for step in range(1, STEPS + 1)}
    parts[3].write_bytes(parts[3].read_bytes()[:1000])
    content = bytearray(parts[4].read_bytes())
    if damage == "cut":
        parts[4].write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        largest = max(torch.load(parts[4], weights_only=True)["parts"], key=Tensor.numel)
        content[content.index(largest.numpy().tobytes()) + 5] ^= 1
        parts[4].write_bytes(content)
    elif damage == "missing":
        parts[4].unlink()
    else:
        shutil.copy(parts[2], parts[4])
    with pytest.raises(ValueError, match=rf"1\.ckpt' is .*the newest whole one beside it is '{folder}/step=2.ckpt'"):
        checkpoints.read(folder / "step=4.ckpt")
    assert same(state(folder / "step=2.ckpt"), state(whole / "step=2.ckpt"))


def test_two_one_and_two_processes_train_on_the_rollouts_that_wait(whole: Path, tmp_path: Path) -> None:
    """To 1e-4 in weights: one process sums in another order than two."""
    alone = run(module(schedule=AHEAD), make_data(with_experts()), 3, ckpt_path=whole / "step=2.ckpt")
    alone.trainer.save_checkpoint(tmp_path / "alone.ckpt")
    of_one, of_two = state(tmp_path / "alone.ckpt"), state(whole / "step=3.ckpt")
    assert distance(of_one["state_dict"], of_two["state_dict"]) < 1e-4
    assert distance(of_one["state_dict"], state(whole / "step=2.ckpt")["state_dict"]) > 1e-3
    waiting = [
        [(row["prompt"]["problem"]["id"], len(row["rollouts"])) for row in s["rollouts_ahead"]]
        for s in (of_one, of_two)
    ]
    assert waiting[0] == waiting[1]
    assert len(waiting[0]) == 4
    assert ended(started(tmp_path, ckpt_path=tmp_path / "alone.ckpt")) == [0, 0]
    end, expected = state(tmp_path / "last.ckpt"), state(whole / f"step={STEPS}.ckpt")
    assert distance(end["state_dict"], expected["state_dict"]) < 1e-4
    assert end["ExpertData"] == expected["ExpertData"]
    for rank in (0, 1):
        assert prompts(tmp_path, rank) == prompts(whole, rank)[3:]
