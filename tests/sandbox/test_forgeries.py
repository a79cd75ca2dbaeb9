"""Programs that try to pass without being right. Each attacks one thing."""

from collections.abc import Iterator

import pytest

from repirl.sandbox.pool import Job, Sandbox
from repirl.structs import CodeTests
from tests.sandbox.attacks import BORROWING, LINES, SCRIPT, TESTS, attack


@pytest.fixture(scope="module", params=[False, None], ids=["alone", "in bubblewrap where it works"])
def sandbox(request) -> Iterator[Sandbox]:
    made = Sandbox(workers=1, bubblewrap=request.param)
    yield made
    made.close()


EQUAL = """
class Equal{base}:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
    def __bool__(self): return True
    def __hash__(self): return 0
    def __sub__(self, other): return self
    __rsub__ = __add__ = __radd__ = __sub__
    def __abs__(self): return self
    def __float__(self): return 0.0
    def __getattr__(self, name): return lambda *a, **k: True
    @property
    def __class__(self): return float
def f(x): return Equal()
"""

FORGERIES = {
    **{
        f"equal to everything{base}": EQUAL.format(base=base)
        for base in ("", "(int)", "(float)", "(str)", "(list)", "(dict)", "(tuple)")
    },
    "metaclass": """
        class Meta(type):
            def __eq__(cls, other): return True
            def __hash__(cls): return 0
        class f(metaclass=Meta):
            def __new__(cls, x): return cls
    """,
    "callable object": """
        class F:
            def __call__(self, x): return self
            def __eq__(self, other): return True
        f = F()
    """,
    "numpy subclass": """
        import numpy as np
        class A(np.ndarray):
            def __eq__(self, other): return np.True_
            def __sub__(self, other): return 0
        def f(x): return np.zeros(()).view(A)
    """,
    "nan": "def f(x): return float('nan')",
    "patched builtins": """
        import builtins
        builtins.abs = lambda x: 0
        builtins.AssertionError = type('Quiet', (BaseException,), {})
        builtins.all = builtins.any = builtins.isinstance = lambda *a: True
        def f(x): return None
    """,
    "globals named like built-ins": """
        abs = lambda x: 0
        isclose = lambda *a: True
        check = lambda c: None
        AssertionError = KeyboardInterrupt
        def f(x): return 1.0
    """,
    "module in the place of one": """
        class math:
            isclose = staticmethod(lambda *a: True)
        def f(x): return None
    """,
    "poisoned modules": """
        import sys, math, types
        math.isclose = lambda *a, **k: True
        sys.modules['math'] = types.SimpleNamespace(isclose=lambda *a: True)
        def f(x): return None
    """,
    "frames of the caller": """
        import sys
        def f(x):
            frame = sys._getframe()
            while frame:
                for value in (*frame.f_locals.values(), *frame.f_code.co_consts):
                    if type(value) is float and value == x * x: return value
                frame = frame.f_back
    """,
    "objects of the collector": """
        import gc
        def f(x):
            for thing in gc.get_objects():
                if hasattr(thing, 'co_consts') or type(thing) is dict:
                    if 'assert candidate' in str(thing): return x * x
    """,
    "memory of the parent": """
        import os
        def f(x):
            memory = open(f'/proc/{os.getppid()}/mem', 'rb', 0)
            return x * x
    """,
    "own memory for the tests": """
        def f(x):
            for line in open('/proc/self/maps'):
                pass
            return x * x
    """,
    "jump over asserts": """
        import sys
        def trace(frame, event, arg):
            if event == 'line' and 'candidate' in frame.f_locals: frame.f_lineno += 1
            return trace
        def f(x):
            sys.settrace(trace)
            frame = sys._getframe()
            while frame:
                frame.f_trace = trace
                frame = frame.f_back
            return None
    """,
    "exit 0 at import": "import sys\nsys.exit(0)",
    "exit 0 in a call": "import sys\ndef f(x): sys.exit(0)",
    "_exit 0 at import": "import os\nos._exit(0)",
    "_exit 0 in a call": "import os\ndef f(x): os._exit(0)",
    "exit handler": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return None",
    "raise what ends a loop": "def f(x): raise StopIteration",
    "raise AssertionError": "def f(x): raise AssertionError",
    "raise GeneratorExit": "def f(x): raise GeneratorExit",
    "raise KeyboardInterrupt": "def f(x): raise KeyboardInterrupt",
    "exception that prints itself wrongly": """
        class Bad(Exception):
            def __str__(self): raise KeyboardInterrupt
            __repr__ = __str__
        def f(x): raise Bad
    """,
    "printed success": """
        import sys
        for word in ('passed', '{"status": "passed", "detail": ""}', 'OK'):
            print(word); print(word, file=sys.stderr)
        sys.stdout.flush()
        def f(x): return None
    """,
    "success in every descriptor": """
        import os
        for number in range(64):
            try: os.write(number, b'{"status": "passed", "detail": ""}')
            except OSError: pass
        def f(x): return None
    """,
    "success in place of the report": """
        import os
        os.write(5, b'{"status": "passed", "detail": ""}')
        os._exit(0)
    """,
    "answers written early": """
        import os, struct
        from repirl.sandbox.jail import encoding
        for _ in range(20):
            content = encoding.encode(['value', True])
            content = b'=' + struct.pack('>I', len(content)) + content + encoding.encode([])
            os.write(4, struct.pack('>I', len(content)) + content)
        def f(x): return None
    """,
    "endless frame": "import os\nos.write(4, b'\\xff\\xff\\xff\\xff' + b'x' * 100)\ndef f(x): return None",
    "garbage frames": "import os\nos.write(4, b'\\0\\0\\0\\4' + b'l\\xff\\xff\\xff')\ndef f(x): return None",
    "frames without an answer": """
        import os, struct
        from repirl.sandbox.jail import encoding
        content = encoding.encode(['passed'])
        content = b'=' + struct.pack('>I', len(content)) + content + encoding.encode([])
        os.write(4, struct.pack('>I', len(content)) + content)
        def f(x): return None
    """,
    "closed descriptors": "import os\nos.closerange(0, 64)\ndef f(x): return None",
    "swapped descriptors": "import os\nos.dup2(3, 4)\nos.dup2(4, 3)\ndef f(x): return None",
    "patched answers": """
        from repirl.sandbox.jail import encoding, judging
        judging.Client.ask = judging.judge = lambda *a: {'status': 'passed', 'detail': ''}
        encoding.encode = lambda *a, **k: b'T'
        def f(x): return None
    """,
    "patched pickle": """
        class P:
            def __reduce__(self): return eval, ('9',)
        def f(x): return P()
    """,
    "iterator instead of a list": "def f(x): return iter([x * x])",
    "cyclic list": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "deep list": "def f(x):\n    a = []\n    for _ in range(10**6): a = [a]\n    return a",
    "wide value": "def f(x):\n    a = [0]\n    for _ in range(40): a = [a, a]\n    return a",
    "huge integer": "def f(x): return 1 << (8 * 30_000_000)",
    "colliding set": "def f(x): return {i * (2**61 - 1) for i in range(3000)}",
    "huge decimal": "from decimal import Decimal\ndef f(x): return Decimal('1e999999999')",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "deep recursion in C": """
        import sys, threading
        sys.setrecursionlimit(10**9)
        class A:
            def __repr__(self): return repr([self])
        def f(x): return repr(A())
    """,
    "null pointer": "import ctypes\ndef f(x): return ctypes.string_at(0)",
    "own signal": "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGKILL)",
    "abort": "import os\ndef f(x): os.abort()",
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_wrong_and_never_masked(sandbox, name):
    found = attack(sandbox, FORGERIES[name])
    assert found.passed is False, found
    assert "repirl" not in found.detail  # one that cannot even import what it attacks would attack nothing
    if not name.startswith(("deep", "wide", "huge", "cyclic")):  # slow, and no better in parts
        for line in (*(SCRIPT.format(line) for line in LINES), BORROWING):
            found = attack(sandbox, FORGERIES[name], tests=line)
            assert found.passed is False, (line, found)


def test_the_square_itself_passes(sandbox):
    for tests in (TESTS, BORROWING):
        assert attack(sandbox, "def f(x): return x * x", tests=tests).status == "passed"


@pytest.mark.parametrize("end", ["os._exit(0)", "exit(0)", "return object()", "return b'x' * 10**8"])
def test_a_test_that_catches_everything_does_not_hide_the_end(sandbox, end):
    program = f"import os\ndef f(x):\n    {end}"
    assert attack(sandbox, program, tests="try:\n    f(1)\nexcept:\n    pass", timeout_s=5.0).passed is False


def test_a_method_of_a_value_cannot_be_replaced(sandbox):
    setup = "class Node:\n    def __init__(self, v): self.v = v\n    def same(self, other): return self.v == other"
    for program in (
        "def f():\n    n = Node(1)\n    n.same = lambda other: True\n    return n",
        "class Node:\n    def __init__(self, v): self.v = v\n    same = None\n"
        "def f():\n    n = Node(1)\n    n.__dict__['same'] = lambda o: True\n    return n",
    ):
        found = sandbox.run(Job(program, CodeTests("asserts", "assert f().same(2)", (), setup, "f"), 1.0))
        assert found.passed is False
    honest = Job("def f(): return Node(2)", CodeTests("asserts", "assert f().same(2)", (), setup, "f"), 1.0)
    assert sandbox.run(honest).passed is True


STDIN_TRICKS = {
    "output only on another descriptor": "import os\nos.write(5, b'4')",
    "expected output looked for": "import os\nprint(*[os.read(n, 9) for n in (3, 4)])",
    "input written back": "import os\nos.write(0, b'4')\nprint(os.read(0, 9))",
    "exit before printing": "import os\nprint(4)\nos._exit(0)",  # what is not flushed is not printed
}


@pytest.mark.parametrize("name", STDIN_TRICKS)
def test_tricks_with_standard_input(sandbox, name):
    found = sandbox.run(Job(STDIN_TRICKS[name], CodeTests("stdio", pairs=(("2", "4"),)), 1.0))
    assert found.passed is False
