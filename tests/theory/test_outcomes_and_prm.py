"""Where a policy comes to rest under outcomes and a PRM together, by enumeration, and what the reward scale does to it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from repirl.learning.settings import Advantage
from repirl.learning.shaping import shaped
from tests.theory.estimators import World, draw, world
from tests.theory.policies import ascend_policies, batch_of_draws, following, policy_steps, shifted
from tests.theory.tiny_mdp import random_table

SMALL = following(replace(world(horizon=2), base=random_table(6)))  # 7 responses; starts at q = b
CORRECT = torch.arange(len(SMALL.rows)) % 3 == 0


def coefficients(outcome: float, **settings: Any) -> Advantage:
    """Outcomes with this weight against a PRM of weight 1, not whitened."""
    return Advantage(outcome_coef=outcome, prm_coef=1.0, whiten=False, **settings)


def tilted(place: World, strength: float) -> World:
    """The policy of b exp(R + strength x outcome) / Z."""
    rest = (place.log_model + strength * CORRECT.double()).softmax(0)
    return replace(place, policy=place.rows.policy_of(rest))


def right(place: World) -> float:
    """P(right) of the policy."""
    return float(place.q[CORRECT].sum())


def largest_return(place: World) -> float:
    """The largest |G_t| of r + log b - log q over all responses and tokens."""
    rewards = (place.rows.values(place.reward) + place.log_ratio) * place.rows.mask
    return float(rewards.flip(-1).cumsum(-1).abs().max())


def test_unscaled_rewards_are_the_default() -> None:
    assert Advantage().reward_scale == "none"


@pytest.mark.parametrize("shift", [0.0, 5.0])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 10.0])
def test_outcomes_tilt_the_model_by_the_ratio_of_the_coefficients(ratio: float, shift: float) -> None:
    """At q = b exp(R + (c_o / c_p) o) / Z the expected step is 0, whatever constant R has."""
    place = shifted(SMALL, shift)
    (at_rest,) = policy_steps([tilted(place, ratio)], coefficients(ratio), correct=CORRECT)
    assert at_rest.abs().max() < 1e-12
    (beside,) = policy_steps([tilted(place, ratio + 0.2)], coefficients(ratio), correct=CORRECT)
    assert beside.abs().max() > (1e-6 if ratio > 5 else 1e-2)  # at 10 nearly all are right: little to gain


def test_a_constant_in_r_of_one_prompt_does_not_move_where_ascent_ends() -> None:
    """Two prompts of one batch, R of the second raised by 5: P(right) .426 without outcomes, .668 with c_o = c_p."""
    step = partial(policy_steps, settings=coefficients(1.0), correct=CORRECT)
    first, second = ascend_policies([SMALL, shifted(SMALL, 5.0)], step, steps=150, rate=4.0)
    assert right(SMALL) != pytest.approx(right(first), abs=0.1)
    assert right(first) == pytest.approx(right(tilted(SMALL, 1.0)), abs=1e-4)
    assert right(second) == pytest.approx(right(first), abs=1e-9)
    torch.testing.assert_close(first.q, tilted(SMALL, 1.0).q, rtol=0, atol=1e-3)


@pytest.mark.parametrize("token", ["first", "last"])
@pytest.mark.parametrize("estimator", ["rloo", "rloo_per_step"])
@pytest.mark.parametrize("whiten", [False, True])
def test_advantages_do_not_see_a_constant_in_r_of_a_prompt(token: str, estimator: Any, whiten: bool) -> None:
    """Two prompts of one batch, 5 added to every R of the second, on its responses' first or last token."""
    generator = torch.Generator().manual_seed(0)
    drawn = [draw(SMALL, 4, 4, generator) for _ in range(2)]
    batch, rows, rewards = batch_of_draws([SMALL, SMALL], drawn, CORRECT)
    place = torch.zeros_like(rows.lengths) if token == "first" else rows.lengths - 1
    constant = torch.zeros_like(rewards)
    second = torch.arange(len(rewards)) >= len(rewards) // 2
    constant[second, place[second]] = 5.0
    settings = replace(coefficients(1.0, prm_estimator=estimator), whiten=whiten)
    options = {"settings": settings, "judged": True, "maxent_coef": 1.0, "of_reference": True, "by_step": False}
    plain, moved = (shaped(batch, prm_rewards=r, **options) for r in (rewards, rewards + constant))
    torch.testing.assert_close(plain, moved, rtol=0, atol=1e-9)
    scaled = replace(settings, reward_scale="max_abs_return")
    plain, moved = (
        shaped(batch, prm_rewards=r, **options | {"settings": scaled}) for r in (rewards, rewards + constant)
    )
    assert (plain - moved).abs().max() > 0.01


# ---- what dividing by the largest return does instead


def test_the_largest_return_lets_the_tilt_depend_on_the_rewards() -> None:
    """A rest is b exp(R + s o) / Z with s = (c_o / c_p) m, m the largest |G_t| there: not where the ratio says."""
    low, high = 0.0, 50.0
    for _ in range(60):  # s - m(s) changes its sign once here
        middle = (low + high) / 2
        low, high = (middle, high) if largest_return(tilted(SMALL, middle)) > middle else (low, middle)
    step = partial(policy_steps, settings=coefficients(1.0, reward_scale="max_abs_return"), correct=CORRECT)
    assert step([tilted(SMALL, low)])[0].abs().max() < 1e-12
    assert step([tilted(SMALL, 1.0)])[0].abs().max() > 1e-3
    assert (low, right(tilted(SMALL, low))) == pytest.approx((1.159, 0.703), abs=1e-3)


@pytest.mark.parametrize(("ratio", "shift"), [(10.0, 0.0), (10.0, 5.0), (10.0, -5.0), (1.0, 5.0)])
def test_the_largest_return_can_leave_no_interior_rest(ratio: float, shift: float) -> None:
    """Nothing but right responses is left in the end. A tilt of s makes log-weights s apart, so that m >= s / 2.

    Hence (c_o / c_p) m > s for every s where c_o / c_p > 2, and with a large log Z from a lower ratio on.
    """
    place, scaled = shifted(SMALL, shift), coefficients(ratio, reward_scale="max_abs_return")
    for strength in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0):
        here = tilted(place, strength)
        assert largest_return(here) >= strength / 2 - 1e-9
        assert ratio * largest_return(here) > strength
        (step,) = policy_steps([here], scaled, correct=CORRECT)
        assert right(replace(here, policy=here.policy + 0.1 * step)) > right(here)


# ---- a PRM alone


@pytest.mark.parametrize("estimator", ["rloo", "rloo_per_step", "dr_grpo", "prime"])
def test_whitening_takes_any_scale_of_a_prm_alone_out_again(estimator: Any) -> None:
    """Advantages are equal, up to rounding, with rewards as they are, by their largest return, or by their spread."""
    drawn = draw(SMALL, 8, 4, torch.Generator().manual_seed(0))
    batch, _, rewards = batch_of_draws([SMALL], [drawn], CORRECT)

    def advantages(scale: Any, whiten: bool) -> Tensor:
        settings = Advantage(outcome_coef=0.0, prm_estimator=estimator, reward_scale=scale, whiten=whiten)
        options = {"judged": True, "maxent_coef": 1.0, "of_reference": True, "by_step": False}
        return shaped(batch, settings=settings, prm_rewards=rewards, **options)

    for scale in ("max_abs_return", "std"):
        torch.testing.assert_close(advantages(scale, True), advantages("none", True), rtol=0, atol=1e-9)
        assert (advantages(scale, False) - advantages("none", False)).abs().max() > 0.01
