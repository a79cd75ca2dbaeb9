"""One process of a sharded run of two that saves after every iteration, and something that happens to it.

The processes are forks of one that has imported everything: `ended` starts both and waits.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from repirl.callbacks.checkpoint import Checkpoint
from repirl.learning.schedule import Schedule
from repirl.modules.strategies import ShardedStrategy
from tests.distributed.sharded_saving import module
from tests.modules.tiny import make_data, run, with_experts

STEPS = 4
AHEAD = Schedule(rollouts_ahead=1)
FLUSHES = {0: 4, 1: 2}
"""How often each process calls fsync in one save: part file and its folder; the first then checkpoint and its folder."""

FILE_BYTES = 20_000
"""Less than a process's parts (28 kB), and more than what it says."""


@dataclass(frozen=True)
class KilledAtFlush:
    """SIGKILL in the place of the number-th fsync of a process."""

    rank: int
    number: int


@dataclass(frozen=True)
class FullDisk:
    """From an iteration on no file of a process may be larger than FILE_BYTES."""

    rank: int
    iteration: int


Fault = KilledAtFlush | FullDisk


class Prompts(Callback):
    """Writes which prompts each iteration reads; a disk gets full after one."""

    def __init__(self, path: Path, full_at: int | None) -> None:
        self.path, self.full_at = path, full_at

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        with self.path.open("a") as file:
            file.write(f"{pl_module.global_step} {' '.join(prompt.problem.id for prompt in batch)}\n")
        if pl_module.global_step == self.full_at:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails
            resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))


def _kill_at(number: int) -> None:
    flush, calls = os.fsync, iter(range(1, 1000))

    def counted(file: int) -> None:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(file)

    os.fsync = counted


def process(
    rank: int, port: int, folder: Path, name: str, keep_all: bool, ckpt_path: Path | None, fault: Fault | None
) -> None:
    """Trains as one rank; its output is in a file."""
    os.dup2(os.open(folder / f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    mine = fault if fault is not None and fault.rank == rank else None
    if isinstance(mine, KilledAtFlush):
        _kill_at(mine.number)
    full_at = mine.iteration if isinstance(mine, FullDisk) else None
    made = module(schedule=AHEAD)
    run(
        made,
        make_data(with_experts()),
        STEPS,
        devices=2,
        strategy=ShardedStrategy("gloo", sharded_checkpoints=True),
        callbacks=[
            Prompts(folder / f"prompts-{rank}.txt", full_at),
            Checkpoint(str(folder), filename=name, every_n_iterations=1, keep_all=keep_all),
        ],
        enable_checkpointing=True,
        ckpt_path=ckpt_path,
    )


def started(folder: Path, name: str = "last", **how: Any) -> list[BaseProcess]:
    """Both processes of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"keep_all": False, "ckpt_path": None, "fault": None} | how
    ranks: list[BaseProcess] = [
        context.Process(target=process, args=(r, port, folder, name, *given.values())) for r in (0, 1)
    ]
    for rank in ranks:
        rank.start()
    return ranks


def ended(ranks: list[BaseProcess], seconds: float = 120, when: Callable[[], bool] = lambda: False) -> list[int | None]:
    """The exit statuses. Both are killed as soon as one has failed, as a scheduler does, or `when` says so."""
    deadline = time.monotonic() + seconds
    while any(rank.exitcode is None for rank in ranks) and time.monotonic() < deadline:
        if any(rank.exitcode not in (None, 0) for rank in ranks) or when():
            break
        time.sleep(0.002)
    statuses = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
        rank.join()
    return statuses
