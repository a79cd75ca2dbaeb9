"""The core estimator against the exact gradient, by enumeration: where it is exact, its bias, its loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from repirl.objectives.irl import irl_coefficients
from tests.theory.estimators import (
    ascents,
    contrast,
    discriminator,
    every_draw,
    expected_ascent,
    irl,
    pooled,
    slope,
    target,
    world,
)
from tests.theory.tiny_mdp import enumerate_all, exact_gradient, random_table

WORLD = world()
SMALL = world(horizon=2)  # seven trajectories: every draw of eight rollouts can be listed
EVERY = torch.arange(len(WORLD.rows))
TRUE = replace(SMALL, reward=SMALL.rows.policy_of(SMALL.expert))  # p_phi = p_D


def test_trajectories_are_a_distribution() -> None:
    rows = enumerate_all()
    assert len(rows) == 1 + 2 + 4 + 8 + 16
    policy = random_table(2)
    assert torch.isclose(rows.log_prob(policy).exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    # and back: the policy with these trajectories is the one that made them
    torch.testing.assert_close(rows.policy_of(rows.log_prob(policy).exp()), policy.log_softmax(-1))
    assert len(enumerate_all(2)) == 1 + 2 + 4


def test_exact_when_every_trajectory_is_listed_once() -> None:
    # With N = all trajectories and q uniform over them, the softmax of R *is* p_phi: equality to rounding.
    uniform = torch.full((len(WORLD.rows),), 1 / len(WORLD.rows), dtype=torch.float64)
    listed = replace(WORLD, policy=WORLD.rows.policy_of(uniform))
    expected = exact_gradient(WORLD.rows, WORLD.reward, WORLD.expert)
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(ascents(listed, EVERY[None], irl())[0], expected, rtol=0, atol=1e-12)


# ---- bias


def leading_bias(weighting: str, experts_in_z: bool) -> Tensor:
    """The 1/M term of the estimate's bias, by the delta method: E_q[u^2 (grad R - mean)], u = target / q.

    With the expert in its softmax also - E_D[u (grad R - mean)]: its own weight is about u / M.
    """
    aim = target(SMALL, weighting)
    u = aim / SMALL.q
    second = aim * u - (SMALL.expert * u if experts_in_z else 0)
    return contrast(SMALL, second, second.sum() * aim)


@pytest.mark.parametrize("experts_in_z", [False, True])
@pytest.mark.parametrize("weighting", ["sequence", "length_normalized"])
def test_the_bias_of_self_normalised_weights_falls_as_one_over_m(weighting: str, experts_in_z: bool) -> None:
    limit = contrast(SMALL, SMALL.expert, target(SMALL, weighting))
    objective, sizes = irl(weighting=weighting, experts_in_z=experts_in_z), [1, 2, 4, 6]
    bias = [expected_ascent(SMALL, objective, m) - limit for m in sizes]
    found = [float(b.norm()) for b in bias]
    assert abs(slope(sizes[1:], found[1:]) + 1) < 0.25, found
    # M x bias goes to the delta method's constant, and what is left falls too
    leading = leading_bias(weighting, experts_in_z)
    rest = [float((m * b - leading).norm() / leading.norm()) for m, b in zip(sizes, bias, strict=True)]
    assert rest[3] < 0.3, rest
    assert rest[3] < 0.8 * rest[2] < 0.6 * rest[1], rest


def test_uniform_weights_have_no_bias_about_their_limit() -> None:
    limit = contrast(SMALL, SMALL.expert, SMALL.q)
    for samples in (1, 3):
        assert (expected_ascent(SMALL, irl(weighting="uniform"), samples) - limit).abs().max() < 1e-12


def test_ranking_nce_is_unbiased_at_the_true_model_and_the_others_are_not() -> None:
    # At p_phi = p_D the expected gradient must vanish, whatever q and however few the rollouts.
    for samples in (1, 2, 4):
        assert expected_ascent(TRUE, irl(experts_in_z=True), samples).abs().max() < 1e-12
        assert expected_ascent(TRUE, irl(), samples).abs().max() > 0.01
        # the discriminator's z is estimated from the same few rows
        assert expected_ascent(TRUE, discriminator("sequence"), samples).abs().max() > 0.001
    # On the longer MDP too.
    longer = replace(WORLD, reward=WORLD.rows.policy_of(WORLD.expert))
    assert expected_ascent(longer, irl(experts_in_z=True), 2).abs().max() < 1e-12


@pytest.mark.parametrize("form", ["sequence", "token"])
def test_the_discriminator_s_bias_at_the_true_model_falls_as_one_over_m(form: str) -> None:
    sizes = [2, 4, 8]
    place = TRUE
    if form == "token":  # whose rest is elsewhere, see test_limits; its denominators are random lengths
        rows = TRUE.rows
        reach = [rows.occupancy(p).sum(-1) for p in (TRUE.expert, TRUE.q)]
        shift = ((TRUE.expert * rows.lengths).sum() / (TRUE.q * rows.lengths).sum()).log()
        place = replace(TRUE, reward=TRUE.reward + (reach[0] / reach[1]).log().nan_to_num()[:, None] - shift)
    found = [float(expected_ascent(place, discriminator(form), m).norm()) for m in sizes]
    assert abs(slope(sizes, found) + 1) < 0.25, found


def test_several_experts_in_one_softmax_are_biased_even_at_the_true_model() -> None:
    """Every draw of two experts and two rollouts; one softmax an expert has none of this."""
    rollouts, of_rollouts = every_draw(TRUE, 2)
    experts, of_experts = every_draw(replace(TRUE, policy=TRUE.reward), 2)
    pairs = torch.cartesian_prod(torch.arange(len(rollouts)), torch.arange(len(experts)))
    probability = of_rollouts[pairs[:, 0]] * of_experts[pairs[:, 1]]
    assert torch.isclose(probability.sum(), torch.tensor(1.0, dtype=torch.float64))

    def expectation(objective: Any) -> Tensor:
        found = ascents(TRUE, rollouts[pairs[:, 0]], objective, experts=experts[pairs[:, 1]])
        return torch.einsum("g,gsa->sa", probability, found)

    assert expectation(irl(experts_in_z=True)).abs().max() < 1e-12
    assert expectation(pooled).abs().max() > 0.01
    # With one expert the two are the same.
    single = torch.arange(len(TRUE.rows))[:, None]
    few = rollouts[:7]
    torch.testing.assert_close(
        ascents(TRUE, few, pooled, experts=single), ascents(TRUE, few, irl(experts_in_z=True), experts=single)
    )


def test_each_of_several_experts_has_its_own_softmax() -> None:
    # Two experts at once: the coefficients are the mean of the two one-expert calls, not one pooled softmax.
    rollouts, experts = torch.tensor([[0, 5, 9]]), torch.tensor([[2, 20]])
    both = ascents(WORLD, rollouts, irl(experts_in_z=True), experts=experts)
    single = [ascents(WORLD, rollouts, irl(experts_in_z=True), experts=experts[:, i : i + 1]) for i in range(2)]
    torch.testing.assert_close(both, (single[0] + single[1]) / 2, rtol=0, atol=1e-14)
    assert (both - ascents(WORLD, rollouts, pooled, experts=experts)).abs().max() > 0.01


def test_the_ranking_loss_is_the_value_whose_gradient_is_followed() -> None:
    index = torch.tensor([0, 5, 9, 9, 2, 20])
    rows = WORLD.rows.rows(index)
    is_expert = torch.tensor([False] * 4 + [True] * 2)

    def terms(table: Tensor) -> Any:
        return irl_coefficients(
            rewards=rows.values(table),
            log_ratio=WORLD.log_ratio[index],
            response_mask=rows.mask,
            group=torch.zeros(6, dtype=torch.long),
            positive_weight=is_expert.double(),
            background=~is_expert,
            experts_in_z=True,
        )

    analytic = rows.table(terms(WORLD.reward).token)
    for state, action in [(0, 0), (int(rows.state[4, 1]), int(rows.action[4, 1]))]:
        shift = torch.zeros_like(WORLD.reward)
        shift[state, action] = 1e-6
        numeric = (terms(WORLD.reward + shift).ranking_loss - terms(WORLD.reward - shift).ranking_loss) / 2e-6
        assert abs(float(analytic[state, action])) > 1e-3
        torch.testing.assert_close(analytic[state, action], numeric, rtol=1e-6, atol=1e-9)
