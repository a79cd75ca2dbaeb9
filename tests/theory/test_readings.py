"""Parameterisations whose partition function is known: the implicit PRM and the inverse soft-Q reading.

For both the max-ent likelihood is that of a policy: its gradient is SFT's and needs no rollouts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from repirl.objectives.irl import irl_coefficients
from repirl.objectives.prm import prime_coefficients
from tests.theory.tiny_mdp import EOS, STATES, enumerate_all, next_values, random_table

ROWS = enumerate_all()
EXPERT = ROWS.log_prob(random_table(3)).exp()
REFERENCE = random_table(5).log_softmax(-1)
ZERO = torch.tensor(0.0, dtype=torch.float64)


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


def likelihood_gradient(reward_of: Callable[[Tensor], Tensor], at: Tensor, log_base: Tensor) -> tuple[Tensor, float]:
    """The package's gradient in the parameters with every trajectory in N once (Z exact), and chi-square of its weights."""
    parameters = at.clone().requires_grad_()
    index = torch.arange(len(ROWS)).repeat(2)
    rows = ROWS.rows(index)
    rewards = rows.values(reward_of(parameters))
    background = torch.arange(len(index)) < len(ROWS)
    terms = irl_coefficients(
        rewards=rewards.detach(),
        log_ratio=log_base[index],
        response_mask=rows.mask,
        group=torch.zeros(len(index), dtype=torch.long),
        positive_weight=torch.where(background, 0.0, EXPERT[index]),
        background=background,
        experts_in_z=False,
    )
    (gradient,) = torch.autograd.grad((terms.token * rewards).sum(), parameters)
    return gradient, float(terms.chi_square)


def sft_gradient(at: Tensor) -> Tensor:
    """Of -E_D[log pi] in the logits."""
    logits = at.clone().requires_grad_()
    return torch.autograd.grad(-(EXPERT * ROWS.log_prob(logits)).sum(), logits)[0]


# ---- the implicit PRM


def implicit(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1) - REFERENCE


def test_an_implicit_prm_with_beta_1_over_its_reference_has_z_1_and_its_likelihood_is_sft() -> None:
    logits = random_table(6)
    close((ROWS.returns(implicit(logits)) + ROWS.returns(REFERENCE)).logsumexp(0), ZERO)
    gradient, _ = likelihood_gradient(implicit, logits, ROWS.values(REFERENCE))
    assert gradient.abs().max() > 0.05
    close(gradient, sft_gradient(logits))


def test_that_needs_beta_1_the_reference_as_base_measure_and_truncated_responses() -> None:
    logits = random_table(6)
    reward = ROWS.returns(implicit(logits))
    assert (2 * reward + ROWS.returns(REFERENCE)).logsumexp(0).abs() > 0.1  # beta 2
    assert reward.logsumexp(0).abs() > 0.1  # b = 1
    finished = ROWS.action.gather(1, ROWS.lengths[:, None] - 1)[:, 0] == EOS
    assert (reward + ROWS.returns(REFERENCE))[finished].logsumexp(0) < -0.1  # responses cut at the limit left out
    gradient, _ = likelihood_gradient(implicit, logits, torch.zeros(ROWS.mask.shape, dtype=torch.float64))
    assert (gradient - sft_gradient(logits)).norm() / sft_gradient(logits).norm() > 0.1


# ---- the inverse soft-Q reading


def soft_q(table: Tensor) -> Tensor:
    """r(s, a) = Q(s, a) - V(s'), V = logsumexp Q, 0 at the end."""
    return table - next_values(table.logsumexp(-1))


def test_soft_q_rewards_telescope_so_that_z_is_exp_of_the_first_value() -> None:
    table = random_table(6, scale=2.0)
    first = table[STATES[()]].logsumexp(-1)
    close(ROWS.returns(soft_q(table)), first + ROWS.log_prob(table))
    close(ROWS.returns(soft_q(table)).logsumexp(0), first)
    assert first.abs() > 0.1


def test_the_likelihood_of_the_soft_q_reading_is_sft_of_its_softmax_policy() -> None:
    table = random_table(6)
    gradient, _ = likelihood_gradient(soft_q, table, torch.zeros(ROWS.mask.shape, dtype=torch.float64))
    assert gradient.abs().max() > 0.05
    close(gradient, sft_gradient(table))
    # Importance weights against its own policy are all equal: rollouts could only add noise.
    _, spread = likelihood_gradient(soft_q, table, -ROWS.values(table.log_softmax(-1)))
    assert spread < 1e-12


def test_a_q_head_read_as_the_reward_itself_is_another_model() -> None:
    table = random_table(6)
    gradient, _ = likelihood_gradient(lambda q: q, table, torch.zeros(ROWS.mask.shape, dtype=torch.float64))
    assert (gradient - sft_gradient(table)).norm() / sft_gradient(table).norm() > 0.1


def test_the_soft_q_reading_leaves_a_constant_per_state_open() -> None:
    """Q(s, .) + c(s): the likelihood does not change, the rewards do, by c(s) - c(s')."""
    table = random_table(6)
    shift = random_table(8)[:, 0]
    moved = table + shift[:, None]
    base = torch.zeros(ROWS.mask.shape, dtype=torch.float64)
    close(likelihood_gradient(soft_q, moved, base)[0], likelihood_gradient(soft_q, table, base)[0])
    close(soft_q(moved) - soft_q(table), shift[:, None] - next_values(shift))
    assert (soft_q(moved) - soft_q(table)).abs().max() > 0.5
    # What is determined is log pi_Q, the reward up to that potential.
    close(moved.log_softmax(-1), table.log_softmax(-1))


# ---- the outcome objective


def test_prime_comes_to_rest_at_the_log_odds_of_a_right_answer() -> None:
    """sigma(R) = P(right | response): with a verdict that is sure, R is unbounded, and it is no log-density."""
    right = torch.linspace(0.05, 0.95, len(ROWS), dtype=torch.float64)
    rewards = torch.zeros(ROWS.mask.shape, dtype=torch.float64)
    rewards[:, 0] = right.logit()
    found = prime_coefficients(rewards=rewards, outcome=right, response_mask=ROWS.mask)
    assert found.token.abs().max() < 1e-12
    sure = prime_coefficients(rewards=100 * rewards, outcome=(right > 0.5).double(), response_mask=ROWS.mask)
    assert (sure.token[right > 0.5, 0] < 0).all()  # still pushed up
    assert (sure.token[right < 0.4, 0] > 0).all()
