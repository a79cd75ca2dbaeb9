"""What each estimator converges to, and how fast: against limits computed by enumeration, never against itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from repirl.objectives.irl import irl_coefficients
from tests.theory.estimators import (
    World,
    ascents,
    cases,
    contrast,
    corrected_limit,
    discriminator,
    discriminator_limit,
    draw,
    errors,
    irl,
    limit,
    log_z,
    per_position_limit,
    relative_error,
    slope,
    world,
)
from tests.theory.tiny_mdp import exact_gradient, random_table

WORLD = world()
ANCHORED = replace(WORLD, base=random_table(7, 0.5))  # b = a reference policy
EXACT = exact_gradient(WORLD.rows, WORLD.reward, WORLD.expert)
SIZES = [64 * 2**k for k in range(7)]  # six doublings
REPLICATES = 32
SLOPE = 0.09  # around -1/2; five seeds of all cases stayed within .06
CASES = cases(WORLD)
SAME_AS_EXACT = ("sequence", "sequence, experts in Z", "sequence, truncated")


@pytest.mark.parametrize("name", CASES)
def test_the_error_falls_as_one_over_the_root_of_the_number_of_rollouts(name: str) -> None:
    objective, expected = CASES[name]
    found = errors(WORLD, objective, expected, SIZES, REPLICATES)
    assert abs(slope(SIZES, found) + 0.5) < SLOPE, found
    assert found[-1] < 0.1, found


def sixteen() -> tuple[World, Tensor]:
    """A world with a reference, and sixteen rollouts whose shares are exactly its q, [1, 16]."""
    place = replace(world(horizon=2), base=random_table(6))
    counts = torch.tensor([5, 3, 2, 2, 2, 1, 1])
    place = replace(place, policy=place.rows.policy_of(counts.double() / 16))
    return place, torch.arange(len(counts)).repeat_interleave(counts)[None]


SIXTEEN, ROLLOUTS = sixteen()
EXACT_CASES = {name: case for name, case in cases(SIXTEEN).items() if "in Z" not in name and "truncated" not in name}


@pytest.mark.parametrize("name", EXACT_CASES)
def test_rollouts_that_are_q_itself_give_the_limit_to_rounding(name: str) -> None:
    """So that what is shown of a limit, such as where it rests, is shown of the package's coefficients."""
    objective, expected = EXACT_CASES[name]
    (found,) = ascents(SIXTEEN, ROLLOUTS, objective)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    assert expected.norm() > 0.05


@pytest.mark.parametrize("name", [n for n in CASES if n not in SAME_AS_EXACT])
def test_only_plain_sequence_weights_have_the_exact_limit(name: str) -> None:
    distance = CASES[name][1] - EXACT
    assert distance.norm() / EXACT.norm() > 0.1


@pytest.mark.parametrize("weighting", ["sequence", "length_normalized", "per_position"])
def test_limits_with_the_reference_as_base_measure(weighting: str) -> None:
    expected = limit(ANCHORED, weighting)
    if weighting == "sequence":
        exact = exact_gradient(ANCHORED.rows, ANCHORED.reward, ANCHORED.expert, ANCHORED.log_base.sum(-1))
        torch.testing.assert_close(expected, exact, rtol=0, atol=1e-12)
    without = limit(WORLD, weighting)
    assert (expected - without).norm() / expected.norm() > 0.1
    found = errors(ANCHORED, irl(weighting=weighting), expected, SIZES, REPLICATES)
    assert abs(slope(SIZES, found) + 0.5) < SLOPE, found
    assert found[-1] < 0.2, found


# ---- scope: batch


def both_prompts(first: World, second: World, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """-dL/dr of the two prompts of one batch under scope `batch`, [2, states, VOCAB]."""
    parts = []
    for number, each in enumerate((first, second)):
        rollouts = draw(each, 1, samples, generator)[0]
        index = torch.cat([rollouts, torch.arange(len(each.rows))])
        rows = each.rows.rows(index)
        weight = torch.cat([torch.zeros(samples, dtype=torch.float64), each.expert])
        background = torch.arange(len(index)) < samples
        parts.append((rows, rows.values(each.reward), each.log_ratio[index], number, weight, background))
    found = irl_coefficients(
        rewards=torch.cat([p[1] for p in parts]),
        log_ratio=torch.cat([p[2] for p in parts]),
        response_mask=torch.cat([p[0].mask for p in parts]),
        group=torch.cat([torch.full((len(p[1]),), p[3]) for p in parts]),
        positive_weight=torch.cat([p[4] for p in parts]),
        background=torch.cat([p[5] for p in parts]),
        scope="batch",
        experts_in_z=False,
    )
    pieces = found.token.split([len(p[1]) for p in parts])
    return torch.stack([-p[0].table(piece) for p, piece in zip(parts, pieces, strict=True)])


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_scope_batch_tilts_the_prompts_by_their_partition_functions(shift: float) -> None:
    """One softmax over two prompts weighs prompt x by Z(x): exact only where all Z are equal."""
    other = world(seed=11)
    # the second prompt's Z is exp(shift) times the first's: a constant on the first token of every response
    reward = other.reward.clone()
    reward[0] += log_z(WORLD) + shift - log_z(other)
    other = replace(other, reward=reward)
    z = torch.stack([log_z(WORLD), log_z(other)]).softmax(0)
    worlds = (WORLD, other)
    expected = torch.stack([contrast(w, w.expert / 2, z[i] * w.model) for i, w in enumerate(worlds)])
    exact = torch.stack([exact_gradient(w.rows, w.reward, w.expert) / 2 for w in worlds])
    distance = float((expected - exact).norm() / exact.norm())
    assert distance < 1e-12 if shift == 0 else distance > 0.3
    generator = torch.Generator().manual_seed(0)
    found = [
        relative_error(torch.stack([both_prompts(*worlds, m, generator) for _ in range(REPLICATES)]), expected)
        for m in SIZES
    ]
    assert abs(slope(SIZES, found) + 0.5) < SLOPE, found
    assert found[-1] < 0.1, found


# ---- corrected trajectories

CORRECT = torch.arange(len(WORLD.rows)) % 3 == 0


@pytest.mark.parametrize(("corrected", "experts_in_z"), [("copy", False), ("copy", True), ("move", False)])
def test_limits_with_corrected_trajectories(corrected: str, experts_in_z: bool) -> None:
    """`copy` contrasts the mixture of experts and right rollouts with p_phi; `move` with p_phi given a failure."""
    expected = corrected_limit(WORLD, CORRECT, corrected, 0.5)
    assert (expected - EXACT).norm() / EXACT.norm() > 0.2
    options = {"correct": CORRECT, "corrected": corrected, "expert_mass": 0.5}
    found = errors(WORLD, irl(experts_in_z=experts_in_z), expected, SIZES[:-1], 16, **options)
    assert found[-1] < 0.15, found
    assert abs(slope(SIZES[:-1], found) + 0.5) < 0.15, found


@pytest.mark.parametrize("mass", [0.125, 1.0])
@pytest.mark.parametrize("corrected", ["copy", "move"])
def test_rollouts_that_are_q_itself_give_the_limit_with_corrected_trajectories_too(corrected: Any, mass: float) -> None:
    correct = torch.arange(len(SIXTEEN.rows)) % 3 == 0
    options = {"correct": correct, "corrected": corrected, "expert_mass": mass}
    (found,) = ascents(SIXTEEN, ROLLOUTS, irl(), **options)
    torch.testing.assert_close(found, corrected_limit(SIXTEEN, correct, corrected, mass), rtol=0, atol=1e-7)
    other = corrected_limit(SIXTEEN, correct, corrected, 4 * mass)
    assert (found - other).abs().max() > 0.01


# ---- where the heuristics come to rest


@pytest.mark.parametrize("place", [WORLD, ANCHORED], ids=["b = 1", "b = a reference"])
@pytest.mark.parametrize("objective", ["per_position", "token"])
def test_per_position_and_token_discriminator_rest_at_the_experts_policy_times_a_ratio_of_states(
    objective: str, place: World
) -> None:
    """Both limits vanish at r = log pi_D(a|s) - log b(a|s) + log d_D(s) / d_q(s), d the probability of reaching s.

    per_position also with any constant added at a position, the discriminator not.
    """
    rows = place.rows
    reach = [rows.occupancy(p).sum(-1) for p in (place.expert, place.q)]
    r = rows.policy_of(place.expert) + (reach[0] / reach[1]).log()[:, None]
    if place.base is not None:
        r = r - place.base.log_softmax(-1)
    if objective == "token":  # token shares of both sets: E[len] cancels only with this constant
        r = r - ((place.expert * rows.lengths).sum() / (place.q * rows.lengths).sum()).log()
    at_rest = replace(place, reward=r)

    def limit_of(here: World) -> Tensor:
        return per_position_limit(here) if objective == "per_position" else discriminator_limit(here, "token")

    assert limit_of(at_rest).abs().max() < 1e-12
    assert limit_of(place).abs().max() > 0.01
    depth = torch.full((len(r),), -1)
    depth[rows.state[rows.mask]] = torch.arange(rows.mask.shape[1]).expand(rows.mask.shape)[rows.mask]
    moved = replace(at_rest, reward=r + (depth == 1)[:, None] * 1.3)
    if objective == "per_position":
        assert limit_of(moved).abs().max() < 1e-12
    else:
        assert limit_of(moved).abs().max() > 0.01
    # the package's own coefficients agree that this is rest
    generator = torch.Generator().manual_seed(0)
    own = irl(weighting="per_position") if objective == "per_position" else discriminator("token")
    drawn = draw(place, 32, 8192, generator)
    assert ascents(at_rest, drawn, own).mean(0).norm() < 0.1 * ascents(place, drawn, own).mean(0).norm()


def test_on_the_experts_own_rollouts_per_position_finds_their_policy() -> None:
    """With q = pi_D the state ratio is 1: r = log pi_D + a constant per position, hence p_phi = p_D up to lengths."""
    r = WORLD.rows.policy_of(WORLD.expert)
    assert per_position_limit(replace(WORLD, policy=r, reward=r)).abs().max() < 1e-12
    assert (replace(WORLD, reward=r).model - WORLD.expert).abs().max() < 1e-12
