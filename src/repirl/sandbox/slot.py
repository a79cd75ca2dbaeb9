"""One slot of the sandbox: a server for programs and a server for tests, one job at a time, and the verdict on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repirl.sandbox.jail.confine import Level
from repirl.sandbox.output import same_output
from repirl.sandbox.verdict import Job, Result, decide, fault, idle, result
from repirl.sandbox.watch import Watch, hello, tell

START_TIMEOUT_S = 60.0
MAX_TESTS_CPU_S = 30.0  # for the tests themselves, beside the program's own limit
# This very package, by its place: not another one of its name, and nothing put on the path that a program could import.
_IMPORT = """
import importlib.util, sys
folder = sys.argv[1]
spec = importlib.util.spec_from_file_location("repirl", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["repirl"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["repirl"])
from repirl.sandbox.jail.server import main
"""
_SERVE = """
_, _, control, trainer, layer = sys.argv
main(int(control), int(trainer), bubblewrap=layer == "bubblewrap")
"""
_PYTHON = [sys.executable, "-B", "-P", "-s", "-c"]
PACKAGE = str(Path(__file__).parents[1])  # of repirl itself


@dataclass(frozen=True, slots=True)
class Budget:
    """What a program may use. wall_factor, wall_s: it may be idle for factor x CPU seconds + wall_s.

    Idle is who neither runs nor waits for a processor, a disk, or the tests.
    """

    memory_mib: int = 1024
    disk_mib: int = 16
    output_mib: int = 8
    wall_factor: float = 1.0
    wall_s: float = 2.0


def import_only() -> list[str]:
    """A command that does what a server needs before it serves, and ends: whether one can run here."""
    return [*_PYTHON, _IMPORT, PACKAGE]


class ServerProcess:
    """A server process and its control socket.

    The socket alone would not tell a server that its trainer is gone: processes that the trainer forked, such as a data
    loader's, hold copies of it. So a server is given a descriptor of the trainer's process, which works in every namespace.
    """

    def __init__(self, bubblewrap: tuple[str, ...] = ()) -> None:
        ours, theirs = socket.socketpair()
        trainer = os.pidfd_open(os.getpid())
        # A clean environment: nothing of the trainer's, one thread in numerical libraries, the same hashes in each run.
        environment = {
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        layer = "bubblewrap" if bubblewrap else "plain"
        command = [*bubblewrap, *_PYTHON, _IMPORT + _SERVE, PACKAGE, str(theirs.fileno()), str(trainer), layer]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
                cwd="/",
                pass_fds=[theirs.fileno(), trainer],
                start_new_session=True,  # Ctrl-C is for the trainer
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(trainer)
        self.control = ours
        self.in_bubblewrap = bool(bubblewrap)
        self.folder: str | None = None

    @property
    def pid(self) -> int:
        """Of the server itself. bubblewrap puts two processes of its own before it."""
        pid = self.process.pid
        for _ in range(2 if self.in_bubblewrap else 0):
            with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/task/{pid}/children") as file:
                pid = int(file.read().split()[0])
        return pid

    def level(self, interrupted: threading.Event) -> Level:
        """What the server says when it is ready. Raises ServerLost, Interrupted."""
        message = hello(self, START_TIMEOUT_S, interrupted)
        folder = str(message.pop("folder"))
        self.folder = None if message["bubblewrap"] else folder  # else a place that is not ours
        return Level(**{**message, "missing": tuple(message["missing"])})

    def close(self, *, kill: bool) -> None:
        """Ends the process; in a forked child (`kill` False) only lets go of it."""
        self.control.close()
        if not kill:
            self.process.returncode = 0  # so that Popen does not wait for somebody else's child
            return
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # bubblewrap's processes are three
        self.process.wait()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


class Slot:
    """Two servers, started at the first job and again after a loss. Not for two threads at once.

    interrupted: set by whoever wants every wait of this slot to end.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        allow_weaker: bool,
        bubblewrap: tuple[str, ...] = (),
        interrupted: threading.Event | None = None,
    ) -> None:
        self.budget = budget
        self.allow_weaker = allow_weaker
        self.bubblewrap = bubblewrap
        self.interrupted = interrupted or threading.Event()
        self.level: Level | None = None
        self.programs: ServerProcess | None = None
        self.judges: ServerProcess | None = None

    def processes(self) -> list[ServerProcess]:
        """Those that run."""
        return [server for server in (self.programs, self.judges) if server is not None]

    def run(self, job: Job) -> Result:
        """Raises ServerLost, Interrupted; RuntimeError where the machine cannot confine a program."""
        try:
            if job.tests.kind == "stdio":
                return self._run_scripts(job)
            return self._run_functions(job)
        except BaseException:  # KeyboardInterrupt too: a half-read report must not answer the next job
            self.stop()
            raise

    def start(self) -> None:
        """Starts the servers and checks what confines a program. Raises ServerLost, Interrupted, RuntimeError."""
        if self.processes():
            return
        self.programs = ServerProcess(self.bubblewrap)
        self.judges = ServerProcess()
        try:
            self.level = self.programs.level(self.interrupted)
            self.judges.level(self.interrupted)
        except BaseException:
            self.stop()
            raise
        if self.level.missing and not self.allow_weaker:
            self.stop()
            raise RuntimeError(
                f"programs cannot be confined here: {'; '.join(self.level.missing)}. Use a service (`service_url`), "
                "or accept the risk with `allow_weaker: true`"
            )

    def stop(self) -> None:
        """Ends the processes; safe to call twice."""
        for server in self.processes():
            server.close(kill=True)
        self.programs = self.judges = None

    def forget(self) -> None:
        """In a forked child: lets go of processes that are not ours."""
        for server in self.processes():
            server.close(kill=False)
        self.programs = self.judges = None

    def _limits(self, cpu_s: float) -> dict[str, float]:
        return {"cpu_s": cpu_s, "memory_mib": self.budget.memory_mib, "disk_mib": self.budget.disk_mib}

    def _may_be_idle_s(self, job: Job) -> float:
        return self.budget.wall_factor * job.timeout_s + self.budget.wall_s

    def _run_functions(self, job: Job) -> Result:
        self.start()
        assert self.programs is not None
        assert self.judges is not None
        tests = job.tests
        program = {
            "role": "functions",
            "setup": tests.setup,
            "program": job.program,
            **self._limits(job.timeout_s),
        }
        judge = {
            "role": "tests",
            "kind": tests.kind,
            "setup": tests.setup,
            "prefix": tests.prefix,
            "code": tests.code,
            "pairs": tests.pairs,
            "entry_point": tests.entry_point,
            **self._limits(max(MAX_TESTS_CPU_S, job.timeout_s)),
        }
        requests, replies = os.pipe(), os.pipe()
        try:
            tell(self.programs, program, (requests[0], replies[1]))
            tell(self.judges, judge, (replies[0], requests[1]))
        finally:
            for descriptor in (*requests, *replies):
                os.close(descriptor)
        watch = Watch((self.programs, self.judges), self.interrupted)
        watch.until(1, self._may_be_idle_s(job))
        watch.stop()
        return decide(watch.reports[0], watch.reports[1], job.timeout_s)

    def _run_scripts(self, job: Job) -> Result:
        """Every pair in a process of its own; the first that does not pass decides."""
        self.start()
        used = 0.0
        for number, (given, expected) in enumerate(job.tests.pairs):
            ran, output = self._run_script(job, given.encode("utf-8", "surrogateescape"))
            used = max(used, ran["cpu_s"])
            if output is None:
                return result("output_limit", f"input {number}: more than {self.budget.output_mib} MiB", used)
            found = fault(ran, job.timeout_s) or (idle(used) if ran["end"] == "stopped" else None)
            if found is not None:
                return result(found.status, f"input {number}: {found.detail}", used)
            if not same_output(output.decode("utf-8", "replace"), expected):
                return result("failed", f"input {number}: printed {output[:200]!r}", used)
        return result("passed", "", used)

    def _run_script(self, job: Job, given: bytes) -> tuple[dict[str, Any], bytes | None]:
        """The report and what was printed; None where that was too much. A program that was idle too long is stopped."""
        assert self.programs is not None
        message = {"role": "script", "setup": job.tests.setup, "program": job.program, **self._limits(job.timeout_s)}
        source, target = os.pipe()
        try:
            stdin = _readable(given)
            try:
                tell(self.programs, message, (stdin, target))
            finally:
                os.close(stdin)
                os.close(target)
            watch = Watch((self.programs,), self.interrupted)
            output = self._printed(watch, source, self._may_be_idle_s(job))
            if output is not None:
                watch.until(0, self._may_be_idle_s(job))
            watch.stop()
            return watch.reports[0], output
        finally:
            os.close(source)

    def _printed(self, watch: Watch, source: int, may_be_idle_s: float) -> bytes | None:
        """What a program writes until it closes its output or is idle for too long; None where that is too much."""
        content = bytearray()
        while watch.idle_s <= may_be_idle_s:
            if not watch.tick(source):
                continue
            chunk = os.read(source, 1 << 20)
            content += chunk
            if len(content) > self.budget.output_mib << 20:
                return None
            if not chunk:
                break
        return bytes(content)


def _readable(content: bytes) -> int:
    """A descriptor from which the content can be read, and nothing written."""
    written = os.memfd_create("stdin")
    try:
        with open(written, "wb", closefd=False) as file:
            file.write(content)
        return os.open(f"/proc/self/fd/{written}", os.O_RDONLY)
    finally:
        os.close(written)
