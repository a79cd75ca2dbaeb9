r"""What is equal: the case table, row by row, and the benchmark's rewritten and perturbed golds in a small form.

`math_cases.tsv` has one pair a line: status, gold, answer (put into a box), and the reason, which is mathematics or a
policy of docs/verifiers.md. It was written before it was run. `math_kinds.tsv` has one pair a line by what the gold or the
answer is: kind, gold, answer or whole response, status.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from repirl.structs import Problem
from repirl.verifiers.math import MathVerifier

ROOT = Path(__file__).parents[2]
CASES = [
    tuple(line.split("\t"))
    for line in Path(__file__).with_name("math_cases.tsv").read_text(encoding="utf-8").split("\n")[1:-1]
]


KINDS = [
    tuple(line.split("\t"))
    for line in Path(__file__).with_name("math_kinds.tsv").read_text(encoding="utf-8").split("\n")[1:-1]
]


@pytest.fixture(scope="module")
def shared() -> Iterator[MathVerifier]:
    verifier = MathVerifier()
    yield verifier
    verifier.close()


@pytest.mark.parametrize(("status", "gold", "answer", "reason"), CASES)
def test_case(shared: MathVerifier, status: str, gold: str, answer: str, reason: str) -> None:
    problem = Problem(id="p", text="?", answer=gold)
    assert shared.verify([problem], [rf"So \boxed{{{answer}}}."])[0].status == status, reason


@pytest.mark.parametrize(("kind", "gold", "answer", "right"), KINDS)
def test_kind(shared: MathVerifier, kind: str, gold: str, answer: str, right: str) -> None:
    response = answer if r"\boxed" in answer else rf"So \boxed{{{answer}}}."
    assert shared.verify([Problem(id="p", text="?", answer=gold)], [response])[0].status == right, kind


def test_every_kind_has_both_verdicts_and_no_pair_twice() -> None:
    by_kind: dict[str, set[str]] = {}
    for kind, _, _, right in KINDS:
        by_kind.setdefault(kind, set()).add(right)
    assert all({"equal", "not_equal"} <= found for found in by_kind.values())
    assert len({(gold, answer) for _, gold, answer, _ in KINDS}) == len(KINDS)


def test_the_table_has_both_signs_and_no_pair_twice() -> None:
    counts = Counter(status for status, *_ in CASES)
    assert counts["equal"] >= 150
    assert counts["not_equal"] >= 150
    assert len({(gold, answer) for _, gold, answer, _ in CASES}) == len(CASES)
    assert all(reason for *_, reason in CASES)


def test_golds_of_the_sample_rewritten_are_right_and_perturbed_are_wrong(tmp_path: Path) -> None:
    """As the report does it for whole data sets: at most 1 % of the one and .5 % of the other are missed."""
    out = tmp_path / "found.json"
    command = [sys.executable, ROOT / "benchmarks" / "math_verifier.py", "--only", "cases", "golds", "--out", out]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["cases"]["wrong"] == []
    (sample,) = found["golds"].values()
    assert sample["golds"] == 64
    assert sample["unreadable"] == []
    for kind, limit in (("rewritten", 0.01), ("perturbed", 0.005)):
        assert sample[kind]["pairs"] > 500
        assert sample[kind]["share_missed"] <= limit, sample[kind]["list"]
