"""Faults planted on purpose, one at a time, and the tests that must fail on each (test_mutants.py runs them).

A fault takes a function or method of the package and gives the faulty one, by its dotted name, so that no formatting breaks
it. The variable REPIRL_MUTANT names the one to plant, before anything else imports what it replaces:

    REPIRL_MUTANT="entropy sign" python -m pytest -p tests.mutants tests/objectives/test_policy.py
    REPIRL_MUTANT="entropy sign" python -m tests.mutants a.module its arguments       # a program without pytest
"""

from __future__ import annotations

import functools
import importlib
import os
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

VARIABLE = "REPIRL_MUTANT"
IRL = "tests/theory/test_irl_estimator.py"
LEARNING = "repirl.learning"
OBJECTIVES = "repirl.objectives"


@dataclass(frozen=True)
class Mutant:
    """target: dotted name. fault: from the original to the faulty one. test: what must fail, for pytest."""

    target: str
    fault: Callable[[Callable[..., Any]], Callable[..., Any]]
    test: tuple[str, ...]


MUTANTS: dict[str, Mutant] = {}


def mutant(name: str, target: str, *test: str) -> Callable[[Any], Any]:
    """Registers a fault under its name."""

    def register(fault: Any) -> Any:
        MUTANTS[name] = Mutant(target, fault, test)
        return fault

    return register


# ---- the PRM's objectives ----


@mutant(
    "softmax per micro-batch",
    f"{LEARNING}.prm_learner.PRMLearner.update",
    "tests/modules/test_repirl.py",
    "-k",
    "test_micro_batches_do_not_change_the_gradient and weighting and sequence",
)
def _softmax_per_micro_batch(update: Any) -> Any:
    def faulty(self: Any, batch: Any) -> None:
        engine, self.engine = self.engine, Changed(self.engine, step=lambda: None)
        for index in self.micro_batches(batch.rows):
            keep = torch.zeros(len(batch.group), dtype=torch.bool)
            keep[index] = True
            update(self, batch.select(keep))
        self.engine = engine
        engine.step()

    return faulty


class Changed:
    """An engine, some of whose methods are others."""

    def __init__(self, engine: Any, **methods: Any) -> None:
        self.backward, self.step = engine.backward, engine.step
        vars(self).update(methods)


@mutant(
    "one softmax over several experts",
    f"{OBJECTIVES}.irl._contrast",
    f"{IRL}::test_each_of_several_experts_has_its_own_softmax",
)
def _one_softmax(contrast: Any) -> Any:
    def faulty(scores: Any, shares: Any, negative: Any, experts_in_z: bool, truncate: Any) -> Any:
        token, loss, background = contrast(scores, shares, negative, experts_in_z, truncate)
        if experts_in_z:
            token, loss, _ = contrast(scores, shares, negative | (shares > 0), experts_in_z, truncate)
        return token, loss, background

    return faulty


@mutant("last token without reward", f"{OBJECTIVES}.steps.step_ends", "tests/objectives/test_steps.py::test_step_ends")
def _last_token_without_reward(step_ends: Any) -> Any:
    def faulty(*, is_separator: Any, response_mask: Any, **options: Any) -> Any:
        from repirl.objectives.reduce import last_token

        ends = step_ends(is_separator=is_separator, response_mask=response_mask, **options)
        return ends & ~(last_token(response_mask) & ~is_separator)

    return faulty


@mutant(
    "expert label flipped, IRL",
    f"{OBJECTIVES}.irl._contrast",
    f"{IRL}::test_exact_when_every_trajectory_is_listed_once",
)
def _flipped_in_irl(contrast: Any) -> Any:
    def faulty(*arguments: Any) -> Any:
        token, *others = contrast(*arguments)
        return (-token, *others)

    return faulty


@mutant(
    "right rollouts are no experts",
    f"{OBJECTIVES}.irl.contrast_sets",
    "tests/theory/test_joint.py::test_rests_of_copy_halve_the_gap_where_the_expert_weighs_as_much_as_the_rollouts",
)
def _right_rollouts_ignored(contrast_sets: Any) -> Any:
    return lambda **sets: contrast_sets(**sets | {"corrected": "ignore"})


@mutant(
    "expert label flipped, discriminator",
    f"{OBJECTIVES}.discriminator._contrast",
    "tests/objectives/test_discriminator.py::test_sequence_form",
)
def _flipped_in_the_discriminator(contrast: Any) -> Any:
    def faulty(scores: Any, active: Any, group: Any, positive: Any, background: Any, **options: Any) -> Any:
        return contrast(scores, active, group, background.to(positive.dtype), positive > 0, **options)

    return faulty


# ---- advantages ----


@mutant(
    "log q - log b added to the PRM's rewards",
    f"{LEARNING}.shaping.with_entropy",
    "tests/theory/test_policy_gradient.py::test_leave_one_out_has_the_gradient_of_the_kl[place1-2-rloo_per_step]",
)
def _entropy_negated(with_entropy: Any) -> Any:
    def faulty(batch: Any, prm_rewards: Any, maxent_coef: float, **options: Any) -> Any:
        return with_entropy(batch, prm_rewards, -maxent_coef, **options)

    return faulty


@mutant(
    "baseline with its own row",
    f"{OBJECTIVES}.advantages.others_active",
    "tests/objectives/test_advantages.py::test_leave_one_out",
)
def _baseline_with_its_own_row(others_active: Any) -> Any:
    return lambda active, group: others_active(active, group) + active.float()


@mutant(
    "RLOO over the rows still active",
    f"{OBJECTIVES}.advantages.rloo_advantage",
    "tests/objectives/test_public_code.py::test_outcomes_as_in_verl[rloo-expected0]",
)
def _rloo_over_active_rows(_: Any) -> Any:
    def faulty(*, rewards: Any, response_mask: Any, discount: float = 1.0, **rows: Any) -> Any:
        from repirl.objectives.advantages import leave_one_out, returns_to_go

        returns = returns_to_go(rewards, response_mask, discount)
        return leave_one_out(returns=returns, response_mask=response_mask, **rows)

    return faulty


@mutant(
    "standard deviation over n",
    f"{OBJECTIVES}.advantages.group_normalised",
    "tests/objectives/test_public_code.py::test_outcomes_as_in_verl[grpo-expected1]",
)
def _standard_deviation_over_n(group_normalised: Any) -> Any:
    def faulty(*, rewarded: Any, response_mask: Any, group: Any, scorable: Any, **options: Any) -> Any:
        advantages = group_normalised(
            rewarded=rewarded, response_mask=response_mask, group=group, scorable=scorable, **options
        )
        of_row = (rewarded & response_mask & scorable[:, None]).sum(-1).to(advantages.dtype)
        count = torch.stack([of_row[group == g].sum() for g in group])
        return advantages * (count / (count - 1).clamp(min=1)).sqrt()[:, None]

    return faulty


# ---- the policy's objective ----


@mutant(
    "loss divided by a micro-batch's tokens",
    f"{LEARNING}.policy_learner.PolicyLearner.update",
    "tests/modules/test_repirl.py::test_micro_batches_do_not_change_the_aggregated_gradient[token_mean]",
)
def _divided_by_a_micro_batch(update: Any) -> Any:
    def faulty(self: Any, batch: Any) -> None:
        mask, engine = batch.rows.response_mask, self.engine
        counts = iter([mask[index].sum() for index in self.micro_batches(batch.rows)])
        total = batch.response_mask.sum()
        self.engine = Changed(engine, backward=lambda loss: engine.backward(loss * total / next(counts)))
        update(self, batch)
        self.engine = engine

    return faulty


@mutant(
    "log-ratio not cut",
    f"{OBJECTIVES}.policy._ratio",
    "tests/objectives/test_policy.py::test_ratios_of_any_size_have_finite_gradients[dtype0-3.0]",
)
def _log_ratio_not_cut(_: Any) -> Any:
    return lambda log_probs, of: (log_probs - of).exp()


@mutant(
    "entropy sign",
    f"{OBJECTIVES}.policy.policy_objective",
    "tests/objectives/test_policy.py::test_entropy_is_a_bonus",
)
def _entropy_sign(policy_objective: Any) -> Any:
    return lambda *, entropy, **terms: policy_objective(entropy=-entropy, **terms)


@mutant(
    "rates stepped by the optimiser",
    "repirl.modules.engine.LightningEngine.step",
    "tests/learning/test_learning_rate.py::test_schedules_step_once_an_iteration_whatever_the_optimiser_steps",
)
def _rates_stepped_by_the_optimiser(step: Any) -> Any:
    def faulty(self: Any) -> None:
        step(self)
        self.module.schedules.step()

    return faulty


# ---- whose log-probabilities ----


@mutant(
    "stale rows by the present policy",
    f"{LEARNING}.policy_learner.PolicyLearner.with_log_probs",
    "tests/learning/test_log_probs_by_owner.py::test_rows_of_an_earlier_policy_keep_their_samplers_log_probs",
)
def _stale_rows_by_the_present_policy(with_log_probs: Any) -> Any:
    def faulty(self: Any, batch: Any) -> Any:
        known = with_log_probs(self, batch)
        return replace(known, behaviour_log_probs=known.old_log_probs)

    return faulty


@mutant(
    "the present policy as reference",
    f"{LEARNING}.policy_learner.PolicyLearner.with_log_probs",
    "tests/learning/test_log_probs_by_owner.py::test_the_reference_is_the_policy_at_the_start",
)
def _present_policy_as_reference(with_log_probs: Any) -> Any:
    def faulty(self: Any, batch: Any) -> Any:
        known = with_log_probs(self, batch)
        return known if self.reference is None else replace(known, reference_log_probs=known.old_log_probs)

    return faulty


# ---- several ranks ----


@mutant(
    "gradients averaged over ranks",
    "repirl.distributed.sum_gradients",
    "tests/learning/test_ranks.py::test_gradients_are_summed",
)
def _gradients_averaged(sum_gradients: Any) -> Any:
    def faulty(parameters: Any) -> None:
        from repirl.distributed import world_size

        parameters = list(parameters)
        sum_gradients(parameters)
        for parameter in [p for p in parameters if p.grad is not None]:
            parameter.grad /= world_size()

    return faulty


@mutant(
    "the first rows instead of the rank's",
    f"{LEARNING}.batch.GlobalBatch.local",
    "tests/learning/test_ranks.py::test_a_rank_gets_its_own_rows_back",
)
def _first_rows(_: Any) -> Any:
    def faulty(self: Any, values: Any) -> Any:
        count, columns = self.rows.response_mask.shape
        return values[:count, :columns]

    return faulty


@mutant(
    "empty micro-batches skipped",
    f"{LEARNING}.learner.Learner.micro_batches",
    "tests/learning/test_ranks.py::test_every_rank_makes_as_many_passes_as_the_one_with_most_rows",
)
def _empty_micro_batches_skipped(micro_batches: Any) -> Any:
    return lambda self, rows: [index for index in micro_batches(self, rows) if len(index)]


# ---- planting ----


class NoTarget(Exception):
    """What a fault replaces is not there."""


def holder_of(target: str) -> tuple[Any, str]:
    """The module or class that holds a function, and the function's name in it. Raises NoTarget."""
    parts = target.split(".")
    count = next(n for n in range(len(parts) - 1, 0, -1) if _is_module(".".join(parts[:n])))
    holder = importlib.import_module(".".join(parts[:count]))
    for name in parts[count:-1]:
        holder = getattr(holder, name, None)
    if not callable(vars(holder).get(parts[-1]) if holder is not None else None):
        raise NoTarget(f"there is no function {target}: it was renamed or moved; adapt the faults in tests/mutants.py")
    return holder, parts[-1]


def _is_module(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise
        return False
    return True


def plant(name: str) -> None:
    """Puts a fault in its target's place. Raises NoTarget, and RuntimeError where somebody holds the original already."""
    mutant = MUTANTS[name]
    holder, attribute = holder_of(mutant.target)
    original = vars(holder)[attribute]
    setattr(holder, attribute, functools.wraps(original)(mutant.fault(original)))
    for module in [module for key, module in sys.modules.items() if key.startswith(("repirl", "tests"))]:
        if any(value is original for value in vars(module).values()):
            raise RuntimeError(f"{module.__name__} imported {mutant.target} before the fault was planted")


def pytest_configure() -> None:
    """Hook of pytest: after conftest.py has set up the checks of shapes, before test modules are imported."""
    if VARIABLE in os.environ:
        try:
            plant(os.environ[VARIABLE])
        except (NoTarget, KeyError) as error:
            raise pytest.UsageError(str(error)) from error


def main(arguments: list[str]) -> None:
    """Runs a module as a program, with the fault where one is named."""
    if VARIABLE in os.environ:
        plant(os.environ[VARIABLE])
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
