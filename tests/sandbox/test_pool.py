"""The pool: jobs do not touch one another, threads share slots, servers are replaced, layers are named."""

import copy
import logging
import os
import pickle
import sys
import threading
import time

import pytest

from repirl.sandbox import pool as module
from repirl.sandbox.pool import Sandbox, run
from tests.sandbox.jobs import INCREMENT, asserts, calls


def test_nothing_stays_from_one_job_to_the_next(sandbox):
    spoil = (
        "import builtins, math, sys, os\nbuiltins.sorted = None\nmath.sqrt = None\nsys.path.clear()\n"
        "open('left', 'w').write('x')\nos.environ['LEFT'] = 'x'\nsys.modules['left'] = math\ndef f(x): return x"
    )
    assert sandbox.run(asserts(spoil, "assert f(1) == 1")).status == "passed"
    look = (
        "import os, math, sys\ndef f():\n"
        "    return sorted('ba'), math.sqrt(4), os.listdir('.'), 'LEFT' in os.environ, 'left' in sys.modules"
    )
    assert sandbox.run(asserts(look, "assert f() == (['a', 'b'], 2.0, [], False, False)")).status == "passed"


def test_the_environment_is_clean(sandbox, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    fresh = Sandbox(workers=1)
    program = "import os, sys\ndef f(): return sorted(os.environ), [m for m in sys.modules if m in ('torch', 'pytest')]"
    tests = "names, modules = f()\nassert 'SECRET_TOKEN' not in names and modules == []"
    assert fresh.run(asserts(program, tests)).status == "passed"
    fresh.close()


def test_sets_have_one_order_in_every_run():
    program = "def f(): return ''.join({'a', 'b', 'c', 'd', 'e'})"
    seen = set()
    for _ in range(3):
        fresh = Sandbox(workers=1)
        seen.add(fresh.run(calls(program, "f", ("[]", "1"))).detail)
        fresh.close()
    assert len(seen) == 1


def test_many_threads_get_their_own_results():
    jobs = [calls("def f(x): return x * x", "f", (f"[{i}]", str(i * i + i % 2))) for i in range(40)]
    pool = Sandbox(workers=2)
    expected = ["failed" if i % 2 else "passed" for i in range(40)]
    outcomes: dict[int, list[str]] = {}

    def work(number: int) -> None:
        outcomes[number] = [found.status for found in pool.run_many(jobs)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcomes[number] for number in range(3)] == [expected] * 3
    assert len(pool.pids) == 4
    pool.close()
    pool.close()
    assert pool.pids == []
    assert pool.run(asserts(INCREMENT, "assert f(1) == 2")).passed is True
    pool.close()


def test_copies_share_settings_only(sandbox):
    assert sandbox.run(asserts(INCREMENT, "assert f(1) == 2")).passed is True
    for twin in (pickle.loads(pickle.dumps(sandbox)), copy.deepcopy(sandbox)):
        assert twin.pids == []
        assert twin.run(asserts(INCREMENT, "assert f(1) == 2")).passed is True
        assert not set(twin.pids) & set(sandbox.pids)
        twin.close()


def test_workers_default_to_the_processors():
    pool = Sandbox()
    pool.run_many([])
    assert len(pool._pool.slots) == len(os.sched_getaffinity(0))
    pool.close()
    with pytest.raises(ValueError, match="workers=0"):
        Sandbox(workers=0)


def test_run_uses_one_shared_sandbox():
    assert run(INCREMENT, "assert f(1) == 2", 2.0).passed is True
    first = module._shared().pids
    assert run(INCREMENT, "assert f(1) == 3", 2.0).passed is False
    assert module._shared().pids == first


def test_a_lost_server_is_replaced_and_only_a_second_loss_is_an_infrastructure_error():
    pool = Sandbox(workers=1)
    assert pool.run(asserts(INCREMENT, "assert f(1) == 2")).passed is True
    os.killpg(pool.pids[0], 9)
    time.sleep(0.1)
    assert pool.run(asserts(INCREMENT, "assert f(1) == 2")).passed is True

    stop = threading.Event()

    def murder() -> None:
        while not stop.is_set():
            for pid in pool.pids[:1]:
                try:
                    os.killpg(pid, 9)
                except ProcessLookupError:
                    continue
            time.sleep(0.01)

    killer = threading.Thread(target=murder)
    killer.start()
    try:
        found = pool.run(asserts("while True: pass", "assert f(1) == 2", timeout_s=1.5))
    finally:
        stop.set()
        killer.join()
    assert (found.passed, found.status) == (None, "infra_error")
    assert pool.run(asserts(INCREMENT, "assert f(1) == 2")).passed is True
    pool.close()


def test_the_level_is_logged_once(caplog):
    pool = Sandbox(workers=1, bubblewrap=False)
    with caplog.at_level(logging.INFO):
        pool.run_many([asserts(INCREMENT, "assert f(1) == 2")] * 3)
    assert caplog.text.count("programs are held by rlimits, no_new_privs, no capabilities, Landlock") == 1
    assert "seccomp" in caplog.text
    assert "bubblewrap" not in caplog.text
    pool.close()


def test_bubblewrap_is_used_where_it_works_and_named_where_not(caplog):
    pool = Sandbox(workers=1)
    with caplog.at_level(logging.INFO):
        assert pool.run(asserts(INCREMENT, "assert f(1) == 2")).passed is True
    assert caplog.text.count("seccomp, bubblewrap") + caplog.text.count("without bubblewrap: ") == 1
    pool.close()


def test_bubblewrap_that_does_not_work_is_refused(monkeypatch, tmp_path, caplog):
    broken = tmp_path / "bwrap"
    broken.write_text(f"#!{sys.executable}\nraise SystemExit('no user namespaces')\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="no user namespaces"):
        Sandbox(workers=1, bubblewrap=True).run(asserts(INCREMENT, "pass"))
    optional = Sandbox(workers=1)
    assert optional.run(asserts(INCREMENT, "assert f(1) == 2")).passed is True
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "sandbox: without bubblewrap: no user namespaces" in caplog.text
    optional.close()


def test_a_server_that_cannot_start_in_bubblewrap_starts_without(monkeypatch, tmp_path, caplog):
    """A bwrap that starts plain programs and hides this package, as it does where that lies in /tmp."""
    hiding = tmp_path / "bwrap"
    hiding.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        "words = sys.argv[sys.argv.index('--unshare-uts') + 1 :]\n"
        "os.execv(words[0], [word + '-hidden' if word.endswith('/repirl') else word for word in words])\n"
    )
    hiding.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    optional = Sandbox(workers=1)
    assert optional.run(asserts(INCREMENT, "assert f(1) == 2")).passed is True
    assert "sandbox: without bubblewrap: FileNotFoundError" in caplog.text
    optional.close()
