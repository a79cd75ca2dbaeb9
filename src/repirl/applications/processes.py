"""Work in processes of its own that start at once: each is a fork of one process that has imported everything."""

import multiprocessing
import os
import runpy
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from repirl.config import ConfigError
from repirl.folders import FolderInUse, claimed

PRELOADED = ["repirl.cli", "repirl.modules.repirl", "repirl.modules.sft", "repirl.data.expert"]


class Processes:
    """A server of processes; its own start takes the seconds of the imports, once."""

    def __init__(self) -> None:
        self._running: dict[BaseProcess, Path] = {}
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    def call(self, log: Path, threads: int, function: Callable[..., None], *arguments: Any) -> int:
        """Runs `function` with its output in `log` and so many threads for torch, and waits; returns the exit status."""
        log.unlink(missing_ok=True)  # what an earlier run said is not read as this one's
        process = self._start(log, threads, function, *arguments)
        self._running[process] = log
        process.join()
        del self._running[process]
        assert process.exitcode is not None
        return process.exitcode

    @property
    def logs(self) -> list[Path]:
        """Logs of the processes that run, in the order of their starts."""
        return list(self._running.values())

    def _start(self, log: Path, threads: int, function: Callable[..., None], *arguments: Any) -> BaseProcess:
        process = self._context.Process(target=_logged, args=(str(log), threads, function, arguments))
        process.start()
        return process

    @contextmanager
    def threads(self, count: int) -> Iterator[ThreadPoolExecutor]:
        """Threads to call from. Where the block is left by an error or a signal, what still runs is ended first.

        Runs get SIGTERM, at which they save and end; a second signal meanwhile kills them.
        """
        pool = ThreadPoolExecutor(count)
        try:
            yield pool
        except BaseException:
            self._signal(BaseProcess.terminate)
            try:
                pool.shutdown(cancel_futures=True)
            except BaseException:
                self._signal(BaseProcess.kill)
                raise
            raise
        pool.shutdown()

    def _signal(self, send: Callable[[BaseProcess], None]) -> None:
        for process in list(self._running):
            send(process)

    def start(self, words: Sequence[str], log: Path, threads: int) -> BaseProcess:
        """`python -m repirl` with these words, not waited for."""
        return self._start(log, threads, _repirl, list(words))

    def repirl(self, words: Sequence[str], log: Path, threads: int) -> int:
        """`python -m repirl` with these words; its exit status."""
        return self.call(log, threads, _repirl, list(words))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Holds the folder, or file, for this program.

    Raises:
        ConfigError: another program writes into it, or there can be nothing beside it.
    """
    with ExitStack() as held:
        try:
            held.enter_context(claimed([folder]))
        except FolderInUse as error:
            raise ConfigError(error.what, error.todo) from error
        except OSError as error:
            raise ConfigError(f"{str(folder)!r} cannot be written: {error.strerror}", "name another output") from error
        yield


def _logged(log: str, threads: int, function: Callable[..., None], arguments: Sequence[Any]) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    function(*arguments)


def _end_with_parent() -> None:
    """Ends this process when the one that asked for it is gone, however it went: nobody waits for the result."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _repirl(words: list[str]) -> None:
    sys.argv = ["repirl", *words]
    runpy.run_module("repirl", run_name="__main__")
