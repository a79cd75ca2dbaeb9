"""The sandbox with real processes: what honest programs get, in all three kinds of tests."""

import copy
import logging
import os
import pickle
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from repirl.sandbox import pool as module
from repirl.sandbox.output import same_output
from repirl.sandbox.pool import Budget, Job, Result, Sandbox, run
from repirl.structs import CodeTests
from tests.sandbox.jobs import INCREMENT, asserts, calls, stdio


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox(workers=1)
    yield made
    made.close()


# What passes -------------------------------------------------------------------------------------------------------

# Name: the program, a line of dashes, its tests.
HONEST = {
    "function": """
def f(x):
    return x + 1
---
assert f(1) == 2
""",
    "named arguments": """
def f(x, *, y): return x - y
---
assert f(3, y=1) == 2
""",
    "check of a candidate": """
def f(x):
    return x + 1
---
def check(candidate):
    assert candidate(1) == 2
check(f)
""",
    "values": """
def f(x): return x
---
for v in [None, True, 2**70, -1, 1.5, 'é\\ud800', b'a', (1, [2, {3}], {'k': (4,)})]: assert f(v) == v
""",
    "nan": """
def f(x): return float('nan')
---
import math
assert math.isnan(f(1))
""",
    "infinite generator": """
def f(x):
    while True:
        yield x
        x += 1
---
g = f(3)
assert [next(g), next(g)] == [3, 4]
""",
    "lazy map": """
def f(x): return map(str, x)
---
assert list(f([1, 2])) == ['1', '2']
""",
    "closure": """
def f(x): return lambda y: x + y
---
assert f(1)(2) == 3
""",
    "range and views": """
def f(x): return range(x), {1: 2}.keys(), {1: 2}.items()
---
assert f(3) == (range(3), {1: 2}.keys(), {1: 2}.items())
""",
    "counter": """
from collections import Counter
def f(x): return Counter(x)
---
assert f('aab') == {'a': 2, 'b': 1}
assert f('a').most_common() == [('a', 1)]
""",
    "exact numbers": """
from fractions import Fraction
from decimal import Decimal
def f(): return Fraction(1, 3), Decimal('0.10')
---
from fractions import Fraction
from decimal import Decimal
assert f() == (Fraction(1, 3), Decimal('0.1'))
""",
    "match": """
import re
def f(x): return re.search('[ab]', x)
---
assert f('xb') and f('x') is None and f('xb').group() == 'b'
""",
    "dates": """
import datetime
def f(): return datetime.date(2024, 2, 29)
---
import datetime
assert f() + datetime.timedelta(1) == datetime.date(2024, 3, 1)
""",
    "namedtuple": """
from collections import namedtuple
P = namedtuple('P', 'x y')
def f(): return P(1, 2)
---
assert f() == (1, 2)
""",
    "numpy": """
import numpy as np
def f(x): return np.arange(x) / 2, np.float64(0.5)
---
import numpy as np
a, b = f(3)
assert np.allclose(a, [0, 0.5, 1]) and b == 0.5 and a.dtype == float
""",
    "built-in exception": """
def f(x): raise ValueError('no ' + x)
---
try:
    f('x')
except ValueError as e:
    assert str(e) == 'no x'
else:
    assert False
""",
    "exception of its own": """
class Mine(KeyError): pass
def f(x): raise Mine(x)
---
try:
    f('x')
except KeyError:
    pass
else:
    assert False
""",
    "class": """
class A:
    def __init__(self, x): self.x = x
    def add(self, y):
        self.x += y
        return self
---
a = A(1)
a.add(2).add(3)
assert a.x == 6
a.x = 1
assert a.x == 1
""",
    "container class": """
class A:
    def __init__(self): self.d = {}
    def __setitem__(self, k, v): self.d[k] = v
    def __getitem__(self, k): return self.d[k]
    def __len__(self): return len(self.d)
    def __contains__(self, k): return k in self.d
    def __iter__(self): return iter(self.d)
    def __str__(self): return 'A!'
---
a = A()
a['k'] = 3
assert a['k'] == 3 and len(a) == 1 and 'k' in a and 'z' not in a and list(a) == ['k'] and str(a) == 'A!'
""",
    "object as argument": """
class P:
    def __init__(self, x): self.x = x
def f(ps): return sum(p.x for p in ps)
---
assert f([P(1), P(2)]) == 3
""",
    "threads": """
import threading
def f(x):
    out = []
    t = threading.Thread(target=lambda: out.append(x + 1))
    t.start()
    t.join()
    return out[0]
---
assert f(1) == 2
""",
    "event loop": """
import asyncio
async def g(x):
    await asyncio.sleep(0)
    return x + 1
def f(x): return asyncio.run(g(x))
---
assert f(1) == 2
""",
    "scratch file": """
def f(x):
    open('a', 'w').write(x)
    return open('a').read()
---
assert f('x') == 'x'
""",
    "temporary file": """
import tempfile
def f(x):
    with tempfile.TemporaryFile('w+', dir='.') as t:
        t.write(x)
        t.seek(0)
        return t.read()
---
assert f('x') == 'x'
""",
    "temporary folder": """
import os, tempfile
def f(x):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'a')
        open(path, 'w').write(x)
        os.makedirs(os.path.join(folder, 'b', 'c'))
        return open(path).read(), sorted(os.listdir(folder))
---
import os
assert f('x') == ('x', ['a', 'b']) and f('y') == ('y', ['a', 'b'])
""",
    "named temporary file": """
import tempfile
def f(x):
    with tempfile.NamedTemporaryFile('w+') as t, tempfile.TemporaryFile() as u, tempfile.SpooledTemporaryFile() as v:
        t.write(x)
        t.flush()
        u.write(b'1')
        v.write(b'2')
        return open(t.name).read()
---
assert f('x') == 'x'
""",
    "copies": """
import os, shutil
def f(x):
    open('a', 'w').write(x)
    found = []
    for copy in (shutil.copy, shutil.copy2, shutil.copyfile):
        copy('a', 'b')
        found.append(open('b').read())
    return found
---
assert f('x') == ['x', 'x', 'x']
""",
    "folders": """
import os, pathlib, shutil
def f(x):
    os.mkdir('d')
    pathlib.Path('d/a').write_text(x)
    shutil.copytree('d', 'e')
    shutil.move('d/a', 'e/b')
    os.rename('e/b', 'd/c')
    found = sorted(os.listdir('d') + os.listdir('e'))
    os.chmod('e/a', 0o600)
    pathlib.Path('e/a').touch()
    shutil.rmtree('e')
    os.rmdir(pathlib.Path('q') if os.path.exists('q') else pathlib.Path('q').mkdir() or 'q')
    return found, os.listdir('.')
---
assert f('x') == (['a', 'c'], ['d'])
""",
    "recursion": """
import sys
sys.setrecursionlimit(20000)
def f(n): return 0 if n == 0 else 1 + f(n - 1)
---
assert f(10000) == 10000
""",
    "late import": """
def f(x):
    import xml.dom.minidom, sqlite3, json, zoneinfo
    return json.dumps(x)
---
assert f([1]) == '[1]'
""",
    "main guard": """
def f(x): return x
if __name__ == '__main__':
    raise SystemExit(1)
---
assert f(1) == 1
""",
    "dataclass": """
from __future__ import annotations
from dataclasses import dataclass
@dataclass
class P:
    x: int
def f(x): return P(x).x
---
assert f(1) == 1
""",
    "prints": """
print('noise' * 100000)
def f(x):
    print('more')
    return x
---
assert f(1) == 1
""",
    "own seed": """
import random
def f():
    random.seed(1)
    return random.random()
---
import random
random.seed(1)
assert f() == random.random()
""",
    "name of a built-in": """
def sum(x): return 7
---
assert sum([1]) == 7
""",
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_pass(sandbox, name):
    program, tests = HONEST[name].split("\n---\n")
    entry_point = "sum" if name == "name of a built-in" else None
    found = sandbox.run(asserts(program, tests, entry_point=entry_point))
    assert (found.status, found.detail) == ("passed", "")


def test_classes_of_the_setup_go_by_value(sandbox):
    setup = (
        "class Node:\n    def __init__(self, v, next=None): self.v, self.next = v, next\n"
        "    def last(self): return self if self.next is None else self.next.last()"
    )
    program = "def f(n):\n    out = None\n    while n: out, n = Node(n.v, out), n.next\n    return out"
    tests = "r = f(Node(1, Node(2, Node(3))))\nassert (r.v, r.next.v, r.next.next.v, r.last().v) == (3, 2, 1, 1)"
    assert sandbox.run(asserts(program, tests, setup=setup)).status == "passed"
    long = "n = None\nfor i in range(2000): n = Node(i, n)\nr = f(n)\nassert r.v == 0"
    assert sandbox.run(asserts(program, long, setup=setup)).status == "passed"


def test_helpers_of_the_prefix_are_the_tests_own(sandbox):
    prefix = "def helper(x):\n    return x * 2\n\ndef f(x):\n    '''Halves.'''\n"
    tests = "assert f(helper(3)) == 3"
    honest = asserts(prefix + "    return x // 2\n", tests, prefix=prefix, entry_point="f")
    cheat = asserts("def helper(x): return x\ndef f(x): return x", tests, prefix=prefix, entry_point="f")
    assert [sandbox.run(job).status for job in (honest, cheat)] == ["passed", "failed"]


def test_calls(sandbox):
    program = "class Solution:\n    def two(self, a, b): return a, [b]\ndef f(x): return {'k': x}"
    assert sandbox.run(calls(program, "f", ("[1]", '{"k": 1}'), ("[[]]", '{"k": []}'))).status == "passed"
    assert sandbox.run(calls(program, "Solution.two", ("[1, 2]", "[1, [2]]"))).status == "passed"
    wrong = sandbox.run(calls(program, "f", ("[1]", '{"k": 1}'), ("[2]", '{"k": 3}')))
    assert wrong.status == "failed"
    assert "call 1" in wrong.detail
    assert "3" not in wrong.detail.replace("call 1: found {'k': 2}", "")
    assert sandbox.run(calls(program, "g", ("[1]", "1"))).status == "failed"
    assert sandbox.run(calls("def f(x): raise ValueError('bad')", "f", ("[1]", "1"))).status == "error"


def test_stdio(sandbox):
    double = "print(int(input()) * 2)"
    assert sandbox.run(stdio(double, ("1\n", "2\n"), ("21", "42"))).status == "passed"
    wrong = sandbox.run(stdio(double, ("1", "2"), ("2", "5")))
    assert (wrong.status, wrong.detail) == ("failed", "input 1: printed b'4\\n'")
    raw = "import sys\nfor line in sys.stdin.buffer: sys.stdout.buffer.write(line.upper())"
    assert sandbox.run(stdio(raw, ("ab\ncd", "AB\nCD"))).status == "passed"
    reads = "import sys, os\na = sys.stdin.readline()\nb = sys.stdin.read()\nprint(len(a), len(b))"
    assert sandbox.run(stdio(reads, ("ab\n" + "x" * 1_000_000, "3 1000000"))).status == "passed"
    assert sandbox.run(stdio("print(open(0).read())", ("é", "é"))).status == "passed"
    assert sandbox.run(stdio("if __name__ == '__main__':\n    print(1)\n    exit()", ("", "1"))).status == "passed"
    assert sandbox.run(stdio("import sys; print(1); sys.exit(3)", ("", "1"))).status == "error"
    late = "import threading\nthreading.Thread(target=lambda: print(input())).start()"
    assert sandbox.run(stdio(late, ("7", "7"))).status == "passed"
    assert sandbox.run(stdio("input(); input()", ("7", ""))).detail.startswith("input 0: EOFError")


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("1\n2\n", "1\n2", True),
        (" 1 \n\t2", "1\n2", True),
        ("1.50 2", "1.5 2.0", True),
        ("1\n\n2", "1\n2", False),
        ("1 2", "12", False),
        ("1.5000001", "1.5", False),
        ("nan", "nan", True),
        ("nan", "NaN", False),
        ("1_0", "10", False),
        ("Yes", "YES", False),
        ("", "", True),
        ("", "0", False),
    ],
)
def test_outputs_are_compared_by_line(found, expected, same):
    assert same_output(found, expected) is same


# What does not -----------------------------------------------------------------------------------------------------

WRONG = {
    "failed": (INCREMENT, "assert f(1) == 3", "failed", "AssertionError"),
    "failed by type": ("def f(x): return None", "assert abs(f(1) - 2) < 1", "failed", "TypeError"),
    "missing name": (INCREMENT, "assert g(1) == 2", "failed", "NameError"),
    "raises": (
        "def f(x):\n    return 1 / 0",
        "assert f(1) == 2",
        "error",
        "ZeroDivisionError: division by zero (line 2",
    ),
    "syntax": ("def f(x) return", "assert f(1) == 2", "error", "SyntaxError"),
    "null byte": ("def f(x): return 1\0", "assert f(1) == 2", "error", "null bytes"),
    "exit": ("raise SystemExit(0)", "assert f(1) == 2", "error", "SystemExit"),
    "exit later": ("def f(x): exit(0)", "assert f(1) == 2", "error", "SystemExit"),
    "loop": ("while True: pass", "assert f(1) == 2", "timeout", "CPU"),
    "loop in a call": ("def f(x):\n    while True: pass", "assert f(1) == 2", "timeout", "CPU"),
    "loop in C": ("def f(x): return sum(iter(int, 1))", "assert f(1) == 2", "timeout", "CPU"),
    "memory": ("def f(x): return [0] * 10**10", "assert f(1) == 2", "memory", "MemoryError"),
    "memory at once": ("x = bytearray(1 << 40)", "assert f(1) == 2", "memory", "MemoryError"),
    "output": ("def f(x): return 'x' * (40 << 20)", "assert f(1) == 2", "output_limit", "32 MiB"),
    "files in folders": (
        "import os\ndef f(x):\n    for i in range(20):\n        os.makedirs(f'{i}/a')\n"
        "        open(f'{i}/a/b', 'wb').write(bytes(1 << 20))\n    while True: pass",
        "assert f(1) == 2",
        "disk_limit",
        "too much",
    ),
    "file": ("def f(x):\n    open('a', 'wb').write(bytes(17 << 20))", "assert f(1) == 2", "disk_limit", "too large"),
    "no value": ("def f(x): return object()", "assert f(1) == 2", "error", "no value"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_programs(sandbox, name):
    program, tests, status, words = WRONG[name]
    found = sandbox.run(asserts(program, tests, timeout_s=0.5 if status == "timeout" else 10.0))
    assert (found.passed, found.status) == (False, status)
    assert words.lower() in found.detail.lower()


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


def test_tests_at_fault_are_no_verdict(sandbox):
    for job in (
        asserts(INCREMENT, "assert f(1) =="),
        asserts(INCREMENT, "assert f(1) == 2", setup="1 / 0"),
        calls(INCREMENT, "f", ("[1", "2")),
        calls(INCREMENT, "f", ("1", "2")),
    ):
        found = sandbox.run(job)
        assert (found.passed, found.status) == (None, "infra_error")
        assert "tests cannot be run" in found.detail


def test_a_result_cannot_contradict_itself():
    with pytest.raises(ValueError, match="passed"):
        Result(False, "passed")
    with pytest.raises(ValueError, match="infra_error"):
        Result(False, "infra_error")
    with pytest.raises(ValueError, match="timeout_s"):
        asserts(INCREMENT, "pass", timeout_s=0)


# Jobs do not touch one another -------------------------------------------------------------------------------------


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


# The pool ----------------------------------------------------------------------------------------------------------


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
