"""A server of the sandbox: started by exec with a clean environment, forks a confined child for each job, watches it.

Two for each slot. The program's server knows programs only; tests never enter it. Each reads messages from its control
socket and ends when that does, or when the process that started it is gone.

Job: {"role": "functions" | "script" | "tests", "cpu_s", "memory_mib", "disk_mib", and what the role reads}, with the
child's descriptors. Report: {"end": "exit" | "signal" | "timeout" | "disk" | "stopped", "code": int, "cpu_s": float,
"note": str}. During a job {"stop": true} ends it, and {"look": true} is answered by how the child fares:
{"elapsed_s", "idle_s", "stopped": by a signal}.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NoReturn

from repirl.sandbox.jail import agent, confine, ending, judging, landlock, scratch, script, wire
from repirl.sandbox.jail.processor import IdleTime, cpu_s, states

CHECK_S = 0.05  # between looks at clock and disk
MAX_NOTE = 1 << 16
FIRST_OWN = 20  # descriptors of the server itself start here
LAST_DESCRIPTOR = 1 << 16
PR_SET_CHILD_SUBREAPER = 36
COMMON = (
    "bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "io", "itertools", "json",
    "math", "operator", "random", "re", "statistics", "string", "typing",
)  # fmt: skip


class Server:
    """One job at a time. trainer: descriptor of the process that started this one."""

    def __init__(self, control: socket.socket, trainer: int) -> None:
        self.control = control
        self.trainer = trainer
        self.pid = os.getpid()
        self.libc = confine.library()
        self.folder = os.path.realpath(tempfile.mkdtemp(prefix="repirl-sandbox-"))
        self.rules: int | None = None
        self.filtered = False

    def prepare(self, bubblewrap: bool) -> confine.Level:
        """Finds out, in a child, which layers hold."""
        missing = []
        if landlock.version(self.libc):
            made = landlock.ruleset(self.libc, [*confine.readable(), (self.folder, landlock.SCRATCH)])
            self.rules = fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, FIRST_OWN)
            os.close(made)
            found = self._probe(filtered=False)
            if found:
                self.rules = None
                missing.append(f"Landlock does not hold here ({found})")
        else:
            missing.append("this kernel has no Landlock (Linux 5.13 or later with it enabled)")
        self.filtered = True
        found = self._probe(filtered=True)
        if found:
            self.filtered = False
            missing.append(f"the seccomp filter does not hold here ({found})")
        level = landlock.version(self.libc) if self.rules is not None else 0
        return confine.Level(level, self.filtered, bubblewrap, tuple(missing))

    def _probe(self, *, filtered: bool) -> str:
        """What a child under the present layers could still do; empty where they hold."""
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                limits = confine.Limits(cpu_s=5, memory_mib=1024, disk_mib=1)
                confine.shut_in(self.libc, limits, self.rules, filtered=filtered)
                files = self.rules is not None
                os.write(write, ("possible: " + ", ".join(confine.breaches(files=files, calls=filtered))).encode())
            except BaseException as error:
                os.write(write, str(error).encode())
            os._exit(0)
        os.close(write)
        with open(read, "rb") as pipe:
            said = pipe.read().decode()
        os.waitpid(pid, 0)
        if not said:
            return "the probe was killed"
        return "" if said == "possible: " else said

    def serve(self) -> None:
        """Until the trainer hangs up or is gone."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(self.trainer, select.POLLIN)
        while self.trainer not in (descriptor for descriptor, _ in poll.poll()):
            try:
                job, descriptors = wire.receive(self.control, 3)
            except wire.Closed:
                return
            if "stop" in job or "look" in job:  # crossed with the report of a job that has ended
                continue
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # read as the end of the socket next
                wire.send(self.control, self.run(job, descriptors))

    def run(self, job: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """One job: fork, watch, clean up, report."""
        if any("numpy" in job.get(part, "") for part in ("setup", "program", "code")):
            with contextlib.suppress(ImportError):  # so that children need not; the program gets the ImportError itself
                __import__("numpy")
        gc.freeze()
        read, write = os.pipe()
        try:
            pid = os.fork()
        except OSError as error:
            for descriptor in (*descriptors, read, write):
                os.close(descriptor)
            return {"failure": f"cannot fork: {error}"}
        if pid == 0:
            self._child(job, [*descriptors, write])
        for descriptor in (*descriptors, write):
            os.close(descriptor)
        end = self._watch(pid, job)
        _, status, used = os.wait4(pid, 0)
        self._clean()
        os.set_blocking(read, False)
        try:
            note = os.read(read, MAX_NOTE)
        except BlockingIOError:
            note = b""
        os.close(read)
        code = os.waitstatus_to_exitcode(status)
        if end == "stopped" and code != -signal.SIGKILL:
            end = "exit"  # it was ending by itself: its pipes close, and the tests report, before it can be waited for
        if end == "exit" and code < 0:
            end, code = "signal", -code
        took = used.ru_utime + used.ru_stime
        return {"end": end, "code": code, "cpu_s": took, "note": note.decode("utf-8", "replace")}

    def _watch(self, pid: int, job: dict[str, Any]) -> str:
        """Waits until the child ends or has to; kills it then."""
        idle = IdleTime(pid)
        handle = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.register(self.control, select.POLLIN)
        poll.register(self.trainer, select.POLLIN)
        end = ""
        try:
            while not end:
                ready = {descriptor for descriptor, _ in poll.poll(CHECK_S * 1000)}
                if handle in ready:
                    return "exit"
                idle.look()
                if self.trainer in ready or (self.control.fileno() in ready and self._told_to_stop(idle)):
                    end = "stopped"
                elif cpu_s(pid) > job["cpu_s"]:
                    end = "timeout"
                elif self._written(pid) > job["disk_mib"] << 20:
                    end = "disk"
            return end
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)

    def _told_to_stop(self, idle: IdleTime) -> bool:
        """Reads one message; answers a look."""
        try:
            message, _ = wire.receive(self.control)
            if "look" in message:
                found = {"elapsed_s": idle.elapsed_s, "idle_s": idle.seconds, "stopped": states(idle.pid) == {"T"}}
                wire.send(self.control, found)
                return False
        except (wire.Closed, BrokenPipeError, ConnectionResetError):
            pass
        return True

    def _written(self, pid: int) -> int:
        """Bytes in the scratch folder and in files that have lost their name but are still open."""
        total = scratch.size(self.folder)
        with contextlib.suppress(OSError):  # the child has just ended
            for name in os.listdir(f"/proc/{pid}/fd"):
                found = os.stat(f"/proc/{pid}/fd/{name}")
                if stat.S_ISREG(found.st_mode) and not found.st_nlink:
                    total += found.st_blocks * 512
        return total

    def _clean(self) -> None:
        """Ends what a child without a seccomp filter may have started, and empties the scratch folder."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, _ = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    for child in _children():
                        os.kill(child, signal.SIGKILL)
                    time.sleep(0.001)
        scratch.empty(self.folder)

    def _child(self, job: dict[str, Any], descriptors: list[int]) -> NoReturn:
        """Order matters: what the program must not have is gone before it starts."""
        try:
            confine.follow_parent(self.libc, self.pid)
            _place(descriptors, job["role"])
            os.chdir(self.folder)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            limits = confine.Limits(job["cpu_s"], job["memory_mib"], job["disk_mib"])
            confine.shut_in(self.libc, limits, self.rules, filtered=self.filtered)
            os.closerange(ending.NOTES + 1, LAST_DESCRIPTOR)
            _ROLES[job["role"]](job)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.write(ending.NOTES, f"{type(error).__name__}: {error}"[:2000].encode())
        finally:
            os._exit(ending.RAISED)


def _children() -> list[int]:
    pid = os.getpid()
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def _place(descriptors: list[int], role: str) -> None:
    """Moves the child's descriptors to their numbers, and standard error to nowhere."""
    wanted = (0, 1, ending.NOTES) if role == "script" else (agent.REQUESTS, agent.REPLIES, ending.NOTES)
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST_OWN) for descriptor in descriptors]
    os.closerange(3, FIRST_OWN)
    for descriptor, number in zip(moved, wanted, strict=True):
        os.dup2(descriptor, number)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)


def _judge(job: dict[str, Any]) -> NoReturn:
    finding = judging.judge(job)
    os.write(ending.NOTES, json.dumps(finding).encode())
    os._exit(0)


_ROLES: dict[str, Callable[[dict[str, Any]], None]] = {
    "functions": lambda job: agent.run_functions(job["setup"], job["program"]),
    "script": lambda job: script.run_script(job["setup"], job["program"]),
    "tests": _judge,
}


def main(control: int, trainer: int, *, bubblewrap: bool) -> None:
    """control, trainer: descriptors of the socket and of the process to follow. Says what level it reached, then serves."""
    libc = confine.library()
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    low = (control, trainer)  # low numbers are for the children's descriptors
    own, followed = (fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST_OWN) for descriptor in low)
    os.close(control)
    os.close(trainer)
    for name in COMMON:
        importlib.import_module(name)
    with socket.socket(fileno=own) as connection:
        server = Server(connection, followed)
        try:
            level = server.prepare(bubblewrap)
            wire.send(connection, {"folder": server.folder, **asdict(level)})
            server.serve()
        except (BrokenPipeError, ConnectionResetError):  # the trainer is gone
            return
        finally:
            shutil.rmtree(server.folder, ignore_errors=True)
