"""Limits of programs: what they print and write, how long they work, and how long they may do nothing."""

from collections.abc import Iterator

import pytest

from repirl.sandbox.pool import Budget, Job, Sandbox
from repirl.structs import CodeTests
from tests.sandbox.jobs import INCREMENT, asserts, stdio


def test_many_files_are_too_much():
    small = Sandbox(workers=1, budget=Budget(disk_mib=2))
    program = "import time\nfor i in range(8): open(str(i), 'wb').write(bytes(1 << 20))\ntime.sleep(5)"
    assert small.run(asserts(program, "assert f(1) == 2")).status == "disk_limit"
    small.close()


def test_printing_too_much():
    small = Sandbox(workers=1, budget=Budget(output_mib=1))
    found = small.run(stdio("print('x' * (2 << 20))\nwhile True: print('x')", ("", "")))
    assert found.status == "output_limit"
    assert small.run(stdio("print(1)", ("", "1"))).status == "passed"
    small.close()


IDLE = {
    "sleeping": "import time\ntime.sleep(10**6)",
    "sleeping on": "import time\nwhile True:\n    try: time.sleep(10**6)\n    except BaseException: pass",
    "sleeping in small bits": "import time\nwhile True: time.sleep(0.001)",
    "waiting for an event": "import threading\nthreading.Event().wait()",
    "in a deadlock": "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()",
    "waiting for a thread that waits": "import threading\nt = threading.Thread(target=threading.Event().wait)\n"
    "t.start()\nt.join()",
    "selecting": "import select\nselect.select([], [], [])",
    "polling": "import select\nselect.poll().poll()",
    "reading from nobody": "import os\nend, _ = os.pipe()\nos.read(end, 1)",
    "pausing": "import signal\nsignal.pause()",
    "stopped": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "swallowing": "import os, signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\nwhile True:\n    try: time.sleep(1)\n    except: pass",
    "an event loop": "import asyncio\nasyncio.run(asyncio.Event().wait())",
}


@pytest.fixture(scope="module")
def hasty() -> Iterator[Sandbox]:
    made = Sandbox(workers=5, budget=Budget(wall_factor=1.0, wall_s=0.5))
    yield made
    made.close()


@pytest.mark.parametrize("name", IDLE)
def test_an_idle_program_ends(hasty, name):
    jobs = (
        asserts(IDLE[name], "assert f(1) == 2", timeout_s=0.3),
        asserts("def f(x):\n    " + IDLE[name].replace("\n", "\n    "), "assert f(1) == 2", timeout_s=0.3),
        Job(IDLE[name], CodeTests("stdio", pairs=(("1", "1"),)), 0.3),
        Job("print(1, flush=True)\n" + IDLE[name], CodeTests("stdio", pairs=(("1", "1"),)), 0.3),
        Job("import os\nos.close(1)\n" + IDLE[name], CodeTests("stdio", pairs=(("1", "1"),)), 0.3),
    )
    for job, found in zip(jobs, hasty.run_many(jobs), strict=True):
        assert (found.passed, found.status) == (False, "timeout"), (job, found)
        assert "without work" in found.detail
    assert hasty.run(asserts(INCREMENT, "assert f(1) == 2")).passed is True


def test_a_program_that_waits_for_its_tests_is_not_idle(hasty):
    busy = "import time\ndef work():\n    end = time.process_time() + 1\n    while time.process_time() < end: pass\n"
    tests = f"{busy}work()\nassert f(1) == 2\nwork()\nassert f(2) == 3"
    assert hasty.run(asserts(INCREMENT, tests, timeout_s=0.1)).status == "passed"


def test_tests_that_wait_for_a_program_at_work_are_not_idle(hasty):
    work = "end = time.process_time() + 1\n    while time.process_time() < end: pass"
    program = f"import time\ndef f(x):\n    {work}\n    return x"
    slow = Job(program, CodeTests("asserts", "assert f(1) == 1 and f(2) == 2"), 5.0)
    brief = Sandbox(workers=1, budget=Budget(wall_factor=0.0, wall_s=0.5))
    assert brief.run(slow).status == "passed"
    brief.close()


def test_threads_at_work_in_turn_are_not_idle():
    program = (
        "import threading, time\ndef work():\n    end = time.thread_time() + 0.4\n    while time.thread_time() < end: pass\n"
        "for _ in range(4):\n    t = threading.Thread(target=work)\n    t.start()\n    t.join()\ndef f(x): return x"
    )
    brief = Sandbox(workers=1, budget=Budget(wall_factor=0.0, wall_s=0.5))
    assert brief.run(asserts(program, "assert f(1) == 1")).status == "passed"
    brief.close()


def test_being_busy_is_not_being_idle():
    hasty = Sandbox(workers=1, budget=Budget(wall_factor=0.0, wall_s=0.5), bubblewrap=False)
    program = "import time\nwhile time.process_time() < 1.2: pass\ndef f(x): return x"
    assert hasty.run(asserts(program, "assert f(1) == 1", timeout_s=10.0)).status == "passed"
    hasty.close()


def test_time_is_counted_over_all_calls(sandbox):
    program = (
        "import time\ndef f(x):\n    end = time.process_time() + 0.2\n"
        "    while time.process_time() < end: pass\n    return x"
    )
    assert sandbox.run(asserts(program, "assert f(1) == 1", timeout_s=0.5)).status == "passed"
    assert sandbox.run(asserts(program, "for i in range(9): assert f(i) == i", timeout_s=0.5)).status == "timeout"
