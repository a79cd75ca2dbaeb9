"""The client of a service, against a real HTTP server that runs programs in processes of its own."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from repirl.sandbox.service import ServiceSandbox
from repirl.sandbox.verdict import Job
from repirl.structs import CodeTests, Problem
from repirl.verifiers.code import CodeVerifier

SQUARE = "def f(x): return x * x"
CALLS = CodeTests("calls", pairs=(("[3]", "9"), ("[-1]", "1")), entry_point="f")
STDIO = CodeTests("stdio", pairs=(("3", "9"), ("4", "16")))


class Service(ThreadingHTTPServer):
    """Runs `python -I` on what it is sent. failures: how many requests it refuses first, and how."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.failures: list[object] = []
        self.requests: list[dict[str, object]] = []
        self.running = self.most = 0
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(request)
            failure = self.server.failures.pop(0) if self.server.failures else None
        if self.path != "/run_code":
            self._send(404, b"{}")
        elif isinstance(failure, int):
            self._send(failure, b"busy")
        elif failure == "hang up":
            self.connection.close()
        elif isinstance(failure, bytes):
            self._send(200, failure)
        else:
            self._send(200, json.dumps(self._counted(request)).encode())

    def _counted(self, request: dict[str, str]) -> dict[str, object]:
        """Runs it; counted as running until just before the answer, after which the client may ask again."""
        with self.server.lock:
            self.server.running += 1
            self.server.most = max(self.server.most, self.server.running)
        try:
            return self._run(request)
        finally:
            with self.server.lock:
                self.server.running -= 1

    def _run(self, request: dict[str, str]) -> dict[str, object]:
        assert request["language"] == "python"
        try:
            found = subprocess.run(
                [sys.executable, "-I", "-c", request["code"]],
                input=request["stdin"], capture_output=True, text=True, timeout=float(request["run_timeout"]),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {
                "status": "Failed",
                "message": "",
                "run_result": {"status": "TimeLimitExceeded", "return_code": None},
            }
        run = {"status": "Finished", "return_code": found.returncode, "stdout": found.stdout, "stderr": found.stderr}
        return {"status": "Failed" if found.returncode else "Success", "message": "", "run_result": run}

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    server = Service()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def statuses(service: Service, *jobs: Job, **settings: object) -> list[str]:
    return [found.status for found in ServiceSandbox(service.url, pause_s=0.01, **settings).run_many(jobs)]


def test_calls_and_stdio(service):
    jobs = [
        Job(SQUARE, CALLS, 20.0),
        Job("def f(x): return x + 6", CALLS, 20.0),
        Job("def f(x): return 1 / 0", CALLS, 20.0),
        Job("def f(x): return x * x\nprint('noise')", CALLS, 20.0),
        Job("print(int(input()) ** 2)", STDIO, 20.0),
        Job("print(9)", STDIO, 20.0),
        Job("while True: pass", CALLS, 0.5),
        Job("raise MemoryError", CALLS, 20.0),
        Job("import os; os._exit(0)", CALLS, 20.0),
    ]
    expected = ["passed", "failed", "error", "passed", "passed", "failed", "timeout", "memory", "error"]
    assert statuses(service, *jobs, concurrency=2) == expected
    assert service.most == 2


def test_expected_values_are_not_sent(service):
    tests = CodeTests("calls", pairs=(("[3]", '"a secret"'),), entry_point="f")
    assert statuses(service, Job("def f(x): return open(__file__).read()", tests, 20.0)) == ["error"]
    assert "secret" not in json.dumps(service.requests)


def test_objects_equal_to_everything_do_not_pass(service):
    program = "class E(int):\n    def __eq__(self, o): return True\n    __hash__ = None\ndef f(x): return E(0)"
    assert statuses(service, Job(program, CALLS, 20.0)) == ["failed"]


def test_methods(service):
    tests = CodeTests("calls", pairs=(("[3]", "9"),), entry_point="Solution.f")
    assert statuses(service, Job("class Solution:\n    def f(self, x): return x * x", tests, 20.0)) == ["passed"]


def test_assert_scripts_only_on_request(service):
    right = Job(SQUARE, CodeTests("asserts", "assert f(3) == 9"), 20.0)
    wrong = Job("def f(x): return 8", CodeTests("asserts", "assert f(3) == 9"), 20.0)
    leaves = Job("import os; os._exit(0)", CodeTests("asserts", "assert f(3) == 9"), 20.0)
    with pytest.raises(ValueError, match="allow_weaker"):
        statuses(service, right)
    assert statuses(service, right, wrong, leaves, allow_weaker=True) == ["passed", "failed", "error"]


@pytest.mark.parametrize(
    "failure", [503, 429, 500, "hang up", b"no JSON", b"[]", b'{"status": "SandboxError", "run_result": null}']
)
def test_a_failure_of_the_service_is_tried_again_then_masked(service, failure):
    service.failures = [failure] * 2
    assert statuses(service, Job(SQUARE, CALLS, 20.0), retries=2) == ["passed"]
    assert len(service.requests) == 3
    service.failures = [failure] * 3
    found = ServiceSandbox(service.url, retries=2, pause_s=0.01).run_many([Job(SQUARE, CALLS, 20.0)])[0]
    assert (found.passed, found.status) == (None, "infra_error")


def test_nobody_there_is_masked():
    found = ServiceSandbox("http://127.0.0.1:9", retries=1, pause_s=0.01).run_many([Job(SQUARE, CALLS, 1.0)])[0]
    assert (found.passed, found.status) == (None, "infra_error")


def test_pauses_grow(service):
    service.failures = [503] * 3
    started = time.monotonic()
    ServiceSandbox(service.url, retries=3, pause_s=0.1).run_many([Job(SQUARE, CALLS, 20.0)])
    assert time.monotonic() - started >= 0.1 + 0.2 + 0.4


def test_a_wrong_address_is_said(service):
    with pytest.raises(RuntimeError, match=r"HTTP 404.*service_url"):
        ServiceSandbox(service.url + "/v2").run_many([Job(SQUARE, CALLS, 20.0)])
    with pytest.raises(ValueError, match="http"):
        ServiceSandbox("localhost:8080")


def test_the_verifier_uses_it(service):
    verifier = CodeVerifier(timeout_s=20.0, service_url=service.url)
    problems = [Problem("p", "Square.", tests=CALLS)] * 2
    found = verifier.verify(problems, ["```python\ndef f(x): return x * x\n```", "def f(x): return x"])
    assert [verdict.status for verdict in found] == ["passed", "failed"]
    verifier.close()
