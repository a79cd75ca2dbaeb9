"""What is left behind: after many jobs, after a kill, in forked and loading processes, and as an ordinary user."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.sandbox import EQUAL_TO_ALL, STUB, mixed_jobs
from torch.utils.data import DataLoader, Dataset

import repirl
from repirl.sandbox.jail.processor import processor_s
from repirl.sandbox.pool import Job, Sandbox
from repirl.structs import CodeTests
from tests.processes import alive, children, limited, orphans_adopted, wait_for

INCREMENT = Job("def f(x): return x + 1", CodeTests("asserts", "assert f(1) == 2"), 5.0)
EXPECTED = {
    "passed": "passed", "failed": "failed", "error": "error", "syntax": "error", "exit": "error", "memory": "memory",
    "timeout": "timeout", "files": "passed", "threads": "passed", "output": "output_limit",
}  # fmt: skip


def folders(sandbox: Sandbox) -> list[Path]:
    assert sandbox._pool is not None
    return [Path(server.folder) for slot in sandbox._pool.slots for server in slot.processes()]


def test_nothing_is_left_after_hundreds_of_mixed_jobs():
    sandbox = Sandbox(workers=2, bubblewrap=False)
    sandbox.run_many([INCREMENT] * 8)

    def state() -> tuple[object, ...]:
        pids = sandbox.pids
        return (
            len(os.listdir("/proc/self/fd")),
            [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids],
            [children(pid) for pid in pids],
            [list(folder.iterdir()) for folder in folders(sandbox)],
        )

    before = state()
    jobs = mixed_jobs(300)
    found = sandbox.run_many([job for _, job in jobs])
    assert [result.status for result in found] == [EXPECTED[name] for name, _ in jobs]
    assert state() == before
    used, pids = folders(sandbox), sandbox.pids
    sandbox.close()
    assert not any(folder.exists() for folder in used)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


TRAINER = """
import os, sys
from repirl.structs import CodeTests
from repirl.sandbox.pool import Job, Sandbox
sandbox = Sandbox(workers=2, bubblewrap={layer})
def run(*programs): sandbox.run_many([Job(program, CodeTests("asserts", "pass"), 1000.0) for program in programs])
print("starting", flush=True)
run("0", "1")
if {starting}: sys.stdin.read()
loader = os.fork()  # as a data loader does: a process that lives on, with copies of all descriptors
if not loader:
    sys.stdin.read()
    os._exit(0)
print(loader, *(server.folder for slot in sandbox._pool.slots for server in slot.processes()), flush=True)
if {busy}: run("while True: pass", "import time\\nwhile True: time.sleep(1)")
else: sys.stdin.read()
"""


@pytest.fixture
def adopted() -> Iterator[Callable[[], list[int]]]:
    with orphans_adopted() as living:
        yield living


@pytest.mark.parametrize("layer", [False, None], ids=["alone", "in bubblewrap where it works"])
@pytest.mark.parametrize("moment", ["starting", "starting, later", "idle", "busy", "busy, again"])
def test_a_trainer_killed_with_9_leaves_nothing(adopted, moment, layer):
    code = TRAINER.replace("{layer}", str(layer)).replace("{busy}", str("busy" in moment))
    code = code.replace("{starting}", str("starting" in moment))  # has no loader, however far it got
    environment = {**os.environ, "PYTHONPATH": str(Path(repirl.__file__).parents[1])}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    trainer = subprocess.Popen([sys.executable, "-c", code], text=True, env=environment, **pipes)
    with limited(trainer):
        assert trainer.stdin is not None
        assert trainer.stdout is not None
        trainer.stdout.readline()
        loader, left = "", []
        if "starting" in moment:
            assert wait_for(lambda: len(adopted()) > 1)
            time.sleep(0.2 * ("later" in moment))
        else:
            loader, *left = trainer.stdout.readline().split()
            # Trainer, loader, two servers for each of two slots. bubblewrap, whose folders nobody knows, has two more.
            idle = 6 + 2 * left.count("None")
            assert wait_for(lambda: len(adopted()) == idle + 4 * ("busy" in moment)), adopted()
        trainer.kill()
        trainer.wait(60)
        # Waits far longer than a minute only where a starting server gets no processor: it notices at its first words.
        assert wait_for(lambda: [str(pid) for pid in adopted()] == [loader] * bool(loader)), adopted()
        assert wait_for(lambda: not any(Path(folder).exists() for folder in left if folder != "None"))
        trainer.stdin.close()
    assert wait_for(lambda: not adopted())


def test_a_killed_server_takes_its_program_along():
    sandbox = Sandbox(workers=1, bubblewrap=False)
    sandbox.run(INCREMENT)
    server = sandbox.pids[0]
    thread = threading.Thread(target=lambda: sandbox.run(Job("while True: pass", INCREMENT.tests, 2.0)))
    thread.start()
    assert wait_for(lambda: bool(children(server)))
    (program,) = children(server)
    os.kill(server, signal.SIGKILL)
    assert wait_for(lambda: not alive(program))
    thread.join(120)
    assert not thread.is_alive()
    sandbox.close()


# Servers that stop ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", [0, 1], ids=["of programs", "of tests"])
@pytest.mark.parametrize("padding", [0, 1 << 20], ids=["a small job", "a job larger than the socket's buffer"])
def test_a_frozen_server_is_replaced_and_the_job_asked_again(server, padding):
    sandbox = Sandbox(workers=1, bubblewrap=False)
    for program, status in (("def f(x): return x + 1", "passed"), ("def f(x): return x", "failed")):
        sandbox.run(INCREMENT)
        before = sandbox.pids
        os.kill(before[server], signal.SIGSTOP)
        tests = CodeTests("asserts", f"assert f(1) == 2  #{'x' * padding}")
        found = sandbox.run(Job(f"{program}  #{'x' * padding}", tests, 5.0))
        assert found.status == status
        assert not set(before) & set(sandbox.pids)
        assert not any(map(alive, before))
    sandbox.close()


def test_a_server_frozen_at_work_is_replaced_too():
    sandbox = Sandbox(workers=1, bubblewrap=False)
    sandbox.run(INCREMENT)
    server = sandbox.pids[0]
    slow = "import time\nwhile time.process_time() < 1: pass\ndef f(x): return x + 1"
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(sandbox.run(Job(slow, INCREMENT.tests, 5.0)).status))
    thread.start()
    assert wait_for(lambda: bool(children(server)))
    os.kill(server, signal.SIGSTOP)
    thread.join(120)
    assert found == ["passed"]
    assert server not in sandbox.pids
    sandbox.close()


def test_tests_that_are_stopped_are_no_verdict_on_the_program():
    """A process of tests stops only by somebody else's hand: stopped twice, it is an infrastructure error."""
    sandbox = Sandbox(workers=1, bubblewrap=False)
    sandbox.run(INCREMENT)
    slow = CodeTests("asserts", "import time\nwhile time.process_time() < 2: pass\nassert f(1) == 2")
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(sandbox.run(Job(INCREMENT.program, slow, 1.0)).status))
    thread.start()
    stopped: set[int] = set()
    while thread.is_alive():
        for pid in sandbox.pids[1:]:
            for child in children(pid):
                if processor_s(child)[0] > 0.3:  # the tests at work, and not what a server tries out when it starts
                    os.kill(child, signal.SIGSTOP)
                    stopped.add(child)
        time.sleep(0.05)
    assert len(stopped) >= 2
    assert found == ["infra_error"]
    assert sandbox.run(INCREMENT).passed is True
    sandbox.close()


INTERRUPTED = """
import os, signal, sys
from repirl.structs import CodeTests
from repirl.sandbox.pool import Job, Sandbox
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have ignored it
sandbox = Sandbox(workers=2, bubblewrap=False)
jobs = [Job("import time\\n{body}", CodeTests("asserts", "pass"), 10000.0)] * {count}
sandbox.run_many([Job("0", CodeTests("asserts", "pass"), 1.0)] * 4)
if {frozen}:
    for pid in sandbox.pids: os.kill(pid, signal.SIGSTOP)
print("at work", flush=True)
try:
    sandbox.run_many(jobs)
except KeyboardInterrupt:
    print("interrupted", sandbox.run(Job("0", CodeTests("asserts", "pass"), 1.0)).status, flush=True)
    sandbox.close()
"""


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("body", ["while True: pass", "time.sleep(10**6)"])
@pytest.mark.parametrize("count", [1, 5])
def test_ctrl_c_ends_the_wait(adopted, frozen, body, count):
    code = INTERRUPTED.replace("{frozen}", str(frozen)).replace("{body}", body).replace("{count}", str(count))
    environment = {**os.environ, "PYTHONPATH": str(Path(repirl.__file__).parents[1])}
    trainer = subprocess.Popen([sys.executable, "-c", code], text=True, env=environment, stdout=subprocess.PIPE)
    with limited(trainer):
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "at work\n"
        time.sleep(0.5)  # so that it waits; an earlier signal ends it as well
        trainer.send_signal(signal.SIGINT)
        assert trainer.stdout.readline() == "interrupted passed\n"
        assert trainer.wait(120) == 0
    assert wait_for(lambda: not adopted())


class Judged(Dataset):
    """Runs a job an item, wherever it is loaded."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[int, bool, list[int]]:
        job = Job(f"def f(x): return x + {index % 2}", INCREMENT.tests, 5.0)
        return index, self.sandbox.run(job).passed is True, self.sandbox.pids


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_in_loading_processes(context):
    sandbox = Sandbox(workers=1, bubblewrap=False)
    assert sandbox.run(INCREMENT).passed is True
    own = set(sandbox.pids)
    loader = DataLoader(Judged(sandbox), 1, num_workers=2, multiprocessing_context=context, collate_fn=lambda x: x[0])
    if context == "spawn":
        loader = DataLoader(Judged(sandbox), None, num_workers=2, multiprocessing_context=context)
    found = list(loader)
    assert [(index, right) for index, right, _ in found] == [(index, index % 2 == 1) for index in range(8)]
    used = {pid for _, _, pids in found for pid in pids}
    assert len(used) == 4
    assert not used & own
    assert sandbox.run(INCREMENT).passed is True
    assert set(sandbox.pids) == own
    del loader
    assert wait_for(lambda: not any(map(alive, used)))
    sandbox.close()


def test_no_warning_of_forking_with_threads():
    """Servers start by exec: no copy of a process that has threads is ever made."""
    code = (
        "import os, threading, time\n"
        "os.register_at_fork(before=lambda: os._exit(9))\n"
        "threading.Thread(target=time.sleep, args=(1,)).start()\n"
        "from repirl.sandbox.pool import run\n"
        "assert run('def f(x): return x', 'assert f(1) == 1', 5.0).passed\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(repirl.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=120).returncode == 0


ORDINARY = """
import os, sys
from repirl.data.benchmarks import Benchmark
from repirl.data.code import fenced
from repirl.structs import CodeTests
from repirl.verifiers.code import CodeVerifier
from repirl.sandbox.pool import Job
assert os.getuid() != 0 or not {drops}
verifier = CodeVerifier(workers=1, bubblewrap={layer})
tests = CodeTests("asserts", "assert f(2) == 4")
programs = ["def f(x): return x * x", "def f(x): return x", "import os\\nos.fork()", "open('/etc/passwd')",
            "import os\\nos.kill(os.getppid(), 9)", "def f(x):\\n    open('a', 'w').write('x')\\n    return x * x"]
print([verifier.sandbox.run(Job(program, tests, 5.0)).status for program in programs])
problems = Benchmark("humaneval", path="{sample}").load()
for program in ("", {stub}, {equal}):
    responses = [fenced(program.format(name=problem.tests.entry_point)) if program else problem.solutions[0]
                 for problem in problems]
    print([verdict.correct for verdict in verifier.verify(problems, responses)])
print(bool(verifier.sandbox._pool.slots[0].level.bubblewrap))
verifier.close()
"""
PATH = "/usr/bin:/bin"
NAMESPACES = "--dev /dev --proc /proc --tmpfs /tmp --unshare-ipc --unshare-pid --unshare-net --unshare-uts"
HUMANEVAL = Path(__file__).parents[1] / "verifiers" / "humaneval_sample.jsonl"


@pytest.mark.parametrize("layer", [False, None], ids=["alone", "in bubblewrap where it works"])
def test_as_an_ordinary_user(tmp_path, layer):
    """As `nobody` where the tests run as root; the interpreter is copied if that user cannot read it."""
    drops = os.getuid() == 0
    python, source = sys.executable, Path(repirl.__file__).parents[1]
    more: dict[str, object] = {}
    if drops:
        more = {"user": "nobody", "group": 65534, "extra_groups": []}
        place = Path(tempfile.mkdtemp())  # not below pytest's own folders, which are root's alone
        try:
            place.chmod(0o755)
            python, source = _readable_copy(place)
            found = _run_as(python, source, drops, layer, place, more)
            held = layer is None and _bubblewrap_works(more)
        finally:
            shutil.rmtree(place)
    else:
        found = _run_as(python, source, drops, layer, tmp_path, more)
        held = layer is None and _bubblewrap_works(more)
    assert found.returncode == 0, found.stderr
    attempts, *sets, bubblewrap = found.stdout.splitlines()
    assert attempts == "['passed', 'failed', 'error', 'error', 'error', 'passed']", found.stderr
    # Canonical solutions; `return None`; objects that are equal to everything.
    assert sets == [str([right] * 10) for right in (True, False, False)], found.stderr
    assert bubblewrap == str(held), found.stderr


def _bubblewrap_works(more: dict[str, object]) -> bool:
    """For that user, with any program: the interpreter's own place, below /tmp here, must not be what stops it."""
    program = shutil.which("bwrap", path=PATH)
    if program is None:
        return False
    command = [program, "--ro-bind", "/", "/", "--unshare-user-try", *NAMESPACES.split(), "/bin/true"]
    return subprocess.run(command, timeout=60, cwd="/", **more).returncode == 0


def _run_as(python: str, source: Path, drops: bool, layer: bool | None, folder: Path, more: dict[str, object]):
    environment = {
        "PATH": PATH,
        "PYTHONPATH": str(source),
        "LD_LIBRARY_PATH": str(Path(python).parents[1] / "lib"),
    }
    shutil.copy(HUMANEVAL, folder / "sample.jsonl")
    code = ORDINARY.replace("{drops}", str(drops)).replace("{layer}", str(layer)).replace("{sample}", "sample.jsonl")
    code = code.replace("{stub}", repr(STUB)).replace("{equal}", repr(EQUAL_TO_ALL))
    return subprocess.run(
        [python, "-B", "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, **more
    )


def _readable_copy(place: Path) -> tuple[str, Path]:
    """Interpreter, standard library and package, for everybody to read."""
    base = Path(sys.base_prefix)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    ignore = shutil.ignore_patterns(
        "site-packages", "dist-packages", "test", "tests", "idlelib", "ensurepip", "__pycache__", "config-*", "*.a"
    )
    shutil.copytree(base / "lib" / version, place / "lib" / version, ignore=ignore)
    for library in base.glob("lib/libpython*.so*"):
        shutil.copy2(library, place / "lib")
    (place / "bin").mkdir()
    shutil.copy2(os.path.realpath(sys.executable), place / "bin" / version)
    shutil.copytree(
        Path(repirl.__file__).parent, place / "src" / "repirl", ignore=shutil.ignore_patterns("__pycache__")
    )
    return str(place / "bin" / version), place / "src"
