"""Which estimators have somewhere to go: gradient ascent on the exact expectation over every draw of rollouts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from tests.theory.estimators import Course, World, ascents, discriminator, expected_ascent, follow, irl, mismatched

FIXED = mismatched()
ROWS = FIXED.rows
PROPOSAL, EXPERT = FIXED.q, FIXED.expert
SAMPLES, STEPS, RATE = 2, 60, 4.0


def run(objective: Any, *, steps: int = STEPS, tracks: bool = False) -> Course:
    return follow(FIXED, partial(expected_ascent, objective=objective, samples=SAMPLES), steps, RATE, tracks=tracks)


def grows_without_bound(course: Course) -> bool:
    """The last quarter of the run adds as much to |R| as the quarter before, and the gradient has not fallen."""
    half, threequarter, end = (course.size[int(len(course.size) * share) - 1] for share in (0.5, 0.75, 1))
    return (
        end - threequarter > 0.8 * (threequarter - half) > 0.5
        and course.gradient[-1] > 0.5 * course.gradient[len(course.size) // 2]
    )


@pytest.mark.parametrize("weighting", ["sequence", "length_normalized", "uniform"])
def test_plain_weights_with_a_fixed_proposal_diverge(weighting: str) -> None:
    """Nothing holds a response down that experts write more often than the rollouts contain it."""
    found = run(irl(weighting=weighting))
    assert grows_without_bound(found)
    assert found.kl[-1] > 0.3


def test_ranking_nce_with_the_same_proposal_converges_to_the_experts() -> None:
    found = run(irl(experts_in_z=True))
    assert found.kl[-1] < 2e-3 < 0.5 < found.kl[0]
    assert found.gradient[-1] < 0.02 * found.gradient[0]
    assert not grows_without_bound(found)


def test_the_discriminator_comes_to_rest_beside_the_experts() -> None:
    """Its loss is bounded below, so it cannot diverge; with few rollouts its z is off, and so is what it rests at."""
    found = run(discriminator("sequence"), steps=24)
    assert not grows_without_bound(found)
    assert found.gradient[-1] < 0.02 * found.gradient[0]
    assert 0.01 < found.kl[-1] < 0.1


def test_no_stationary_point_where_experts_exceed_the_chance_to_be_sampled() -> None:
    """p_D(S) > 1 - (1 - q(S))^M: the expected step on R(S) is at least the difference, for every reward.

    A weight is at most 1, and is there only if S was sampled.
    """
    favourite = ROWS.state[0, 0], ROWS.action[0, 0]  # EOS at once: a response of its own
    least = EXPERT[0] - (1 - (1 - PROPOSAL[0]) ** SAMPLES)
    assert least > 0.5
    generator = torch.Generator().manual_seed(0)
    for scale in (0.0, 1.0, 10.0, 100.0):
        reward = scale * torch.randn(FIXED.reward.shape, generator=generator, dtype=torch.float64)
        step = expected_ascent(replace(FIXED, reward=reward), irl(), SAMPLES)[favourite]
        assert step > least - 1e-12


@pytest.mark.parametrize("weighting", ["sequence", "uniform"])
def test_a_proposal_that_tracks_the_model_converges(weighting: str) -> None:
    """Weights are then equal: the estimate is the on-policy one, without bias."""
    found = run(irl(weighting=weighting), tracks=True)
    assert found.kl[-1] < 2e-3
    assert found.gradient[-1] < 0.02 * found.gradient[0]


# ---- corrected trajectories, in the limit of many rollouts: q = counts / 12, every rollout listed

COUNTS = torch.tensor([3, 1, 2, 1, 2, 1, 2])
Q = COUNTS.double() / 12
LISTED = torch.arange(len(ROWS)).repeat_interleave(COUNTS)[None]
CORRECT = torch.tensor([True, False, True, False, False, False, True])
TABULAR = replace(FIXED, policy=ROWS.policy_of(Q))


def corrected_step(here: World, corrected: str, experts_in_z: bool = False) -> torch.Tensor:
    return ascents(here, LISTED, irl(experts_in_z=experts_in_z), correct=CORRECT, corrected=corrected)[0]


def test_corrected_move_diverges_and_copy_does_not() -> None:
    moved = follow(TABULAR, partial(corrected_step, corrected="move"), 200, RATE)
    assert grows_without_bound(moved)
    assert moved.size[-1] > 50
    copied = follow(TABULAR, partial(corrected_step, corrected="copy"), 200, RATE)
    assert not grows_without_bound(copied)
    assert copied.gradient[-1] < 1e-3
    assert copied.size[-1] < 10
    # copy comes to rest at the mixture of experts (weight 1) and right rollouts (weight q(right))
    mixture = (EXPERT + Q * CORRECT) / (1 + (Q * CORRECT).sum())
    assert (copied.end.model - mixture).abs().max() < 1e-3


def test_move_pushes_a_right_response_up_for_every_reward() -> None:
    """No counter-force: the step on the last token of a right response is its share of the positives, whatever R."""
    mixture = (EXPERT + Q * CORRECT) / (1 + (Q * CORRECT).sum())
    alone = ROWS.state[0, 0], ROWS.action[0, 0]
    generator = torch.Generator().manual_seed(0)
    for scale in (1.0, 10.0, 1000.0):
        reward = scale * torch.randn(TABULAR.reward.shape, generator=generator, dtype=torch.float64)
        step = corrected_step(replace(TABULAR, reward=reward), "move")[alone]
        torch.testing.assert_close(step, mixture[0], rtol=0, atol=1e-7)
    # `copy` answers: a response that has all of p_phi is pushed down.
    high = torch.zeros_like(TABULAR.reward)
    high[alone] = 100
    torch.testing.assert_close(corrected_step(replace(TABULAR, reward=high), "copy")[alone], mixture[0] - 1)
