"""The sandbox with real processes: what honest and wrong programs get, in all three kinds of tests."""

import pytest

from repirl.sandbox.output import same_output
from repirl.sandbox.pool import Result
from tests.sandbox.jobs import INCREMENT, asserts, calls, stdio

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
