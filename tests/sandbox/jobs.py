"""Jobs for the sandbox, one function for each kind of tests."""

from repirl.sandbox.pool import Job
from repirl.structs import CodeTests

INCREMENT = "def f(x):\n    return x + 1\n"


def asserts(program: str, tests: str, timeout_s: float = 10.0, **more: str) -> Job:
    return Job(program, CodeTests("asserts", tests, **more), timeout_s)


def stdio(program: str, *pairs: tuple[str, str]) -> Job:
    return Job(program, CodeTests("stdio", pairs=pairs), 10.0)


def calls(program: str, entry_point: str, *pairs: tuple[str, str], setup: str = "") -> Job:
    return Job(program, CodeTests("calls", pairs=pairs, entry_point=entry_point, setup=setup), 10.0)
