"""What the errors of collectives say when the other process has stopped, by real processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from repirl.distributed import lost_process

COLLECTIVES = 3  # tried after the other process has gone, one after the other


def process(rank: int, file: Path, told: Connection) -> None:
    """Meets the other one; the second then waits for its end, the first tells what its collectives raise."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(str(file), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=3))
    dist.all_reduce(torch.zeros(1))
    told.send(None)
    if rank:
        signal.pause()
    told.recv()
    errors = []
    for _ in range(COLLECTIVES):
        try:
            dist.all_reduce(torch.zeros(1))
        except RuntimeError as error:
            errors.append(str(error))
    told.send(errors)


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGSTOP, "another process kept this one waiting in vain"), (signal.SIGKILL, "another process was lost")],
)
def test_every_collective_after_the_end_of_the_other_says_so(tmp_path: Path, number: signal.Signals, said: str) -> None:
    context = multiprocessing.get_context("spawn")
    ends, theirs = zip(*(context.Pipe() for _ in range(2)), strict=True)
    ranks = [context.Process(target=process, args=(r, tmp_path / "store", theirs[r])) for r in range(2)]
    try:
        for rank in ranks:
            rank.start()
        assert [end.poll(120) and end.recv() for end in ends] == [None, None]
        assert ranks[1].pid
        os.kill(ranks[1].pid, number)
        ends[0].send(None)
        assert ends[0].poll(60)
        errors = ends[0].recv()
    finally:
        for rank in ranks:
            if rank.pid:
                rank.kill()
    assert len(errors) == COLLECTIVES
    for error in errors:
        assert (lost_process(RuntimeError(error)) or error).startswith(said)


def test_other_errors_are_not_taken_for_it() -> None:
    assert lost_process(RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)")) is None
    assert lost_process(RuntimeError("ProcessGroup: tensors must have the same size")) is None
