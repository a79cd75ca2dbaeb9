"""Runs programs that a model has written against tests, so that neither machine nor verdict is at their mercy.

    run("def f(x): return x + 1", "assert f(1) == 2", timeout_s=2.0).passed

Program and tests run in two processes that share only a pipe of plain values; both are confined (`jail/`). docs/sandbox.md
says how, against what, and against what not.
"""

from __future__ import annotations

import logging
import os
import queue
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from repirl.sandbox.slot import PACKAGE, START_TIMEOUT_S, Budget, Slot, import_only
from repirl.sandbox.verdict import Job, Result, result
from repirl.sandbox.watch import Interrupted, ServerLost
from repirl.structs import CodeTests

__all__ = ["Budget", "Job", "Result", "Sandbox", "run"]

logger = logging.getLogger(__name__)


class Sandbox:
    """A fixed number of slots, for any number of threads. Servers start with the first job that needs them.

    workers: jobs at a time; default: the processors that this process may use. budget: limits of each program.
    allow_weaker: run even where Landlock or seccomp does not hold, which is logged. bubblewrap: put the program's server
    into namespaces of its own; None: where bwrap is installed and a server can start in it. The log says
    what is reached.
    Copies (pickle, deepcopy, fork) share the settings, not the processes.
    """

    def __init__(
        self,
        workers: int | None = None,
        budget: Budget | None = None,
        allow_weaker: bool = False,
        bubblewrap: bool | None = None,
    ) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers={workers} must be at least 1")
        self._settings = (workers, budget, allow_weaker, bubblewrap)
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._pool: _Pool | None = None

    def __reduce__(self) -> tuple[type[Sandbox], tuple[int | None, Budget | None, bool, bool | None]]:
        return Sandbox, self._settings

    @property
    def pids(self) -> list[int]:
        """Ids of the servers that run now."""
        pool = self._pool
        return [] if pool is None else [server.process.pid for slot in pool.slots for server in slot.processes()]

    def run(self, job: Job) -> Result:
        """As `run_many`, for one job."""
        return self._started().run(job)

    def run_many(self, jobs: Sequence[Job]) -> list[Result]:
        """One result a job, in order. Never raises for a bad program.

        Raises RuntimeError where programs cannot be confined on this machine. Ctrl-C ends all jobs at once.
        """
        pool = self._started()
        threads = min(len(jobs), len(pool.slots))
        if threads <= 1:
            return [pool.run(job) for job in jobs]
        with ThreadPoolExecutor(threads, thread_name_prefix="sandbox") as executor:
            try:
                return list(executor.map(pool.run, jobs))
            except (KeyboardInterrupt, SystemExit):
                self._interrupt()
                raise

    def _started(self) -> _Pool:
        pool = self._pool
        if pool is not None and pool.owner != os.getpid():  # a forked child: lock and processes are the parent's
            pool.close()
            self._reset()
        with self._lock:
            if self._pool is None:
                self._pool = _Pool(*self._settings)
                weakref.finalize(self, self._pool.close)  # at collection and at exit
            return self._pool

    def _interrupt(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.interrupted.set()

    def close(self) -> None:
        """Ends the servers, after jobs under way; safe to call twice. A later job starts new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()


class _Pool:
    def __init__(self, workers: int | None, budget: Budget | None, allow_weaker: bool, bubblewrap: bool | None) -> None:
        self.owner = os.getpid()
        layer = _bubblewrap(bubblewrap)
        self.interrupted = threading.Event()
        self.slots = [
            Slot(budget or Budget(), allow_weaker=allow_weaker, bubblewrap=layer, interrupted=self.interrupted)
            for _ in range(workers or len(os.sched_getaffinity(0)))
        ]
        self._closed = threading.Event()
        self._started_once = threading.Event()
        # Last in, first out: one caller at a time keeps to one pair of processes.
        self._free: queue.LifoQueue[Slot] = queue.LifoQueue()
        for slot in reversed(self.slots):
            self._free.put(slot)

    def run(self, job: Job) -> Result:
        """Waits for a free slot. A loss is followed by one more try, a second one is an infrastructure error."""
        slot = self._free.get()
        try:
            for attempt in (1, 2):
                if self.interrupted.is_set():
                    raise Interrupted("the sandbox was interrupted")
                if self._closed.is_set():
                    raise RuntimeError("the sandbox was closed while it was in use; close it after the last job")
                try:
                    slot.start()
                    self._log_level(slot)
                    return slot.run(job)
                except (ServerLost, OSError) as error:
                    slot.stop()
                    failure = str(error)
                    logger.warning("sandbox lost a server (%s) on try %d of 2", error, attempt)
            if not self._started_once.is_set():
                raise RuntimeError(f"the sandbox's servers do not start: {failure}; their output is on standard error")
            return result("infra_error", failure)
        finally:
            self._free.put(slot)

    def _log_level(self, slot: Slot) -> None:
        if self._started_once.is_set() or slot.level is None:
            return
        self._started_once.set()
        if slot.level.missing:
            logger.warning(
                "sandbox: confinement is incomplete: %s. Programs are held by %s",
                "; ".join(slot.level.missing),
                slot.level,
            )
        else:
            logger.info("sandbox: programs are held by %s", slot.level)

    def close(self) -> None:
        """Waits for jobs under way, each of which ends by its own limits, then ends the processes."""
        if os.getpid() != self.owner:
            for slot in self.slots:
                slot.forget()
            return
        if self._closed.is_set():
            return
        self._closed.set()
        for _ in self.slots:
            self._free.get().stop()
        for slot in self.slots:  # a thread that still waits finds a slot, and the flag
            self._free.put(slot)


def _bubblewrap(wanted: bool | None) -> tuple[str, ...]:
    """The command that puts a server into namespaces of its own; empty without. Raises RuntimeError where it must work."""
    if wanted is False:
        return ()
    program = shutil.which("bwrap")
    command = (
        program or "bwrap",
        "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp",
        "--unshare-user-try", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts",
        *_kept_below("/tmp"),
    )  # fmt: skip
    why = "it is not installed"
    if program is not None:
        try:
            probe = subprocess.run(
                [*command, *import_only()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=START_TIMEOUT_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            why = str(error)
        else:
            if probe.returncode == 0:
                return command
            why = (
                probe.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2] or f"exit status {probe.returncode}"
            )
    if wanted:
        raise RuntimeError(f"bubblewrap was asked for and does not work here: {why}")
    logger.log(logging.WARNING if program else logging.INFO, "sandbox: without bubblewrap: %s", why)
    return ()


def _kept_below(hidden: str) -> list[str]:
    """Binds of the interpreter and of this package, where they lie below a folder that the new namespace hides."""
    needed = {sys.prefix, sys.base_prefix, PACKAGE}
    places = sorted(place for place in needed if Path(place).is_relative_to(hidden))
    return [word for place in places for word in ("--ro-bind", place, place)]


def run(program: str, tests: str, timeout_s: float) -> Result:
    """Runs a program against an assert script. timeout_s: CPU seconds. Uses one shared sandbox, closed at exit."""
    return _shared().run(Job(program, CodeTests("asserts", tests), timeout_s))


@lru_cache(maxsize=1)
def _shared() -> Sandbox:
    return Sandbox()
