"""Where a PRM and a policy that follows it come to rest together: exact ascent of both in turn, by enumeration.

The policy ascends -KL(q || b exp(R) / Z), which is what `maxent_coef: 1` has it do (test_policy_gradient.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from repirl.objectives.irl import contrast_sets, irl_coefficients
from tests.theory.estimators import (
    World,
    corrected_limit,
    discriminator_limit,
    expected_ascent,
    irl,
    limit,
    log_z,
    per_position_limit,
    positives,
)
from tests.theory.policies import kl, minus_kl_gradient, shifted, together, untrained
from tests.theory.tiny_mdp import STATES, random_table

Gradient = Callable[[World], Tensor]
START, SMALL = untrained(), untrained(horizon=2)


def gradients() -> dict[str, tuple[Gradient, float]]:
    """The exact PRM gradients in the limit of many rollouts, and a rate."""
    return {
        "sequence": (partial(limit, weighting="sequence"), 3.0),
        "Rbar": (partial(limit, weighting="sequence", rhat="Rbar"), 3.0),
        "tempered": (partial(limit, weighting="sequence", temperature=3.0), 3.0),
        "uniform": (partial(limit, weighting="uniform"), 3.0),
        "discriminator": (partial(discriminator_limit, form="sequence"), 6.0),
        "discriminator, token": (partial(discriminator_limit, form="token"), 12.0),
    }


@pytest.mark.parametrize("name", gradients())
def test_with_a_policy_that_follows_these_end_at_the_experts(name: str) -> None:
    """Also those that are not exact for a fixed proposal: where q = p_phi all weights are equal."""
    gradient, rate = gradients()[name]
    end = together(START, gradient, steps=700, rate=rate)
    assert kl(START.expert, START.q) > 0.5
    assert kl(end.expert, end.q) < 5e-4
    assert kl(end.q, end.model) < 1e-4
    assert gradient(end).norm() < 0.01 * gradient(START).norm()


@pytest.mark.parametrize(
    "objective",
    [irl(), irl(experts_in_z=True), irl(temperature=3.0), irl(weighting="uniform")],
)
def test_with_two_rollouts_too(objective: Any) -> None:
    """The expectation of the package's own coefficients over every draw, in place of the limit."""
    end = together(SMALL, partial(expected_ascent, objective=objective, samples=2), steps=150, rate=4.0)
    assert kl(SMALL.expert, SMALL.q) > 0.2
    assert kl(end.expert, end.q) < 1e-3


def test_equal_weights_alone_are_no_rest() -> None:
    """q = b exp(R) / Z: no weight differs and the policy stays, but the PRM moves as long as q is not p_D."""
    place = replace(START, reward=random_table(1))
    place = replace(place, policy=place.rows.policy_of(place.model))
    assert minus_kl_gradient(place, place.log_model).abs().max() < 1e-12
    spread = irl_coefficients(
        rewards=place.rows.values(place.reward),
        log_ratio=place.log_ratio,
        response_mask=place.rows.mask,
        group=torch.zeros(len(place.rows), dtype=torch.long),
        positive_weight=place.expert,
        background=torch.ones(len(place.rows), dtype=torch.bool),
    )
    assert spread.chi_square < 1e-12
    for gradient, _ in gradients().values():
        assert gradient(place).norm() > 0.05


# ---- those that end elsewhere


@pytest.mark.parametrize("shift", [0.0, 2.0, -2.0])
def test_length_normalized_weights_tilt_lengths_by_the_partition_function(shift: float) -> None:
    """At rest q is proportional to p_D Z^(-1 / T): the experts only at Z = 1, and a constant in R moves it."""
    gradient = partial(limit, weighting="length_normalized")
    end = together(shifted(START, shift), gradient, steps=700, rate=3.0)
    tilted = (end.expert.log() - log_z(end) / end.rows.lengths).softmax(0)
    assert kl(tilted, end.q) < 1e-4
    assert kl(end.expert, end.q) > (2e-3 if shift == 0 else 0.1)
    at_one = replace(START, reward=START.rows.policy_of(START.expert) - START.base.log_softmax(-1))  # type: ignore[union-attr]
    at_one = replace(at_one, policy=at_one.rows.policy_of(at_one.model))
    assert abs(log_z(at_one)) < 1e-12
    assert gradient(at_one).abs().max() < 1e-12
    assert gradient(shifted(at_one, 2.0)).abs().max() > 0.01


def depth_table(depth: int) -> Tensor:
    """1 at the states after this many tokens, [states, 1]."""
    found = torch.zeros(len(STATES), 1, dtype=torch.float64)
    for prefix, state in STATES.items():
        found[state] = float(len(prefix) == depth)
    return found


def test_per_position_weights_keep_the_constants_they_started_with() -> None:
    """q = p_D is a rest, but so is another q for other constants at a position: which one is for the start to say."""
    at_experts = replace(START, reward=START.rows.policy_of(START.expert) - START.base.log_softmax(-1))  # type: ignore[union-attr]
    at_experts = replace(at_experts, policy=at_experts.rows.policy_of(at_experts.model))
    assert kl(at_experts.expert, at_experts.q) < 1e-12
    assert per_position_limit(at_experts).abs().max() < 1e-12
    for constant, least, most in ((0.0, 1e-3, 1e-2), (1.0, 0.1, 1.0)):
        place = replace(START, reward=START.reward + constant * depth_table(2))
        end = together(place, per_position_limit, steps=700, rate=3.0)
        assert per_position_limit(end).norm() < 0.01 * per_position_limit(place).norm()
        assert kl(end.q, end.model) < 1e-4
        assert least < kl(end.expert, end.q) < most


def test_gail_ends_half_way() -> None:
    """Its reward is log p_D / q, not a density: a policy that follows b exp(R) rests at the geometric mean of b and p_D."""
    end = together(START, partial(discriminator_limit, form="sequence", plain=True), steps=700, rate=3.0)
    half_way = ((end.expert.log() + end.log_base.sum(-1)) / 2).softmax(0)
    assert kl(half_way, end.q) < 1e-4
    assert kl(end.expert, end.q) > 0.1


# ---- copy: right rollouts as pseudo-experts

CORRECT = torch.arange(len(SMALL.rows)) % 3 == 0
RIGHT_EXPERTS = replace(SMALL, expert=SMALL.expert * CORRECT / (SMALL.expert * CORRECT).sum())


def prm_at_rest(place: World, mass: float) -> World:
    """The PRM's own rest for this policy under `copy`, the policy following."""
    for _ in range(3000):
        place = replace(place, reward=place.reward + 4 * corrected_limit(place, CORRECT, "copy", mass))
    return replace(place, policy=place.rows.policy_of(place.model))


@pytest.mark.parametrize("mass", [0.25, 1.0])
def test_copy_contracts_by_one_over_one_plus_the_experts_mass(mass: float) -> None:
    """From a policy of right answers alone: q - p_D shrinks by 1 / (1 + alpha) from PRM to PRM; wrong answers go at once."""
    place = RIGHT_EXPERTS
    q = positives(place, CORRECT, mass)
    assert q[~CORRECT].abs().max() == 0
    for _ in range(3):
        place = replace(place, policy=place.rows.policy_of(q))
        new = positives(place, CORRECT, mass)
        torch.testing.assert_close(new - place.expert, (q - place.expert) / (1 + mass), rtol=0, atol=1e-12)
        q = new


def coefficients_of_copy(counts: tuple[int, ...], expert_weight: float, at: Tensor) -> Tensor:
    """The package's, summed by response, where the PRM's distribution is `at`.

    counts: right rollouts of each of three responses of a token, drawn from a policy in these shares; an expert writes the
    third.
    """
    response = torch.tensor([*(number for number, count in enumerate(counts) for _ in range(count)), 2])
    rows = len(response)
    is_expert = torch.arange(rows) == rows - 1
    log_q = (torch.tensor(counts).double() / sum(counts)).log()
    log_base = torch.tensor([0.2, 0.7, 0.1]).double().log()
    positive, background = contrast_sets(
        is_expert=is_expert,
        outcome=torch.ones(rows).masked_fill(is_expert, torch.nan),
        corrected="copy",
        expert_weight=expert_weight,
    )
    found = irl_coefficients(
        rewards=(at.log() - log_base)[response][:, None],
        log_ratio=(log_base - log_q)[response][:, None],
        response_mask=torch.ones(rows, 1, dtype=torch.bool),
        group=torch.zeros(rows, dtype=torch.long),
        positive_weight=positive,
        background=background,
    )
    return torch.zeros(3, dtype=torch.float64).index_add(0, response, found.token[:, 0].double())


@pytest.mark.parametrize(("expert_weight", "mixture"), [(1.0, (4 / 9, 2 / 9, 3 / 9)), (4.0, (4 / 12, 2 / 12, 6 / 12))])
def test_coefficients_of_copy_are_0_at_that_mixture(expert_weight: float, mixture: tuple[float, ...]) -> None:
    """By hand: 8 right rollouts, 4, 2 and 2 of each response, and an expert."""
    at = torch.tensor(mixture, dtype=torch.float64)
    assert coefficients_of_copy((4, 2, 2), expert_weight, at).abs().max() < 1e-7
    assert coefficients_of_copy((4, 2, 2), 5 - expert_weight, at).abs().max() > 0.05


def test_rests_of_copy_halve_the_gap_where_the_expert_weighs_as_much_as_the_rollouts() -> None:
    """alpha = 1: from (4, 2, 2) / 8 to (2, 1, 5) / 8, (2, 1, 13) / 16 and (2, 1, 29) / 32, towards the expert's (0, 0, 1)."""
    rounds = [(4, 2, 2), (2, 1, 5), (2, 1, 13), (2, 1, 29)]
    expert = torch.tensor([0.0, 0.0, 1.0]).double()
    for counts, following in pairwise(rounds):
        q, rest = (torch.tensor(some).double() / sum(some) for some in (counts, following))
        assert coefficients_of_copy(counts, float(sum(counts)), rest).abs().max() < 1e-7
        torch.testing.assert_close(rest - expert, (q - expert) / 2, rtol=0, atol=0)
        assert coefficients_of_copy(counts, float(sum(counts)), q).abs().max() > 0.02


def test_the_prm_s_rest_under_copy_is_that_mixture() -> None:
    """The map from q to the next q is what ascent on the PRM does, for experts that are not all right."""
    mixture = positives(SMALL, CORRECT, 0.5)
    assert kl(mixture, prm_at_rest(SMALL, 0.5).q) < 1e-5
    assert kl(mixture, SMALL.q) > 0.05


@pytest.mark.parametrize("mass", [0.25, 1.0])
def test_copy_rests_at_the_experts_right_answers_and_fewer_of_their_wrong_ones(mass: float) -> None:
    """With e = p_D(wrong): q(wrong) = w solves w (1 + alpha - w) = alpha e; right and wrong each keep p_D's proportions."""
    place = SMALL
    for _ in range(200):
        place = replace(place, policy=place.rows.policy_of(positives(place, CORRECT, mass)))
    wrong = float(place.expert[~CORRECT].sum())
    expected = (1 + mass - ((1 + mass) ** 2 - 4 * mass * wrong) ** 0.5) / 2
    assert float(place.q[~CORRECT].sum()) == pytest.approx(expected, abs=1e-9)
    assert expected < 0.8 * wrong
    for part in (CORRECT, ~CORRECT):
        shares = [p[part] / p[part].sum() for p in (place.q, place.expert)]
        torch.testing.assert_close(*shares, rtol=0, atol=1e-9)


@pytest.mark.parametrize("mass", [0.25, 1.0])
def test_copy_and_a_policy_that_follows_end_at_the_experts(mass: float) -> None:
    """Two rollouts, the package's coefficients over every draw, both in turn: q = p_D where experts are right."""
    options = {"correct": CORRECT, "corrected": "copy", "expert_mass": mass}
    gradient = partial(expected_ascent, objective=irl(), samples=2, **options)
    ends = [together(RIGHT_EXPERTS, gradient, steps=steps, rate=4.0) for steps in (50, 200)]
    gaps = [kl(end.expert, end.q) for end in ends]
    assert kl(RIGHT_EXPERTS.expert, RIGHT_EXPERTS.q) > 0.5
    assert gaps[1] < 0.02
    assert gaps[1] < gaps[0] / 2


# ---- outcomes beside it


@pytest.mark.parametrize("mass", [0.125, 1.0])
@pytest.mark.parametrize("ratio", [1.0, 10.0])
def test_with_outcomes_policy_and_prm_end_at_right_experts_too(ratio: float, mass: float) -> None:
    """The PRM at its rest under `copy`, the policy at b exp(R + ratio x outcome) / Z, in turn: the tilt cancels."""

    def round_of(place: World) -> World:
        mixture = positives(place, CORRECT, mass)  # b exp(R) / Z at the PRM's rest
        tilted = mixture * (ratio * CORRECT.double()).exp()
        return replace(place, policy=place.rows.policy_of(tilted / tilted.sum()))

    first = round_of(RIGHT_EXPERTS)
    assert kl(first.expert, first.q) > 0.005
    end = first
    for _ in range(200):
        end = round_of(end)
    assert kl(end.expert, end.q) < 1e-9
    # With a PRM that stays at b exp(R) / Z = SMALL.q the same outcomes leave the proportions of right answers as they are.
    stays = SMALL.q * CORRECT / SMALL.q[CORRECT].sum()
    assert (RIGHT_EXPERTS.expert - stays).abs().max() > 0.2
    # Of the experts' wrong answers fewer are left than without outcomes.
    wrong = []
    for tilt in (0.0, ratio):
        place = SMALL
        for _ in range(200):
            mixture = positives(place, CORRECT, mass) * (tilt * CORRECT.double()).exp()
            place = replace(place, policy=place.rows.policy_of(mixture / mixture.sum()))
        wrong.append(float(place.q[~CORRECT].sum()))
    assert wrong[1] < 0.6 * wrong[0]
