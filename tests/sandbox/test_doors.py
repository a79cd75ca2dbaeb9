"""Attacks on what tests let in: work on their arguments, calls of their functions, objects of a program's classes."""

import textwrap
from collections.abc import Iterator

import pytest

from repirl.sandbox.pool import Budget, Sandbox
from tests.sandbox.jobs import asserts


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox(workers=1, budget=Budget(wall_factor=1.0, wall_s=1.0))
    yield made
    made.close()


def fails(sandbox: Sandbox, program: str, tests: str, setup: str = "") -> None:
    """It is wrong, and never masked."""
    found = sandbox.run(asserts(textwrap.dedent(program), textwrap.dedent(tests), timeout_s=2.0, setup=setup))
    assert found.passed is False, found
    assert "repirl" not in found.detail  # one that cannot even import what it attacks would attack nothing


# Work on arguments -------------------------------------------------------------------------------------------------

EMPTYING = "def f(xs):\n    xs.clear()\n    return {kind}"
REFERENCE = "def reference(xs): return sorted(xs)\ninputs = [[[2, 1]], [[3]]]\n"


@pytest.mark.parametrize(
    "tests",
    [
        "for i in inputs: assert f(*i) == reference(*i)",
        "for i in inputs:\n    assert (\n        f(*i)\n        ==\n        reference(*i)\n    )",
        "def same(a, b): assert a == b\nfor i in inputs: same(f(*i), reference(*i))",
        "def same(a, b): assert a == b\nfor i in inputs:\n    same(\n        f(*i),\n        reference(*i),\n    )",
        "def mine(i): return f(*i)\nfor i in inputs: assert mine(i) == reference(*i)",
        "def mine(i):\n    found = f(*i)\n    return found\nfor i in inputs: assert f(*i) == reference(*i)",
        "assert all(f(*i) == reference(*i) for i in inputs)",
        "assert [f(*i) for i in inputs] == [reference(*i) for i in inputs]",
        "assert all(map(lambda i: f(*i) == reference(*i), inputs))",
        "xs = [2, 1]; assert f(xs) == sorted(xs)",
        "xs = [2, 1]; same = xs; assert f(xs) == sorted(same)",
        "xs = [2, 1]\nassert len(xs) == 2 and f(xs) == xs[::-1]",
        "xs = [2, 1]\nassert f(xs) == [x for x in xs] or False",
        "xs = [2, 1]\nif f(xs) != sorted(xs): raise AssertionError",
        "xs = [2, 1]\nwhile f(xs) != sorted(xs): raise AssertionError",
        "xs = [2, 1]\ncheck = lambda: f(xs) == sorted(xs)\nassert check()",
    ],
)
def test_a_reference_never_works_on_what_a_program_has_left(sandbox, tests):
    fails(sandbox, EMPTYING.format(kind="[]"), REFERENCE + tests)
    honest = "def f(xs):\n    xs.sort()\n    return list(xs)"
    if "[::-1]" not in tests and "x for x" not in tests:
        assert sandbox.run(asserts(honest, REFERENCE + tests)).status == "passed"


def test_nothing_returned_is_no_way_around(sandbox):
    reference = "def reference(xs): return max(xs) if xs else None\nxs = [2, 1]\n"
    fails(sandbox, EMPTYING.format(kind="None"), f"{reference}assert f(xs) == reference(xs)")


FORGED = """
from repirl.sandbox.jail import inplace
inplace.changes = lambda lent, before: {changes}
def f(xs): return None
"""


@pytest.mark.parametrize(
    "changes",
    [
        "[[0, 'text']]", "[[0, {1: 2}]]", "[[0, (1, 2)]]", "[[0, None]]", "[[0, 7]]", "[[0]]", "[[0, [1], 2]]",
        "[[99, [1]]]", "[[-1, [1]]]", "[['0', [1]]]", "[[True, [1]]]", "{0: [1]}", "None", "[None]", "7",
        "[[0, [object]]]", "[[0, [0] * 5_000_000]]", "[[0, 'x' * (33 << 20)]]", "[[0, lambda: 0]]",
        "[[1, {'__class__': int}]]", "[[1, {'v': 1, 'twice': 3}]]", "[[1, {1: 2}]]", "[[1, [1]]]",
        "[[3, b'']]", "[[3, [1, 2]]]", "[[4, {1}]]", "[[5, [1]]]",
    ],
)  # fmt: skip
def test_forged_changes(sandbox, changes):
    setup = "class Node:\n    def __init__(self, v): self.v = v\n    def twice(self): return 2 * self.v"
    tests = """
        import numpy as np
        xs, node, array, words, unique = [3, 1], Node(4), np.zeros(2), bytearray(b'a'), {1: 2}
        f([xs, node, array, words, unique])
        assert xs == [1, 3] and node.twice() == 8 and node.v == 4
    """
    fails(sandbox, FORGED.format(changes=changes), tests, setup)


EQUAL = """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    def __hash__(self): return hash(9)
    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __eq__
    def __iter__(self): return iter([5])
    def __len__(self): return 1
    def __getitem__(self, key): return 5
    def __sub__(self, other): return 0.0
    __rsub__ = __mod__ = __rmod__ = __xor__ = __rxor__ = __sub__
    def __abs__(self): return 0.0
    def __round__(self, n=None): return 0
    def __float__(self): return 0.0
    def __int__(self): return 0
    def __call__(self, *a, **k): return self
"""


@pytest.mark.parametrize(
    "body",
    [
        "xs[:] = [Equal(), Equal()]",
        "xs[:] = [Equal() for _ in xs]\n    return Equal()",
        "xs.append(xs)",
        "xs[:] = [xs, xs]",
        "xs[:] = [[xs]]",
        "a = []\n    a.append(a)\n    xs[:] = a",
        "a = [0]\n    for _ in range(40): a = [a, a]\n    xs[:] = a",
        "a = 0\n    for _ in range(10**5): a = [a]\n    xs[:] = [a]",
        "a = 0\n    for _ in range(4990): a = [a]\n    xs[:] = [a]",
        "xs[:] = [1 << (8 * 30_000_000)]",
        "xs[:] = ['x' * (40 << 20)]",
        "xs[:] = [object()]",
        "xs[:] = [iter([1, 3])]",
        "xs[:] = [lambda: 0]",
        "xs[:] = [type('I', (int,), {'__eq__': lambda *a: True, '__hash__': int.__hash__})(5)] * 2",
        "xs.__class__ = list",
    ],
)
@pytest.mark.parametrize(
    "tests",
    [
        "xs = [3, 1]\nf(xs)\nassert xs == [1, 3]",
        "xs = [3, 1]\nf(xs)\ng(xs)\nassert xs == [1, 3]",
        "xs = [3, 1]\nf(xs)\nassert not xs != [1, 3]",
        "xs = [3, 1]\nf(xs)\nassert [1, 3] == xs",
        "xs = [3, 1]\nf(xs)\nassert all(x in (1, 3) for x in xs) and set(xs) == {1, 3}",
    ],
)
def test_what_a_program_leaves_in_an_argument_is_a_value_or_wrong(sandbox, body, tests):
    fails(sandbox, f"{EQUAL}\ndef f(xs):\n    {body}\ndef g(xs): return xs", tests)


# Functions as arguments --------------------------------------------------------------------------------------------

TWICE = "assert f(lambda v: v + 3, 1) == 7"


@pytest.mark.parametrize(
    "program",
    [
        f"{EQUAL}\ndef f(g, x): return Equal()",
        f"{EQUAL}\ndef f(g, x): return g(Equal())",
        "def f(g, x): return g",
        "def f(g, x): return g.__globals__['expected']",
        "def f(g, x): return g.__code__.co_consts",
        "def f(g, x): return g.__closure__[0].cell_contents",
        "def f(g, x): return g.__self__",
        "def f(g, x):\n    g.agent.request('attribute', (g, '__globals__'))\n    return 7",
        "def f(g, x): return g.agent.call_tests(0, ('__globals__',), {}, 'attribute')",
        "def f(g, x): return [g.agent.call_tests(n, (x,), {}, 'call') for n in range(-5, 50)]",
        "def f(g, x): return g.agent.call_tests(g.number, (x,), {'v': 4}, 'call')",
        "def f(g, x): return g.agent.call_tests(g.number, (x,), {1: 4}, 'call')",
        "def f(g, x): return g.agent.call_tests(0, (), {}, 'next')",
        "def f(g, x): return g(g)",
        "def f(g, x):\n    while True: g(x)",
        "def f(g, x): return f(g, g(x))",
        "def f(g, x): return g(g(g(x)))",
        "def f(g, x): raise StopIteration",
        "def f(g, x):\n    import os, signal\n    os.kill(os.getpid(), signal.SIGSTOP)",
        "def f(g, x):\n    g(x)\n    import time\n    time.sleep(10**6)",
        "def f(g, x):\n    import os\n    g(x)\n    os._exit(0)",
        "import threading\nkept = []\ndef f(g, x):\n    kept.append(g)\n"
        "    threading.Thread(target=lambda: [g(1) for _ in range(10**6)]).start()\n    return g(0)",
    ],
)
def test_a_function_of_the_tests_gives_values_only(sandbox, program):
    fails(sandbox, program, f"expected = 7\n{TWICE}")


FRAMES = """
import os, struct
from repirl.sandbox.jail import encoding
def send(letter, value, changes=()):
    content = letter + encoding.encode(value)
    if letter == b'=':
        content = encoding.encode(value)
        content = letter + struct.pack('>I', len(content)) + content + encoding.encode(list(changes))
    os.write(4, struct.pack('>I', len(content)) + content)
"""


@pytest.mark.parametrize(
    "program",
    [
        "send(b'?', ['call', 0, (1,), {}])",
        "send(b'?', ['call', 10**6, (1,), {}])",
        "send(b'?', ['bind', ['expected']])",
        "send(b'?', ['attribute', 0, '__globals__'])",
        "send(b'?', ['next', 0, (), {}])",
        "send(b'?', 7)",
        "send(b'?', [])",
        "send(b'!', ['value', 7])",
        "send(b'', ['value', 7])",
        "os.write(4, struct.pack('>I', 1) + b'=')",
        "os.write(4, struct.pack('>I', 6) + b'=\\xff\\xff\\xff\\xffT')",
        "for _ in range(99): send(b'=', ['value', True])",
        "for _ in range(99): send(b'=', ['value', True], [[0, [1]]])",
        "for _ in range(99): send(b'?', ['call', 0, (1,), {}])",
        "send(b'=', ['value'])",
        "send(b'=', ['raise', [], ['AssertionError'], '', '', {}])",
        "send(b'=', ['raise', [[1, 'E', [1]]], ['BaseException'], '', '', {}])",
        "send(b'=', ['raise', [[1, 'E', ['object', 2]]], [7, None], '', '', {}])",
        "send(b'=', ['stop'])",
    ],
)
@pytest.mark.parametrize("moment", ["at import", "in a call", "in a call with a function"])
def test_messages_out_of_turn(sandbox, program, moment):
    call = f"def f(g, x):\n    {program}\n    return None"
    if moment == "at import":
        call = f"{program}\ndef f(g, x): return None"
    fails(sandbox, f"{FRAMES}\n{call}", f"expected = 7\n{TWICE if 'function' in moment else 'assert f(0, 1) == 7'}")


def test_an_assertion_within_a_function_of_the_tests_cannot_be_caught(sandbox):
    swallow = "def f(g):\n    try: g(1)\n    except BaseException: pass\n    return 1"
    fails(sandbox, swallow, "def g(x): assert x == 2\nassert f(g) == 1")
    fails(sandbox, f"{EQUAL}\n" + swallow.replace("g(1)", "g(Equal())"), "def g(x): assert x < 2\nassert f(g) == 1")
    fails(
        sandbox, f"{EQUAL}\n" + swallow.replace("g(1)", "g(Equal())"), "def g(x): assert x - 2 == 0\nassert f(g) == 1"
    )
    kind = "def f(g):\n    try: g(1)\n    except ValueError: return 1"
    assert sandbox.run(asserts(kind, "def g(x): raise ValueError\nassert f(g) == 1")).status == "passed"


@pytest.mark.parametrize("given", ["eval", "exec", "getattr", "open", "globals", "vars", "__import__"])
def test_functions_that_look_around_are_never_lent(sandbox, given):
    found = sandbox.run(asserts("def f(g): return g('expected')", f"expected = 7\nassert f({given}) == 7"))
    assert (found.passed, found.status) == (None, "infra_error")


def test_calls_to_and_fro_end(sandbox):
    endless = "def f(g): return g(f)"
    fails(sandbox, endless, "def g(h): return h(g)\nassert f(g) == 1")
    fails(sandbox, "def f(g): return g(lambda: f(g))", "assert f(lambda h: h()) == 1")


# Objects -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "f(3) == 9", "9 == f(3)", "not f(3) != 9", "not 9 != f(3)", "f(3) in (9, 10)", "9 in [f(3)]", "[f(3)] == [9]",
        "{f(3)} == {9}", "{f(3): 1} == {9: 1}", "{9: 1}.get(f(3)) == 1", "abs(f(3) - 9) < 1e-6", "abs(9 - f(3)) < 1e-6",
        "f(3) - 9 == 0", "9 - f(3) == 0", "not f(3) - 9", "not 9 - f(3)", "round(f(3) - 9, 3) == 0", "-1 < f(3) - 9 < 1",
        "float(f(3) - 9) == 0", "int(f(3) - 9) == 0", "abs(float(f(3)) - 9) < 1e-6", "f(3) <= 9 <= f(3)", "f(3) >= 9",
        "f(3) ^ 9 == 0", "not f(3) ^ 9", "f(3) % 9 == 0", "math.isclose(f(3), 9)", "math.fabs(f(3) - 9) < 1e-6",
        "(f(3) - 9).real == 0", "np.isclose(f(3), 9)", "np.allclose([f(3)], [9])", "np.array_equal(f(3), 9)",
        "np.abs(f(3) - 9) < 1e-6", "(np.array([9]) == f(3)).all()", "abs(sum([f(3), -9])) < 1e-6",
        "isinstance(f(3), int) and f(3) == 9", "type(f(3)) is int", "str(f(3)) == '9'", "max(f(3), 9) is 9 and f(3) == 9",
        "(f(3), 1) == (9, 1)", "dict(a=f(3)) == dict(a=9)", "[9].index(f(3)) == 0", "[9].count(f(3)) == 1",
        "abs((f(3) - 9) * 1) < 1", "abs(-(f(3) - 9)) < 1", "pow(f(3) - 9, 2) < 1", "operator.eq(f(3), 9)",
        "abs(f(3).__sub__(9)) < 1", "copy.deepcopy(f(3)) == 9", "len(f(3) - 9) == 0", "list(f(3) - 9) == []",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["object", "class", "number", "float", "self", "chain"])
def test_no_object_decides_on_an_expected_value(sandbox, line, kind):
    """Difference 0, equal, smaller and greater, and all that by itself: as an object, a class, a subclass of a number."""
    made = {
        "object": f"{EQUAL}\ndef f(x): return Equal()",
        "class": EQUAL.replace("class Equal:", "class f:\n    def __init__(self, x): pass"),
        "number": EQUAL.replace("class Equal:", "class f(int):\n    def __new__(cls, x): return int.__new__(cls, 5)"),
        "float": EQUAL.replace(
            "class Equal:", "class f(float):\n    def __new__(cls, x): return float.__new__(cls, 5)"
        ),
        "self": f"{EQUAL}    __sub__ = __rsub__ = __radd__ = __mul__ = __neg__ = __pow__ = lambda s, *o: s\n"
        "    real = 0\ndef f(x): return Equal()",
        "chain": f"{EQUAL}class D(Equal):\n    __sub__ = __rsub__ = __mul__ = __neg__ = __pow__ = lambda s, *o: Equal()\n"
        "    def __len__(self): return 0\n    def __iter__(self): return iter(())\ndef f(x): return D()",
    }[kind]
    fails(sandbox, made, f"import copy, math, operator\nimport numpy as np\nassert {line}")


LIARS = {
    "metaclass": """
        class Meta(type):
            def __instancecheck__(cls, other): return True
            __subclasscheck__ = __eq__ = __instancecheck__
            __hash__ = type.__hash__
        class Stack(metaclass=Meta): pass
        def f(x): return Stack()
    """,
    "__class__": """
        class Stack:
            __class__ = int
        def f(x): return Stack()
    """,
    "virtual": """
        import abc
        class Stack(abc.ABC): pass
        Stack.register(int)
        def f(x): return Stack()
    """,
}


@pytest.mark.parametrize("name", LIARS)
@pytest.mark.parametrize(
    "line",
    [
        "isinstance(f(1), int)", "isinstance(3, Stack)", "isinstance([Stack()], Stack)", "issubclass(int, Stack)",
        "isinstance(None, Stack)", "issubclass(bool, Stack)", "isinstance(f(1), (int, float))", "type(f(1)) is Stack is int",
    ],
)  # fmt: skip
def test_no_class_claims_what_is_not_the_programs(sandbox, name, line):
    fails(sandbox, LIARS[name], f"assert {line}")


@pytest.mark.parametrize(
    "body",
    [
        "assert c.value == 5", "assert c.get() == 5", "x = c.value + 'a'\n    assert x == 5", "x = c.no\n    assert x == 5",
        "x = [1][5]\n    assert c.value == 5", "assert c < 5", "assert c - 5 == 0", "raise AssertionError",
        "for x in c.value: assert x == 5", "assert (lambda: 1 / 0)() == 5",
    ],
)  # fmt: skip
def test_a_context_manager_swallows_no_failure(sandbox, body):
    program = """
        class Context:
            value = None
            def __enter__(self): return self
            def __exit__(self, *error): return True
            def get(self): raise ValueError
            def __sub__(self, other): return 0
            def __lt__(self, other): return True
    """
    fails(sandbox, program, f"with Context() as c:\n    {body}")
    fails(
        sandbox,
        program,
        f"try:\n    with Context() as c:\n        {body.replace('    ', '        ')}\nexcept TypeError: raise",
    )


@pytest.mark.parametrize(
    "empty",
    [
        "Empty = AssertionError", "Empty = Exception", "Empty = BaseException", "Empty = (AssertionError, Exception)",
        "Empty = TypeError", "class Empty(AssertionError): pass", "Empty = object", "Empty = object()",
        "class M(type):\n    def __subclasscheck__(c, o): return True\n    __instancecheck__ = __subclasscheck__\n"
        "class Empty(Exception, metaclass=M): pass",
        "class Empty(BaseException): pass", "Empty = [AssertionError]", "import builtins\nEmpty = builtins",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "tests", ["pop()\n    assert False", "assert pop() == 5", "x = pop() + 'a'", "assert pop() < 'a'"]
)
def test_a_programs_exception_catches_nothing_of_the_tests(sandbox, empty, tests):
    fails(sandbox, f"{empty}\ndef pop(): return 1", f"try:\n    {tests}\nexcept Empty:\n    pass")


def test_what_a_program_returns_cannot_mask_it(sandbox):
    """Too deep or too large to be sent back: that is the program's fault, and no fault of the tests."""
    deep = "def f():\n    a = 0\n    for _ in range(4995): a = [a]\n    return a\ndef g(a): return 1"
    fails(sandbox, deep, "assert g([[f()]]) == 2")
    fails(sandbox, "def f(): return [0] * 3_000_000\ndef g(a): return 1", "x = f()\nassert g([x, x + [1]]) == 2")
    fails(sandbox, "def f(): return 'x' * (20 << 20)\ndef g(a): return 1", "x = f()\nassert g(x + x) == 2")
    fails(sandbox, "def f(g): return g('x' * (20 << 20))", "assert f(lambda x: x + x) == 2")
    masked = "def f(g): return g([1])"
    fails(sandbox, masked, "assert f(lambda x: x.append) == 2")
    fails(sandbox, masked, "assert f(lambda x: memoryview(b'')) == 2")
    fails(sandbox, masked, "assert f(lambda x: eval) == 2")
    fails(sandbox, "def f(g): return g([1])('7')", "assert f(lambda x: eval) == 7")
