"""What came of a program: the reports on its process and on that of its tests, read as a verdict."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from typing import Any, Literal

from repirl.sandbox.jail import ending
from repirl.structs import CodeTests

Status = Literal["passed", "failed", "error", "timeout", "memory", "output_limit", "disk_limit", "infra_error"]

_EXITS: dict[int, Status] = {ending.OUT_OF_MEMORY: "memory", ending.TOO_MUCH_WRITTEN: "disk_limit"}


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


def result(status: Status, detail: str = "", cpu_s: float = 0.0) -> Result:
    """A result whose `passed` follows from its status."""
    return Result({"passed": True, "infra_error": None}.get(status, False), status, detail, cpu_s)


def idle(cpu_s: float) -> Result:
    """The result of a program that waits for nothing that comes."""
    return result("timeout", "too long without work", cpu_s)


def fault(ran: dict[str, Any], timeout_s: float) -> Result | None:
    """What is wrong with a program by its server's report alone; None for a plain end in time."""
    end, code, used, note = ran["end"], int(ran["code"]), float(ran["cpu_s"]), str(ran["note"])
    if end == "timeout" or used > timeout_s or (end == "signal" and code == signal.SIGXCPU):
        return result("timeout", f"more than {timeout_s:g} s of CPU time", used)
    if end == "disk":
        return result("disk_limit", "wrote too much", used)
    if end == "exit" and code in _EXITS:
        return result(_EXITS[code], note, used)
    if end == "signal":
        return result("error", f"ended by signal {code}", used)
    if end == "exit" and code != 0:
        return result("error", note or f"ended with exit status {code}", used)
    return None


def decide(ran: dict[str, Any], judged: dict[str, Any], timeout_s: float) -> Result:
    """The verdict, from the reports on the program's process and on the tests' process.

    Tests are stopped before their end only where program and tests were both idle for too long.
    """
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
    if judged["end"] == "stopped":
        return idle(used)
    # The tests ran on values of the program, and it is these that were too much for them.
    if judged["end"] == "timeout" or (judged["end"] == "signal" and judged["code"] == signal.SIGXCPU):
        own = fault(ran, timeout_s)
        return own if own is not None else result("timeout", "the tests took too long on what it returned", used)
    return result(
        "error", f"the tests broke on what it returned: {judged['end']} {judged['code']} {judged['note']}", used
    )
