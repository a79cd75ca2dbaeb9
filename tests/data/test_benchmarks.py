"""The benchmarks' schemas, on small fixtures with the hub's field names; their tests run on right and wrong programs."""

from __future__ import annotations

import base64
import json
import pickle
import re
import zlib
from pathlib import Path
from typing import Any

import pytest

from repirl.data.benchmarks import BENCHMARKS, Benchmark, Eurus, LiveCodeBench
from repirl.data.code import fenced
from repirl.data.code_setups import APPS_SETUP, LIVECODEBENCH_SETUP
from repirl.data.sources import Table
from repirl.structs import CodeTests, Problem

ROOT = Path(__file__).parents[2]


def written(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(name: str, path: Path, *rows: Any, **options: Any) -> list[Problem]:
    return Benchmark(name, written(path / "rows.jsonl", *rows), **options).load()  # type: ignore[arg-type]


def passes(tests: CodeTests | None, program: str) -> bool:
    """Whether the asserts hold for this (trusted) program."""
    assert tests is not None
    assert tests.kind == "asserts"
    scope: dict[str, Any] = {}
    exec(f"{tests.setup}\n{program}", scope)
    try:
        exec(tests.code, scope)
    except (AssertionError, TypeError):  # the test of None may be either
        return False
    return True


def program_of(problem: Problem) -> str:
    (solution,) = problem.solutions
    found = re.fullmatch(r"```python\n(.*)\n```", solution, re.DOTALL)
    assert found is not None
    return found[1]


# --- mathematics


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        (
            "gsm8k",
            {"question": "1,000+234?", "answer": "1000+234=<<1000+234=1234>>1234\n#### 1,234"},
            ("gsm8k/0", "1,000+234?", "1234", ("1000+234=1234",)),
        ),
        (
            "gsm8k",
            {"id": "gsm8k/test/7", "problem": "1+1?", "answer": "2", "solution": "It is 2."},
            ("gsm8k/test/7", "1+1?", "2", ("It is 2.",)),
        ),
        (
            "math500",
            {"problem": "p", "solution": "s", "answer": r"\frac{1}{2}", "level": 1, "unique_id": "test/x.json"},
            ("test/x.json", "p", r"\frac{1}{2}", ("s",)),
        ),
        (
            "math_train",
            {"problem": "p", "level": "Level 2", "type": "Algebra", "solution": r"\boxed{1}, so \boxed{\frac{3}{4}}."},
            ("math_train/0", "p", r"\frac{3}{4}", (r"\boxed{1}, so \boxed{\frac{3}{4}}.",)),
        ),
        (
            "aime2024",
            {"id": 60, "problem": "p", "solution": "s", "answer": "204", "url": "u", "year": "2024"},
            ("60", "p", "204", ("s",)),
        ),
        ("aime2025", {"problem": "p", "answer": "70", "id": "0"}, ("0", "p", "70", ())),
        ("amc2023", {"id": 0, "question": "p", "answer": 27.0, "url": "u"}, ("0", "p", "27", ())),
        (
            "minerva",
            {"question": "p", "answer": r"1.6 \times 10^{-19}"},
            ("minerva/0", "p", r"1.6 \times 10^{-19}", ()),
        ),
        (
            "olympiadbench",
            {
                "id": 1606,
                "question": "p",
                "solution": ["s1", "s2"],
                "final_answer": ["$2$"],
                "answer_type": "Numerical",
            },
            ("1606", "p", "2", ("s1", "s2")),
        ),
        (
            "olympiadbench",
            {"id": 1, "question": "p", "solution": None, "final_answer": ["$a$, $b$"], "is_multiple_answer": True},
            ("1", "p", "$a$, $b$", ()),
        ),
    ],
)
def test_mathematics(tmp_path: Path, name: str, row: dict[str, Any], expected: tuple[Any, ...]) -> None:
    (problem,) = load(name, tmp_path, row)
    assert (problem.id, problem.text, problem.answer, problem.solutions) == expected
    assert problem.tests is None
    usual = "\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert problem.prompt == problem.text + usual
    (plain,) = load(name, tmp_path, row, prompt="plain")
    assert plain.prompt is None
    assert plain.text == problem.text


def test_a_problem_without_a_readable_answer_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"problem": f"p{n}", "solution": solution} for n, solution in enumerate([r"\boxed{1}", r"so \boxed{}"])]
    assert [p.answer for p in load("math_train", tmp_path, *rows)] == ["1"]
    messages = [record.getMessage() for record in caplog.records]
    assert "math_train: left out for lack of an answer: 'math_train/1'" in messages


def test_an_unusual_number_of_problems_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"problem": f"p{n}", "answer": "1", "id": str(n)} for n in range(30)]
    load("aime2025", tmp_path, *rows)
    load("aime2025", tmp_path, *rows, limit=2)
    assert not caplog.records
    load("aime2025", tmp_path, *rows[1:])
    assert [record.getMessage() for record in caplog.records] == ["aime2025: 29 problems were read, but the set has 30"]


def test_limit_and_skip(tmp_path: Path) -> None:
    rows = [{"problem": f"p{n}", "answer": "1"} for n in range(5)]
    assert [p.text for p in load("aime2025", tmp_path, *rows, skip=1, limit=2)] == ["p1", "p2"]
    with pytest.raises(ValueError, match=r"no problems are left \(skip 9\)"):
        load("aime2025", tmp_path, *rows, skip=9)


# --- programs

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def twice(x: int) -> int:\n    """ Doubles x. """\n',
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate(0) == 0\n",
    "entry_point": "twice",
}
MBPP = {
    "task_id": 11,
    "text": "Write a function to double.",
    "code": "def twice(x):\r\n  return 2 * x",
    "test_list": ["assert twice(BASE) == 6", "assert twice(0) == 0"],
    "test_setup_code": "BASE = 3",
    "challenge_test_list": [],
}
MBPP_PLUS = {
    "task_id": 2,
    "prompt": "Write a function to double.",
    "code": "def twice(x):\n  return 2 * x",
    "test_imports": ["import math"],
    "test": "import math\ninputs = [[0], [4]]\nfor i in inputs:\n    assert math.isclose(twice(*i), 2 * i[0])\n",
    "test_list": ["assert twice(0) == 0"],
}
PROGRAM = {
    "id": "MBPP/12",
    "prompt": "Write a function to double.\nYour code should pass these tests:\nassert twice(1) == 2",
    "prompt_kind": "instruction",
    "entry_point": "twice",
    "setup": "",
    "tests": "assert twice(1) == 2\nassert twice(2) == 4\n",
    "canonical_solution": "def twice(x):\n    return 2 * x",
    "split": "test",
}
CONTEST = {
    "task_id": "weekly-contest-1-double",
    "prompt": '"""\nDouble x.\n"""\nclass Solution:\n    def twice(self, x: int) -> int:\n        ',
    "prompt_sft": "Double x.\n\n\nPlease complete the code below to solve above prblem:\n```python\nclass Solution:\n```",
    "test": 'my_solution = Solution()\n\ntest_input = { "x": 3 }\nassert my_solution.twice(**test_input) == 6\n',
    "meta": {"difficulty": "Easy"},
}
LEETCODE = {
    "task_id": "double",
    "problem_description": "Double x.",
    "starter_code": "class Solution:\n    def twice(self, x: int) -> int:\n        ",
    "prompt": "import math\nfrom typing import *\n",
    "completion": "class Solution:\n    def twice(self, x: int) -> int:\n        return math.floor(2 * x)",
    "entry_point": "Solution().twice",
    "test": "def check(candidate):\n    assert candidate(x = 3) == 6\n",
    "estimated_date": "2024-09-01",
}
METHOD = "class Solution:\n    def twice(self, x: List[int]) -> int:\n        return 2 * x"


@pytest.mark.parametrize(
    ("name", "row", "program", "identifier"),
    [
        ("humaneval", HUMANEVAL, None, "HumanEval/0"),
        ("humaneval_plus", HUMANEVAL, None, "HumanEval/0"),
        ("humaneval", {**PROGRAM, "prompt_kind": "completion"}, None, "MBPP/12"),
        ("mbpp", MBPP, None, "11"),
        ("mbpp_plus", MBPP_PLUS, None, "2"),
        ("mbpp", PROGRAM, None, "MBPP/12"),
        ("leetcode", CONTEST, METHOD, "weekly-contest-1-double"),
        ("leetcode_dataset", LEETCODE, None, "double"),
    ],
)
def test_programs(tmp_path: Path, name: str, row: dict[str, Any], program: str | None, identifier: str) -> None:
    (problem,) = load(name, tmp_path, row)
    assert problem.id == identifier
    assert problem.answer is None
    right = program or program_of(problem)
    assert passes(problem.tests, right)
    assert not passes(problem.tests, right.replace("2 * x", "None").replace("math.floor(None)", "None"))
    assert problem.prompt is not None
    assert problem.text in problem.prompt
    assert problem.text != problem.prompt
    (plain,) = load(name, tmp_path, row, prompt="plain")
    assert (plain.prompt, plain.text) == (None, problem.text)


def test_what_is_asked(tmp_path: Path) -> None:
    (humaneval,) = load("humaneval", tmp_path, HUMANEVAL)
    assert humaneval.text == HUMANEVAL["prompt"]
    assert humaneval.tests is not None
    assert humaneval.tests.prefix == HUMANEVAL["prompt"]
    script = (
        "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
    )
    assert humaneval.prompt == f"{script}```python\n{HUMANEVAL['prompt']}\n```"
    (mbpp,) = load("mbpp", tmp_path, MBPP)
    asserts = "assert twice(BASE) == 6\nassert twice(0) == 0"
    assert mbpp.text == f"Write a function to double.\nYour code should pass these tests:\n{asserts}"
    assert mbpp.prompt == f'{script}```python\n"""\n{mbpp.text}\n"""\n```'
    (contest,) = load("leetcode", tmp_path, CONTEST)
    assert contest.text == "Double x.\n"
    assert contest.prompt == CONTEST["prompt_sft"]
    (leetcode,) = load("leetcode_dataset", tmp_path, LEETCODE)
    assert "### Question:\nDouble x.\n\n### Format: You will use the following starter code" in str(leetcode.prompt)
    assert fenced(LEETCODE["starter_code"]) in str(leetcode.prompt)


def test_only_the_test_split_of_mbpp_is_the_benchmark(tmp_path: Path) -> None:
    rows = [{**PROGRAM, "id": split, "split": split} for split in ("prompt", "test", "train")]
    assert [p.id for p in load("mbpp", tmp_path, *rows)] == ["test"]


# --- LiveCodeBench


def livecodebench_row(number: int, cases: list[dict[str, str]], day: str = "2024-08-01", **more: Any) -> dict[str, Any]:
    packed = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases[1:])))).decode()
    return {
        "question_title": "Double",
        "question_content": f"Double number {number}.",
        "platform": "atcoder",
        "question_id": f"abc{number}",
        "contest_id": "abc",
        "contest_date": f"{day}T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps(cases[:1]),
        "private_test_cases": packed,
        "metadata": "{}",
        **more,
    }


STDIN = [{"input": "3\n", "output": "6\n", "testtype": "stdin"}, {"input": "0\n", "output": "0\n", "testtype": "stdin"}]
CALLS = [
    {"input": "[1, 2]\n3", "output": "[1, 2, 3]", "testtype": "functional"},
    {"input": '[]\n"x"', "output": '["x"]', "testtype": "functional"},
]


def test_livecodebench_reads_public_and_private_tests(tmp_path: Path) -> None:
    starter = "class Solution:\n    def append(self, xs: List[int], x: int) -> List[int]:\n        "
    calls = {"starter_code": starter, "metadata": json.dumps({"func_name": "append"})}
    path = written(tmp_path / "l.jsonl", livecodebench_row(1, STDIN), livecodebench_row(2, CALLS, **calls))
    stdin, function = LiveCodeBench(path=path).load()
    assert stdin.id == "abc1"
    assert stdin.tests == CodeTests("stdio", pairs=(("3\n", "6\n"), ("0\n", "0\n")), setup=LIVECODEBENCH_SETUP)
    assert function.tests is not None
    assert function.tests.kind == "calls"
    assert function.tests.entry_point == "Solution.append"
    assert [(json.loads(a), json.loads(b)) for a, b in function.tests.pairs] == [
        ([[1, 2], 3], [1, 2, 3]),
        ([[], "x"], ["x"]),
    ]
    assert "Read the inputs from stdin" in str(stdin.prompt)
    assert starter in str(function.prompt)
    assert LiveCodeBench(path=path, prompt="plain").load()[0].prompt is None


def test_the_date_window_includes_both_ends(tmp_path: Path) -> None:
    days = ["2024-07-31", "2024-08-01", "2024-08-15", "2024-09-01"]
    path = written(tmp_path / "l.jsonl", *(livecodebench_row(n, STDIN, day) for n, day in enumerate(days)))
    assert [p.id for p in LiveCodeBench(path=path, start="2024-08-01", end="2024-08-15").load()] == ["abc1", "abc2"]
    assert [p.id for p in LiveCodeBench(path=path, start="2024-08-15").load()] == ["abc2", "abc3"]
    assert [p.id for p in LiveCodeBench(path=path, start="2024-08-01", limit=1).load()] == ["abc1"]
    with pytest.raises(ValueError, match="no problems are left"):
        LiveCodeBench(path=path, start="2030-01-01").load()
    with pytest.raises(ValueError, match=r"start: found '1\.8\.24', expected a date such as 2024-08-01"):
        LiveCodeBench(path=path, start="1.8.24")


class Hostile:
    def __reduce__(self) -> Any:
        return print, ("executed",)


def test_packed_tests_cannot_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = livecodebench_row(1, STDIN)
    row["private_test_cases"] = base64.b64encode(zlib.compress(pickle.dumps(Hostile()))).decode()
    with pytest.raises(
        ValueError, match=r"l\.jsonl, line 1: field 'private_test_cases': .*refused to load builtins\.print"
    ):
        LiveCodeBench(path=written(tmp_path / "l.jsonl", row)).load()
    assert capsys.readouterr().out == ""


# --- Eurus-2-RL-Data


def eurus_row(ability: str, content: str, truth: str) -> dict[str, Any]:
    return {
        "data_source": "x",
        "prompt": [{"role": "system", "content": "Use actions."}, {"role": "user", "content": content}],
        "ability": ability,
        "reward_model": {"ground_truth": truth, "style": "rule"},
        "extra_info": {"index": 0, "split": "dummy"},
    }


EURUS = [
    eurus_row("math", "What is 1+1?\n\nPresent the answer in LaTex format: \\boxed{Your answer}", "2"),
    eurus_row(
        "code",
        "Double.\n\nWrite Python code to solve the problem. Present the code in \n```python\nYour code\n```\nat the end.",
        json.dumps({"inputs": ["3\n", ["4", "5"]], "outputs": ["6\n", "8\n10"]}),
    ),
    eurus_row(
        "code", "Call.", json.dumps({"fn_name": "f", "inputs": [[1, [2]], [3, []]], "outputs": [[[1, 2]], [[3]]]})
    ),
]


def test_eurus_has_mathematics_and_code(tmp_path: Path) -> None:
    path = written(tmp_path / "e.jsonl", *EURUS)
    mathematics, stdio, calls = Eurus(path=path).load()
    assert (mathematics.text, mathematics.answer, mathematics.tests) == ("What is 1+1?", "2", None)
    assert mathematics.prompt == EURUS[0]["prompt"][1]["content"]
    assert stdio.text == "Double."
    assert stdio.tests == CodeTests("stdio", pairs=(("3\n", "6\n"), ("4\n5", "8\n10")), setup=APPS_SETUP)
    assert calls.tests is not None
    assert calls.tests.entry_point == "f"
    assert calls.tests.pairs == (("[1, [2]]", "[1, 2]"), ("[3, []]", "[3]"))
    assert [p.id for p in Eurus("code", path=path).load()] == ["eurus/train/1", "eurus/train/2"]
    assert [p.id for p in Eurus("math", path=path, limit=5).load()] == ["eurus/train/0"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (eurus_row("art", "x", "1"), "field 'ability': found 'art', expected 'math' or 'code'"),
        (eurus_row("code", "x", "{"), "field 'ground_truth': not JSON"),
        (eurus_row("code", "x", '{"inputs": ["1"], "outputs": []}'), "field 'ground_truth': 1 inputs and 0 outputs"),
        ({"ability": "math", "prompt": []}, "field 'prompt': no message of the role 'user'"),
        ({"ability": "math"}, "no field 'prompt'"),
        ({"ability": "math", "prompt": [{"role": "user", "content": "x"}]}, "no field 'reward_model'"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = written(tmp_path / "e.jsonl", EURUS[0], row)
    with pytest.raises(ValueError, match=re.escape("e.jsonl, line 2: ") + ".*" + re.escape(message)):
        Eurus(path=path).load()


# --- own rows with tests


def test_own_programs_are_rows_with_tests(tmp_path: Path) -> None:
    path = written(
        tmp_path / "own.jsonl",
        {"problem": "a", "solution": "```python\nf = abs\n```", "tests": "assert f(-1) == 1", "setup": "import math"},
        {"problem": "b", "tests": [{"input": "1\n", "output": "2\n"}]},
        {"problem": "c", "tests": [{"input": "[1]", "output": "2"}], "entry_point": "g"},
        {"problem": "d", "answer": 3, "tests": None},
    )
    a, b, c, d = Table(path).load()
    assert a.tests == CodeTests("asserts", "assert f(-1) == 1", setup="import math")
    assert a.solutions == ("```python\nf = abs\n```",)
    assert b.tests == CodeTests("stdio", pairs=(("1\n", "2\n"),))
    assert c.tests == CodeTests("calls", pairs=(("[1]", "2"),), entry_point="g")
    assert d.tests is None


@pytest.mark.parametrize("tests", [3, [], ["assert 1"], [{"input": "1"}], [{"input": 1, "output": "2"}]])
def test_malformed_tests_are_named(tmp_path: Path, tests: Any) -> None:
    path = written(tmp_path / "own.jsonl", {"problem": "a", "tests": tests})
    with pytest.raises(ValueError, match=r"own\.jsonl, line 1: field '?tests.*: found"):
        Table(path).load()


def test_one_problem_with_two_tests_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "own.jsonl", {"problem": "a", "tests": "assert f"}, {"problem": "a", "tests": "assert g"})
    with pytest.raises(ValueError, match="hold the same problem with different tests"):
        Table(path).load()


# --- refusals, and the documentation


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown benchmark 'math5000'; there are gsm8k"):
        Benchmark("math5000")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`revision` is of the hub data set"):
        Benchmark("gsm8k", path="x.jsonl", revision="main")
    with pytest.raises(ValueError, match="`release` chooses files of the hub data set"):
        LiveCodeBench(path="x.jsonl", release="release_v1")
    with pytest.raises(ValueError, match="limit must be at least 1"):
        Eurus(limit=0)
    same = {"problem": "p", "answer": "1", "id": "x"}
    with pytest.raises(ValueError, match="problems 1 and 2 have the same id 'x'"):
        load("aime2025", tmp_path, same, {**same, "problem": "q"})
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: no field 'question'"):
        load("minerva", tmp_path, {"text": "p", "answer": "1"})


def test_without_network_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for source in (Benchmark("aime2025"), LiveCodeBench("release_v1")):
        with pytest.raises(ValueError, match="without network, download it elsewhere and give the path of the file"):
            source.load()


def test_the_documentation_lists_every_benchmark_as_it_is() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8").split("\n")
        if line.startswith("| `")
    ]
    documented = {row[0].strip("`"): row for row in rows}
    for name, spec in BENCHMARKS.items():
        row = " | ".join(documented[name])
        assert f"`{spec.revision}`" in row if spec.revision else spec.path.startswith("https:"), name
        assert spec.path.split("/")[-1] in row, name
        assert f"| {spec.size:,} |" in row, name
        assert spec.licence in row, name
