"""Programs judged by a SandboxFusion-compatible service over HTTP: for systems without Landlock and seccomp.

Request: POST {url}/run_code with `code`, `language`, `stdin`, `run_timeout`. Reply: `status` (Success, Failed or
SandboxError) and `run_result` with `status` (Finished, Error or TimeLimitExceeded), `return_code`, `stdout`, `stderr`.

The confinement is the service's. Outputs and return values are compared here, so that the expected ones never leave this
machine. Assert scripts cannot be split from the program over this interface: see `allow_weaker`.
"""

from __future__ import annotations

import http.client
import json
import logging
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from repirl.sandbox.output import same_output
from repirl.sandbox.verdict import Job, Result, result

logger = logging.getLogger(__name__)

MAX_REPLY = 64 << 20
_GRACE_S = 60.0  # beyond a program's own time: the service's queue
_OURS = (400, 401, 403, 404, 405, 422)  # refusals that a retry does not change: address, key or interface are wrong

_CALLS = """
def _repirl_calls():
    import json, sys
    target = {head}
    target = getattr(target(), {method!r}) if {method!r} else target
    found = [target(*arguments) for arguments in json.loads(sys.stdin.read())]
    print({mark!r} + json.dumps(found), flush=True)
_repirl_calls()
"""


class ServiceError(Exception):
    """The service failed or cannot be reached."""


class ServiceSandbox:
    """As `Sandbox`, on a service.

    url: where the service is, without `/run_code`. concurrency: requests at a time. retries: of a request that the service
    failed, each after twice the pause. allow_weaker: judge assert scripts too. Program and tests then share one
    interpreter on the service, and a hostile program can make itself pass.
    """

    def __init__(
        self, url: str, concurrency: int = 8, retries: int = 3, pause_s: float = 0.5, allow_weaker: bool = False
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"service_url={url!r} must start with http:// or https://")
        if concurrency < 1 or retries < 0 or pause_s < 0:
            raise ValueError(
                f"need concurrency={concurrency} of 1 or more, retries={retries}, pause_s={pause_s} not negative"
            )
        self.address = url.rstrip("/") + "/run_code"
        self.concurrency = concurrency
        self.retries = retries
        self.pause_s = pause_s
        self.allow_weaker = allow_weaker

    def run_many(self, jobs: Sequence[Job]) -> list[Result]:
        """One result a job, in order; a failure of the service is `infra_error`.

        Raises ValueError for assert scripts without `allow_weaker`, RuntimeError for a refusal that a retry cannot change.
        """
        if not self.allow_weaker and any(job.tests.kind == "asserts" for job in jobs):
            raise ValueError(
                "assert scripts would share an interpreter with the program on the service, which can then make itself "
                "pass: use tests of kind 'calls' or 'stdio', judge on Linux, or accept it with `allow_weaker: true`"
            )
        if not jobs:
            return []
        with ThreadPoolExecutor(min(self.concurrency, len(jobs)), thread_name_prefix="sandbox-service") as executor:
            return list(executor.map(self._run, jobs))

    def close(self) -> None:
        """Nothing to end."""

    def _run(self, job: Job) -> Result:
        try:
            return {"asserts": self._asserts, "calls": self._calls, "stdio": self._stdio}[job.tests.kind](job)
        except ServiceError as error:
            return result("infra_error", str(error))

    def _asserts(self, job: Job) -> Result:
        mark = secrets.token_hex(16)
        tests = job.tests
        code = "\n".join([tests.setup, job.program, tests.code, f"print({mark!r}, flush=True)"])
        fault, output = self._ask(code, "", job.timeout_s)
        if fault is not None:
            return result("failed", fault.detail) if "AssertionError" in fault.detail else fault
        return result("passed") if output.rstrip().endswith(mark) else result("error", "ended before its tests did")

    def _calls(self, job: Job) -> Result:
        mark = secrets.token_hex(16)
        head, _, method = (job.tests.entry_point or "").partition(".")
        driver = _CALLS.format(head=head.removesuffix("()"), method=method, mark=mark)
        try:
            pairs = [(json.loads(given), json.loads(expected)) for given, expected in job.tests.pairs]
        except ValueError as error:
            return result("infra_error", f"the tests cannot be run: {error}")
        code = "\n".join([job.tests.setup, job.program, driver])
        fault, output = self._ask(code, json.dumps([given for given, _ in pairs]), job.timeout_s)
        if fault is not None:
            return fault
        _, found, values = output.rpartition(mark)
        try:
            returned = json.loads(values) if found else None
        except (ValueError, RecursionError):
            returned = None
        if type(returned) is not list or len(returned) != len(pairs):
            return result("error", "the program ended before its tests did")
        for number, (value, (_, expected)) in enumerate(zip(returned, pairs, strict=True)):
            if value != expected:
                return result("failed", f"call {number}: found {value!r:.200}")
        return result("passed")

    def _stdio(self, job: Job) -> Result:
        code = "\n".join([job.tests.setup, job.program]) if job.tests.setup else job.program
        for number, (given, expected) in enumerate(job.tests.pairs):
            fault, output = self._ask(code, given, job.timeout_s)
            if fault is not None:
                return result(fault.status, f"input {number}: {fault.detail}")
            if not same_output(output, expected):
                return result("failed", f"input {number}: printed {output[:200]!r}")
        return result("passed")

    def _ask(self, code: str, stdin: str, timeout_s: float) -> tuple[Result | None, str]:
        """What is wrong with the run, or None, and what was printed. Raises ServiceError."""
        request = {"code": code, "language": "python", "stdin": stdin, "run_timeout": timeout_s}
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.pause_s * 2 ** (attempt - 1))
            try:
                return self._outcome(self._post(request, timeout_s))
            except ServiceError as error:
                failure = error
                logger.warning("sandbox service failed (%s) on try %d of %d", error, attempt + 1, self.retries + 1)
        raise failure

    def _post(self, request: dict[str, Any], timeout_s: float) -> Any:
        body = json.dumps(request).encode()
        call = urllib.request.Request(self.address, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(call, timeout=timeout_s + _GRACE_S) as reply:
                content = reply.read(MAX_REPLY + 1)
        except urllib.error.HTTPError as error:
            if error.code in _OURS:
                raise RuntimeError(f"{self.address} refuses: HTTP {error.code}. Check `service_url`") from error
            raise ServiceError(f"{self.address}: HTTP {error.code}") from error
        except (OSError, http.client.HTTPException) as error:
            raise ServiceError(f"{self.address}: {error}") from error
        if len(content) > MAX_REPLY:
            return {"status": "Success", "run_result": {"status": "TooLong"}}
        try:
            return json.loads(content)
        except ValueError as error:
            raise ServiceError(f"{self.address}: the reply is not JSON") from error

    def _outcome(self, reply: Any) -> tuple[Result | None, str]:
        try:
            status, run = reply["status"], reply["run_result"]
            if status == "SandboxError" or run is None:
                raise ServiceError(f"{self.address}: {reply.get('message') or status}")
            ended = run["status"]
            if ended == "TooLong":
                return result("output_limit", f"a reply of more than {MAX_REPLY >> 20} MiB"), ""
            if ended == "TimeLimitExceeded":
                return result("timeout", "the service's time limit"), ""
            if ended == "Finished" and run["return_code"] == 0:
                return None, str(run["stdout"])
            words = str(run.get("stderr") or f"ended with exit status {run['return_code']}").strip()
            last = words.split("\n")[-1][:1000]
            return result("memory" if last.startswith("MemoryError") else "error", last), ""
        except (KeyError, TypeError, AttributeError) as error:
            raise ServiceError(f"{self.address}: a reply without {error}") from error
