"""The code verifier: which program a response stands for, and what the verdicts are."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from repirl.structs import CodeTests, Problem
from repirl.verifiers.code import CodeVerifier, extract_code, program_of

PROBLEMS = Path(__file__).with_name("humaneval_sample.jsonl")
PREFIX = 'from math import pi\n\ndef helper(x):\n    return 2 * x\n\ndef area(r):\n    """Of a disc."""\n'
AREA = CodeTests("asserts", "assert abs(area(1) - 3.14159) < 1e-4", entry_point="area", prefix=PREFIX)
SQUARE = Problem("p", "Square.", tests=CodeTests("asserts", "assert f(3) == 9", entry_point="f"))


@pytest.fixture(scope="module")
def verifier() -> Iterator[CodeVerifier]:
    made = CodeVerifier(timeout_s=5.0, workers=1)
    yield made
    made.close()


def judged(verifier: CodeVerifier, problem: Problem, *responses: str) -> list[str]:
    return [verdict.status for verdict in verifier.verify([problem] * len(responses), responses)]


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("x = 1", "x = 1"),
        ("    return 1\n", "    return 1\n"),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1"),
        ("```python\nx = 1\n```\nor better\n```py\nx = 2\ny = 3\n```", "x = 2\ny = 3"),
        ("```\nx = 1\n```", "x = 1"),
        ("```python\nx = 1\n```\n```text\noutput\n```", "x = 1"),
        ("```python\nx = 1\n```\n```bash\npip install x\n```", "x = 1"),
        ("```Python\nx = 1", "x = 1"),  # cut at the length limit
        ("~~~python\nx = '```'\n~~~", "x = '```'"),
        ("```python\n    return 1\n```", "    return 1"),
        ("  ```python\n  x = 1\n  ```", "x = 1"),
        ("", None),
        (" \n", None),
        ("```python\n```", None),
        ("```java\nint x;\n```", None),
    ],
)
def test_the_last_block_is_the_program(response, code):
    assert extract_code(response) == code


SOLUTION = "def f(x):\n    return x * x"
INDENTED = "   def f(x):\n       return x * x"
DOCUMENTED = 'def f(x):\n    """Square.\n\n    ```python\n    f(1)\n    ```\n    """\n    return x * x'


@pytest.mark.parametrize(
    ("response", "code"),
    [
        # which block
        (f"```python\n{SOLUTION}\n```\nUsage:\n```python\nprint(f(3))\n```", SOLUTION),
        (f"```python\n{SOLUTION}\n```\nIt prints:\n```\n9\n```", SOLUTION),
        (f"```\n{SOLUTION}\n```\nIt prints:\n```\n9\n```", SOLUTION),
        (f"```python\n{SOLUTION}\n```\n```python\n>>> f(3)\n9\n```", SOLUTION),
        (f"```python\n{SOLUTION}\n```\n```python\nassert f == f\nf(3) == 9\n```", SOLUTION),
        (f"```python\ndef f(x): pass\n```\nor better\n```\n{SOLUTION}\n```\n```bash\npython a.py\n```", SOLUTION),
        ("```python\nimport math\n```\nthen\n```python\nf = math.sqrt\n```\n```python\nf(4)\n```", "f = math.sqrt"),
        ("```\n9\n```\n```python\ng = 1\n```\n```\n9\n```", "g = 1"),
        # which fence
        (f"````python\n{SOLUTION}\n````\nDone.", SOLUTION),
        (f"````python\n{SOLUTION}\n```\nx\n```\n`````", f"{SOLUTION}\n```\nx\n```"),
        (f"~~~~py\n{SOLUTION}\n~~~~", SOLUTION),
        (f"~~~\n{SOLUTION}\n# ```\n~~~", f"{SOLUTION}\n# ```"),
        (f"1. Do:\n\n   ```python\n{INDENTED}\n   ```\n2. Done.", SOLUTION),
        ("- Do:\n\t```python\n\tdef f(x):\n\t    return x * x\n\t```\n", SOLUTION),
        (f"      ```python\n{SOLUTION}\n      ```", SOLUTION),
        (f"Here it is:```python\n{SOLUTION}\n```", SOLUTION),
        (f"```python\n{SOLUTION}```", SOLUTION),
        (f"Code: ```py\n{SOLUTION}``` done.", SOLUTION),
        (f"```python\n{SOLUTION}\n```This is `f`.", SOLUTION),
        ("So ```python f = lambda x: x * x``` it is.", "f = lambda x: x * x"),
        (f'```python title="a.py"\n{SOLUTION}\n```', SOLUTION),
        (f"```{{.python}}\n{SOLUTION}\n```", SOLUTION),
        (f"``` python\n{SOLUTION}\n```", SOLUTION),
        (f"```python\r\n{SOLUTION}\r\n```\r\n", SOLUTION),
        (f"```python\n{DOCUMENTED}\n```\nDone.", DOCUMENTED),
        (f"```python\n{SOLUTION}\n    ```\nIt prints:\n```text\n9\n```", SOLUTION),
        (f"```python\nx = 1\n```python\n{SOLUTION}\n```", SOLUTION),
        (f"It prints ``` around it.\n```python\n{SOLUTION}\n```", SOLUTION),
    ],
)
def test_the_block_that_defines_what_is_asked_for(response, code):
    assert extract_code(response, {"f"}) == code


def test_tests_say_what_is_asked_for():
    response = "```python\n{}\n```\nExample:\n```python\nx = g = h = 3\n```"
    for code, tests in {
        "def f(x): return x * x": CodeTests("asserts", "import math\nassert math.isclose(f(3), 9)"),
        "def helper(): pass": CodeTests("asserts", "check(1)", entry_point="helper"),
        "class Solution:\n    def two(self): return 2": CodeTests("asserts", "assert Solution().two() == 2"),
        "def f(x): return 1": CodeTests("calls", pairs=(("[1]", "1"),), entry_point="f"),
        "class Solution:\n    def f(self, x): return 1": CodeTests("calls", pairs=(("[1]", "1"),), entry_point="f"),
        "def double(x): return 2": CodeTests("calls", pairs=(("[1]", "2"),), entry_point="Solution.double"),
    }.items():
        assert program_of(response.format(code), tests) == code
    # Nothing is asked for by name: the last tagged block, or what looks like a program.
    script = "n = int(input())\nprint(n * n)"
    for tag in ("python", ""):
        assert (
            program_of(f"```{tag}\n{script}\n```\nFor 3:\n```\n9\n```", CodeTests("stdio", pairs=(("3", "9"),)))
            == script
        )


def test_hostile_text_is_read_in_no_time():
    """Quadratic work would take minutes on these."""
    for text in (
        "`" * 10**6,
        "a" * 10**6 + "```",
        "```python\n" + "a" * 10**6 + "```" + "b" * 10**6,
        ("```a " * 200 + "\n") * 200,
    ):
        extract_code(text, {"f"})


@pytest.mark.parametrize(
    "response",
    [
        "    return pi * r * r",
        "    return pi * r * r\n\n\ndef other():\n    pass\nprint(area(1), file=None, boom=1)",
        "    return pi * r * r\n# Example\n1 / 0",
        "```python\n    return pi * r * r\n```",
        "```python\ndef area(r):\n    return pi * r * r\n```",
        "```python\ndef area(r):\n    return helper(pi) * r * r / 2\n```",
        "```python\nfrom __future__ import annotations\nimport math\ndef area(r: X):\n    return math.pi * r * r\n```",
        "```python\narea = lambda r: pi * r * r\n```",
        PREFIX + "    return pi * r * r",
    ],
)
def test_a_completion_continues_and_a_program_follows(verifier, response):
    assert judged(verifier, Problem("p", PREFIX, tests=AREA), response) == ["passed"]


def test_a_completion_by_hand():
    assert program_of("    return 3\n\ndef g(): pass", AREA) == PREFIX + "    return 3\n"
    assert program_of("def area(r): return 3", AREA) == PREFIX + "\n\ndef area(r): return 3"
    late = "from __future__ import annotations\ndef area(r): return 3"
    assert program_of(late, AREA) == "from __future__ import annotations\n" + PREFIX + "\n\n\ndef area(r): return 3"
    assert program_of("    def area(r): return 3", AREA) == PREFIX + "    def area(r): return 3"


def test_verdicts(verifier):
    responses = {
        "```python\ndef f(x): return x * x\n```": "passed",
        "def f(x): return x": "failed",
        "def f(x): return y": "error",
        "I do not know.": "error",
        "": "no_answer",
        "while True: pass": "timeout",
        "def f(x): return [0] * 10**10": "memory",
        "def f(x): return b'0' * 10**8": "output_limit",
        "def f(x): open('a', 'wb').write(bytes(10**8))": "disk_limit",
    }
    quick = CodeVerifier(timeout_s=3.0, workers=1)
    verdicts = quick.verify([SQUARE] * len(responses), list(responses))
    quick.close()
    assert [verdict.status for verdict in verdicts] == list(responses.values())
    assert [verdict.correct for verdict in verdicts] == [True] + [False] * 8


def test_tests_at_fault_are_masked(verifier):
    broken = Problem("p", "Square.", tests=CodeTests("asserts", "assert f(3 == 9"))
    (verdict,) = verifier.verify([broken], ["def f(x): return x * x"])
    assert (verdict.correct, verdict.status) == (None, "infra_error")


def test_a_problem_without_tests_is_refused(verifier):
    with pytest.raises(ValueError, match="'p' has no tests"):
        verifier.verify([Problem("p", "1 + 1?", "2")], ["2"])
    with pytest.raises(ValueError, match="timeout_s=0"):
        CodeVerifier(timeout_s=0)


def test_equal_responses_run_once(verifier):
    response = "import time\ndef f(x): return x * x if time.time_ns() else 0"
    assert judged(verifier, SQUARE, *[response] * 50) == ["passed"] * 50


def sample() -> list[dict[str, str]]:
    return [json.loads(line) for line in PROBLEMS.read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.parametrize("row", sample(), ids=lambda row: row["id"])
def test_humaneval_sample(verifier, row):
    tests = CodeTests("asserts", row["tests"], (), row["setup"], row["entry_point"], row["prompt"])
    problem = Problem(row["id"], row["prompt"], tests=tests)
    body = row["canonical_solution"].removeprefix(row["prompt"])
    always = (
        "class E:\n    def __eq__(self, o): return True\n    def __bool__(self): return True\n"
        "    __sub__ = __abs__ = lambda s, *a: s\n    __lt__ = __eq__\n"
    )
    responses = (
        body,
        f"```python\n{row['canonical_solution']}\n```",
        "    return None\n",
        f"```python\n{always}def {row['entry_point']}(*a): return E()\n```",
    )
    assert judged(verifier, problem, *responses) == ["passed", "passed", "failed", "failed"]
