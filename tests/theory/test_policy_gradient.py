"""The advantages that are implemented against the gradient of -KL(q || b exp(R) / Z), by enumeration of every draw."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from repirl.learning.settings import Advantage
from repirl.learning.shaping import shaped
from repirl.objectives.advantages import whiten
from tests.theory.estimators import World, every_draw, world
from tests.theory.policies import batch_of_draws, minus_kl_gradient, policy_steps, score
from tests.theory.tiny_mdp import random_table

SMALL = replace(world(horizon=2), base=random_table(6))  # 7 responses; q is neither b nor the model
LARGER = replace(world(horizon=3), base=random_table(6))  # 15
AT_REST = replace(SMALL, policy=SMALL.rows.policy_of(SMALL.model))


def nothing(place: World) -> Tensor:
    """No response is right."""
    return torch.zeros(len(place.rows), dtype=torch.bool)


def process(estimator: Any, **settings: Any) -> Advantage:
    """The PRM alone, not whitened."""
    return Advantage(outcome_coef=0.0, prm_coef=1.0, prm_estimator=estimator, whiten=False, **settings)


def beside(step: Tensor, exact: Tensor) -> tuple[float, float]:
    """The best factor of `exact`, and what is left of the step, as a share of that multiple."""
    factor = float((step * exact).sum() / exact.square().sum())
    return factor, float((step / factor - exact).norm() / exact.norm())


# ---- exact, without whitening


@pytest.mark.parametrize("estimator", ["rloo", "rloo_per_step"])
@pytest.mark.parametrize(("place", "samples"), [(SMALL, 1), (SMALL, 2), (SMALL, 4), (LARGER, 2)])
def test_leave_one_out_has_the_gradient_of_the_kl(estimator: Any, place: World, samples: int) -> None:
    """Factor 1, whatever K: a row's baseline does not depend on its actions."""
    exact = minus_kl_gradient(place, place.log_model)
    (step,) = policy_steps([place], process(estimator), correct=nothing(place), samples=samples)
    assert exact.norm() > 0.1
    torch.testing.assert_close(step, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_a_baseline_that_includes_the_row_leaves_k_minus_1_of_k(samples: int) -> None:
    """Dr. GRPO's outcome reward minus the mean of all K: (K - 1) / K of the gradient of P(right)."""
    correct = torch.arange(len(SMALL.rows)) % 3 == 0
    logits = SMALL.policy.clone().requires_grad_()
    (exact,) = torch.autograd.grad(SMALL.rows.log_prob(logits).exp()[correct].sum(), logits)
    for name, factor in (("rloo", 1.0), ("dr_grpo", (samples - 1) / samples)):
        settings = Advantage(prm_coef=0.0, outcome_estimator=name, whiten=False)  # type: ignore[arg-type]
        (step,) = policy_steps([SMALL], settings, correct=correct, samples=samples)
        torch.testing.assert_close(step, factor * exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("estimator", ["grpo", "grpo_per_step", "dr_grpo", "prime", "position"])
def test_the_other_estimators_have_another_direction_for_token_rewards(estimator: Any) -> None:
    """Their baselines depend on the row's length, or they divide by a spread that depends on the row."""
    exact = minus_kl_gradient(SMALL, SMALL.log_model)
    for samples in (2, 4):
        (step,) = policy_steps([SMALL], process(estimator), correct=nothing(SMALL), samples=samples)
        _, residual = beside(step, exact)
        assert residual > 0.1


def test_dropping_tokens_without_another_row_is_biased_less_with_more_rollouts() -> None:
    exact = minus_kl_gradient(SMALL, SMALL.log_model)
    steps = [
        policy_steps([SMALL], process("rloo_per_step", alone="drop"), correct=nothing(SMALL), samples=k)[0]
        for k in (2, 3, 4)
    ]
    errors = [float((step - exact).norm() / exact.norm()) for step in steps]
    assert errors[0] > 0.1 > errors[1] > 3 * errors[2] > 0.01


# ---- at rest


@pytest.mark.parametrize("estimator", ["rloo", "rloo_per_step"])
def test_at_rest_only_whole_log_weights_have_no_noise(estimator: Any) -> None:
    """With q = b exp(R) / Z every response has the log-weight log Z: `rloo` compares equals, the returns-to-go differ."""
    draws, chances = every_draw(AT_REST, 2)
    batch, rows, rewards = batch_of_draws([AT_REST], [draws], nothing(SMALL))
    options = {"judged": False, "maxent_coef": 1.0, "of_reference": True, "by_step": False}
    advantages = shaped(batch, settings=process(estimator), prm_rewards=rewards, **options)
    expected = score(rows, advantages * chances.repeat_interleave(2)[:, None] / 2, AT_REST.policy)
    assert expected.abs().max() < 1e-12
    if estimator == "rloo":
        assert advantages.abs().max() < 1e-12
    else:
        assert advantages.abs().max() > 0.2


# ---- whitened, over n prompts of K rollouts


def whitened_step(estimator: Any, prompts: int, samples: int, aggregation: str) -> Tensor:
    """The expected step of a batch of equal prompts, over every multiset of draws: whitening sees one batch at a time."""
    draws, chances = every_draw(SMALL, samples)
    batch, rows, rewards = batch_of_draws([SMALL], [draws], nothing(SMALL))
    options = {"judged": False, "maxent_coef": 1.0, "of_reference": True, "by_step": False}
    plain = shaped(batch, settings=process(estimator), prm_rewards=rewards, **options).view(len(draws), samples, -1)
    mask = rows.mask.view(plain.shape)
    weighted = torch.zeros_like(plain)
    for sets in itertools.combinations_with_replacement(range(len(draws)), prompts):
        index = list(sets)
        ways = math.factorial(prompts) / math.prod(map(math.factorial, Counter(sets).values()))
        white = whiten(advantages=plain[index].flatten(0, 1), where=mask[index].flatten(0, 1)).view(plain[index].shape)
        count = mask[index].sum() if aggregation == "token_mean" else prompts * samples
        weighted.index_add_(0, torch.tensor(index), white * ways * chances[index].prod() / count)
    return score(rows, weighted.flatten(0, 1), SMALL.policy)


@pytest.mark.parametrize("estimator", ["rloo", "rloo_per_step"])
def test_advantages_are_whitened_over_the_whole_batch(estimator: Any) -> None:
    """So that what follows, which whitens each batch of an enumeration, is what training does with one."""
    draws, _ = every_draw(SMALL, 2)
    batch, rows, rewards = batch_of_draws([SMALL], [draws], nothing(SMALL))
    options = {"judged": False, "maxent_coef": 1.0, "of_reference": True, "by_step": False, "prm_rewards": rewards}
    plain, white = (shaped(batch, settings=replace(process(estimator), whiten=w), **options) for w in (False, True))
    torch.testing.assert_close(white, whiten(advantages=plain, where=rows.mask), rtol=0, atol=1e-12)
    assert (white - plain).abs().max() > 0.1


@pytest.mark.parametrize("aggregation", ["sequence_sum", "token_mean"])
@pytest.mark.parametrize("estimator", ["rloo", "rloo_per_step"])
def test_whitening_and_token_means_turn_the_step_by_one_over_the_rollouts(estimator: Any, aggregation: str) -> None:
    """Beside a factor: the batch's mean, spread and number of tokens depend on each row by 1 / (prompts x K)."""
    exact = minus_kl_gradient(SMALL, SMALL.log_model)
    sizes = [(1, 2), (2, 2), (3, 2), (2, 3)]
    residuals = [beside(whitened_step(estimator, n, k, aggregation), exact)[1] * n * k for n, k in sizes]
    assert all(0.5 < residual < 1.1 for residual in residuals), residuals
    assert max(residuals) < 1.5 * min(residuals)
