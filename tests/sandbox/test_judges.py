"""Programs are judged as the sets' own judges judge them: imports, limits, arguments, keys, digits."""

import sys

import pytest

from repirl.data.code_setups import APPS_SETUP, LEETCODE_SETUP, LIVECODEBENCH_SETUP
from repirl.sandbox.pool import Job
from repirl.structs import CodeTests
from tests.sandbox.jobs import INCREMENT, asserts, calls, stdio


def test_no_flag_of_the_sandbox_reaches_a_program(sandbox):
    eager = {
        "class S:\n    def f(self, a: List[int]): return 1": "NameError: name 'List' is not defined (line 2",
        "def f(a: Missing): return 1": "NameError: name 'Missing'",
        "x: 1 / 0 = 1": "ZeroDivisionError",
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    p: Optional[int] = None": "NameError: name 'Optional'",
    }
    for program, words in eager.items():
        found = sandbox.run(asserts(program, "pass"))
        assert (found.status, found.detail[: len(words)]) == ("error", words)
        found = sandbox.run(stdio(program, ("", "")))
        assert (found.status, words in found.detail) == ("error", True)
    own = "from __future__ import annotations\ndef f(a: List[int]): return f.__annotations__['a']"
    assert sandbox.run(asserts(own, "assert f(1) == 'List[int]'")).status == "passed"
    kinds = "class A:\n    x: int = 1\ndef f(): return A.__annotations__['x'] is int"
    assert sandbox.run(asserts(kinds, "assert f() is True")).status == "passed"
    # The tests' annotations are their own too.
    assert (
        sandbox.run(asserts(INCREMENT, "def g(x: int): pass\nassert g.__annotations__ == {'x': int}")).status
        == "passed"
    )


SETUPS = {"leetcode": LEETCODE_SETUP, "livecodebench": LIVECODEBENCH_SETUP, "apps": APPS_SETUP}


@pytest.mark.parametrize("name", SETUPS)
def test_a_set_up_has_what_its_judge_imports(sandbox, name):
    """`from math import *` and its like leave the built-ins alone."""
    program = (
        "def f(xs: List[int]) -> Optional[int]:\n"
        "    d = deque(sorted(xs)); heappush(h := [], 1); c = Counter(xs)\n"
        "    return [pow(2, 10, 1000), pow(3, -1, 7), sum([0.5, 1]), abs(-2), open is builtin_open, sqrt(4), gcd(4, 6),\n"
        "            d.popleft(), c[3], h, bisect_left([1, 3], 2), reduce(lambda a, b: a + b, xs), inf > 1,\n"
        "            len(list(combinations(xs, 2))), math.pi > 3, collections.deque([1])[0], string.digits[1]]\n"
        "import builtins\nbuiltin_open = builtins.open\n"
    )
    tests = "assert f([3, 1]) == [24, 5, 1.5, 2, True, 2.0, 2, 1, 1, [1], 1, 4, True, 1, True, 1, '1'], f([3, 1])"
    assert sandbox.run(asserts(program, tests, setup=SETUPS[name])).status == "passed"
    if name != "leetcode":
        words = "loads('[1]'), date(2024, 1, 1).year, datetime.date(2024, 1, 1).month, mean([3])"
        script = f"d = deque(json.loads(input()))\nprint(*deepcopy(d), {words})"
        job = Job(script, CodeTests("stdio", pairs=(("[1, 2]", "1 2 [1] 2024 1 3"),), setup=SETUPS[name]), 10.0)
        assert sandbox.run(job).status == "passed"
    else:
        dated = "def f(): return datetime.datetime(2024, 1, 1).year, hashlib.md5(b'').hexdigest()[:2], np.add(1, 2)"
        assert sandbox.run(asserts(dated, "assert f() == (2024, 'd4', 3)", setup=SETUPS[name])).status == "passed"


@pytest.mark.parametrize("depth", [1_500, 20_000])
@pytest.mark.parametrize(
    "program",
    [
        "def f(n): return 0 if n == 0 else 1 + f(n - 1)",
        "class A:\n    def go(self, n): return n and 1 + self.go(n - 1)\ndef f(n): return A().go(n)",
        "def f(n, a=0):\n    def g(n, a): return a if n == 0 else g(n - 1, a + 1)\n    return g(n, a)",
        "def f(n):\n    seen = set()\n    def visit(i):\n        seen.add(i)\n        if i < n: visit(i + 1)\n"
        "    visit(1)\n    return len(seen)",
    ],
)
def test_deep_recursion(sandbox, program, depth):
    assert sandbox.run(asserts(program, f"assert f({depth}) == {depth}")).status == "passed"
    assert sandbox.run(calls(program, "f", (f"[{depth}]", f"{depth}"))).status == "passed"
    script = f"{program}\nprint(f(int(input())))"
    assert sandbox.run(stdio(script, (f"{depth}", f"{depth}"))).status == "passed"


def test_deep_recursion_through_functions_in_c(sandbox):
    depth = 20_000 if sys.version_info < (3, 12) else 1_000  # from 3.12 on Python itself ends such recursion early
    cached = "from functools import cache\n@cache\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)"
    assert sandbox.run(asserts(cached, f"assert f({depth}) == {depth}")).status == "passed"
    summed = "def f(n): return 0 if n == 0 else sum(1 + f(n - 1) for _ in range(1))"
    assert sandbox.run(asserts(summed, f"assert f({depth // 2}) == {depth // 2}")).status == "passed"


@pytest.mark.parametrize(
    ("script", "output"),
    [
        ("import sys\nif len(sys.argv) > 1: sys.stdin = open(sys.argv[1])\nprint(input())", "5"),
        (
            "import argparse\np = argparse.ArgumentParser()\np.add_argument('--n', default='3')\nprint(p.parse_args().n)",
            "3",
        ),
        ("import os\nprint(os.path.basename(__file__), os.path.dirname(__file__) == os.getcwd())", "solution.py True"),
        ("import sys\nprint(sys.argv, sys.orig_argv[1:])", "['solution.py'] ['solution.py']"),
        ("import sys\nname, *rest = sys.argv\nprint(rest or 'none')", "none"),
        ("import sys\nprint(getattr(sys.modules['__main__'], '__file__', None) == __file__)", "True"),
    ],
)
def test_a_program_sees_its_own_arguments(sandbox, script, output):
    assert sandbox.run(stdio(script, ("5\n", output))).status == "passed"


@pytest.mark.parametrize(
    ("program", "arguments", "expected", "status"),
    [
        ("def f(d): return d[1]", '[{"1": 2}]', "2", "passed"),
        ("def f(d): return {k + 1: v for k, v in d.items()}", '[{"1": 2, "-3": 4}]', '{"2": 2, "-2": 4}', "passed"),
        ("def f(d): return d[1]['3']", '[{"1": {"3": 4}}]', "4", "passed"),
        ("def f(d): return d[1][3]", '[{"1": {"3": 4}}]', "4", "passed"),
        ("def f(n, d): return d[n]", '[7, {"7": [1]}]', "[1]", "passed"),
        ("def f(d): return d['1']", '[{"1": 2}]', "2", "passed"),
        ("def f(d): return d['a']", '[{"a": 2, "1": 3}]', "2", "passed"),
        ("def f(n): return [{n: n}]", "[1]", '[{"1": 1}]', "passed"),
        ("def f(d): return d[1] + 1", '[{"1": 2}]', "2", "failed"),
        ("def f(d): return d['x']", '[{"1": 2}]', "2", "error"),
        ("def f(n): return {n: n}", "[1]", '{"2": 1}', "failed"),
    ],
)
def test_keys_of_json_are_numbers_again(sandbox, program, arguments, expected, status):
    assert sandbox.run(calls(program, "f", (arguments, expected))).status == status


def test_numbers_of_many_digits(sandbox):
    power = "1" + "0" * 5000
    program = "def f(n): return 10 ** n"
    assert sandbox.run(calls(program, "f", ("[5000]", power))).status == "passed"
    assert sandbox.run(calls(program, "f", ("[5001]", power))).status == "failed"
    assert sandbox.run(asserts(program, f"assert f(5000) == {power} and len(str(f(5000))) == 5001")).status == "passed"
    assert sandbox.run(stdio("print(10 ** 5000)", ("", power))).status == "passed"
    assert sandbox.run(stdio("print(int(input()) + 1)", ("9" * 5000, power))).status == "passed"
    assert sandbox.run(stdio("print(10 ** 5000 + 1)", ("", power))).status == "failed"
    assert sandbox.run(stdio("print(f'{10 ** 5000}.0 1')", ("", f"{power} 1.0"))).status == "passed"


def test_a_method_of_solution_or_a_function(sandbox):
    method = "class Solution:\n    def two(self, x): return 2 * x"
    function = "def two(x): return 2 * x"
    for program, entry_point in (
        (method, "two"),
        (function, "Solution.two"),
        (method, "Solution.two"),
        (function, "two"),
    ):
        assert sandbox.run(calls(program, entry_point, ("[3]", "6"))).status == "passed"
        assert sandbox.run(calls(program.replace("two", "too"), entry_point, ("[3]", "6"))).passed is False
