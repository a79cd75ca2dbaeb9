"""Faults planted on purpose, one at a time (mutants.py): the tests named beside each must fail on it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutants import MUTANTS, NoTarget, holder_of
from tests.processes import limited

ROOT = Path(__file__).parents[1]


class Runner:
    """Runs tests by pytest, each time in a process of its own (mutant_runner.py)."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self.log = process, log

    def __call__(self, *tests: str, mutant: str | None = None) -> tuple[int, str]:
        """Pytest's exit code and output."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"tests": tests, "mutant": mutant, "log": str(self.log)}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline()), self.log.read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.mutant_runner"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with limited(process, 3000):
        yield Runner(process, tmp_path_factory.mktemp("mutants") / "log")


def test_every_target_is_there() -> None:
    for mutant in MUTANTS.values():
        holder_of(mutant.target)


@pytest.mark.parametrize("target", ["repirl.distributed.sum_of_gradients", "repirl.learning.batch.Batch.local"])
def test_a_renamed_target_is_named(target: str) -> None:
    with pytest.raises(NoTarget, match=rf"no function {target}: .* adapt the faults in tests/mutants.py"):
        holder_of(target)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_fault_is_caught(name: str, run: Runner) -> None:
    code, output = run(*MUTANTS[name].test, mutant=name)
    assert code == 1, output  # 1: tests ran and failed; 2 to 5: they could not
    assert re.search(r"^1 failed", output, flags=re.MULTILINE), output
    assert not re.search(r"^\d+ .*\berror", output, flags=re.MULTILINE), output
    # by what the test asserts, not by an error of the fault
    errors = re.findall(r"^E +(\w+(?:Error|Exception)|assert\b)", output, flags=re.MULTILINE)
    assert errors
    assert set(errors) <= {"AssertionError", "assert"}, output


def test_without_a_fault_the_same_tests_pass(run: Runner) -> None:
    light = tuple(sorted({test for mutant in MUTANTS.values() for test in mutant.test if "::" in test}))
    code, output = run(*light)
    assert code == 0, output
    assert re.search(rf"^{len(light)} passed", output, flags=re.MULTILINE), output
    for test in {mutant.test for mutant in MUTANTS.values()} - {(test,) for test in light}:
        code, output = run(*test)
        assert code == 0, output
        assert re.search(r"^1 passed", output, flags=re.MULTILINE), output
