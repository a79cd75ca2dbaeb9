"""Faults planted on purpose, one at a time, in a copy of the package: the tests named beside each must fail on it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IRL = "tests/theory/test_irl_estimator.py"


@dataclass(frozen=True)
class Mutant:
    """file: below src/repirl. before, after: the text patched, found exactly once. test: what must fail, for pytest."""

    file: str
    before: str
    after: str
    test: tuple[str, ...]


MUTANTS = {
    "softmax per micro-batch": Mutant(
        "modules/repirl.py",
        """        rewards = self.score(part.rows) if kept is None else kept.detach()
        self._require_finite(rewards, part, "the PRM's reward")
        coefficients = self._prm_coefficients(part, rewards)
        if coefficients is None:
            return
        for index in micro_batches:
            values = self._prm()(select(part.rows, index)) if kept is None else kept
            wanted = coefficients if kept is not None else coefficients[index, : values.shape[1]]
""",
        """        for index in micro_batches:
            values = self._prm()(select(part.rows, index)) if kept is None else kept
            piece = part.select(index)
            width = values.shape[1]
            piece = replace(piece, log_probs=piece.log_probs[:, :width])
            piece = replace(piece, reference_log_probs=piece.reference_log_probs[:, :width])
            piece = replace(piece, rows=select(part.rows, index))
            wanted = self._prm_coefficients(piece, values.detach())
            if wanted is None:
                continue
""",
        (
            "tests/modules/test_repirl.py",
            "-k",
            "test_micro_batches_do_not_change_the_gradient and weighting and sequence",
        ),
    ),
    "one softmax over several experts": Mutant(
        "objectives/irl.py",
        "    with_itself = negative[None] | itself[..., None]  # [p, n, t]",
        "    with_itself = (negative | (shares > 0))[None].expand(len(positives), -1, -1)",
        (f"{IRL}::test_each_of_several_experts_has_its_own_softmax",),
    ),
    "last token without reward": Mutant(
        "objectives/steps.py",
        "return closes | last_token(response_mask)",
        "return closes",
        ("tests/objectives/test_steps.py::test_step_ends",),
    ),
    "expert label flipped, IRL": Mutant(
        "objectives/irl.py",
        "    return mixed - shares, loss, background",
        "    return shares - mixed, loss, background",
        (f"{IRL}::test_exact_when_every_trajectory_is_listed_once",),
    ),
    "expert label flipped, discriminator": Mutant(
        "objectives/discriminator.py",
        "    positive, negative = shares  # each sums to 1 over a usable prompt",
        "    negative, positive = shares",
        ("tests/objectives/test_discriminator.py::test_sequence_form",),
    ),
    "baseline with its own row": Mutant(
        "objectives/advantages.py",
        "    return group_sum(active.float(), group, groups)[group] - active.float()",
        "    return group_sum(active.float(), group, groups)[group]",
        ("tests/objectives/test_advantages.py::test_leave_one_out",),
    ),
    "RLOO over the rows still active": Mutant(
        "objectives/advantages.py",
        "        return rloo_advantage(rewards=rewards, alone=alone, discount=discount, **shared)",
        "        return leave_one_out(returns=returns_to_go(rewards, response_mask, discount), alone=alone, **shared)",
        ("tests/objectives/test_public_code.py::test_outcomes_as_in_verl[rloo-expected0]",),
    ),
    "standard deviation over n": Mutant(
        "objectives/advantages.py",
        "(group_sum(centred.square().sum(-1), group, groups) / (count - 1).clamp(min=1)).sqrt()",
        "(group_sum(centred.square().sum(-1), group, groups) / count).sqrt()",
        ("tests/objectives/test_public_code.py::test_outcomes_as_in_verl[grpo-expected1]",),
    ),
    "loss divided by a micro-batch's tokens": Mutant(
        "modules/repirl.py",
        "            self.manual_backward((loss * rows.response_mask).sum() / denominator)",
        "            self.manual_backward((loss * rows.response_mask).sum() / rows.response_mask.sum())",
        (
            "tests/modules/test_repirl.py",
            "-k",
            "test_micro_batches_do_not_change_the_aggregated_gradient and token_mean",
        ),
    ),
    "log-ratio not cut": Mutant(
        "objectives/policy.py",
        "    return (log_probs - of).clamp(max=MAX_LOG_RATIO).exp()",
        "    return (log_probs - of).exp()",
        ("tests/objectives/test_policy.py::test_ratios_of_any_size_have_finite_gradients[dtype0-3.0]",),
    ),
    "rates stepped by the optimiser": Mutant(
        "modules/repirl.py",
        "        optimizer.zero_grad(set_to_none=True)",
        "        optimizer.zero_grad(set_to_none=True)\n        self.schedules.step()",
        ("tests/modules/test_learning_rate.py::test_schedules_step_once_an_iteration_whatever_the_optimiser_steps",),
    ),
    "entropy sign": Mutant(
        "objectives/policy.py",
        "    value = surrogate + entropy_coef * entropy",
        "    value = surrogate - entropy_coef * entropy",
        ("tests/objectives/test_policy.py::test_entropy_is_a_bonus",),
    ),
}


def run(package: Path, test: tuple[str, ...]) -> tuple[int, str]:
    """One test by pytest, with `package`'s repirl before the installed one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(ROOT)])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *test]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of src, which each test patches and restores."""
    copy = tmp_path_factory.mktemp("mutants") / "src"
    shutil.copytree(ROOT / "src" / "repirl", copy / "repirl", ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_fault_is_caught(name: str, package: Path) -> None:
    mutant = MUTANTS[name]
    path = package / "repirl" / mutant.file
    text = path.read_text(encoding="utf-8")
    assert text.count(mutant.before) == 1, f"{mutant.file} has changed: adapt the patch"
    path.write_text(text.replace(mutant.before, mutant.after), encoding="utf-8")
    try:
        code, output = run(package, mutant.test)
    finally:
        path.write_text(text, encoding="utf-8")
    assert code == 1, output  # 1: tests ran and failed; 2 to 5: they could not
    assert re.search(r"^1 failed", output, flags=re.MULTILINE), output
    # by what the test asserts, not by an error of the patch
    errors = re.findall(r"^E +(\w+(?:Error|Exception)|assert\b)", output, flags=re.MULTILINE)
    assert errors
    assert set(errors) <= {"AssertionError", "assert"}, output


def test_without_a_fault_the_same_tests_pass(package: Path) -> None:
    light = tuple(sorted({test for mutant in MUTANTS.values() for test in mutant.test if "::" in test}))
    code, output = run(package, light)
    assert code == 0, output
    assert re.search(rf"^{len(light)} passed", output, flags=re.MULTILINE), output
    for test in {mutant.test for mutant in MUTANTS.values()} - {(test,) for test in light}:
        code, output = run(package, test)
        assert code == 0, output
        assert re.search(r"^1 passed", output, flags=re.MULTILINE), output
