"""Honest work in place, functions as arguments, and classes under test: all of it by value, as if in one process."""

import pytest

from repirl.sandbox.pool import Sandbox
from tests.sandbox.jobs import asserts


def passes(sandbox: Sandbox, program: str, tests: str, setup: str = "") -> None:
    """It passes; so that this says something, the tests are to fail where nothing is done."""
    found = sandbox.run(asserts(program, tests, setup=setup))
    assert (found.status, found.detail) == ("passed", "")


NODE = "class Node:\n    def __init__(self, v, next=None): self.v, self.next = v, next"
NUMPY = "import numpy as np\n"
IN_PLACE = {
    "sorted, on one line": ("def f(l): l.sort()", "l = [3, 1, 2]; assert f(l) is None; assert l == [1, 2, 3]"),
    "seen by the next operand": ("def f(l): l.sort()", "l = [3, 1, 2]\nassert f(l) is None and l == [1, 2, 3]"),
    "returned too": ("def f(l):\n    l.sort()\n    return l", "l = [3, 1]\nassert f(l) == [1, 3]\nassert l == [1, 3]"),
    "a count returned": (
        "def f(l, v):\n    l[:] = [x for x in l if x != v]\n    return len(l)",
        "l = [3, 2, 3]\nn = f(l, 3)\nassert n == 1 and l[:n] == [2]",
    ),
    "nested": (
        "def f(l):\n    l[0].append(9)\n    l.append([7])",
        "a = [1]; l = [a, [2]]\nf(l)\nassert l == [[1, 9], [2], [7]] and l[0] is a and a == [1, 9]",
    ),
    "a matrix turned": (
        "def f(m):\n    m.reverse()\n    m[:] = map(list, zip(*m))",
        "m = [[1, 2], [3, 4]]\nassert f(m) is None\nassert m == [[3, 1], [4, 2]]",
    ),
    "rows swapped": (
        "def f(m): m[0], m[1] = m[1], m[0]",
        "a, b = [1], [2]; m = [a, b]\nf(m)\nassert m[0] is b and m[1] is a",
    ),
    "one row twice": ("def f(m): m[0][0] = 1", "m = [[0]] * 2\nf(m)\nassert m == [[1], [1]]"),
    "the same list twice": (
        "def f(a, b): a.append(1); return b == [1]",
        "l = []\nassert f(l, l) is True\nassert l == [1]",
    ),
    "dictionary": ("def f(d): d['k'] = 1; del d['a']", "d = {'a': 0}\nf(d)\nassert d == {'k': 1}"),
    "dictionary of lists": (
        "def f(d, k, v): d.setdefault(k, []).append(v)",
        "from collections import defaultdict\nd = defaultdict(list, a=[1]); f(d, 'a', 2); f(d, 'b', 3)\n"
        "assert d == {'a': [1, 2], 'b': [3]} and d['c'] == []",
    ),
    "set": ("def f(s): s.add(3); s.discard(1)", "s = {1}\nf(s)\nassert s == {3}"),
    "bytearray": ("def f(b): b[0] = 65; b.extend(b'z')", "b = bytearray(b'xy')\nf(b)\nassert b == bytearray(b'Ayz')"),
    "deque": (
        "def f(d): d.rotate(1); d.popleft()",
        "from collections import deque\nd = deque([1, 2, 3], maxlen=3)\nf(d)\nassert list(d) == [1, 2] and d.maxlen == 3",
    ),
    "array": (
        f"{NUMPY}def f(a): a *= 2; a[0, 0] = 7",
        f"{NUMPY}a = np.arange(4).reshape(2, 2)\nf(a)\nassert a.tolist() == [[7, 2], [4, 6]]",
    ),
    "emptied": ("def f(*ls):\n    for l in ls: l.clear()", "a, b = [1], {2: 3}\nf(a, b)\nassert a == [] and b == {}"),
    "by name": ("def f(*, l): l.append(1)", "l = []\nf(l=l)\nassert l == [1]"),
    "before an exception": (
        "def f(l):\n    l.append(1)\n    raise ValueError",
        "l = []\ntry: f(l)\nexcept ValueError: pass\nassert l == [1]",
    ),
    "in a generator": ("def f(l):\n    l.append(0)\n    yield from l", "l = [1]\nassert list(f(l)) == [1, 0]"),
    "by a method": (
        "class S:\n    def go(self, l): l.append(self.__class__.__name__)",
        "l = []\nS().go(l)\nassert l == ['S']",
    ),
    "in a loop": (
        "def f(l, i): l[i] += 1",
        "l = [0] * 3\nfor i in range(3):\n    for _ in range(i): f(l, i)\nassert l == [0, 1, 2]",
    ),
    "in a function of the tests": (
        "def f(l): l.append(1)",
        "def check(candidate):\n    l = []\n    candidate(l)\n    candidate(l)\n    assert l == [1, 1]\ncheck(f)",
    ),
    "itself returned": ("def f(l): return l", "l = [1]\nassert f(l) is l"),
    "put into itself": ("def f(l): l.append(l)", "l = [1]\nf(l)\nassert l[1] is l"),
    "functions put in": ("def f(l): l.append(lambda x: x + 1)", "l = []\nf(l)\nassert l[0](1) == 2"),
    "no change": ("def f(l): return sum(l)", "l = [1, 2]\nassert f(l) == 3 and l == [1, 2]"),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_work_in_place(sandbox, name):
    program, tests = IN_PLACE[name]
    passes(sandbox, program, tests)
    if name not in ("itself returned", "no change", "in a generator"):
        idle = program.split("def ")[0] + "class S:\n    def go(self, l): pass\ndef f(*a, **k): return None"
        assert sandbox.run(asserts(idle, tests)).passed is False


def test_nodes_of_the_setup_are_changed_in_place(sandbox):
    reverse = (
        "def f(n):\n    last = None\n    while n: n.next, last, n = last, n, n.next\n    return last\n"
        "def g(n): n.v = 7; n.extra = n; del n.next"
    )
    tests = (
        "a = Node(1, Node(2)); b = a.next\nr = f(a)\nassert (r.v, r.next.v, r.next.next) == (2, 1, None)\n"
        "assert b.next is a and a.next is None\ng(b)\nassert b.v == 7 and b.extra is b and not hasattr(b, 'next')"
    )
    passes(sandbox, reverse, tests, NODE)
    circle = "a = Node(1); a.next = Node(2, a)\nassert f(a) == 2"
    passes(sandbox, "def f(n): return n.next.v if n.next.next is n else 0", circle, NODE)


FUNCTIONS = {
    "twice": ("def apply_twice(f, x): return f(f(x))", "assert apply_twice(lambda v: v + 3, 1) == 7"),
    "mapped": (
        "def m(f, xs): return [f(x) for x in xs]",
        "seen = []\ndef g(x):\n    seen.append(x)\n    return x * 2\nassert m(g, [1, 2]) == [2, 4] and seen == [1, 2]",
    ),
    "composed": ("def c(f, g): return lambda x: f(g(x))", "assert c(lambda x: x + 1, lambda x: x * 2)(3) == 7"),
    "raising": (
        "def f(g):\n    try: return g(0)\n    except ZeroDivisionError: return 'z'",
        "assert f(lambda x: 1 / x) == 'z'",
    ),
    "raising through": (
        "def f(g): return g(0)",
        "def g(x): raise KeyError('k')\ntry: f(g)\nexcept KeyError as e: assert 'k' in str(e)\nelse: assert False",
    ),
    "retried": (
        "def retry(g, n):\n    for i in range(n):\n        try: return g()\n        except ValueError: pass",
        "left = [1, 2]\ndef g():\n    if left: raise ValueError(left.pop())\n    return 5\nassert retry(g, 3) == 5",
    ),
    "recursive to and fro": (
        "def fix(f): return lambda n: f(fix(f), n)",
        "assert fix(lambda self, n: 1 if n == 0 else n * self(n - 1))(20) == 2432902008176640000",
    ),
    "keys": (
        "def s(xs, key): return sorted(xs, key=key)",
        "assert s(['aaa', 'b'], len) == ['b', 'aaa'] and s([3, -1], abs) == [-1, 3] and s([1, 2], lambda v: -v) == [2, 1]",
    ),
    "of a module": (
        "from functools import reduce\ndef f(op, xs): return reduce(op, xs)",
        "import operator, math\nassert f(operator.add, [1, 2, 3]) == 6 and f(max, [1, 3]) == 3 and f(math.gcd, [4, 6]) == 2",
    ),
    "types": (
        "def f(kind, x): return kind(x)",
        "assert f(int, '3') == 3 and f(list, 'ab') == ['a', 'b'] and f(set, [1]) == {1}",
    ),
    "exception types": (
        "def f(kind):\n    try: raise kind('a')\n    except ValueError: return 1",
        "assert f(ValueError) == 1 and f(UnicodeError) == 1",
    ),
    "iterators": (
        "def f(it): return sum(it)",
        "assert f(iter([1, 2])) == 3 and f(x for x in (1, 2, 3)) == 6 and f(map(abs, [-1])) == 1",
    ),
    "decorated": (
        "import functools\ndef deco(f):\n    @functools.wraps(f)\n    def w(*a):\n        w.calls += 1\n"
        "        return f(*a)\n    w.calls = 0\n    return w",
        "@deco\ndef g(x): return x + 1\nassert g(1) == 2 and g(2) == 3 and g.calls == 2",
    ),
    "cached": (
        "def memo(f):\n    seen = {}\n    def g(n):\n        if n not in seen: seen[n] = f(n)\n"
        "        return seen[n]\n    return g",
        "calls = []\n@memo\ndef fib(n):\n    calls.append(n)\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n"
        "assert fib(30) == 832040 and len(calls) == 31",
    ),
    "filling a list of the program": (
        "def f(g):\n    a = []\n    g(a)\n    g(a)\n    return a",
        "assert f(lambda l: l.append(1)) == [1, 1]",
    ),
    "methods": ("def f(g): return g('b')", "assert f('a-b'.split) == ['a-', ''] and f('abc'.index) == 1"),
    "partial": ("def f(g): return g(2)", "from functools import partial\nassert f(partial(pow, 3)) == 9"),
    "of objects": (
        "class P:\n    def __init__(self, x): self.x = x\ndef f(g): return [g(P(1)), g(P(2))]",
        "assert f(lambda p: p.x * 2) == [2, 4]",
    ),
    "giving objects of the program": (
        "class P:\n    def __init__(self, x): self.x = x\ndef f(g): return g(3).x",
        "assert f(P) == 3 and f(lambda x: P(x + 1)) == 4",
    ),
    "kept": (
        "kept = []\ndef put(g): kept.append(g)\ndef fire(x): return [g(x) for g in kept]",
        "put(abs); put(lambda x: x + 1)\nassert fire(-2) == [2, -1]",
    ),
    "given back": ("def f(g): return g", "g = lambda: 1\nassert f(g) is g"),
    "in threads": (
        "from concurrent.futures import ThreadPoolExecutor\ndef f(g, xs):\n    with ThreadPoolExecutor(4) as e:\n"
        "        return list(e.map(g, xs))",
        "assert f(lambda x: x * x, list(range(20))) == [x * x for x in range(20)]",
    ),
    "with what is no value": ("def f(g): return g() is not None", "class Own: pass\nassert f(lambda: Own()) is True"),
    "many": ("def f(g, n): return sum(g(i) for i in range(n))", "assert f(lambda i: i, 2000) == 1999000"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_as_arguments(sandbox, name):
    passes(sandbox, *FUNCTIONS[name])


STACK = """
class Empty(IndexError):
    def __init__(self, message):
        super().__init__(message)
        self.code = 7
class Stack:
    made = 0
    def __init__(self, items=()):
        self.items = list(items)
        Stack.made += 1
    @classmethod
    def of(cls, *items): return cls(items)
    def push(self, x):
        self.items.append(x)
        return self
    def pop(self):
        if not self.items: raise Empty('empty')
        return self.items.pop()
    @property
    def size(self): return len(self.items)
    @size.setter
    def size(self, n): del self.items[n:]
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __reversed__(self): return reversed(self.items)
    def __repr__(self): return f'Stack({self.items})'
    def __format__(self, spec): return f'<{spec}>'
    def __contains__(self, x): return x in self.items
    def __bool__(self): return bool(self.items)
    def __getitem__(self, i): return self.items[i]
    def __delitem__(self, i): del self.items[i]
    def __call__(self, x): return x in self.items
    def __enter__(self): return self
    def __exit__(self, *error):
        self.items.clear()
        return True
class Sub(Stack):
    def push(self, x): return super().push(-x)
"""
VECTOR = """
import functools
from dataclasses import dataclass, field
@dataclass
class P:
    x: int
    y: int = 0
    tags: list = field(default_factory=list)
@dataclass(frozen=True, order=True)
class Q:
    x: int
@functools.total_ordering
class V:
    def __init__(self, x, y): self.x, self.y = x, y
    def __add__(self, o): return V(self.x + o.x, self.y + o.y)
    def __radd__(self, o): return self if o == 0 else NotImplemented
    def __iadd__(self, o):
        self.x += o.x
        self.y += o.y
        return self
    def __mul__(self, k): return V(self.x * k, self.y * k)
    __rmul__ = __mul__
    def __matmul__(self, o): return self.x * o.x + self.y * o.y
    def __eq__(self, o): return isinstance(o, V) and (self.x, self.y) == (o.x, o.y)
    def __lt__(self, o): return self.x < o.x
    def __hash__(self): return hash((self.x, self.y))
    def __neg__(self): return V(-self.x, -self.y)
    def __abs__(self): return (self.x**2 + self.y**2) ** .5
    def __round__(self, n=0): return V(round(self.x, n), round(self.y, n))
    def __float__(self): return float(self.x)
    def __int__(self): return self.x
"""
COUNT = """
class Count:
    def __init__(self, n): self.n, self.i = n, 0
    def __iter__(self): return self
    def __next__(self):
        if self.i == self.n: raise StopIteration
        self.i += 1
        return self.i
"""
LIST = """
class L(list):
    def total(self): return sum(self)
    def put(self, x):
        self.append(x)
        return self
class Money(int):
    def words(self): return f'{int(self)} euros'
class Grid(dict):
    def __missing__(self, key): return 0
"""
ENUM = """
from enum import Enum
class C(Enum):
    R = 1
    G = 2
    @property
    def next(self): return C.G if self is C.R else C.R
"""
CLASSES = {
    "chained": (STACK, "assert Stack().push(1).push(2).size == 2"),
    "itself": (STACK, "s = Stack()\nassert s.push(3) is s and s.push(4).push(5) is s"),
    "property": (STACK, "s = Stack([1, 2, 3])\nassert s.size == 3\ns.size = 1\nassert s.size == 1 and s.items == [1]"),
    "isinstance": (
        STACK,
        "s = Sub()\nassert isinstance(s, Stack) and isinstance(s, Sub) and not isinstance(Stack(), Sub)\n"
        "assert not isinstance(3, Stack) and isinstance(s, (int, Stack)) and issubclass(Sub, Stack) "
        "and not issubclass(Stack, Sub)",
    ),
    "subclass": (STACK, "assert Sub().push(1).pop() == -1 and Sub.of(1, 2).size == 2 and isinstance(Sub.of(), Sub)"),
    "class attributes": (
        STACK,
        "Stack(); Stack()\nassert Stack.made == 2 and Stack.of(1).pop() == 1 and Stack.__name__ == 'Stack'",
    ),
    "length, items, iteration": (
        STACK,
        "s = Stack([1, 2, 3])\nassert len(s) == 3 and s[0] == 1 and s[-1] == 3 and s[1:] == [2, 3] and list(s) == [1, 2, 3]\n"
        "assert list(reversed(s)) == [3, 2, 1] and 2 in s and 9 not in s and sum(s) == 6 and [x for x in s] == [1, 2, 3]\n"
        "del s[0]\nassert list(s) == [2, 3] and s(2) and not s(9)",
    ),
    "texts": (STACK, "s = Stack([1])\nassert str(s) == 'Stack([1])' and repr(s) == 'Stack([1])' and f'{s:x}' == '<x>'"),
    "truth": (STACK, "assert Stack([1]) and not Stack() and bool(Stack([0])) is True"),
    "own exception": (
        STACK,
        "try:\n    Stack().pop()\nexcept Empty as e:\n    assert str(e) == 'empty' and e.code == 7 "
        "and isinstance(e, IndexError)\n"
        "else:\n    assert False\ntry:\n    Stack().pop()\nexcept (KeyError, LookupError):\n    pass\nelse:\n"
        "    assert False",
    ),
    "renamed exception": (
        "Empty = IndexError\ndef f(): raise IndexError('a')",
        "try:\n    f()\nexcept Empty as e:\n    assert str(e) == 'a'",
    ),
    "with": (
        STACK,
        "with Stack([1]) as s:\n    assert s.size == 1\nassert s.size == 0\n"
        "with Stack([1]) as s:\n    raise ValueError\nassert s.size == 0",
    ),
    "generator as a context": (
        "from contextlib import contextmanager\nlog = []\n@contextmanager\ndef m(x):\n    log.append('in')\n    yield x + 1\n"
        "    log.append('out')\ndef read(): return log",
        "with m(1) as v:\n    assert v == 2 and read() == ['in']\nassert read() == ['in', 'out']",
    ),
    "attributes": (
        STACK,
        "s = Stack()\ns.z = 3\nassert s.z == 3 and hasattr(s, 'z') and not hasattr(s, 'q') and getattr(s, 'q', 5) == 5\n"
        "del s.z\nassert not hasattr(s, 'z') and s.__dict__ == {'items': []}",
    ),
    "dataclass": (
        VECTOR,
        "assert P(1, 2) == P(1, 2) and P(1) != P(2) and P(1).x == 1 and repr(Q(1)) == 'Q(x=1)' "
        "and P(1) != 1 and not P(1) == 1\n"
        "assert Q(1) < Q(2) and {Q(1), Q(1), Q(2)} == {Q(1), Q(2)} and {Q(1): 'a'}[Q(1)] == 'a' and P(1).tags == []\n"
        "try:\n    Q(1).x = 2\nexcept AttributeError:\n    pass\nelse:\n    assert False",
    ),
    "operators": (
        VECTOR,
        "a, b = V(1, 2), V(3, 4)\nassert a + b == V(4, 6) and a != b and (a * 2).x == 2 "
        "and 2 * a == V(2, 4) and a @ b == 11\n"
        "assert -a == V(-1, -2) and abs(b) == 5.0 and sum([a, b]) == V(4, 6) and float(a) == 1.0 and int(b) == 3\n"
        "assert round(V(1.26, 2), 1).x == 1.3\na += b\nassert a == V(4, 6)",
    ),
    "order": (
        VECTOR,
        "a, b = V(1, 2), V(3, 4)\nassert a < b <= b and b > a and sorted([b, a])[0] is a and max(a, b) is b "
        "and min([b, a]) is a",
    ),
    "among others": (
        VECTOR,
        "a, b = V(1, 2), V(3, 4)\nassert [a, b] == [V(1, 2), V(3, 4)] and V(1, 2) in [a] and [b, a].index(V(1, 2)) == 1\n"
        "assert len({a, b, V(1, 2)}) == 2 and (a, 1) == (V(1, 2), 1) and {'k': a} == {'k': V(1, 2)} "
        "and a != None and a != (1, 2)",
    ),
    "copies": (
        VECTOR,
        "import copy\na = P(1, 2, [3])\nb, c = copy.copy(a), copy.deepcopy(a)\nc.tags.append(4)\nb.x = 9\n"
        "assert a == P(1, 2, [3])",
    ),
    "iterators": (
        COUNT,
        "assert list(Count(3)) == [1, 2, 3] and sum(Count(4)) == 10\ni = iter(Count(2))\n"
        "assert [next(i), next(i), next(i, 0)] == [1, 2, 0]\nassert next(Count(1)) == 1",
    ),
    "kind of list": (
        LIST,
        "l = L([1, 2])\nassert l.total() == 3 and l == [1, 2] and l != [1] and l.put(3) is l "
        "and l == [1, 2, 3] and len(l) == 3\n"
        "assert l + [4] == [1, 2, 3, 4] and l[0] == 1 and l[1:] == [2, 3] and 3 in l and isinstance(l, L) "
        "and bool(l) and not L()\n"
        "l[0] = 5\nl.append(6)\nassert l.total() == 16 and sorted(l, reverse=True)[0] == 6",
    ),
    "kind of number": (
        LIST,
        "m = Money(5)\nassert m == 5 and m.words() == '5 euros' and m + 2 == 7 and 2 * m == 10 and m < 6 and abs(m - 5) == 0",
    ),
    "kind of dictionary": (
        LIST,
        "g = Grid(a=1)\nassert g['a'] == 1 and g['b'] == 0 and g == {'a': 1} and 'b' not in g\ng['c'] = 2\n"
        "assert g == {'a': 1, 'c': 2}",
    ),
    "named tuple": (
        "from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\n    y: int = 0",
        "p = P(1)\nassert p.x == 1 and p == (1, 0) and tuple(p) == (1, 0) and p._replace(y=2).y == 2\na, b = p\n"
        "assert a == 1",
    ),
    "enumeration": (
        ENUM,
        "assert C.R is C.R and C(1) is C.R and C.R.name == 'R' and C['G'].value == 2 and [c.name for c in C] == ['R', 'G']\n"
        "assert C.R != C.G and C.R == C.R and len(C) == 2 and isinstance(C.R, C) and C.R.next is C.G and {C.R: 1}[C(1)] == 1",
    ),
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes_under_test(sandbox, name):
    passes(sandbox, *CLASSES[name])
