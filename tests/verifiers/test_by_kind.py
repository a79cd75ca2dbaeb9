"""Programs and answers in one list go to their own verifiers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from repirl.structs import CodeTests, Problem, Verdict, Verifier
from repirl.verifiers.by_kind import ByKind
from repirl.verifiers.exact import ExactVerifier


class Programs(Verifier):
    """A program passes where it stands in the tests' own words; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.closed = False

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        self.asked += [problem.id for problem in problems]
        passed = [p.tests is not None and r in p.tests.code for p, r in zip(problems, responses, strict=True)]
        return [Verdict(one, "passed" if one else "failed") for one in passed]

    def close(self) -> None:
        self.closed = True


class Golds(ExactVerifier):
    """Cannot read the gold answer "?"; is never shown a program."""

    def check_golds(self, problems: Sequence[Problem]) -> list[tuple[str, str]]:
        assert all(problem.tests is None for problem in problems)
        return [(problem.id, str(problem.answer)) for problem in problems if problem.answer == "?"]


PROBLEMS = [
    Problem("c1", "x", tests=CodeTests("asserts", "assert f(1)")),
    Problem("m1", "x", "3"),
    Problem("c2", "x", tests=CodeTests("asserts", "assert g(1)")),
    Problem("m2", "x", "?"),
]


def test_verdicts_come_in_the_order_of_the_problems() -> None:
    code = Programs()
    verifier = ByKind(Golds(), code)
    found = verifier.verify(PROBLEMS, ["f(1)", r"\boxed{3}", "f(1)", r"\boxed{4}"])
    assert [v.status for v in found] == ["passed", "equal", "failed", "not_equal"]
    assert code.asked == ["c1", "c2"]
    assert [v.status for v in verifier.verify(PROBLEMS[1:2], ["3"])] == ["no_answer"]
    assert code.asked == ["c1", "c2"]  # not asked about nothing
    assert verifier.verify([], []) == []
    assert verifier.check_golds(PROBLEMS) == [("m2", "?")]
    verifier.close()
    assert code.closed


def test_an_answer_without_gold_is_still_refused() -> None:
    with pytest.raises(ValueError, match="problem 'm' has no answer to verify against"):
        ByKind(Golds(), Programs()).verify([Problem("m", "x")], ["1"])
