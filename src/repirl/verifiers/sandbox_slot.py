"""One slot of the sandbox: a server for programs and a server for tests, one job at a time, and the verdict on it."""

from __future__ import annotations

import json
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import repirl
from repirl.structs import CodeTests
from repirl.verifiers.jail import agent, wire
from repirl.verifiers.jail.confine import Level
from repirl.verifiers.sandbox_output import same_output

logger = logging.getLogger(__name__)

Status = Literal["passed", "failed", "error", "timeout", "memory", "output_limit", "disk_limit", "infra_error"]

START_TIMEOUT_S = 60.0
REPORT_TIMEOUT_S = 120.0  # beyond what a job may take: then the server is lost
MAX_TESTS_CPU_S = 30.0  # for the tests themselves, beside the program's own limit
_ENDS: dict[str, Status] = {"timeout": "timeout", "wall": "timeout", "disk": "disk_limit"}
_EXITS: dict[int, Status] = {agent.OUT_OF_MEMORY: "memory", agent.TOO_MUCH_WRITTEN: "disk_limit"}
# This very package, by its place: not another one of its name, and nothing put on the path that a program could import.
_IMPORT = """
import importlib.util, sys
folder = sys.argv[1]
spec = importlib.util.spec_from_file_location("repirl", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["repirl"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["repirl"])
from repirl.verifiers.jail.server import main
"""
_SERVE = """
_, _, control, trainer, layer = sys.argv
main(int(control), int(trainer), bubblewrap=layer == "bubblewrap")
"""
_PYTHON = [sys.executable, "-B", "-P", "-s", "-c"]
_FOLDER = str(Path(repirl.__file__).parent)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a program.

    passed: True or False; None where nothing can be said (`infra_error`). status: why. detail: in words, partly the
    program's own. cpu_s: CPU seconds of the program.
    """

    passed: bool | None
    status: Status
    detail: str = ""
    cpu_s: float = 0.0

    def __post_init__(self) -> None:
        if self.passed is not {"passed": True, "infra_error": None}.get(self.status, False):
            raise ValueError(f"result {self.status!r} cannot have passed={self.passed}")


@dataclass(frozen=True, slots=True)
class Job:
    """A program with its tests. timeout_s: CPU seconds; for `stdio`, of each run."""

    program: str
    tests: CodeTests
    timeout_s: float

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s={self.timeout_s} must be above 0")


@dataclass(frozen=True, slots=True)
class Budget:
    """What a program may use. wall_factor, wall_s: it may be idle for factor x CPU seconds + wall_s."""

    memory_mib: int = 1024
    disk_mib: int = 16
    output_mib: int = 8
    wall_factor: float = 8.0
    wall_s: float = 30.0


class ServerLost(Exception):
    """A server ended, or does not answer: the machine's fault, not the program's."""


def result(status: Status, detail: str = "", cpu_s: float = 0.0) -> Result:
    """A result whose `passed` follows from its status."""
    return Result({"passed": True, "infra_error": None}.get(status, False), status, detail, cpu_s)


def import_only() -> list[str]:
    """A command that does what a server needs before it serves, and ends: whether one can run here."""
    return [*_PYTHON, _IMPORT, _FOLDER]


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
        command = [*bubblewrap, *_PYTHON, _IMPORT + _SERVE, _FOLDER, str(theirs.fileno()), str(trainer), layer]
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
        self.folder: str | None = None

    def hello(self) -> Level:
        """What the server says when it is ready. Raises ServerLost."""
        message = self.report(time.monotonic() + START_TIMEOUT_S)
        folder = str(message.pop("folder"))
        self.folder = None if message["bubblewrap"] else folder  # else a place that is not ours
        return Level(**{**message, "missing": tuple(message["missing"])})

    def start(self, job: dict[str, Any], descriptors: tuple[int, ...]) -> None:
        """Hands a job over. Raises ServerLost."""
        try:
            wire.send(self.control, job, descriptors)
        except OSError as error:
            raise ServerLost(f"the server is gone: {error}") from error

    def report(self, deadline: float) -> dict[str, Any]:
        """The next message. Raises ServerLost."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise ServerLost("the server does not answer")
        try:
            message, _ = wire.receive(self.control)
        except wire.Closed as error:
            raise ServerLost(f"the server ended: {error}") from error
        if "failure" in message:
            raise ServerLost(str(message["failure"]))
        return message

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
    """Two servers, started at the first job and again after a loss. Not for two threads at once."""

    def __init__(self, budget: Budget, *, allow_weaker: bool, bubblewrap: tuple[str, ...] = ()) -> None:
        self.budget = budget
        self.allow_weaker = allow_weaker
        self.bubblewrap = bubblewrap
        self.level: Level | None = None
        self.programs: ServerProcess | None = None
        self.judges: ServerProcess | None = None

    def processes(self) -> list[ServerProcess]:
        """Those that run."""
        return [server for server in (self.programs, self.judges) if server is not None]

    def run(self, job: Job) -> Result:
        """Raises ServerLost; RuntimeError where the machine cannot confine a program."""
        try:
            if job.tests.kind == "stdio":
                return self._run_scripts(job)
            return self._run_functions(job)
        except BaseException:  # KeyboardInterrupt too: a half-read report must not answer the next job
            self.stop()
            raise

    def start(self) -> None:
        """Starts the servers and checks what confines a program. Raises ServerLost, RuntimeError."""
        if self.processes():
            return
        self.programs = ServerProcess(self.bubblewrap)
        self.judges = ServerProcess()
        self.level = self.programs.hello()
        self.judges.hello()
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
        wall_s = self.budget.wall_factor * cpu_s + self.budget.wall_s
        memory_mib, disk_mib = self.budget.memory_mib, self.budget.disk_mib
        return {"cpu_s": cpu_s, "wall_s": wall_s, "memory_mib": memory_mib, "disk_mib": disk_mib}

    def _run_functions(self, job: Job) -> Result:
        self.start()
        assert self.programs is not None
        assert self.judges is not None
        tests = job.tests
        setup = tests.setup
        program = {"role": "functions", "setup": setup, "program": job.program, **self._limits(job.timeout_s)}
        tests_cpu_s = max(MAX_TESTS_CPU_S, job.timeout_s)
        judge = {
            "role": "tests",
            "kind": tests.kind,
            "setup": setup,
            "prefix": tests.prefix,
            "code": tests.code,
            "pairs": tests.pairs,
            "entry_point": tests.entry_point,
            **self._limits(tests_cpu_s),
        }
        # The tests are idle while the program works, and are ended by its end; their own limit is for a loss of it.
        tests_idle_s = job.timeout_s + self._limits(job.timeout_s)["wall_s"] + REPORT_TIMEOUT_S
        judge["wall_s"] = tests_idle_s
        requests, replies = os.pipe(), os.pipe()
        try:
            self.programs.start(program, (requests[0], replies[1]))
            self.judges.start(judge, (replies[0], requests[1]))
        finally:
            for descriptor in (*requests, *replies):
                os.close(descriptor)
        deadline = time.monotonic() + tests_idle_s + self._limits(tests_cpu_s)["wall_s"] + REPORT_TIMEOUT_S
        judged = self.judges.report(deadline)
        self.programs.start({"stop": True}, ())
        ran = self.programs.report(time.monotonic() + REPORT_TIMEOUT_S)
        return decide(ran, judged, job.timeout_s)

    def _run_scripts(self, job: Job) -> Result:
        """Every pair in a process of its own; the first that does not pass decides."""
        self.start()
        used = 0.0
        for number, (given, expected) in enumerate(job.tests.pairs):
            ran, output = self._run_script(job, given.encode("utf-8", "surrogateescape"))
            used = max(used, ran["cpu_s"])
            if output is None:
                return result("output_limit", f"input {number}: more than {self.budget.output_mib} MiB", used)
            found = fault(ran, job.timeout_s)
            if found is not None:
                return result(found.status, f"input {number}: {found.detail}", used)
            if not same_output(output.decode("utf-8", "replace"), expected):
                return result("failed", f"input {number}: printed {output[:200]!r}", used)
        return result("passed", "", used)

    def _run_script(self, job: Job, given: bytes) -> tuple[dict[str, Any], bytes | None]:
        """The report and what was printed; None where that was too much."""
        assert self.programs is not None
        message = {
            "role": "script",
            "setup": job.tests.setup,
            "program": job.program,
            **self._limits(job.timeout_s),
        }
        source, target = os.pipe()
        try:
            stdin = _readable(given)
            try:
                self.programs.start(message, (stdin, target))
            finally:
                os.close(stdin)
                os.close(target)
            deadline = time.monotonic() + message["wall_s"] + REPORT_TIMEOUT_S  # type: ignore[operator]
            output = _read_all(source, self.budget.output_mib << 20, deadline)
            if output is None:
                self.programs.start({"stop": True}, ())
            return self.programs.report(deadline), output
        finally:
            os.close(source)


def _readable(content: bytes) -> int:
    """A descriptor from which the content can be read, and nothing written."""
    written = os.memfd_create("stdin")
    try:
        with open(written, "wb", closefd=False) as file:
            file.write(content)
        return os.open(f"/proc/self/fd/{written}", os.O_RDONLY)
    finally:
        os.close(written)


def _read_all(source: int, limit: int, deadline: float) -> bytes | None:
    """Until the writers are gone; None beyond the limit. Raises ServerLost at the deadline."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    content = bytearray()
    while True:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise ServerLost("a program was not ended in time")
        chunk = os.read(source, 1 << 20)
        if not chunk:
            return bytes(content)
        content += chunk
        if len(content) > limit:
            return None


def fault(ran: dict[str, Any], timeout_s: float) -> Result | None:
    """What is wrong with a program by its server's report alone; None for a plain end in time."""
    end, code, used, note = ran["end"], int(ran["code"]), float(ran["cpu_s"]), str(ran["note"])
    if end == "timeout" or used > timeout_s or (end == "signal" and code == signal.SIGXCPU):
        return result("timeout", f"more than {timeout_s:g} s of CPU time", used)
    if end in _ENDS:
        return result(_ENDS[end], "too long without an end" if end == "wall" else "wrote too much", used)
    if end == "exit" and code in _EXITS:
        return result(_EXITS[code], note, used)
    if end == "signal":
        return result("error", f"ended by signal {code}", used)
    if end == "exit" and code != 0:
        return result("error", note or f"ended with exit status {code}", used)
    return None


def decide(ran: dict[str, Any], judged: dict[str, Any], timeout_s: float) -> Result:
    """The verdict, from the reports on the program's process and on the tests' process."""
    used = float(ran["cpu_s"])
    if judged["end"] == "exit" and judged["code"] == 0:
        finding = json.loads(judged["note"])
        status, detail = finding["status"], str(finding["detail"])
        if status == "tests":
            return result("infra_error", detail, used)
        own = fault(ran, timeout_s)
        if own is not None and (status == "ended" or own.status in ("timeout", "disk_limit")):
            return own
        if status == "ended":
            return result("error", "the program ended, or hung up, before its tests did", used)
        return result(status, detail, used)
    # The tests ran on values of the program, and it is these that were too much for them.
    if judged["end"] in ("timeout", "wall") or (judged["end"] == "signal" and judged["code"] == signal.SIGXCPU):
        own = fault(ran, timeout_s)
        return own if own is not None else result("timeout", "the tests took too long on what it returned", used)
    return result(
        "error", f"the tests broke on what it returned: {judged['end']} {judged['code']} {judged['note']}", used
    )
