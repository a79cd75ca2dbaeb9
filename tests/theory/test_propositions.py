"""The paper's Theorem 1 and Propositions 1 to 4 as numbers, and where one does not hold as printed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from repirl.objectives.advantages import returns_to_go
from repirl.objectives.discriminator import discriminator_coefficients
from repirl.objectives.irl import irl_coefficients
from tests.theory.estimators import (
    World,
    ascents,
    contrast,
    discriminator,
    discriminator_limit,
    discriminator_log_z,
    gail,
    log_z,
    world,
)
from tests.theory.tiny_mdp import (
    STATES,
    Enumerated,
    enumerate_all,
    exact_gradient,
    next_values,
    random_table,
    soft_values,
)

ROWS = enumerate_all()
REWARD = random_table(1)
BETAS = [0.5, 1.0, 2.0]


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


def chi_square(rows: Enumerated, reward: Tensor, policy: Tensor, base: Tensor | None = None) -> Tensor:
    """Of the package's weights exp(R) b / q with every trajectory as background once: 0 = all weights are equal."""
    log_ratio = -rows.values(policy) if base is None else rows.values(base - policy)
    return irl_coefficients(
        rewards=rows.values(reward),
        log_ratio=log_ratio,
        response_mask=rows.mask,
        group=torch.zeros(len(rows), dtype=torch.long),
        positive_weight=torch.eye(len(rows), dtype=torch.float64)[0],
        background=torch.ones(len(rows), dtype=torch.bool),
    ).chi_square


# ---- Theorem 1: the max-ent policy


@pytest.mark.parametrize("beta", BETAS)
def test_theorem_1_the_optimal_policy_is_exp_of_the_soft_advantage(beta: float) -> None:
    q, v = soft_values(REWARD, beta)
    best = (q - v[:, None]) / beta
    close(best.exp().sum(-1), torch.ones(len(STATES), dtype=torch.float64))
    # its trajectories are exp(R / beta) / Z, and V of the start is beta log Z
    close(ROWS.returns(best), (ROWS.returns(REWARD) / beta).log_softmax(0))
    close(v[STATES[()]], beta * (ROWS.returns(REWARD) / beta).logsumexp(0))

    def objective(policy: Tensor) -> Tensor:
        """E[R] + beta H of the trajectory distribution."""
        p = ROWS.returns(policy).exp()
        return (p * (ROWS.returns(REWARD) - beta * ROWS.returns(policy))).sum()

    close(objective(best), v[STATES[()]])
    for seed in range(5):
        other = random_table(20 + seed).log_softmax(-1)
        p = ROWS.returns(other).exp()
        kl = (p * (ROWS.returns(other) - ROWS.returns(best))).sum()
        close(objective(other), v[STATES[()]] - beta * kl)
        assert kl > 0.1
    # the package's weights against this policy are all equal, against another one not
    assert chi_square(ROWS, REWARD / beta, best) < 1e-12
    assert chi_square(ROWS, REWARD / beta, random_table(20).log_softmax(-1)) > 0.1


@pytest.mark.parametrize("coefficient", [0.5, 1.0])
def test_rewards_with_log_b_minus_log_q_give_the_gradient_towards_the_model(coefficient: float) -> None:
    """E[sum_t G_t grad log q] with G of r + c (log b - log q) is c times the gradient of -KL(q || b exp(R / c) / Z)."""
    base = random_table(6).log_softmax(-1)
    model = (ROWS.returns(base) + ROWS.returns(REWARD) / coefficient).log_softmax(0)

    def policy_gradient(at: Tensor) -> Tensor:
        logits = at.clone().requires_grad_()
        policy = logits.log_softmax(-1)
        q = ROWS.returns(policy.detach()).exp()
        rewards = ROWS.values(REWARD + coefficient * (base - policy.detach()))
        surrogate = (q[:, None] * returns_to_go(rewards, ROWS.mask) * ROWS.values(policy)).sum()
        return torch.autograd.grad(surrogate, logits)[0]

    def minus_kl(at: Tensor) -> Tensor:
        logits = at.clone().requires_grad_()
        q = ROWS.log_prob(logits)
        return torch.autograd.grad((q.exp() * (model - q)).sum(), logits)[0]

    for seed in range(3):
        close(policy_gradient(random_table(30 + seed)), coefficient * minus_kl(random_table(30 + seed)))
        assert policy_gradient(random_table(30 + seed)).abs().max() > 0.01
    q, v = soft_values(REWARD + coefficient * base, coefficient)
    assert policy_gradient((q - v[:, None]) / coefficient).abs().max() < 1e-10  # it rests at the model


# ---- Proposition 1: DPO


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("horizon", [1, 4])
def test_proposition_1_dpo_s_optimum_is_the_soft_optimum_of_r_plus_beta_log_reference(
    horizon: int, beta: float
) -> None:
    """Horizon 1 is the bandit; the same holds over whole responses."""
    rows = enumerate_all(horizon)
    reference = random_table(5).log_softmax(-1)
    q, v = soft_values(REWARD + beta * reference, beta, horizon)
    best = (q - v[:, None]) / beta
    bandit = (rows.returns(reference) + rows.returns(REWARD) / beta).log_softmax(0)
    close(rows.returns(best), bandit)
    assert chi_square(rows, REWARD / beta, best, reference) < 1e-12

    # DPO: -log sigma(beta (Delta_w - Delta_l)) under Bradley-Terry preferences of R is least there
    prefer = (rows.returns(REWARD)[:, None] - rows.returns(REWARD)[None]).sigmoid()

    def loss_gradient(at: Tensor) -> Tensor:
        logits = at.clone().requires_grad_()
        delta = rows.log_prob(logits) - rows.returns(reference)
        loss = -(prefer * torch.nn.functional.logsigmoid(beta * (delta[:, None] - delta[None]))).sum()
        return torch.autograd.grad(loss, logits)[0]

    assert loss_gradient(best).abs().max() < 1e-10
    assert loss_gradient(reference).abs().max() > 0.1


# ---- Proposition 2: DQO


@pytest.mark.parametrize("beta", BETAS)
def test_proposition_2_dqo_s_residuals_vanish_at_the_soft_optimum_and_nowhere_near(beta: float) -> None:
    """Residual of (s, a): beta log pi(a|s) / pi_ref(a|s) + V(s) - r(s, a) - V(s')."""
    reference = random_table(5).log_softmax(-1)
    q, v = soft_values(REWARD + beta * reference, beta)

    def residual(policy: Tensor, values: Tensor) -> Tensor:
        deltas = beta * (policy - reference) + values[:, None] - REWARD - next_values(values)
        return ROWS.values(deltas).abs().max()

    best = (q - v[:, None]) / beta
    assert residual(best, v) < 1e-12
    assert residual(random_table(9).log_softmax(-1), v) > 0.1
    for state in (STATES[()], STATES[0, 1]):
        moved = v.clone()
        moved[state] += 0.5
        assert residual(best, moved) > 0.4
    # Summed over a response the values of inner states cancel: beta log pi / pi_ref = R - V(s_1), as in DPO.
    close(beta * ROWS.returns(best - reference), ROWS.returns(REWARD) - v[STATES[()]])


# ---- Proposition 3: the discriminator

COUNTS = torch.tensor([3, 1, 2, 1, 2, 1, 2]), torch.tensor([1, 4, 1, 2, 1, 2, 1])  # of 12: q and p_D
SMALL_ROWS = enumerate_all(2)
LISTED = [torch.arange(7).repeat_interleave(c) for c in COUNTS]
SMALL = World(
    SMALL_ROWS,
    random_table(1),
    SMALL_ROWS.policy_of(COUNTS[0].double() / 12),
    COUNTS[1].double() / 12,
)
TRUE = replace(SMALL, reward=SMALL_ROWS.policy_of(SMALL.expert))


@pytest.mark.parametrize("place", [SMALL, TRUE, replace(SMALL, reward=3 * random_table(8))])
def test_proposition_3_as_it_holds(place: World) -> None:
    """The discriminator's gradient = importance estimator, samples of (p_D + pi)/2, density (exp(R)/z + pi)/2."""
    got = ascents(place, LISTED[0][None], discriminator("sequence"))[0]  # q = counts / 12: the exact expectation
    u = discriminator_log_z(place)
    density = (place.rows.returns(place.reward) - u).exp() / 2 + place.q / 2
    samples = (place.expert + place.q) / 2
    weight = samples * (place.rows.returns(place.reward) - u).exp() / density
    close(weight.sum(), torch.tensor(1.0, dtype=torch.float64))  # the condition on z
    close(got, contrast(place, place.expert, weight))
    close(got, discriminator_limit(place, "sequence"))

    # The same by the IRL function of the package: background = rollouts and experts, q = that density.
    index = torch.cat([*LISTED, torch.arange(7)])
    rows = place.rows.rows(index)
    at_first = torch.zeros(rows.mask.shape, dtype=torch.float64)
    at_first[:, 0] = -density.log()[index]
    count = len(index) - 7
    background = torch.arange(len(index)) < count
    found = irl_coefficients(
        rewards=rows.values(place.reward),
        log_ratio=at_first,
        response_mask=rows.mask,
        group=torch.zeros(len(index), dtype=torch.long),
        positive_weight=torch.cat([torch.zeros(count, dtype=torch.float64), place.expert]),
        background=background,
        experts_in_z=False,
    )
    close(-rows.table(found.token), got)


def test_proposition_3_fails_as_the_gradient_of_the_likelihood() -> None:
    """Equal to the exact gradient at p_phi = p_D only, where both vanish; elsewhere another vector."""

    def both(place: World) -> tuple[Tensor, Tensor]:
        return (
            ascents(place, LISTED[0][None], discriminator("sequence"))[0],
            exact_gradient(place.rows, place.reward, place.expert),
        )

    for gradient in both(TRUE):
        assert gradient.abs().max() < 1e-12
    close(discriminator_log_z(TRUE), log_z(TRUE))  # and there alone z is the partition function
    found, exact = both(SMALL)
    assert (found - exact).norm() / exact.norm() > 0.3
    assert (discriminator_log_z(SMALL) - log_z(SMALL)).abs() > 0.05
    # not a matter of scale either
    assert torch.cosine_similarity(found.flatten(), exact.flatten(), 0) < 0.99


def test_near_the_truth_with_the_experts_as_policy_the_discriminator_follows_half_the_gradient() -> None:
    """D (1 - D) = 1/4 on both sides: its curvature is half the likelihood's (q = p_D; another q, another metric)."""
    direction = random_table(4)
    here = replace(TRUE, policy=TRUE.reward, expert=TRUE.expert)
    for step, tolerance in ((1e-2, 2e-2), (1e-4, 2e-4)):
        place = replace(here, reward=TRUE.reward + step * direction)
        exact = exact_gradient(place.rows, place.reward, place.expert)
        found = discriminator_limit(place, "sequence")
        assert (found / 0.5 - exact).norm() / exact.norm() < tolerance


def test_gail_s_logit_comes_to_rest_at_the_density_ratio() -> None:
    """R = log p_D - log pi, which is 0 once the policy imitates well; the corrected logit rests at p_phi = p_D."""
    ratio = TRUE.reward - SMALL_ROWS.policy_of(SMALL.q)
    found = ascents(replace(SMALL, reward=ratio), LISTED[0][None], gail("sequence"))[0]
    assert found.abs().max() < 1e-12
    assert ascents(TRUE, LISTED[0][None], gail("sequence"))[0].abs().max() > 0.01
    assert ascents(TRUE, LISTED[0][None], discriminator("sequence"))[0].abs().max() < 1e-12


def test_the_discriminator_s_z_is_its_best_constant() -> None:
    """The z of the condition minimises the loss: a constant on R of the whole prompt is absorbed by it."""
    index = torch.cat([LISTED[0], LISTED[1]])
    rows = SMALL_ROWS.rows(index)
    is_expert = torch.arange(len(index)) >= 12

    def terms(shift: float) -> tuple[Tensor, Tensor]:
        rewards = rows.values(SMALL.reward)
        rewards[:, 0] += shift
        found = discriminator_coefficients(
            form="sequence",
            rewards=rewards,
            log_ratio=SMALL.log_ratio[index],
            response_mask=rows.mask,
            group=torch.zeros(len(index), dtype=torch.long),
            positive_weight=is_expert.double(),
            background=~is_expert,
        )
        return found.figures["log_z"], found.loss

    u, loss = terms(0.0)
    close(u, discriminator_log_z(SMALL))
    close(torch.stack(terms(2.5)), torch.stack([u + 2.5, loss]))
    scores = SMALL_ROWS.returns(SMALL.reward) + SMALL.log_ratio.sum(-1)
    for offset in (-0.2, 0.0, 0.2):
        d = (scores - u - offset).sigmoid()
        value = -(SMALL.expert * d.log()).sum() - (SMALL.q * (1 - d).log()).sum()
        assert value > loss + 1e-4 if offset else abs(value - loss) < 1e-10


# ---- Proposition 4: the implicit reward as outcome and as process reward


@pytest.mark.parametrize("beta", BETAS)
def test_proposition_4_the_implicit_reward_is_the_difference_of_prefix_values(beta: float) -> None:
    """V(prefix) = beta log E_ref[exp(R / beta) | prefix]: r_t = V(s_{t+1}) - V(s_t), V(s_1) = 0, R = the outcome."""
    reference, model = random_table(5).log_softmax(-1), random_table(6).log_softmax(-1)
    reward = beta * (model - reference)
    values = prefix_values(reward, reference, beta)
    for m in range(len(ROWS)):
        length = int(ROWS.lengths[m])
        ends = [*(values[s] for s in ROWS.state[m, 1:length].tolist()), ROWS.returns(reward)[m]]
        starts = [values[s] for s in ROWS.state[m, :length].tolist()]
        close(torch.stack(ends) - torch.stack(starts), ROWS.values(reward)[m, :length])
    close(values[STATES[()]], torch.tensor(0.0, dtype=torch.float64))


def test_proposition_4_needs_normalised_probabilities() -> None:
    """A difference of raw logits is no such reward: V(s_1) = log Z is not 0, and the tokens do not telescope."""
    reference = random_table(5).log_softmax(-1)
    reward = random_table(6) - random_table(5)
    values = prefix_values(reward, reference, 1.0)
    close(values[STATES[()]], (ROWS.returns(reward) + ROWS.returns(reference)).logsumexp(0))
    assert values[STATES[()]].abs() > 0.1
    gaps = [
        values[ROWS.state[m, 1]] - values[ROWS.state[m, 0]] - ROWS.values(reward)[m, 0]
        for m in range(len(ROWS))
        if ROWS.lengths[m] > 1
    ]
    assert torch.stack(gaps).abs().max() > 0.1


def prefix_values(reward: Tensor, reference: Tensor, beta: float) -> Tensor:
    """The beta log E_ref[exp(R / beta) | prefix] of each state, from the enumeration."""
    values = torch.zeros(len(STATES), dtype=torch.float64)
    for state in STATES.values():
        through = ((ROWS.state == state) & ROWS.mask).any(-1)
        given = ROWS.returns(reference)[through].softmax(0)
        values[state] = beta * (given.log() + ROWS.returns(reward)[through] / beta).logsumexp(0)
    return values


def test_the_worlds_differ() -> None:
    """Guards the tests above: q, p_D and p_phi are three distributions."""
    for one, two in ((SMALL.q, SMALL.expert), (SMALL.q, SMALL.model), (SMALL.expert, SMALL.model)):
        assert (one - two).abs().max() > 0.05
    assert (world().q - world().model).abs().max() > 0.01
