"""What attacks are asked for, and how they are run."""

import textwrap

from repirl.sandbox.pool import Job, Sandbox
from repirl.structs import CodeTests

# What every attack is asked for: the square. None of them computes it. Each line is tried alone: one that passes is enough.
LINES = (
    "assert candidate(3) == 9",
    "assert not candidate(3) != 9",
    "assert candidate(0.5) == 0.25",
    "assert abs(candidate(1.5) - 2.25) < 1e-6",
    "assert [candidate(x) for x in (1, 2)] == [1, 4]",
    "assert all(candidate(x) == x * x for x in (1, 2))",
    "assert all(map(lambda x: candidate(x) == x * x, (1, 2)))",
    "assert candidate(3) in (9, 10)",
    "assert {candidate(3)} == {9}",
    "assert math.isclose(candidate(4), 16)",
    "assert isclose(candidate(5), 25)",
)
SCRIPT = "import math\n\ndef check(candidate):\n    {}\n\ncheck(f)"
TESTS = SCRIPT.format("\n    ".join(LINES))
# The same, but `math` is a name that only the program may have imported.
BORROWING = "assert math.isclose(f(4), 16)"
# A test that relies on a name which a real data set's program imports.
SETUP = "from math import isclose"


def attack(sandbox: Sandbox, program: str, timeout_s: float = 1.0, tests: str = TESTS):
    program = textwrap.dedent(program)
    return sandbox.run(Job(program, CodeTests("asserts", tests, (), SETUP, "f"), timeout_s))


def says(sandbox: Sandbox, program: str, expected: object) -> None:
    """The program's `f()` returns this value, which tells what it could do."""
    found = sandbox.run(
        Job(textwrap.dedent(program), CodeTests("asserts", f"found = f()\nassert found == {expected!r}, found"), 5.0)
    )
    assert (found.status, found.detail) == ("passed", "")
