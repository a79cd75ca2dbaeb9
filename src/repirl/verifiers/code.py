"""Judges programs: a response and a problem's tests go in, a `Verdict` comes out."""

from __future__ import annotations

import builtins
import re
import sys
from collections.abc import Collection, Sequence
from functools import lru_cache

from repirl.sandbox.jail import calls
from repirl.sandbox.jail.judging import free_names
from repirl.sandbox.pool import Budget, Job, Sandbox
from repirl.sandbox.service import ServiceSandbox
from repirl.structs import CodeTests, Problem, Verdict, Verifier
from repirl.verifiers.blocks import blocks, defines, program_block

# Where a completion of a function ends: the stop strings of the Codex paper (Chen et al. 2021).
_STOPS = re.compile(r"\n(?:class|def|#|if|print)")

_FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)


class CodeVerifier(Verifier):
    """A `Verifier` for programs. Any thread may call it; processes start with the first program.

    timeout_s: CPU seconds of a program, for `stdio` of each run. workers, budget, allow_weaker, bubblewrap: of `Sandbox`.
    service_url: judge on a SandboxFusion-compatible service instead, with `workers` requests at a time.
    """

    def __init__(
        self,
        timeout_s: float = 5.0,
        workers: int | None = None,
        budget: Budget | None = None,
        allow_weaker: bool = False,
        bubblewrap: bool | None = None,
        service_url: str | None = None,
    ) -> None:
        if not timeout_s > 0:
            raise ValueError(f"timeout_s={timeout_s} must be above 0")
        self.timeout_s = timeout_s
        self.sandbox: Sandbox | ServiceSandbox
        if service_url is None:
            self.sandbox = Sandbox(workers, budget, allow_weaker, bubblewrap)
        else:
            self.sandbox = ServiceSandbox(service_url, workers or 8, allow_weaker=allow_weaker)

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """One verdict a pair. Raises ValueError for a problem without tests."""
        jobs: list[Job | None] = []
        for problem, response in zip(problems, responses, strict=True):
            if problem.tests is None:
                raise ValueError(
                    f"problem {problem.id!r} has no tests to verify against: add `tests`, or leave the verifier out"
                )
            program = program_of(response, problem.tests)
            jobs.append(None if program is None else Job(program, problem.tests, self.timeout_s))
        distinct = list(dict.fromkeys(job for job in jobs if job is not None))
        results = dict(zip(distinct, self.sandbox.run_many(distinct), strict=True))
        return [
            Verdict(False, "no_answer") if job is None else Verdict(results[job].passed, results[job].status)
            for job in jobs
        ]

    def close(self) -> None:
        """Ends the processes; safe to call twice."""
        self.sandbox.close()


def extract_code(response: str, names: Collection[str] = ()) -> str | None:
    """The program in a response; the whole response where it has no fence; None where there is none.

    names: what the program has to define, where that is known: of several blocks it is then the last that does.
    """
    found = blocks(response)
    if not found:
        return response if response.strip() else None
    return program_block(found, names)


def program_of(response: str, tests: CodeTests) -> str | None:
    """The program that a response stands for; None where there is none.

    With a `prefix`: code that defines `entry_point` itself follows the prefix, whose imports and helpers it so has; other
    code continues it, up to the first line that starts something new.
    """
    code = extract_code(response, asked_for(tests))
    if code is None or not tests.prefix:
        return code
    if tests.entry_point is not None and defines(code, calls.head(tests.entry_point)):
        future = "".join(line + "\n" for line in _FUTURE.findall(code))  # must come before anything else
        return f"{future}{tests.prefix}\n\n{_FUTURE.sub('', code)}"
    return tests.prefix + _STOPS.split(code, maxsplit=1)[0]


@lru_cache(maxsize=10_000)
def asked_for(tests: CodeTests) -> frozenset[str]:
    """Global names by which the tests find the program's part; none for `stdio`."""
    if tests.kind == "calls":
        return frozenset(calls.wanted(tests.entry_point or ""))
    if tests.entry_point:
        return frozenset((calls.head(tests.entry_point),))
    try:
        return frozenset(free_names(tests.code) - set(dir(builtins)) - sys.stdlib_module_names)
    except SyntaxError:  # the sandbox says so
        return frozenset()
