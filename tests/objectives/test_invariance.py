"""What every PRM objective and every advantage estimator is invariant to, and what it is not.

Shifts of the IRL objective are in test_irl.py; here are those of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from repirl.objectives.advantages import scale_rewards
from repirl.objectives.discriminator import discriminator_coefficients, gail_coefficients
from repirl.objectives.irl import irl_coefficients
from repirl.objectives.prm import prime_coefficients, step_cross_entropy_coefficients
from repirl.objectives.reduce import last_token
from repirl.objectives.steps import step_ends
from tests.objectives.estimating import estimate

Batch = dict[str, Tensor]
SETS = ("log_ratio", "group", "positive_weight", "background")


def contrast(function: Callable[..., Any], *names: str, **switches: Any) -> Callable[[Batch], Any]:
    """An objective that reads these columns of a batch beside rewards and mask."""

    def of(batch: Batch) -> Any:
        return function(
            rewards=batch["rewards"],
            response_mask=batch["response_mask"],
            **{n: batch[n] for n in names},
            **switches,
        )

    return of


IRL = {
    f"irl {weighting} {scope} {'in' if z else 'not in'} Z": contrast(
        irl_coefficients, *SETS, weighting=weighting, scope=scope, experts_in_z=z
    )
    for weighting in ("sequence", "length_normalized", "per_position", "uniform")
    for scope in ("prompt", "batch")
    for z in (True, False)
    if (weighting, scope) != ("per_position", "batch")
}
DISCRIMINATORS = {
    "discriminator sequence": contrast(discriminator_coefficients, *SETS, form="sequence"),
    "discriminator token": contrast(discriminator_coefficients, *SETS, form="token"),
    "gail sequence": contrast(gail_coefficients, *SETS[1:], form="sequence"),
    "gail token": contrast(gail_coefficients, *SETS[1:], form="token"),
}
LABELLED = {
    "prime": contrast(prime_coefficients, "outcome"),
    "steps": contrast(step_cross_entropy_coefficients, "labels", "ends"),
}
OBJECTIVES = IRL | DISCRIMINATORS | LABELLED

GENERATOR = torch.Generator().manual_seed(3)
LENGTHS = torch.tensor([6, 2, 3, 5, 4, 1, 6, 1, 4, 4, 5, 2])
MASK = torch.arange(6) < LENGTHS[:, None]
FEATURES = torch.randn(12, 6, 3, generator=GENERATOR, dtype=torch.float64)
SEPARATOR = torch.rand(12, 6, generator=GENERATOR) < 0.4
ENDS = step_ends(is_separator=SEPARATOR, response_mask=MASK)
KNOWN = ENDS & (torch.rand(12, 6, generator=GENERATOR) < 0.8)
WEIGHTS = torch.tensor([0.7, -1.1, 0.4], dtype=torch.float64)


def reward_model(weights: Tensor, features: Tensor) -> Tensor:
    return (features @ weights).tanh()


BATCH: Batch = {
    "rewards": reward_model(WEIGHTS, FEATURES).masked_fill(~MASK, 0),
    "log_ratio": torch.randn(12, 6, generator=GENERATOR, dtype=torch.float64),
    "response_mask": MASK,
    "group": torch.tensor([4, 4, 4, 4, 4, 9, 9, 9, 9, -2, -2, -2]),
    # some rows in both sets; prompt -2 has no background
    "positive_weight": torch.tensor([1, 2, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0], dtype=torch.float64),
    "background": torch.tensor([0, 0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0], dtype=torch.bool),
    "outcome": torch.tensor([1, 0, 1, torch.nan, 0, 1, 1, 0, 0.5, 0, 1, torch.nan], dtype=torch.float64),
    "ends": ENDS,
    "labels": torch.rand(12, 6, generator=GENERATOR, dtype=torch.float64).masked_fill(~KNOWN, torch.nan),
}


def close(got: Tensor, expected: Tensor | float, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype), rtol=0, atol=tolerance)


def gradient(token: Tensor, rows: Tensor) -> Tensor:
    """Of sum c r in the reward model's weights, over these rows."""
    weights = WEIGHTS.clone().requires_grad_()
    return torch.autograd.grad((token[rows] * reward_model(weights, FEATURES[rows])).sum(), weights)[0]


def select(batch: Batch, rows: Tensor) -> Batch:
    return {name: x[rows] for name, x in batch.items()}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_add_up_to_the_whole(name: str) -> None:
    """The coefficients are of the whole scope: any split of the rows, uneven or single, gives the same gradient."""
    token = OBJECTIVES[name](BATCH).token
    assert not token.requires_grad
    whole = gradient(token, torch.arange(12))
    assert whole.abs().max() > 1e-3
    for sizes in ([12], [6, 6], [4, 4, 4], [1, 7, 4], [1] * 12):
        close(sum(gradient(token, rows) for rows in torch.arange(12).split(sizes)), whole)
    # Not so for coefficients of each micro-batch by itself, where the split is through a prompt.
    parts = torch.arange(12).split([3, 5, 4])
    alone = [OBJECTIVES[name](select(BATCH, rows)).token for rows in parts]
    weights = WEIGHTS.clone().requires_grad_()
    values = [(c * reward_model(weights, FEATURES[rows])).sum() for c, rows in zip(alone, parts, strict=True)]
    assert (torch.autograd.grad(sum(values), weights)[0] / len(parts) - whole).abs().max() > 1e-4


@pytest.mark.parametrize("name", OBJECTIVES)
def test_order_of_rows_and_names_of_prompts(name: str) -> None:
    expected = OBJECTIVES[name](BATCH)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    got = OBJECTIVES[name](select({**BATCH, "group": BATCH["group"] * 100 + 3}, order))
    close(got.token, expected.token[order])
    assert got.cells == expected.cells


@pytest.mark.parametrize(
    ("name", "side"),
    [(n, "right") for n in OBJECTIVES] + [(n, "left") for n in OBJECTIVES if "per_position" not in n],
)
def test_padding(name: str, side: str) -> None:
    """More columns change nothing, whatever stands in them; on the left too, unless columns are positions."""
    pad = (0, 3) if side == "right" else (3, 0)
    where = slice(0, 6) if side == "right" else slice(3, 9)
    wide = {n: torch.nn.functional.pad(x, pad) if x.ndim == 2 else x for n, x in BATCH.items()}
    for column in ("rewards", "log_ratio", "labels"):
        wide[column] = wide[column].masked_fill(~wide["response_mask"], torch.nan)
    expected, got = OBJECTIVES[name](BATCH), OBJECTIVES[name](wide)
    close(got.token[:, where], expected.token)
    assert (got.token[~wide["response_mask"]] == 0).all()
    if name not in IRL:
        close(got.loss, expected.loss)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_falls_along_its_coefficients(name: str) -> None:
    """A small step against c lowers the loss, or for IRL raises experts against rollouts."""
    token = OBJECTIVES[name](BATCH).token
    stepped = {**BATCH, "rewards": BATCH["rewards"] - 1e-3 * token}
    if name in IRL:
        assert (token * (stepped["rewards"] - BATCH["rewards"])).sum() < 0
    else:
        assert OBJECTIVES[name](stepped).loss < OBJECTIVES[name](BATCH).loss


# ---- shifts


def shifted_by_prompt() -> Batch:
    """2 on R of prompt 4's trajectories, -1 on the others', spread over their tokens."""
    constant = torch.where(BATCH["group"] == 4, 2.0, -1.0).double()
    return {**BATCH, "rewards": BATCH["rewards"] + (constant / LENGTHS)[:, None] * MASK}


def test_a_constant_per_trajectory_changes_the_sequence_discriminator_s_z_alone() -> None:
    name = "discriminator sequence"
    before, after = OBJECTIVES[name](BATCH), OBJECTIVES[name](shifted_by_prompt())
    close(after.token, before.token)
    close(after.loss, before.loss)
    close(after.figures["log_z"] - before.figures["log_z"], (2 - 1) / 2)  # prompts 4 and 9


@pytest.mark.parametrize("name", ["discriminator token", "gail sequence", "gail token", "prime", "steps"])
def test_a_constant_per_trajectory_changes_objectives_without_z(name: str) -> None:
    assert (OBJECTIVES[name](shifted_by_prompt()).token - OBJECTIVES[name](BATCH).token).abs().max() > 1e-3


@pytest.mark.parametrize("name", DISCRIMINATORS | LABELLED)
def test_a_constant_per_token_changes_them_all(name: str) -> None:
    shifted = {**BATCH, "rewards": BATCH["rewards"] + 0.7 * MASK}
    assert (OBJECTIVES[name](shifted).token - OBJECTIVES[name](BATCH).token).abs().max() > 1e-3


def test_the_sequence_discriminator_s_coefficients_sum_to_zero_over_a_prompt() -> None:
    first = OBJECTIVES["discriminator sequence"](BATCH).token[:, 0]
    for prompt in (4, 9):
        close(first[BATCH["group"] == prompt].sum(), 0.0)
        assert first[BATCH["group"] == prompt].abs().max() > 0.01
    assert (first[BATCH["group"] == -2] == 0).all()


# ---- small and one-sided groups


def rows_of(*scores: float, positive: list[float], background: list[int]) -> Batch:
    """One prompt of one-token responses with log b = log q."""
    rewards = torch.tensor(scores, dtype=torch.float64)[:, None]
    return {
        "rewards": rewards,
        "log_ratio": torch.zeros_like(rewards),
        "response_mask": torch.ones_like(rewards, dtype=torch.bool),
        "group": torch.zeros(len(scores), dtype=torch.long),
        "positive_weight": torch.tensor(positive, dtype=torch.float64),
        "background": torch.tensor(background, dtype=torch.bool),
    }


LOG3 = float(torch.tensor(3.0, dtype=torch.float64).log())


@pytest.mark.parametrize("name", IRL | DISCRIMINATORS)
def test_one_rollout_of_one_token_against_one_expert(name: str) -> None:
    # exp(l) = 1 of the expert, 3 of the rollout
    got = OBJECTIVES[name](rows_of(0.0, LOG3, positive=[1, 0], background=[0, 1]))
    if name in IRL:
        share = 1.0 if "not in Z" in name else 0.5 if "uniform" in name else 0.75
        close(got.token[:, 0], torch.tensor([-share, share]).double())
    elif name == "discriminator sequence":  # z = sqrt 3: D = 1 / (1 + sqrt 3) of the expert
        d = 3**0.5 / (1 + 3**0.5)
        close(got.token[:, 0], torch.tensor([-d, d]).double(), 1e-7)
    else:  # D = 1/2 and 3/4
        close(got.token[:, 0], torch.tensor([-1 / 2, 3 / 4]).double())
    assert got.cells == 1


@pytest.mark.parametrize("name", IRL | DISCRIMINATORS)
def test_all_correct_and_all_failed(name: str) -> None:
    """An expert, two equal rollouts. All right: copied they are positives and background; moved there is no background."""
    copied = OBJECTIVES[name](rows_of(0, 0, 0, positive=[1, 1, 1], background=[0, 1, 1]))
    # Shares 1/3. All logits 0: discriminators (and every z) D = 1/2: -1/6 | 1/4 - 1/6. IRL without the expert in Z:
    # -1/3 | 1/2 - 1/3. With it, expert's softmax over 3, the rollouts' over 2: (1/3 - 1)/3 | (1/3 + 1/2 + 1/2 - 1)/3
    expert, rollout = (-1 / 6, 1 / 12) if name in DISCRIMINATORS else (-1 / 3, 1 / 6)
    if name in IRL and "not in Z" not in name:
        expert, rollout = -2 / 9, 1 / 9
    close(copied.token[:, 0], torch.tensor([expert, rollout, rollout], dtype=torch.float64))
    moved = OBJECTIVES[name](rows_of(0, 0, 0, positive=[1, 1, 1], background=[0, 0, 0]))
    assert (moved.token == 0).all()
    assert moved.cells == 0
    failed = OBJECTIVES[name](rows_of(0, 0, 0, positive=[1, 0, 0], background=[0, 1, 1]))
    expert, rollout = (-1 / 2, 1 / 4) if name in DISCRIMINATORS else (-1.0, 0.5)
    if name in IRL and "not in Z" not in name:
        expert, rollout = -2 / 3, 1 / 3
    close(failed.token[:, 0], torch.tensor([expert, rollout, rollout], dtype=torch.float64))


def test_all_correct_and_all_failed_outcomes_keep_a_direction() -> None:
    zero, mask = torch.zeros(3, 1), torch.ones(3, 1, dtype=torch.bool)
    for outcome, expected in ((1.0, -1 / 6), (0.0, 1 / 6)):
        got = prime_coefficients(rewards=zero, outcome=torch.full((3,), outcome), response_mask=mask)
        close(got.token[:, 0], torch.full((3,), expected))


# ---- large numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminators_do_not_overflow(name: str, dtype: torch.dtype) -> None:
    """Log-weights of 1e4: wrong by far, every row is pushed with its whole share; right by far, nothing is left to do."""

    def of(expert: float) -> Any:
        batch = rows_of(expert, -expert, -expert, positive=[1, 0, 0], background=[0, 1, 1])
        return OBJECTIVES[name]({n: x.to(dtype) if x.dtype == torch.float64 else x for n, x in batch.items()})

    right, wrong = of(1e4), of(-1e4)
    assert (right.token == 0).all()
    assert right.loss == 0
    close(wrong.token[:, 0], torch.tensor([-1, 0.5, 0.5], dtype=dtype), 1e-6)
    torch.testing.assert_close(wrong.loss, torch.tensor(2e4, dtype=dtype), rtol=1e-6, atol=0)
    # Halfway, also where every D is 0 or 1 to rounding: shares 1 and 1/2 + 1/2 of equal scores.
    close(right.figures["log_z"], 0.0, 1e-4)
    close(wrong.figures["log_z"], 0.0, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_label_objectives_do_not_overflow(dtype: torch.dtype) -> None:
    rewards = torch.tensor([[1e4], [-1e4], [1e4], [-1e4]], dtype=dtype)
    mask = torch.ones(4, 1, dtype=torch.bool)
    labels = torch.tensor([1, 0, 0, 1], dtype=dtype)
    for got in (
        prime_coefficients(rewards=rewards, outcome=labels, response_mask=mask),
        step_cross_entropy_coefficients(rewards=rewards, labels=labels[:, None], ends=mask, response_mask=mask),
    ):
        close(got.token[:, 0], torch.tensor([0, 0, 1 / 4, -1 / 4], dtype=dtype))
        assert got.loss == 5e3
        assert got.figures["accuracy"] == 0.5


# ---- advantages


ESTIMATORS = ["rloo", "rloo_per_step", "grpo", "grpo_per_step", "dr_grpo", "prime", "position"]
OF_RETURNS = ["rloo", "rloo_per_step", "grpo_per_step"]


def advantages(estimator: Any, rewards: Tensor, mask: Tensor, group: Tensor, at_end: bool) -> Tensor:
    return estimate(
        estimator,
        rewards=rewards,
        rewarded=last_token(mask) if at_end else mask,
        response_mask=mask,
        group=group,
        scorable=torch.ones(len(group), dtype=torch.bool),
    )


ADVANTAGE_GROUP = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_advantages_do_not_depend_on_order_padding_or_other_prompts(estimator: Any) -> None:
    rewards = BATCH["rewards"]
    expected = advantages(estimator, rewards, MASK, ADVANTAGE_GROUP, False)
    assert expected.abs().max() > 0.5
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    close(advantages(estimator, rewards[order], MASK[order], ADVANTAGE_GROUP[order], False), expected[order])
    wide, mask = (torch.nn.functional.pad(x, (0, 4)) for x in (rewards, MASK))
    wide = wide.masked_fill(~mask, torch.nan)
    close(advantages(estimator, wide, mask, ADVANTAGE_GROUP, False)[:, :6], expected)
    for prompt in range(3):
        own = prompt == ADVANTAGE_GROUP
        alone = advantages(estimator, rewards[own], MASK[own], torch.zeros(int(own.sum()), dtype=torch.long), False)
        close(alone, expected[own])


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_equal_outcomes_of_one_token_responses_have_no_advantage(estimator: Any, outcome: float) -> None:
    rewards, mask = torch.full((4, 1), outcome), torch.ones(4, 1, dtype=torch.bool)
    assert (advantages(estimator, rewards, mask, torch.zeros(4, dtype=torch.long), True) == 0).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_constant_per_token_is_an_advantage_of_length_for_returns_only(estimator: Any) -> None:
    """Equal for all rows of a position it is no preference; what remains is length. Group normalisation removes it."""
    before = advantages(estimator, BATCH["rewards"], MASK, ADVANTAGE_GROUP, False)
    after = advantages(estimator, BATCH["rewards"] + 0.9 * MASK, MASK, ADVANTAGE_GROUP, False)
    if estimator in OF_RETURNS:
        assert (after - before).abs().max() > 0.5
    else:
        close(after, before)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_advantages_of_large_rewards_are_finite_and_scale(estimator: Any) -> None:
    rewards = scale_rewards(rewards=1e4 * BATCH["rewards"], response_mask=MASK, scale="max_abs_return")
    small = scale_rewards(rewards=BATCH["rewards"], response_mask=MASK, scale="max_abs_return")
    got = advantages(estimator, rewards, MASK, ADVANTAGE_GROUP, False)
    assert got.isfinite().all()
    close(got, advantages(estimator, small, MASK, ADVANTAGE_GROUP, False), 1e-9)
