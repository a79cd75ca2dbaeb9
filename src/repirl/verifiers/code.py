"""Judges programs: a response and a problem's tests go in, a `Verdict` comes out."""

from __future__ import annotations

import re
from collections.abc import Sequence

from repirl.structs import CodeTests, Problem, Verdict, Verifier
from repirl.verifiers.sandbox import Budget, Job, Sandbox
from repirl.verifiers.sandbox_service import ServiceSandbox

_PYTHON = {"", "python", "python3", "py"}
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


def extract_code(response: str) -> str | None:
    """The last fenced block of Python or of no language; the whole response where there is no fence; None if empty.

    A block that the response does not close ends with it.
    """
    blocks: list[tuple[str, list[str]]] = []
    fence = ""
    for line in response.split("\n"):
        mark = line.strip()
        if fence:
            if mark == fence:
                fence = ""
            else:
                blocks[-1][1].append(line)
        elif mark.startswith(("```", "~~~")):
            fence = mark[:3]
            blocks.append((mark[3:].strip().lower(), []))
    if not blocks:
        return response if response.strip() else None
    python = [lines for language, lines in blocks if language in _PYTHON and "".join(lines).strip()]
    return "\n".join(python[-1]) if python else None


def program_of(response: str, tests: CodeTests) -> str | None:
    """The program that a response stands for; None where there is none.

    With a `prefix`: code that defines `entry_point` itself follows the prefix, whose imports and helpers it so has; other
    code continues it, up to the first line that starts something new.
    """
    code = extract_code(response)
    if code is None or not tests.prefix:
        return code
    if tests.entry_point is not None and _defines(code, tests.entry_point.partition(".")[0].removesuffix("()")):
        future = "".join(line + "\n" for line in _FUTURE.findall(code))  # must come before anything else
        return f"{future}{tests.prefix}\n\n{_FUTURE.sub('', code)}"
    return tests.prefix + _STOPS.split(code, maxsplit=1)[0]


def _defines(code: str, name: str) -> bool:
    """Whether the code gives a global of this name, by the look of it: nothing of a model is parsed in this process."""
    definition = rf"^(?:(?:async +)?def +{re.escape(name)}\b|class +{re.escape(name)}\b|{re.escape(name)} *(?::.*)?=)"
    return re.search(definition, code, re.MULTILINE) is not None
