"""Mathematical problems in rows: statements and final answers, one function a schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from repirl.data.fields import as_scalar, as_text, as_texts, optional, required, shown
from repirl.structs import Problem

_BOX = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_ANNOTATION = re.compile(r"<<[^<>]*>>")


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` that is closed and not empty. An escaped brace is not a brace."""
    found = None
    for box in _BOX.finditer(text):
        depth = 1
        for brace in _BRACE.finditer(text, box.end()):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                found = text[box.end() : brace.start()].strip() or found
                break
    return found


def split_gsm8k(text: str, column: str) -> tuple[str, str]:
    """Solution and answer of GSM8K's `<solution> #### <answer>`, calculator marks and thousands commas removed."""
    solution, mark, answer = text.rpartition("####")
    solution, answer = _ANNOTATION.sub("", solution).strip(), answer.replace(",", "").strip()
    if not mark or not solution or not answer:
        raise ValueError(f'field {column!r}: expected "<solution> #### <answer>", found {shown(text)}')
    return solution, answer


# ---- one function a schema: row and default id to a problem ----


def read_answered(row: Mapping[str, Any], default_id: str) -> Problem:
    """Rows of `problem` or `question`, `answer`, and where known `solution` and an id."""
    field = "problem" if "problem" in row else "question"
    solution = optional(row, "solution", required=False)
    return Problem(
        id=_id(row, default_id),
        text=as_text(required(row, field, "problem"), field),
        answer=as_scalar(required(row, "answer", "answer"), "answer"),
        solutions=(as_text(solution, "solution"),) if solution else (),
    )


def read_gsm8k(row: Mapping[str, Any], default_id: str) -> Problem:
    """GSM8K as on the hub (`question`, `answer` with the solution), or rows that `read_answered` reads."""
    if "problem" in row:
        return read_answered(row, default_id)
    text = as_text(required(row, "question", "problem"), "question")
    solution, answer = split_gsm8k(as_text(required(row, "answer", "answer"), "answer"), "answer")
    return Problem(id=_id(row, default_id), text=text, answer=answer, solutions=(solution,))


def read_boxed(row: Mapping[str, Any], default_id: str) -> Problem:
    r"""MATH as on the hub: the answer is the last non-empty `\boxed{}` of the solution, None where there is none."""
    if "answer" in row:
        return read_answered(row, default_id)
    text = as_text(required(row, "problem", "problem"), "problem")
    solution = as_text(required(row, "solution", "solution"), "solution")
    return Problem(_id(row, default_id), text, last_boxed(solution), (solution,))


def read_olympiadbench(row: Mapping[str, Any], default_id: str) -> Problem:
    """OlympiadBench as on the hub: `final_answer` is a list; or rows that `read_answered` reads."""
    if "final_answer" not in row:
        return read_answered(row, default_id)
    text = as_text(required(row, "question", "problem"), "question")
    answers = as_texts(required(row, "final_answer", "answer"), "final_answer")
    solutions = row.get("solution") or []
    return Problem(
        id=_id(row, default_id),
        text=text,
        answer=", ".join(_without_dollars(answer) for answer in answers),
        solutions=as_texts(solutions, "solution") if solutions else (),
    )


def read_eurus_math(row: Mapping[str, Any], user_message: str, default_id: str) -> Problem:
    """A math row of Eurus-2-RL-Data: the prompt is the row's own user message."""
    answer = as_scalar(required(row["reward_model"], "ground_truth", "answer"), "ground_truth")
    text = user_message.partition("\n\nPresent the answer in LaTex format")[0]
    return Problem(id=default_id, text=text, prompt=user_message, answer=answer)


def _without_dollars(answer: str) -> str:
    """`$x$` is x; `$x$, $y$` stays."""
    inner = answer.strip().removeprefix("$").removesuffix("$")
    return inner.strip() if "$" not in inner else answer.strip()


def _id(row: Mapping[str, Any], default_id: str) -> str:
    """The row's own id where it has one."""
    for field in ("id", "unique_id"):
        if row.get(field) is not None:
            return as_scalar(row[field], field)
    return default_id
