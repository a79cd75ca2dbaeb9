"""Two remedies that were considered for the PRM's objective, and what they come to in a token MDP, by enumeration.

Soft Q with a chi-square penalty (IQ-Learn, Garg et al. 2021, arXiv 2106.12142; for language models arXiv 2409.01369), and
proposals mixed with a kernel of perturbed experts.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.theory.estimators import World, expected_ascent, irl, limit, target, world
from tests.theory.policies import kl
from tests.theory.tiny_mdp import STATES, next_values, random_table

PLACE = replace(world(), base=random_table(6, 0.5))
ALPHA = 0.5


def rewards(q_table: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """The rewards r = Q - V(s') and values V = log sum_a b exp(Q) of a table of Q, [states, VOCAB] and [states]."""
    values = (q_table + base.log_softmax(-1)).logsumexp(-1)
    return q_table - next_values(values), values


def iq_learn(q_table: Tensor, place: World, visited: Tensor) -> Tensor:
    """IQ-Learn's E_D[r - r^2 / (4 alpha)] - E_visited[V(s) - V(s')], summed over a response."""
    assert place.base is not None
    reward, values = rewards(q_table, place.base)
    fall = values[:, None] - next_values(values)
    of_experts = place.rows.returns(reward - reward.square() / (4 * ALPHA))
    return (place.expert * of_experts).sum() - (visited * place.rows.returns(fall)).sum()


def gradient(q_table: Tensor, place: World, visited: Tensor) -> Tensor:
    table = q_table.clone().requires_grad_()
    return torch.autograd.grad(iq_learn(table, place, visited), table)[0]


def test_rollouts_have_no_part_in_soft_q() -> None:
    """V(s) - V(s') of a response adds up to V of the first state: whose responses they are makes no difference."""
    q_table = random_table(9)
    of_experts = gradient(q_table, PLACE, PLACE.expert)
    assert of_experts.norm() > 0.1
    for visited in (PLACE.q, PLACE.q / 2 + PLACE.expert / 2):
        torch.testing.assert_close(gradient(q_table, PLACE, visited), of_experts)


def test_the_penalty_spreads_a_response_s_reward_evenly() -> None:
    """Raising Q(s, .) by c(s) leaves the policy as it is and moves r by c(s) - c(s'), so the penalty alone chooses c.

    Where experts write two responses of four tokens that part at the first, it makes the four rewards of each equal:
    which of them told the two apart can no longer be seen.
    """
    pair = [index for index, row in enumerate(PLACE.rows.action.tolist()) if row in ([0, 0, 0, 0], [1, 1, 1, 1])]
    expert = torch.zeros(len(PLACE.rows), dtype=torch.float64)
    expert[pair] = torch.tensor([0.7, 0.3], dtype=torch.float64)
    place = replace(PLACE, expert=expert)
    log_ratio = random_table(9)  # Q - V of some policy: which, does not matter
    raised = torch.zeros(len(STATES), dtype=torch.float64, requires_grad=True)

    def token_rewards() -> Tensor:
        return log_ratio + raised[:, None] - next_values(raised)

    optimizer = torch.optim.LBFGS([raised], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (place.expert * place.rows.returns(token_rewards().square())).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = place.rows.values(token_rewards().detach())[pair]
    torch.testing.assert_close(found, found.mean(-1, keepdim=True).expand_as(found), rtol=0, atol=1e-5)
    before = place.rows.values(log_ratio)[pair]
    assert before.std(-1).min() > 0.3
    difference = [one.sum(-1).diff() for one in (found, before)]  # of the whole responses: as it was
    torch.testing.assert_close(*difference, rtol=0, atol=1e-5)


# ---- proposals mixed with perturbed experts


def twins_of(place: World) -> tuple[Tensor, Tensor]:
    """A kernel of perturbed experts, [M], and the responses that it makes: those that experts hardly write."""
    rare = place.expert < place.expert.quantile(0.2)
    return rare / rare.sum(), rare


def mixed(place: World, share: float) -> World:
    """The same world where this share of the rows is drawn from the kernel, and the whole mixture is the proposal."""
    kernel, _ = twins_of(place)
    return replace(place, policy=place.rows.policy_of((1 - share) * place.q + share * kernel))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_a_mixture_of_known_density_changes_no_limit(share: float) -> None:
    """The weights' target is p_phi whatever is mixed in: twins have the weight that the model gives them, and no more."""
    there = mixed(PLACE, share)
    _, rare = twins_of(PLACE)
    assert kl(target(there), PLACE.model) < 1e-12
    torch.testing.assert_close(limit(there, "sequence"), limit(PLACE, "sequence"))
    torch.testing.assert_close(target(there)[rare].sum(), PLACE.model[rare].sum())


def test_twins_that_the_model_does_not_write_have_no_weight() -> None:
    """Half of 3 rows are twins, and b makes them once in 10^8: the step on the token that each of them alone has is 0.

    Unless all three rows are twins: then their weights add up to 1 all the same.
    """
    place = replace(world(horizon=2), reward=torch.zeros_like(PLACE.reward))
    rare = twins_of(place)[1]
    base = place.rows.policy_of(torch.where(rare, place.q * 1e-8, place.q))
    place = replace(place, base=base, expert=torch.where(rare, 0.0, place.expert))
    own, others = (place.rows.occupancy(which.double()) > 0 for which in (rare, ~rare))
    assert (own & ~others).sum() == rare.sum()
    there = mixed(place, 0.5)
    step = expected_ascent(there, irl(), samples=3)
    torch.testing.assert_close(-step[own & ~others].sum(), there.q[rare].sum() ** 3, atol=1e-6, rtol=0)
