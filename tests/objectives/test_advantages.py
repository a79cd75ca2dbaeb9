"""Advantages in worked numbers, length bias, and the cases without a spread or a partner."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from repirl.objectives.advantages import (
    group_normalised,
    grpo_per_step,
    leave_one_out,
    position_advantage,
    prime_advantage,
    returns_to_go,
    rloo_advantage,
    scale_rewards,
    whiten,
)
from repirl.objectives.estimators import ESTIMATORS as CLASSES
from repirl.objectives.estimators import Estimator, RewardSource, combine
from repirl.objectives.estimators import estimator as of_name
from repirl.objectives.reduce import last_token
from tests.objectives.estimating import estimate

NAN = float("nan")
ESTIMATORS = ["rloo", "rloo_per_step", "grpo", "grpo_per_step", "dr_grpo", "prime", "position"]


def padded(*rows: list[float]) -> tuple[Tensor, Tensor]:
    """Ragged rows as float64 [rows, time], NaN outside the response, and the mask."""
    width = max(map(len, rows))
    values = torch.tensor([[*row, *[NAN] * (width - len(row))] for row in rows], dtype=torch.float64)
    return values, ~values.isnan()


def parts(mask: Tensor, group: list[int] | None = None, scorable: list[bool] | None = None) -> dict[str, Tensor]:
    return {
        "response_mask": mask,
        "group": torch.tensor(group or [0] * len(mask)),
        "scorable": torch.tensor(scorable or [True] * len(mask)),
    }


def close(got: Tensor, *rows: list[float]) -> None:
    expected = torch.tensor([[*row, *[0] * (got.shape[1] - len(row))] for row in rows], dtype=got.dtype)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_returns_to_go() -> None:
    rewards, mask = padded([1, 2, 3], [4, -1], [2])
    close(returns_to_go(rewards, mask), [6, 5, 3], [3, -1], [2])
    close(returns_to_go(rewards, mask, 0.5), [1 + 0.5 * (2 + 0.5 * 3), 2 + 0.5 * 3, 3], [4 - 0.5, -1], [2])
    close(returns_to_go(rewards, mask, 0.0), [1, 2, 3], [4, -1], [2])


def test_scale_rewards() -> None:
    rewards, mask = padded([1, 2, -6], [4, -1])
    clean = rewards.nan_to_num(0)
    # returns -3, -4, -6 and 3, -1: the largest size is 6
    got = scale_rewards(rewards=clean, response_mask=mask, scale="max_abs_return")
    close(got, [1 / 6, 1 / 3, -1], [2 / 3, -1 / 6])
    assert returns_to_go(got, mask).abs().max() == 1
    # mean 0, variance (1 + 4 + 36 + 16 + 1) / 5 = 11.6
    std = math.sqrt(11.6)
    close(scale_rewards(rewards=clean, response_mask=mask, scale="std") * std, [1, 2, -6], [4, -1])
    assert torch.equal(scale_rewards(rewards=clean, response_mask=mask, scale="none"), clean)


def test_leave_one_out() -> None:
    rewards, mask = padded([1, 2, 3], [4, -1], [2])
    returns = returns_to_go(rewards, mask)  # 6 5 3; 3 -1; 2
    # t = 1: 6 - (3 + 2) / 2, 3 - (6 + 2) / 2, 2 - (6 + 3) / 2; t = 2: 5 - -1, -1 - 5; t = 3: nobody else
    close(leave_one_out(returns=returns, **parts(mask)), [3.5, 6, 3], [-1, -6], [-2.5])
    close(leave_one_out(returns=returns, **parts(mask), alone="drop"), [3.5, 6, 0], [-1, -6], [-2.5])
    # without the third row: 6 - 3 and 3 - 6
    close(leave_one_out(returns=returns, **parts(mask, scorable=[True, True, False])), [3, 6, 3], [-3, -6], [])


def test_prompts_do_not_mix() -> None:
    rewards, mask = padded([1, 2, 3], [10], [4, -1], [20, 1], [2])
    returns = returns_to_go(rewards, mask)
    got = leave_one_out(returns=returns, **parts(mask, group=[0, 1, 0, 1, 0]))
    close(got, [3.5, 6, 3], [10 - 21], [-1, -6], [21 - 10, 1], [-2.5])


def test_length_bias_of_leave_one_out() -> None:
    # .5 per token, lengths 5, 2, 4: A = .5 (T_k - mean T of the others active at t), and .5 (T_k - t + 1) alone
    rewards, mask = padded([0.5] * 5, [0.5] * 2, [0.5] * 4)
    got = estimate("rloo_per_step", rewards=rewards.nan_to_num(0), rewarded=mask, **parts(mask))
    # t <= 2: 5 - (2 + 4) / 2, 2 - (5 + 4) / 2, 4 - (5 + 2) / 2; t = 3, 4: 5 - 4, 4 - 5; t = 5: 5 - 5 + 1
    close(got, [1, 1, 0.5, 0.5, 0.5], [-1.25, -1.25], [0.25, 0.25, -0.5, -0.5])
    # alone from the first token on: .5 (3 - t + 1)
    rewards, mask = padded([0.5] * 3)
    close(estimate("rloo_per_step", rewards=rewards, rewarded=mask, **parts(mask)), [1.5, 1, 0.5])


def test_rloo_has_one_baseline_a_response_over_all_other_rows() -> None:
    rewards, mask = padded([1, 2, 3], [4, -1], [2], [7])
    shared = parts(mask, group=[0, 0, 0, 1])
    # returns 6 3 2: 6 - 5/2, 3 - 4, 2 - 9/2, on every token, however short the others are; alone 7
    close(rloo_advantage(rewards=rewards, **shared), [3.5] * 3, [-1] * 2, [-2.5], [7])
    close(rloo_advantage(rewards=rewards, alone="drop", **shared), [3.5] * 3, [-1] * 2, [-2.5], [])
    # discounted by half from the first token on: 1 + 1 + 3/4, 4 - 1/2, 2
    got = rloo_advantage(rewards=rewards, discount=0.5, **shared)
    close(got, [2.75 - 2.75] * 3, [3.5 - 2.375] * 2, [2 - 3.125], [7])
    # without the third row: 6 - 3, 3 - 6
    got = rloo_advantage(rewards=rewards, **parts(mask, group=[0, 0, 0, 1], scorable=[True, True, False, True]))
    close(got, [3] * 3, [-3] * 2, [], [7])


def test_rloo_of_outcomes_differs_from_the_per_step_form_on_ragged_rows_only() -> None:
    def pair(*rows: list[float]) -> tuple[Tensor, Tensor]:
        rewards, mask = padded(*rows)
        names = ("rloo", "rloo_per_step")
        return tuple(estimate(n, rewards=rewards, rewarded=last_token(mask), **parts(mask)) for n in names)  # type: ignore[return-value]

    response, step = pair([0, 1], [0, 0], [0, 1])
    assert torch.equal(response, step)
    response, step = pair([0, 0, 1], [0], [0, 1])
    close(response, [0.5] * 3, [-1], [0.5] * 2)
    close(step, [0.5, 0, 1], [-1], [0.5, 0])  # t = 2: against the third alone; t = 3: against nobody


def test_grpo_per_step() -> None:
    returns, mask = padded([6, 5, 3], [3, -1], [3])
    # t = 1: mean 4, std sqrt((4 + 1 + 1) / 2); leave-one-out 6 - 3, 3 - 4.5 twice. t = 2: mean 2, std sqrt(18)
    close(
        grpo_per_step(returns=returns, **parts(mask)),
        [3 / math.sqrt(3), 6 / math.sqrt(18), 3],  # alone at t = 3: not divided
        [-1.5 / math.sqrt(3), -6 / math.sqrt(18)],
        [-1.5 / math.sqrt(3)],
    )
    assert grpo_per_step(returns=returns, alone="drop", **parts(mask))[0, 2] == 0
    # without the first: 3 and 3 have no spread, -1 is alone
    got = grpo_per_step(returns=returns, **parts(mask, scorable=[False, True, True]))
    close(got, [], [0, -1], [0])


def test_no_length_bias_of_prime() -> None:
    rewards, mask = padded([0.5] * 5, [0.5] * 2, [0.5] * 4, [0.5])
    got = estimate("prime", rewards=rewards.nan_to_num(0), rewarded=mask, **parts(mask, group=[0, 0, 0, 1]))
    close(got, [], [], [], [])


def test_prime_advantage() -> None:
    rewards, mask = padded([1, 3], [5], [0, 0, 3])
    # means 2, 5, 1; of the others 3, 1.5, 3.5: differences -2 0; 3.5; -3.5 -3.5 -.5
    close(prime_advantage(rewards=rewards, rewarded=mask, **parts(mask)), [-2, 0], [3.5], [-7.5, -4, -0.5])
    # without the second: 1 and 2: differences 0 2; -2 -2 1
    got = prime_advantage(rewards=rewards, rewarded=mask, **parts(mask, scorable=[True, False, True]))
    close(got, [2, 2], [], [-3, -1, 1])
    # alone: its own mean: -1 1
    close(prime_advantage(rewards=rewards[:1, :2], rewarded=mask[:1, :2], **parts(mask[:1, :2])), [0, 1])


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "prime"])
def test_equal_steps_are_no_preference_however_long_they_are(name: Any) -> None:
    rewards, mask = padded([0, 0, 0, 1], [0, 1], [0, 1, 1])
    ends = rewards == 1
    close(estimate(name, rewards=rewards.nan_to_num(0), rewarded=ends, **parts(mask)), [], [], [])
    # steps of 1; 1; 1 and -2: means 1, 1, -.5; of the others .25 .25 1; 0 between the ends
    rewards, mask = padded([0, 0, 0, 1], [0, 1], [0, 1, -2])
    if name == "prime":
        got = estimate(name, rewards=rewards.nan_to_num(0), rewarded=rewards != 0, **parts(mask))
        close(got, [0.75] * 4, [0.75] * 2, [-3, -3, -3])


def test_position_advantage() -> None:
    rewards, mask = padded([1, 2], [4], [-2, 5, 7])
    # means of the others: 1 -1/2 5/2; 5 2; nobody. Differences 0 -3; 9/2; -9/2 3 0
    close(position_advantage(rewards=rewards, **parts(mask)), [-3, -3], [4.5], [-1.5, 3, 0])
    close(position_advantage(rewards=rewards, **parts(mask), discount=0.5), [-1.5, -3], [4.5], [-3, 3, 0])
    # without the second: 1 + 2, -2 - 1
    got = position_advantage(rewards=rewards, **parts(mask, scorable=[True, False, True]))
    close(got, [0, -3], [], [0, 3, 0])


@pytest.mark.parametrize("discount", [0.0, 0.5, 1.0])
def test_a_constant_at_each_position_of_a_prompt_changes_nothing_in_position_only(discount: float) -> None:
    """What per-position weights leave open. With returns that are longer for some rows it counts elsewhere as length."""
    rewards, mask = padded([1, 2], [4], [-2, 5, 7], [1, 1], [0, 3, 2])
    shared = parts(mask, group=[0, 0, 0, 1, 1])
    constants = torch.tensor([[5, -3, 2], [1, 0, -8]], dtype=torch.float64)
    shifted = rewards + constants[shared["group"]]
    for estimator in ("position", "prime", "rloo_per_step"):
        before = estimate(estimator, rewards=rewards, rewarded=mask, discount=discount, **shared)
        after = estimate(estimator, rewards=shifted, rewarded=mask, discount=discount, **shared)
        assert torch.allclose(after, before) == (estimator == "position")


def test_discounts_reach_every_estimator() -> None:
    rewards, mask = padded([1, 3], [5, 0], [0, 0, 3])
    for estimator in ESTIMATORS:
        far, near = (estimate(estimator, rewards=rewards, rewarded=mask, discount=d, **parts(mask)) for d in (1.0, 0.0))
        assert not torch.allclose(far, near)
    # by the definition: what each token's own term is
    close(
        estimate("rloo_per_step", rewards=rewards, rewarded=mask, discount=0.0, **parts(mask)),
        [-1.5, 3],
        [4.5, -1.5],
        [-3, -1.5, 3],
    )


def test_grpo_of_outcomes_is_the_normalised_outcome_on_every_token() -> None:
    rewards, mask = padded([0, 0, 1], [0], [0, 0], [0, 1])
    shared = {"rewards": rewards, "rewarded": last_token(mask)}
    # 1 0 0 1: mean 1/2, std sqrt(4/4 / 3)
    a = 0.5 / (math.sqrt(1 / 3) + 1e-6)
    close(estimate("grpo", **shared, **parts(mask)), [a] * 3, [-a], [-a] * 2, [a] * 2)
    close(estimate("dr_grpo", **shared, **parts(mask)), [0.5, 0.5, 0.5], [-0.5], [-0.5, -0.5], [0.5, 0.5])
    # 1 0 0, the last unscorable: mean 1/3, std sqrt(2/3 / 2)
    got = estimate("grpo", std_eps=0.0, **shared, **parts(mask, scorable=[True, True, True, False]))
    a = math.sqrt(1 / 3)
    close(got, [2 * a] * 3, [-a], [-a] * 2, [])


def test_grpo_of_process_rewards() -> None:
    rewards, mask = padded([1, 3], [2], [7])
    # first prompt: mean 2, std 1, centred -1 1; 0; summed from t on 0 1; 0. Second prompt: no spread
    got = group_normalised(rewards=rewards, rewarded=mask, std_eps=0.25, **parts(mask, group=[0, 0, 1]))
    close(got, [0, 1 / 1.25], [0], [0])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_unscorable_rows_change_nothing_and_get_nothing(estimator: str) -> None:
    rewards, mask = padded([1, 3], [5], [0, 0, 3], [4, 4, 4])
    rewards[3] = NAN  # not known
    scorable = [True, True, True, False]
    got = estimate(estimator, rewards=rewards, rewarded=mask, **parts(mask, scorable=scorable))
    without = estimate(estimator, rewards=rewards[:3], rewarded=mask[:3], **parts(mask[:3]))
    assert without.abs().max() > 0.5
    assert torch.equal(got[:3], without)
    assert (got[3] == 0).all()
    nobody = estimate(estimator, rewards=rewards, rewarded=mask, **parts(mask, scorable=[False] * 4))
    assert (nobody == 0).all()


@pytest.mark.parametrize(
    ("estimator", "alone", "expected"),
    [
        ("rloo", "zero_baseline", [4, 4]),
        ("rloo", "drop", [0, 0]),
        ("rloo_per_step", "zero_baseline", [4, 3]),
        ("rloo_per_step", "drop", [0, 0]),
        ("grpo", "zero_baseline", [0, 1 / (math.sqrt(2) + 1e-6)]),  # mean 2, std sqrt(2) over its own tokens
        ("grpo_per_step", "zero_baseline", [4, 3]),
        ("grpo_per_step", "drop", [0, 0]),
        ("dr_grpo", "zero_baseline", [0, 1]),
        ("prime", "zero_baseline", [0, 1]),
        ("position", "zero_baseline", [0, 0]),
    ],
)
def test_a_group_of_one(estimator: str, alone: str, expected: list[float]) -> None:
    rewards, mask = padded([1, 3])
    close(estimate(estimator, rewards=rewards, rewarded=mask, alone=alone, **parts(mask)), expected)
    # an outcome has no spread over one row
    outcome, _ = padded([0, 1])
    got = estimate(estimator, rewards=outcome, rewarded=last_token(mask), alone=alone, **parts(mask))
    counted = estimator in ("rloo", "rloo_per_step", "grpo_per_step") and alone == "zero_baseline"
    close(got, [1, 1] if counted else [0, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alone", ["zero_baseline", "drop"])
@pytest.mark.parametrize("scale", ["max_abs_return", "std", "none"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_zero_rewards_give_exact_zeros(estimator: str, scale: str, alone: str, dtype: torch.dtype) -> None:
    _, mask = padded([1, 1, 1], [1], [1, 1], [1])
    shared = parts(mask, group=[0, 0, 0, 1])
    rewards = scale_rewards(rewards=torch.zeros(4, 3, dtype=dtype), response_mask=mask, scale=scale)
    for rewarded in (mask, last_token(mask)):
        advantages = estimate(estimator, rewards=rewards, rewarded=rewarded, alone=alone, **shared)
        assert advantages.dtype == dtype
        assert (advantages == 0).all()
        assert (whiten(advantages=advantages, where=mask) == 0).all()


def test_whiten() -> None:
    advantages, mask = padded([1, 2], [3], [9])
    where = mask & torch.tensor([[True], [True], [False]])
    std = math.sqrt(2 / 3)  # of 1 2 3
    close(whiten(advantages=advantages.nan_to_num(5), where=where), [-1 / std, 0], [1 / std], [])
    values, _ = torch.randn(9, 7, generator=torch.Generator().manual_seed(0)).double().mul(3).add(4).sort(1)
    got = whiten(advantages=values, where=torch.ones_like(values, dtype=torch.bool))
    assert abs(got.mean()) < 1e-12
    assert abs(got.std(unbiased=False) - 1) < 1e-12
    assert (got.diff(dim=1) > 0).all()
    assert (whiten(advantages=values, where=torch.zeros_like(values, dtype=torch.bool)) == 0).all()


@pytest.mark.parametrize("count", [3, 7, 11, 37, 500])
@pytest.mark.parametrize("constant", [0.1, 1.1, -3.3, 1000.1])
def test_equal_values_are_no_signal_despite_rounding(constant: float, count: int) -> None:
    # In float32 the mean of equal numbers is not always that number: the difference must not be scaled up to 1.
    values = torch.full((count, 1), constant)
    mask = torch.ones_like(values, dtype=torch.bool)
    assert (whiten(advantages=values, where=mask) == 0).all()
    assert (estimate("grpo", rewards=values, rewarded=mask, **parts(mask)) == 0).all()
    scaled = scale_rewards(rewards=values, response_mask=mask, scale="std")
    assert scaled.abs().max() <= abs(constant) * 1.001
    # A difference of a thousandth is one.
    values[0] *= 1.001
    assert whiten(advantages=values, where=mask)[0].abs() > 1
    assert estimate("grpo", rewards=values, rewarded=mask, **parts(mask))[0].abs() > 1


@pytest.mark.parametrize("scale", ["max_abs_return", "std", "none"])
def test_no_rows(scale: str) -> None:
    empty = torch.zeros(0, 0, dtype=torch.float64)
    mask = empty.bool()
    shared = {"response_mask": mask, "group": torch.zeros(0, dtype=torch.long), "scorable": torch.zeros(0).bool()}
    rewards = scale_rewards(rewards=empty, response_mask=mask, scale=scale)
    for estimator in ESTIMATORS:
        got = estimate(estimator, rewards=rewards, rewarded=mask, **shared)
        assert whiten(advantages=got, where=mask).shape == (0, 0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_better_rollouts_have_the_larger_advantage(estimator: str) -> None:
    rewards, mask = padded([0, 1], [0, 0], [0, 1], [0, 0])
    got = estimate(estimator, rewards=rewards, rewarded=last_token(mask), **parts(mask))
    assert (got[[0, 2], 0] > 0.1).all()
    assert (got[[1, 3], 0] < -0.1).all()


def test_combine_weighs_sources_and_leaves_rows_that_none_could_score_at_zero() -> None:
    # One prompt, three rows of one token. Outcome 1, 0, unknown; RLOO: 1 - 0 = 1, 0 - 1 = -1, row 3 takes no part.
    # Times 2: 2, -2, 0. Whitened over the two judged rows (mean 0, standard deviation 2): 1, -1, and still 0.
    mask = torch.ones(3, 1, dtype=torch.bool)
    known = torch.tensor([True, True, False])
    source = RewardSource(2.0, of_name("rloo"), torch.tensor([[1.0], [0.0], [0.0]]), mask, known)
    group = torch.zeros(3, dtype=torch.long)
    shared = {"response_mask": mask, "group": group, "is_expert": torch.zeros(3, dtype=torch.bool)}
    raw = combine([source], whitened=False, **shared)
    assert raw[:, 0].tolist() == [2.0, -2.0, 0.0]
    assert combine([source], **shared)[:, 0].tolist() == [1.0, -1.0, 0.0]
    # A second source that scores all rows, 3, 0, 0 times 1: 3 - 0, 0 - 1.5, 0 - 1.5 is added.
    other = RewardSource(
        1.0, of_name("rloo"), torch.tensor([[3.0], [0.0], [0.0]]), mask, torch.ones(3, dtype=torch.bool)
    )
    both = combine([source, other], whitened=False, **shared)
    assert both[:, 0].tolist() == [5.0, -3.5, -1.5]
    assert combine([], **shared)[:, 0].tolist() == [0.0, 0.0, 0.0]


def test_experts_are_compared_with_but_have_no_advantage() -> None:
    # Two rollouts that agree, an expert above them. Rewards 1, 1 and 4; 2, 2 and 5: means of the others 5/2 and 7/2.
    mask = torch.ones(3, 2, dtype=torch.bool)
    rewards, group = torch.tensor([[1.0, 2.0], [1.0, 2.0], [4.0, 5.0]]), torch.zeros(3, dtype=torch.long)
    source = RewardSource(1.0, of_name("position"), rewards, mask, torch.ones(3, dtype=torch.bool))
    shared = {"response_mask": mask, "group": group, "is_expert": torch.tensor([False, False, True])}
    raw = combine([source], whitened=False, **shared)
    assert raw.tolist() == [[-3.0, -1.5], [-3.0, -1.5], [0.0, 0.0]]
    # Whitened over the rollouts alone: mean -9/4, standard deviation 3/4
    assert combine([source], **shared).tolist() == [[-1.0, 1.0], [-1.0, 1.0], [0.0, 0.0]]
    # Compared with each other alone they have none.
    alone = RewardSource(1.0, of_name("position"), rewards, mask, torch.tensor([True, True, False]))
    assert not combine([alone], whitened=False, **shared).any()


def test_every_name_of_the_schema_has_its_class_and_takes_the_settings_it_reads() -> None:
    names = [name for part in get_args(Estimator) for name in (get_args(part) or [part])]
    assert sorted(names) == sorted(CLASSES)
    assert {name for name, kind in CLASSES.items() if kind.compares_experts} == {"position"}
    assert of_name("rloo", alone="drop", std_eps=0.5) == CLASSES["rloo"](alone="drop")  # type: ignore[call-arg]
    assert of_name("grpo", alone="drop", std_eps=0.5) == CLASSES["grpo"](std_eps=0.5)  # type: ignore[call-arg]
