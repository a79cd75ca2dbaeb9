"""Flawed twins: hand-worked ones, and what holds of every twin of real solutions."""

from __future__ import annotations

import ast
import json
import random
import re
from pathlib import Path

import pytest

from repirl.data.flawed import Domain, FlawedTwin, flawed_twin
from repirl.data.flawed_code import program_edits
from repirl.data.written_sums import judge_running_sums
from repirl.structs import WrittenSolution
from tests.shared_data import shared_file


def written(*steps: str, problem: str = "A problem.") -> WrittenSolution:
    return WrittenSolution(problem=problem, steps=steps)


def texts(solution: WrittenSolution, domain: Domain, *, kind: str, seeds: int = 60) -> set[str]:
    twins = [flawed_twin(solution, domain, kinds=[kind], seed=seed) for seed in range(seeds)]
    return {twin.solution.text for twin in twins if twin is not None}


def test_a_result_of_prose_by_hand():
    solution = written("1. Janet sells 16 - 3 = 13 eggs.\n", "2. She is happy.")
    # Of the first line only the result; the list's markers are no numbers; the second line has none.
    results = {f"1. Janet sells 16 - 3 = {n} eggs.\n2. She is happy." for n in (*range(10, 20), *range(23, 100, 10))}
    assert texts(solution, "prose", kind="number", seeds=400) == results - {solution.text}
    twin = flawed_twin(solution, "prose", kinds=["number"])
    assert twin is not None
    assert (twin.first_wrong, twin.kind, twin.solution.steps[1]) == (0, "number", "2. She is happy.")


def test_a_number_without_an_equation_and_the_step_it_is_in():
    twin = flawed_twin(written("She has some.\n", "They cost $7 each."), "prose", seed=1)
    assert twin is not None
    assert twin.first_wrong == 1
    assert re.fullmatch(r"She has some\.\nThey cost \$[0-689] each\.", twin.solution.text)


def test_operators_of_prose_by_hand():
    solution = written("So 16 - 3 = 13, and 9 * 2 = $18 in 5-10 days; 4 + 0 = 4 and 4 / 1 = 4.")
    # 5-10 is no equation's; a sum with 0 and a quotient by 1 would stay right
    changed = {solution.text.replace("16 - 3", "16 + 3"), solution.text.replace("9 * 2", "9 / 2")}
    assert texts(solution, "prose", kind="operator") == changed


def test_arithmetic_by_hand():
    assert texts(written(r"\boxed{b8}"), "arithmetic", kind="number") == {rf"\boxed{{b{n}}}" for n in (*range(8), 9)}
    assert texts(written("b3+5=8\n", "c"), "arithmetic", kind="number") == {f"b3+5={n}\nc" for n in (*range(8), 9)}


@pytest.mark.parametrize("seed", range(20))
def test_the_step_named_is_the_first_that_the_task_finds_wrong(seed: int):
    twin = flawed_twin(written("b8\n", "c8+9=7\n", r"\boxed{7}", problem="a3b5c9"), "arithmetic", seed=seed)
    assert twin is not None
    assert judge_running_sums("a3b5c9", twin.solution.text).index(False) == twin.first_wrong


def test_a_program_by_hand():
    text = 'def f(é, n):\n    # 1 + 1 < 2\n    return é[(0)] + (n  # a + b\n        ) if n <= 10 else "1 + 1"\n'
    edits = program_edits(text)
    assert {kind: {text[s:e] + " to " + new for s, e, new in of} for kind, of in edits.items()} == {
        "operator": {"+ to -", "<= to >="},
        "constant": {"0 to 1", "10 to 9", "10 to 11"},
    }
    ((start, _, _),) = [edit for edit in edits["operator"] if edit[2] == "-"]
    assert text[start - 2 : start + 3] == "] + (", "the sum's own sign, not that of a comment"


def test_what_is_no_program_and_what_has_nothing_to_change():
    assert program_edits("def f(:") == {}
    assert flawed_twin(written("pass"), "code") is None
    assert flawed_twin(written("No number here."), "prose") is None


def test_a_step_of_another_solution():
    others = [written("It is green.\n", "The end.", problem="Another."), written("Mine.", problem="A problem.")]
    solution = written("One.\n", "Two.")
    seen = set()
    for seed in range(40):
        twin = flawed_twin(solution, "prose", kinds=["step"], others=others, seed=seed)
        assert twin is not None
        seen.add((twin.first_wrong, twin.solution.text))
    assert seen == {(0, "It is green.\nTwo."), (0, "The end.\nTwo."), (1, "One.\nIt is green."), (1, "One.\nThe end.")}


def test_a_refused_twin_gives_way_to_another():
    solution, asked = written("n = 1 + 2"), []

    def accept(flawed: WrittenSolution) -> bool:
        asked.append(flawed.text)
        return flawed.text == "n = 1 - 2"

    twin = flawed_twin(solution, "code", accept=accept)
    assert twin is not None
    assert asked[-1] == twin.solution.text == "n = 1 - 2"
    assert flawed_twin(solution, "code", accept=lambda flawed: False) is None
    assert set(asked) <= {"n = 1 - 2", "n = 0 + 2", "n = 2 + 2", "n = 1 + 1", "n = 1 + 3"}


# ---- what holds of every twin ----


def rows(path: Path, count: int) -> list[dict[str, str]]:
    lines = [line for line in path.read_bytes().split(b"\n") if line]
    return [json.loads(line) for line in random.Random(0).sample(lines, count)]


def require_one_change(solution: WrittenSolution, twin: FlawedTwin) -> tuple[str, str]:
    """The changed step before and after; all other steps are kept."""
    before, after = solution.steps, twin.solution.steps
    assert len(before) == len(after)
    assert [place for place in range(len(before)) if before[place] != after[place]] == [twin.first_wrong]
    assert twin.solution.problem == solution.problem
    return before[twin.first_wrong], after[twin.first_wrong]


def value_of(expression: str) -> float:
    return float(eval(compile(ast.parse(expression, mode="eval"), "", "eval"), {"__builtins__": {}}))


_PLAIN_EQUATION = re.compile(
    r"(?<![\d.)%/*+-])(?<![-+*/] )(\d[\d.]*(?: ?[-+*/] ?\d[\d.]*)+) ?= ?\$?(\d+(?:\.\d+)?)(?![\d.,%/*+=-])(?! ?[-+*/=%])"
)


def plain_equations(step: str) -> list[bool]:
    found = _PLAIN_EQUATION.findall(step.replace(",", ""))
    readable = [(left.rstrip("."), right) for left, right in found if not re.search(r"\b0\d", left)]
    return [abs(value_of(left) - float(right)) < 0.011 * max(1, float(right)) for left, right in readable]


def test_twins_of_real_word_problems():
    made, broken = 0, 0
    for row in rows(shared_file("math/gsm8k_test.jsonl"), 400):
        steps = row["solution"].split("\n")
        solution = written(*(f"{step}\n" for step in steps[:-1] if step.strip()), steps[-1], problem=row["problem"])
        twin = flawed_twin(solution, "prose", seed=3)
        if twin is None:
            continue
        made += 1
        before, after = require_one_change(solution, twin)
        assert abs(len(after) - len(before)) == 0  # one character for one
        assert twin == flawed_twin(solution, "prose", seed=3)
        right, still = plain_equations(before), plain_equations(after)
        if right and all(right) and len(still) == len(right):
            broken += not all(still)
    assert made > 380
    assert broken > 150  # equations that were true and are false


@pytest.mark.filterwarnings("ignore:.*invalid escape")
def test_twins_of_real_programs():
    made = 0
    for row in rows(shared_file("code/mbpp.jsonl"), 300):
        text = row["canonical_solution"]
        solution = written(*re.split(r"(?<=\n)(?=[^\n]*\S)", text.strip()), problem=row["prompt"])
        twin = flawed_twin(solution, "code", seed=5)
        if twin is None:
            continue
        made += 1
        require_one_change(solution, twin)
        assert ast.dump(ast.parse(twin.solution.text)) != ast.dump(ast.parse(solution.text))
    assert made > 200
