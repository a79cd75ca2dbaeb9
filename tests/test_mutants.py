"""Faults planted on purpose, one at a time (mutants.py): the tests named beside each must fail on it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import MUTANTS, VARIABLE, NoTarget, holder_of

ROOT = Path(__file__).parents[1]


def run(test: tuple[str, ...], mutant: str | None = None) -> tuple[int, str]:
    """One test by pytest, with a fault or without one."""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    environment |= {} if mutant is None else {VARIABLE: mutant}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "tests.mutants"]
    done = subprocess.run([*command, *test], cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_every_target_is_there() -> None:
    for mutant in MUTANTS.values():
        holder_of(mutant.target)


@pytest.mark.parametrize("target", ["repirl.distributed.sum_of_gradients", "repirl.learning.batch.Batch.local"])
def test_a_renamed_target_is_named(target: str) -> None:
    with pytest.raises(NoTarget, match=rf"no function {target}: .* adapt the faults in tests/mutants.py"):
        holder_of(target)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_fault_is_caught(name: str) -> None:
    code, output = run(MUTANTS[name].test, name)
    assert code == 1, output  # 1: tests ran and failed; 2 to 5: they could not
    assert re.search(r"^1 failed", output, flags=re.MULTILINE), output
    assert not re.search(r"^\d+ .*\berror", output, flags=re.MULTILINE), output
    # by what the test asserts, not by an error of the fault
    errors = re.findall(r"^E +(\w+(?:Error|Exception)|assert\b)", output, flags=re.MULTILINE)
    assert errors
    assert set(errors) <= {"AssertionError", "assert"}, output


def test_without_a_fault_the_same_tests_pass() -> None:
    light = tuple(sorted({test for mutant in MUTANTS.values() for test in mutant.test if "::" in test}))
    code, output = run(light)
    assert code == 0, output
    assert re.search(rf"^{len(light)} passed", output, flags=re.MULTILINE), output
    for test in {mutant.test for mutant in MUTANTS.values()} - {(test,) for test in light}:
        code, output = run(test)
        assert code == 0, output
        assert re.search(r"^1 passed", output, flags=re.MULTILINE), output
