"""Programming problems in rows: tests, statements and the usual prompts, one function a schema."""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from repirl.data.code_setups import APPS_SETUP, LEETCODE_SETUP, LIVECODEBENCH_SETUP
from repirl.data.fields import as_text, optional, required, shown
from repirl.structs import CodeTests, Problem

TEST_FIELDS = ("tests", "setup", "entry_point", "prefix")

_EXPERT = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will generate a "
    "correct Python program that matches the specification and passes all tests."
)
_STARTER = (
    "### Format: You will use the following starter code to write the solution to the problem and enclose your code "
    "within delimiters.\n```python\n{code}\n```"
)
_STDIN = (
    "### Format: Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on "
    "the sample inputs). Enclose your code within delimiters as follows. Ensure that when the python program runs, it "
    "reads the inputs, runs the algorithm and writes output to STDOUT.\n```python\n# YOUR CODE HERE\n```"
)


def fenced(program: str) -> str:
    """The program in a Markdown block, as responses give it."""
    return f"```python\n{program.strip(chr(10))}\n```"


def question_prompt(statement: str, starter_code: str) -> str:
    """LiveCodeBench's prompt: a program that reads stdin, or starter code to complete."""
    form = _STARTER.replace("{code}", starter_code) if starter_code.strip() else _STDIN
    return (
        f"{_EXPERT}\n\n### Question:\n{statement}\n\n{form}\n\n### Answer: (use the provided format with backticks)\n"
    )


def read_tests(row: Mapping[str, Any], columns: Mapping[str, str]) -> CodeTests | None:
    """The tests of a row of `Table`; None where it has none.

    `tests`: a text is a script of asserts. A list of {"input": text, "output": text} is standard input and expected
    output; with an `entry_point`, a JSON array of arguments and the expected JSON value. `setup`: code before both.
    `prefix`: code that the response continues. Raises ValueError naming the field.
    """
    column = columns.get("tests", "tests")
    tests = optional(row, column, required="tests" in columns)
    if tests is None:
        return None
    setup, entry_point, prefix = (
        optional(row, columns.get(field, field), required=field in columns) or "" for field in TEST_FIELDS[1:]
    )
    if isinstance(tests, str):
        return CodeTests("asserts", as_text(tests, column), setup=setup, entry_point=entry_point or None, prefix=prefix)
    return CodeTests(
        "calls" if entry_point else "stdio",
        pairs=_pairs(tests, column),
        setup=setup,
        entry_point=entry_point or None,
        prefix=prefix,
    )


def _pairs(tests: Any, column: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(tests, list) or not tests:
        raise ValueError(f"field {column!r}: found {shown(tests)}, expected a script or a non-empty list of tests")
    for number, test in enumerate(tests):
        if not isinstance(test, dict) or not all(isinstance(test.get(key), str) for key in ("input", "output")):
            raise ValueError(
                f'field {column}[{number}]: found {shown(test)}, expected {{"input": text, "output": text}}'
            )
    return tuple((test["input"], test["output"]) for test in tests)


def written_tests(tests: CodeTests | None) -> dict[str, Any]:
    """The fields of a row that `read_tests` reads as these tests."""
    if tests is None:
        return {}
    pairs = [{"input": given, "output": expected} for given, expected in tests.pairs]
    rest = {"setup": tests.setup, "entry_point": tests.entry_point, "prefix": tests.prefix}
    return {"tests": tests.code or pairs} | {name: text for name, text in rest.items() if text}


# ---- one function a schema: row and default id to a problem ----


def read_humaneval(row: Mapping[str, Any], default_id: str) -> Problem:
    """HumanEval and HumanEval+ as on the hub: the prompt is a signature with a docstring, to be continued."""
    if "prompt_kind" in row:
        return read_program(row, default_id)
    prompt = as_text(required(row, "prompt", "problem"), "prompt")
    entry_point = as_text(required(row, "entry_point", "entry_point"), "entry_point")
    tests = as_text(required(row, "test", "tests"), "test")
    solution = optional(row, "canonical_solution", required=False)
    return Problem(
        id=str(row.get("task_id", default_id)),
        text=prompt,
        solutions=(fenced(prompt + solution),) if solution else (),
        tests=CodeTests("asserts", f"{tests}\ncheck({entry_point})\n", entry_point=entry_point, prefix=prompt),
    )


def read_mbpp(row: Mapping[str, Any], default_id: str) -> Problem | None:
    """MBPP (`text`) and MBPP+ (`prompt`, `test`) as on the hub; the three asserts are part of the text.

    A row whose `split` is not "test" is not part of the benchmark: None.
    """
    if row.get("split", "test") != "test":
        return None
    if "prompt_kind" in row:
        return read_program(row, default_id)
    field = "text" if "text" in row else "prompt"
    asserts = required(row, "test_list", "tests")
    shown_tests = "\n".join(asserts)
    setup = "\n".join((optional(row, "test_setup_code", required=False) or "", *(row.get("test_imports") or ())))
    script = optional(row, "test", required=False) or f"{setup.strip()}\n{shown_tests}\n".lstrip()
    solution = optional(row, "code", required=False)
    return Problem(
        id=str(row.get("task_id", default_id)),
        text=f"{as_text(required(row, field, 'problem'), field)}\nYour code should pass these tests:\n{shown_tests}",
        solutions=(fenced(solution.replace("\r\n", "\n")),) if solution else (),
        tests=CodeTests("asserts", script.replace("\r\n", "\n")),
    )


def read_program(row: Mapping[str, Any], default_id: str) -> Problem:
    """Rows of `prompt`, `prompt_kind` (completion or instruction), `entry_point`, `setup`, `tests`, `canonical_solution`."""
    prompt = as_text(required(row, "prompt", "problem"), "prompt")
    kind, solution = row["prompt_kind"], optional(row, "canonical_solution", required=False)
    if kind not in ("completion", "instruction"):
        raise ValueError(f"field 'prompt_kind': found {shown(kind)}, expected 'completion' or 'instruction'")
    return Problem(
        id=str(row.get("id", default_id)),
        text=prompt,
        solutions=(fenced(solution),) if solution else (),
        tests=CodeTests(
            "asserts",
            as_text(required(row, "tests", "tests"), "tests"),
            setup=optional(row, "setup", required=False) or "",
            entry_point=optional(row, "entry_point", required=False),
            prefix=prompt if kind == "completion" else "",
        ),
    )


def read_leetcode_contest(row: Mapping[str, Any], default_id: str) -> Problem:
    """DeepSeek-Coder's LeetCode contests: `prompt_sft` holds statement and starter code, `test` asserts on Solution()."""
    prompt = as_text(required(row, "prompt_sft", "problem"), "prompt_sft")
    return Problem(
        id=str(row.get("task_id", default_id)),
        text=prompt.partition("\n\nPlease complete the code below")[0],
        prompt=prompt,
        tests=CodeTests("asserts", as_text(required(row, "test", "tests"), "test"), setup=LEETCODE_SETUP),
    )


def read_leetcode(row: Mapping[str, Any], default_id: str) -> Problem:
    """LeetCodeDataset: `prompt` holds imports, `test` defines check, `entry_point` is like Solution().twoSum."""
    text = as_text(required(row, "problem_description", "problem"), "problem_description")
    starter = as_text(required(row, "starter_code", "starter_code"), "starter_code")
    tests = as_text(required(row, "test", "tests"), "test")
    entry_point = as_text(required(row, "entry_point", "entry_point"), "entry_point")
    solution = optional(row, "completion", required=False)
    return Problem(
        id=str(row.get("task_id", default_id)),
        text=text,
        prompt=question_prompt(text, starter),
        solutions=(fenced(solution),) if solution else (),
        tests=CodeTests(
            "asserts", f"{tests}\ncheck({entry_point})\n", setup=optional(row, "prompt", required=False) or ""
        ),
    )


def read_livecodebench(row: Mapping[str, Any], default_id: str) -> Problem:
    """LiveCodeBench, code_generation_lite: public and private tests, of stdin or of a function."""
    text = as_text(required(row, "question_content", "problem"), "question_content")
    starter = optional(row, "starter_code", required=False) or ""
    cases = _json(row, "public_test_cases") + _private_cases(row)
    metadata = json.loads(row.get("metadata") or "{}")
    return Problem(
        id=str(row.get("question_id", default_id)),
        text=text,
        prompt=question_prompt(text, starter),
        tests=_livecodebench_tests(cases, metadata.get("func_name"), starter),
    )


def _livecodebench_tests(cases: Sequence[Any], function: str | None, starter: str) -> CodeTests:
    if {case["testtype"] for case in cases} == {"stdin"}:
        pairs = tuple((case["input"], case["output"]) for case in cases)
        return CodeTests("stdio", pairs=pairs, setup=LIVECODEBENCH_SETUP)
    if not function:
        raise ValueError("field 'metadata': no func_name, which the functional tests call")
    # Arguments stand one a line, each in JSON.
    pairs = tuple(
        (json.dumps([json.loads(line) for line in case["input"].split("\n") if line.strip()]), case["output"])
        for case in cases
    )
    entry_point = f"Solution.{function}" if "class Solution" in starter else function
    return CodeTests("calls", pairs=pairs, setup=LIVECODEBENCH_SETUP, entry_point=entry_point)


def _private_cases(row: Mapping[str, Any]) -> list[Any]:
    """JSON, or base64 of zlib of a pickled JSON text. No object but a text is ever unpickled."""
    text = row.get("private_test_cases") or "[]"
    if text.lstrip().startswith("["):
        return list(_json(row, "private_test_cases"))
    try:
        unpacked = _TextUnpickler(io.BytesIO(zlib.decompress(base64.b64decode(text)))).load()
        found = json.loads(unpacked)
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"field 'private_test_cases': cannot be unpacked ({error})") from error
    return list(found)


class _TextUnpickler(pickle.Unpickler):
    """Refuses every class and function: a text needs none."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"refused to load {module}.{name}; only a text is expected")


def read_eurus_code(row: Mapping[str, Any], default_id: str) -> Problem:
    """A code row of Eurus-2-RL-Data: the prompt is the row's own user message, the tests are JSON."""
    prompt, identifier = eurus_user_message(row), default_id
    truth = _json(row["reward_model"], "ground_truth")
    function, inputs, outputs = truth.get("fn_name"), truth.get("inputs") or [], truth.get("outputs") or []
    if not inputs or len(inputs) != len(outputs):
        raise ValueError(f"field 'ground_truth': {len(inputs)} inputs and {len(outputs)} outputs")
    if function is None:
        pairs = tuple((_joined(i), _joined(o)) for i, o in zip(inputs, outputs, strict=True))
        tests = CodeTests("stdio", pairs=pairs, setup=APPS_SETUP)
    else:
        # APPS wraps each expected value in a list of one.
        wrapped = all(isinstance(output, list) and len(output) == 1 for output in outputs)
        values = [output[0] for output in outputs] if wrapped else outputs
        pairs = tuple((json.dumps(i), json.dumps(o)) for i, o in zip(inputs, values, strict=True))
        tests = CodeTests("calls", pairs=pairs, setup=APPS_SETUP, entry_point=function)
    text = prompt.partition("\n\nWrite Python code to solve the problem.")[0]
    return Problem(id=identifier, text=text, prompt=prompt, tests=tests)


def eurus_user_message(row: Mapping[str, Any]) -> str:
    """The last user message of a row's `prompt`. Raises ValueError."""
    messages = required(row, "prompt", "problem")
    users = [message["content"] for message in messages if message["role"] == "user"]
    if not users:
        raise ValueError("field 'prompt': no message of the role 'user'")
    return as_text(users[-1], "prompt")


def _joined(value: Any) -> str:
    """A text, or a list of lines as one text."""
    return value if isinstance(value, str) else "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _json(row: Mapping[str, Any], column: str) -> Any:
    text = as_text(required(row, column, column), column)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"field {column!r}: not JSON, {error.msg} at character {error.pos + 1}") from error
