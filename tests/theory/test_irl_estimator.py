"""The core estimator against the exact gradient of the max-ent likelihood, on a token MDP that can be enumerated."""

import itertools

import pytest
import torch
from torch import Tensor

from repirl.objectives.irl import irl_coefficients
from tests.theory.tiny_mdp import Enumerated, enumerate_all, exact_gradient, random_table

ALL = enumerate_all()
EVERY = torch.arange(len(ALL.mask))
REWARD = random_table(1)
POLICY = random_table(2, scale=0.7)
EXPERT = (ALL.log_prob(random_table(3))).exp()


def minus_loss_gradient(
    rollouts: Tensor,
    experts: Tensor,
    log_ratio: Tensor,
    reward: Tensor,
    shares: Tensor | None = None,
    **switches: object,
) -> Tensor:
    """-dL/d(reward table), comparable with `exact_gradient`; rollouts and experts index ALL, log_ratio is a [M, T] table.

    shares: the weight of each expert; equal if None.
    """
    index = torch.cat([rollouts, experts])
    rows = ALL.rows(index)
    table = reward.clone().requires_grad_()
    rewards = rows.values(table)
    is_expert = torch.arange(len(index)) >= len(rollouts)
    shares = torch.cat([torch.zeros(len(rollouts)), torch.ones(len(experts)) if shares is None else shares])
    terms = irl_coefficients(
        rewards=rewards.detach(),
        log_ratio=log_ratio[index],
        response_mask=rows.mask,
        group=torch.zeros(len(index), dtype=torch.long),
        positive_weight=shares,
        background=~is_expert,
        **switches,
    )
    (gradient,) = torch.autograd.grad(-(terms.token * rewards).sum(), table)
    return gradient


def test_trajectories_are_a_distribution() -> None:
    assert len(ALL.mask) == 1 + 2 + 4 + 8 + 16
    assert torch.isclose(ALL.log_prob(POLICY).exp().sum(), torch.tensor(1.0, dtype=torch.float64))


def test_exact_when_every_trajectory_is_listed_once() -> None:
    # With N = all trajectories and proposal density 1 each, the softmax of R *is* p_phi: equality to rounding.
    zero = torch.zeros(ALL.mask.shape, dtype=torch.float64)
    expected = exact_gradient(ALL, REWARD, EXPERT)
    got = minus_loss_gradient(EVERY, EVERY, zero, REWARD, EXPERT, experts_in_z=False)
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("experts_in_z", [False, True])
def test_sequence_weights_converge_to_the_exact_gradient(experts_in_z: bool) -> None:
    # Error falls about as 1/sqrt(M): from M = 64 to 65536 it must shrink about 32-fold; 12 leaves room.
    expected = exact_gradient(ALL, REWARD, EXPERT)
    log_ratio = -ALL.values(POLICY.log_softmax(-1))
    probabilities = ALL.log_prob(POLICY).exp()
    generator = torch.Generator().manual_seed(0)

    def error(samples: int) -> float:
        squared = []
        for _ in range(12):
            rollouts = torch.multinomial(probabilities, samples, replacement=True, generator=generator)
            gradient = minus_loss_gradient(rollouts, EVERY, log_ratio, REWARD, EXPERT, experts_in_z=experts_in_z)
            squared.append((gradient - expected).square().sum())
        return float((torch.stack(squared).mean() / expected.square().sum()).sqrt())

    few, many = error(64), error(65536)
    assert few / many > 12
    assert many < 0.05


@pytest.mark.parametrize("weighting", ["uniform", "length_normalized"])
def test_other_weightings_converge_elsewhere(weighting: str) -> None:
    # uniform targets q; length_normalized targets q^(1-1/len) exp(R)^(1/len): computed here in closed form.
    log_q = ALL.log_prob(POLICY)
    lengths = ALL.mask.sum(-1)
    energy = ALL.values(REWARD).sum(-1)
    target = log_q.exp() if weighting == "uniform" else (log_q * (1 - 1 / lengths) + energy / lengths).softmax(0)
    table = REWARD.clone().requires_grad_()
    values = ALL.values(table).sum(-1)
    (expected,) = torch.autograd.grad(((EXPERT - target) * values).sum(), table)
    generator = torch.Generator().manual_seed(0)
    rollouts = torch.multinomial(log_q.exp(), 1_000_000, replacement=True, generator=generator)
    log_ratio = -ALL.values(POLICY.log_softmax(-1))
    got = minus_loss_gradient(rollouts, EVERY, log_ratio, REWARD, EXPERT, weighting=weighting, experts_in_z=False)
    exact = exact_gradient(ALL, REWARD, EXPERT)
    assert (got - expected).norm() / expected.norm() < 0.03
    assert (expected - exact).norm() / exact.norm() > 0.15


def expected_gradient(reward: Tensor, positives: int, **switches: object) -> Tensor:
    """Expectation over 2 rollouts of q and `positives` experts of p_D, by enumeration of every draw."""
    log_q = ALL.log_prob(POLICY)
    log_ratio = -ALL.values(POLICY.log_softmax(-1))
    total = torch.zeros_like(reward)
    for rollouts in itertools.combinations_with_replacement(EVERY.tolist(), 2):
        ways = 1 if rollouts[0] == rollouts[1] else 2
        weight = ways * log_q[list(rollouts)].sum().exp()
        for experts in itertools.product(EVERY.tolist(), repeat=positives):
            probability = EXPERT[list(experts)].prod()
            if probability * weight > 0:
                total += (
                    weight
                    * probability
                    * minus_loss_gradient(torch.tensor(rollouts), torch.tensor(experts), log_ratio, reward, **switches)
                )
    return total


def test_ranking_nce_is_unbiased_at_the_true_model_and_plain_weights_are_not() -> None:
    # At R = log p_D (p_phi = p_D) the expected gradient must vanish, whatever q, even with 2 rollouts.
    true_reward = random_table(3).log_softmax(-1)
    ranking = expected_gradient(true_reward, 1, experts_in_z=True)
    plain = expected_gradient(true_reward, 1, experts_in_z=False)
    assert ranking.abs().max() < 1e-12
    assert plain.abs().max() > 0.01


def test_each_of_several_experts_has_its_own_softmax() -> None:
    # Two experts at once: the coefficients are the mean of the two one-expert calls, not one pooled softmax.
    log_ratio = -ALL.values(POLICY.log_softmax(-1))
    rollouts, experts = torch.tensor([0, 5, 9]), torch.tensor([2, 20])
    both = minus_loss_gradient(rollouts, experts, log_ratio, REWARD)
    single = [minus_loss_gradient(rollouts, experts[i : i + 1], log_ratio, REWARD) for i in range(2)]
    torch.testing.assert_close(both, (single[0] + single[1]) / 2, rtol=0, atol=1e-14)


def test_the_ranking_loss_is_the_value_whose_gradient_is_followed() -> None:
    log_ratio = -ALL.values(POLICY.log_softmax(-1))
    index = torch.tensor([0, 5, 9, 9, 2, 20])
    rows = Enumerated(*(x[index] for x in (ALL.state, ALL.action, ALL.mask)))
    is_expert = torch.tensor([False] * 4 + [True] * 2)

    def terms(table: Tensor):
        return irl_coefficients(
            rewards=rows.values(table),
            log_ratio=log_ratio[index],
            response_mask=rows.mask,
            group=torch.zeros(6, dtype=torch.long),
            positive_weight=is_expert.double(),
            background=~is_expert,
        )

    table = REWARD.clone().requires_grad_()
    (analytic,) = torch.autograd.grad((terms(table.detach()).token * rows.values(table)).sum(), table)
    for state, action in [(0, 0), (int(rows.state[4, 1]), int(rows.action[4, 1]))]:
        shift = torch.zeros_like(REWARD)
        shift[state, action] = 1e-6
        numeric = (terms(REWARD + shift).ranking_loss - terms(REWARD - shift).ranking_loss) / 2e-6
        assert abs(float(analytic[state, action])) > 1e-3
        torch.testing.assert_close(analytic[state, action], numeric, rtol=1e-6, atol=1e-9)
