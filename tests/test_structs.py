"""Records refuse what contradicts itself."""

import pytest

from repirl.structs import CodeTests, Problem, Verdict


@pytest.mark.parametrize("status", ["equal", "passed"])
def test_right_has_its_own_statuses(status):
    assert Verdict(True, status).correct is True
    for correct in (False, None):
        with pytest.raises(ValueError, match=status):
            Verdict(correct, status)


@pytest.mark.parametrize("status", ["failed", "error", "timeout", "memory", "output_limit", "disk_limit", "no_answer"])
def test_wrong_is_neither_right_nor_masked(status):
    assert Verdict(False, status).correct is False
    for correct in (True, None):
        with pytest.raises(ValueError, match=status):
            Verdict(correct, status)


def test_a_failure_of_the_verifier_is_masked():
    assert Verdict(None, "infra_error").correct is None
    with pytest.raises(ValueError, match="infra_error"):
        Verdict(False, "infra_error")


def test_a_problem_may_have_tests():
    tests = CodeTests("asserts", "assert f(1) == 2", entry_point="f")
    assert Problem("p", "Add one.", tests=tests).tests == tests
    assert Problem("p", "1 + 1?", "2").tests is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "unit"}, "'unit'"),
        ({"kind": "asserts"}, "need `code`"),
        ({"kind": "asserts", "code": "assert True", "pairs": (("[1]", "2"),)}, "no `pairs`"),
        ({"kind": "calls", "pairs": (("[1]", "2"),)}, "entry_point"),
        ({"kind": "calls", "entry_point": "f"}, "need `pairs`"),
        ({"kind": "stdio", "code": "assert True", "pairs": (("1", "2"),)}, "no `code`"),
    ],
)
def test_incomplete_tests_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CodeTests(**arguments)
