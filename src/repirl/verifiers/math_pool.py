"""Killable math-verify processes: started by exec, one pair at a time each, killed from outside when they hang."""

from __future__ import annotations

import json
import logging
import os
import queue
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Literal

from repirl.sandbox.jail.processor import is_ready, processor_s

logger = logging.getLogger(__name__)

Outcome = Literal["equal", "not_equal", "answer_timeout", "gold_unparsed", "infra_error"]

LOOK_S = 0.1
FROZEN_S = 2.0  # stopped for so long, a process is taken for frozen: by a signal, a debugger, a paused container
START_TIMEOUT_S = 60.0  # importing sympy takes a second on an idle machine
_SCRIPT = Path(__file__).with_name("math_worker.py")
_OUTCOMES: dict[str, Outcome] = {
    "equal": "equal",
    "not_equal": "not_equal",
    "gold_unparsed": "gold_unparsed",
    "timeout": "answer_timeout",
    "memory": "answer_timeout",  # the limit is ours, so the answer is at fault, not the machine
}


class WorkerDied(Exception):
    """The process ended before it answered."""


class WorkerFrozen(WorkerDied):
    """The process was stopped or did nothing, which says nothing of the question."""


class WorkerTimeout(Exception):
    """The process computed for all of its time without an answer, and was killed."""


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal or a debugger."""
    return _status(pid)[:1] in (["T"], ["t"])


def computed_s(pid: int) -> float | None:
    """Seconds of processor time of a process, None where the system does not tell."""
    fields = _status(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if len(fields) > 12 else None


def _status(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


class Clock:
    """The seconds a process has for an answer. They do not end while a busy machine keeps it waiting for a processor."""

    def __init__(self, pid: int, seconds: float) -> None:
        self.pid, self.seconds, self.end = pid, seconds, time.monotonic() + seconds
        self.ran_before, _ = processor_s(pid)
        self._computed_before = computed_s(pid)
        self._stopped_since: float | None = None

    def left_s(self) -> float:
        """How long to wait before asking again; 0 or less when its time is up."""
        left = self.end - time.monotonic()
        if left <= 0 and is_ready(self.pid) and processor_s(self.pid)[0] - self.ran_before < self.seconds:
            return LOOK_S
        return left

    def stopped_s(self) -> float:
        """For how long every look has found the process stopped."""
        now = time.monotonic()
        if not is_stopped(self.pid):
            self._stopped_since = None
        elif self._stopped_since is None:
            self._stopped_since = now
        return 0.0 if self._stopped_since is None else now - self._stopped_since

    def computed_s(self) -> float | None:
        """Processor seconds since the start of the clock, None where the system does not tell."""
        now = computed_s(self.pid)
        return None if now is None or self._computed_before is None else now - self._computed_before


class Worker:
    """One process, started at the first call and again after each death. Not for two threads at once."""

    def __init__(self, *, soft_timeout_s: float, hard_timeout_s: float, memory_mib: int) -> None:
        self._soft_timeout_s, self._hard_timeout_s = soft_timeout_s, hard_timeout_s
        # The guard acts only where nobody is left to kill the worker, hence after the parent would have.
        self._limits = [str(soft_timeout_s), str(2 * hard_timeout_s), str(memory_mib)]
        self._process: subprocess.Popen[bytes] | None = None
        self._pending = b""

    @property
    def pid(self) -> int | None:
        """The process id while a process runs."""
        return self._process.pid if self._process is not None else None

    def judge(self, gold: str, answer: str) -> Outcome:
        """Raises WorkerDied where the process ended on its own or was frozen."""
        try:
            process = self._started()
            return self._ask(process, gold, answer)
        except BaseException:  # KeyboardInterrupt too: a half-read reply must not answer the next question
            self.stop()
            raise

    def _ask(self, process: subprocess.Popen[bytes], gold: str, answer: str) -> Outcome:
        clock = Clock(process.pid, self._hard_timeout_s)
        gold_is_read = False
        try:
            # At most 2 x 2,000 characters (quick.MAX_CHARS) of 12 bytes: the empty pipe takes them without waiting.
            self._write(process, {"gold": gold, "answer": answer})
            while "result" not in (reply := self._read(process, clock)):
                gold_is_read = True
        except WorkerTimeout:
            self.stop()
            return "answer_timeout" if gold_is_read else "gold_unparsed"
        if reply["result"] == "memory":
            self.stop()
        return _OUTCOMES[str(reply["result"])]

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.stop()
        # -P: this folder's math.py must not become the standard library's. Own session: Ctrl-C is for the trainer.
        command = [sys.executable, "-P", str(_SCRIPT), *self._limits, str(os.getpid())]
        self._process = process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        try:
            reply = self._read(process, Clock(process.pid, START_TIMEOUT_S))
        except WorkerTimeout as error:
            raise WorkerDied(f"math-verify did not start within {START_TIMEOUT_S:g} s") from error
        if "fatal" in reply:
            raise RuntimeError(f"cannot import math-verify ({reply['fatal']}): pip install 'math-verify[antlr4_9_3]'")
        return process

    def _write(self, process: subprocess.Popen[bytes], request: dict[str, str]) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError as error:
            raise WorkerDied(f"exit status {process.wait()}") from error

    def _read(self, process: subprocess.Popen[bytes], clock: Clock) -> dict[str, object]:
        assert process.stdout is not None
        poll = select.poll()  # select() itself fails beyond 1,024 descriptors
        poll.register(process.stdout, select.POLLIN)
        while b"\n" not in self._pending:
            left, stopped = clock.left_s(), clock.stopped_s()
            if stopped >= FROZEN_S or (left <= 0 and is_stopped(process.pid)):
                raise WorkerFrozen(f"stopped for {stopped:.0f} s")
            if left <= 0:
                computed = clock.computed_s()
                # The alarm inside comes after soft_timeout_s of computing: a process without them was kept from it.
                if computed is not None and computed < self._soft_timeout_s:
                    raise WorkerFrozen(f"computed for {computed:.1f} s only")
                raise WorkerTimeout
            if not poll.poll(max(1, int(min(left, LOOK_S) * 1000))):
                continue
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                raise WorkerDied(f"exit status {process.wait()}")
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        reply: dict[str, object] = json.loads(line)
        return reply

    def stop(self) -> None:
        """Kills the process and waits for it; safe to call twice."""
        process, self._process, self._pending = self._process, None, b""
        if process is None:
            return
        process.kill()
        process.wait()
        self._close_pipes(process)

    def forget(self) -> None:
        """In a forked child: lets go of the pipes of a process that is not ours."""
        process, self._process = self._process, None
        if process is not None:
            self._close_pipes(process)
            process.returncode = 0  # so that Popen does not wait for somebody else's child

    @staticmethod
    def _close_pipes(process: subprocess.Popen[bytes]) -> None:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


class WorkerPool:
    """A fixed number of workers, for any number of threads."""

    def __init__(self, workers: int, *, soft_timeout_s: float, hard_timeout_s: float, memory_mib: int) -> None:
        self.owner = os.getpid()
        self.workers = [
            Worker(soft_timeout_s=soft_timeout_s, hard_timeout_s=hard_timeout_s, memory_mib=memory_mib)
            for _ in range(workers)
        ]
        self._closed = threading.Event()
        # Last in, first out: one caller at a time keeps to one process.
        self._free: queue.LifoQueue[Worker] = queue.LifoQueue()
        for worker in reversed(self.workers):
            self._free.put(worker)

    def judge(self, gold: str, answer: str) -> Outcome:
        """Waits for a free worker. A death is followed by one more try, a second one is an infrastructure error."""
        worker = self._free.get()
        try:
            for attempt in (1, 2):
                if self._closed.is_set():
                    raise RuntimeError("the verifier was closed while it was in use; close it after the last verify()")
                try:
                    return worker.judge(gold, answer)
                except (WorkerDied, OSError) as error:
                    logger.warning("math-verify worker died (%s) on try %d of 2, gold %.200r, answer %.200r",
                                   error, attempt, gold, answer)  # fmt: skip
            return "infra_error"
        finally:
            self._free.put(worker)

    def close(self) -> None:
        """Waits for calls under way (each ends by its own hard time-out), then ends the processes."""
        if os.getpid() != self.owner:
            for worker in self.workers:
                worker.forget()
            return
        if self._closed.is_set():
            return
        self._closed.set()
        for _ in self.workers:
            self._free.get().stop()
        for worker in self.workers:  # a thread that still waits finds a worker, and the flag
            self._free.put(worker)
