"""IRL coefficients: worked numbers for every switch, invariances both ways, and what the statistics say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from repirl.objectives.irl import IRLCoefficients, irl_coefficients

WEIGHTINGS = ["sequence", "length_normalized", "per_position", "uniform"]


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def close(got: Tensor, expected: Tensor | float, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype), rtol=0, atol=tolerance)


def call(rewards: Tensor, mask: Tensor | None = None, **arguments: Any) -> IRLCoefficients:
    """All rows of one prompt, log b = log q, every token counting, experts in Z, unless said otherwise."""
    count = len(rewards)
    defaults = {
        "log_ratio": torch.zeros_like(rewards),
        "response_mask": torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask,
        "group": torch.zeros(count, dtype=torch.long),
        "experts_in_z": True,
    }
    for name, kind in (("positive_weight", rewards.dtype), ("background", torch.bool), ("group", torch.long)):
        if name in arguments:
            arguments[name] = torch.as_tensor(arguments[name], dtype=kind)
    return irl_coefficients(rewards=rewards, **{**defaults, **arguments})


# --- one prompt: rollouts of 1 and 2 tokens and an expert of 2, with exp(r + log b - log q) per token of
#     rollout 0: 7; rollout 1: 3, 3; expert: 2, 8. So exp(l) = 7, 9, 16 and exp(l / len) = 7, 3, 4.

SCORES = tensor([7, 1], [3, 3], [2, 8]).log()
LOG_RATIO = tensor([-0.5, 9], [0.25, -1], [2, 0.5])
ONE = {
    "rewards": SCORES - LOG_RATIO,
    "log_ratio": LOG_RATIO,
    "mask": torch.tensor([[True, False], [True, True], [True, True]]),
    "positive_weight": [0, 0, 1],
    "background": [1, 1, 0],
}


@pytest.mark.parametrize(
    ("weighting", "experts_in_z", "expected"),
    [
        # {7, 9, 16} / 32, minus 1 for the expert
        ("sequence", True, [[7 / 32, 0], [9 / 32, 9 / 32], [-1 / 2, -1 / 2]]),
        # {7, 9} / 16
        ("sequence", False, [[7 / 16, 0], [9 / 16, 9 / 16], [-1, -1]]),
        # {7, 3, 4} / 14
        ("length_normalized", True, [[1 / 2, 0], [3 / 14, 3 / 14], [-5 / 7, -5 / 7]]),
        # {7, 3} / 10
        ("length_normalized", False, [[0.7, 0], [0.3, 0.3], [-1, -1]]),
        # position 1: {7, 3, 2} / 12; position 2: {3, 8} / 11; halved, for there are two positions
        ("per_position", True, [[7 / 24, 0], [3 / 24, 3 / 22], [-10 / 24, -3 / 22]]),
        # position 1: {7, 3} / 10; position 2: rollout 1 alone
        ("per_position", False, [[0.35, 0], [0.15, 0.5], [-0.5, -0.5]]),
        ("uniform", True, [[1 / 3, 0], [1 / 3, 1 / 3], [-2 / 3, -2 / 3]]),
        ("uniform", False, [[1 / 2, 0], [1 / 2, 1 / 2], [-1, -1]]),
    ],
)
def test_weightings(weighting: str, experts_in_z: bool, expected: list[list[float]]) -> None:
    got = call(**ONE, weighting=weighting, experts_in_z=experts_in_z)
    close(got.token, tensor(*expected))
    assert (got.cells, got.skipped) == (1, 0)
    # Rbar = R / len: every token's coefficient over its row's length, which is 1, 2, 2. Nothing for per_position.
    lengths = 1 if weighting == "per_position" else tensor([1], [2], [2])
    by_mean = call(**ONE, weighting=weighting, experts_in_z=experts_in_z, rhat="Rbar")
    close(by_mean.token, tensor(*expected) / lengths)


@pytest.mark.parametrize(
    ("weighting", "loss"),
    [
        ("sequence", math.log(32 / 16)),
        ("length_normalized", math.log(14 / 4)),
        ("per_position", (math.log(12 / 2) + math.log(11 / 8)) / 2),
        ("uniform", math.log(3)),
    ],
)
def test_ranking_loss(weighting: str, loss: float) -> None:
    close(call(**ONE, weighting=weighting).ranking_loss, loss)
    # A value to report: the same whether or not its gradient is followed.
    close(call(**ONE, weighting=weighting, experts_in_z=False).ranking_loss, loss)


@pytest.mark.parametrize("experts_in_z", [True, False])
def test_statistics_are_of_the_background_weights(experts_in_z: bool) -> None:
    # w = 7/16, 9/16: sum w^2 = 130 / 256
    got = call(**ONE, experts_in_z=experts_in_z)
    close(got.ess, 256 / 130)
    close(got.ess_share, 128 / 130)
    close(got.largest_weight, 9 / 16)
    close(got.chi_square, 2 * 130 / 256 - 1)  # = 1/64
    # position 1: w = .7, .3, sum w^2 = .58, two rows; position 2: w = 1, one row; means over the two
    got = call(**ONE, weighting="per_position", experts_in_z=experts_in_z)
    close(got.ess, (1 / 0.58 + 1) / 2)
    close(got.ess_share, (1 / 1.16 + 1) / 2)
    close(got.largest_weight, 0.85)
    close(got.chi_square, (2 * 0.58 - 1 + 0) / 2)
    # equal weights: everything counts
    got = call(**ONE, weighting="uniform", experts_in_z=experts_in_z)
    close(torch.stack([got.ess, got.ess_share, got.largest_weight, got.chi_square]), tensor([2, 1, 0.5, 0])[0])


def test_temperature() -> None:
    # exp(l / .5) = 49, 81, 256
    close(call(**ONE, temperature=0.5).token[:, 0], tensor([49 / 386, 81 / 386, 256 / 386 - 1])[0])
    close(call(**ONE, temperature=0.5, experts_in_z=False).token[:, 0], tensor([49 / 130, 81 / 130, -1])[0])
    # exp(l / (2 len)) = sqrt 7, sqrt 3, 2
    total = math.sqrt(7) + math.sqrt(3) + 2
    got = call(**ONE, temperature=2.0, weighting="length_normalized").token[:, 0]
    close(got, tensor([math.sqrt(7) / total, math.sqrt(3) / total, 2 / total - 1])[0])
    # hot: uniform
    close(call(**ONE, temperature=1e9).token, call(**ONE, weighting="uniform").token, 1e-8)


def test_truncated_weights_are_renormalised() -> None:
    # {7, 9} / 16 capped at 8/16: {7, 8} / 15
    got = call(**ONE, truncate=0.5, experts_in_z=False)
    close(got.token[:, 0], tensor([7 / 15, 8 / 15, -1])[0])
    close(got.largest_weight, 8 / 15)
    close(got.ess, 225 / 113)  # 49 + 64
    # {7, 9, 16} / 32 capped at .4 = 12.8 / 32: {7, 9, 12.8} / 28.8
    close(call(**ONE, truncate=0.4).token[:, 0], tensor([7 / 28.8, 9 / 28.8, 12.8 / 28.8 - 1])[0])
    close(call(**ONE, truncate=1.0).token, call(**ONE).token)


# --- two prompts, one token a row: exp(l) of prompt 5's rollouts 1, 3 and expert 4; prompt 2's rollout 2, experts 6, 2

TWO = {
    "rewards": tensor([1], [3], [4], [2], [6], [2]).log(),
    "group": [5, 5, 5, 2, 2, 2],
    "positive_weight": [0, 0, 1, 0, 1, 1],
    "background": [1, 1, 0, 1, 0, 0],
}


@pytest.mark.parametrize(
    ("scope", "experts_in_z", "expected"),
    [
        # each prompt for itself, then halved: {1, 3} / 4 and -1; {2} / 2 and -1/2 each
        ("prompt", False, [1 / 8, 3 / 8, -1 / 2, 1 / 2, -1 / 4, -1 / 4]),
        # {1, 3, 4} / 8; for prompt 2 the mean of {2, 6} / 8 and {2, 2} / 4: rollout (1/4 + 1/2) / 2 = 3/8,
        # experts (6/8 - 1) / 2 = -1/8 and (1/2 - 1) / 2 = -1/4; then halved
        ("prompt", True, [1 / 16, 3 / 16, -1 / 4, 3 / 16, -1 / 16, -1 / 8]),
        # all rollouts {1, 3, 2} / 6, three experts -1/3 each
        ("batch", False, [1 / 6, 1 / 2, -1 / 3, 1 / 3, -1 / 3, -1 / 3]),
        # 6 with an expert: 10, 12, 8. Rollout of exp(l) = v: v (1/10 + 1/12 + 1/8) / 3 = v 37/360; expert of v:
        # (v / (6 + v) - 1) / 3 = -2 / (6 + v)
        ("batch", True, [37 / 360, 111 / 360, -2 / 10, 74 / 360, -2 / 12, -2 / 8]),
    ],
)
def test_scopes(scope: str, experts_in_z: bool, expected: list[float]) -> None:
    got = call(**TWO, scope=scope, experts_in_z=experts_in_z)
    close(got.token[:, 0], tensor(expected)[0])
    assert (got.cells, got.skipped) == (2 if scope == "prompt" else 1, 0)
    losses = [math.log(8 / 4), math.log(8 / 6), math.log(4 / 2)]
    pooled = [math.log(10 / 4), math.log(12 / 6), math.log(8 / 2)]
    close(got.ranking_loss, (losses[0] + (losses[1] + losses[2]) / 2) / 2 if scope == "prompt" else sum(pooled) / 3)


def test_the_share_of_a_positive_is_its_weight() -> None:
    weighted = {**TWO, "positive_weight": [0, 0, 7, 0, 0.3, 0.1]}
    got = call(**weighted, experts_in_z=False).token[:, 0]
    close(got, tensor([1 / 8, 3 / 8, -1 / 2, 1 / 2, -3 / 8, -1 / 8])[0])  # one expert: 1, whatever its weight; .75, .25
    # with experts in Z prompt 2 has 3/4 of {2, 6} / 8 and 1/4 of {2, 2} / 4: rollout 3/16 + 1/8, experts -3/16, -1/8
    got = call(**weighted).token[:, 0]
    close(got, tensor([1 / 16, 3 / 16, -1 / 4, 5 / 32, -3 / 32, -1 / 16])[0])


@pytest.mark.parametrize(
    ("experts_in_z", "expected"),
    [
        # Row 1 against {1, 3} / 4 and the expert against {1, 3, 4} / 8, means: (1/4 + 1/8) / 2; (3/4 + 3/8 - 1) / 2;
        # (1/2 - 1) / 2
        (True, [3 / 16, 1 / 16, -1 / 4]),
        # {1, 3} / 4 and two positives: 3/4 - 1/2
        (False, [1 / 4, 1 / 4, -1 / 2]),
    ],
)
def test_a_row_can_be_positive_and_background(experts_in_z: bool, expected: list[float]) -> None:
    rewards = tensor([1], [3], [4]).log()
    got = call(rewards, positive_weight=[0, 1, 1], background=[1, 1, 0], experts_in_z=experts_in_z)
    close(got.token[:, 0], tensor(expected)[0])
    # alone in both sets it is its own partition function: nothing to learn
    alone = call(rewards[:1], positive_weight=[1], background=[1], experts_in_z=experts_in_z)
    close(alone.token, tensor([0]))
    assert alone.cells == 1


# --- random batches

RANDOM = torch.Generator().manual_seed(0)
GROUP = torch.tensor([3, 3, 3, 3, 3, 3, 8, 8, 8, 8, -1, -1, -1, -1, -1])
LENGTHS = torch.tensor([6, 2, 3, 5, 4, 6, 6, 1, 4, 4, 5, 6, 2, 2, 3])
BATCH = {
    "rewards": torch.randn(15, 6, generator=RANDOM, dtype=torch.float64),
    "log_ratio": torch.randn(15, 6, generator=RANDOM, dtype=torch.float64),
    "mask": torch.arange(6) < LENGTHS[:, None],
    "group": GROUP,
    # some rows in both sets (third and fourth), some in neither (eleventh)
    "positive_weight": torch.tensor([2, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0.5, 0, 0, 0], dtype=torch.float64),
    "background": torch.tensor([0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1], dtype=torch.bool),
}
COMBINATIONS = [(w, s) for w in WEIGHTINGS for s in ("prompt", "batch") if (w, s) != ("per_position", "batch")]


@pytest.mark.parametrize("rhat", ["R", "Rbar"])
@pytest.mark.parametrize("experts_in_z", [True, False])
@pytest.mark.parametrize(("weighting", "scope"), COMBINATIONS)
def test_coefficients_sum_to_zero_in_every_scope(weighting: str, scope: str, experts_in_z: bool, rhat: str) -> None:
    switches = {"weighting": weighting, "scope": scope, "experts_in_z": experts_in_z, "rhat": rhat}
    for extra in ({}, {"temperature": 3.0}, {"truncate": 0.3}):
        token = call(**BATCH, **switches, **extra).token
        assert (token[~BATCH["mask"]] == 0).all()
        assert token.abs().max() > 0.05 / 6
        if weighting != "per_position":  # one number a row, which its first token has (times the length for Rbar)
            token = token[:, :1] * (LENGTHS[:, None] if rhat == "Rbar" else 1)
        for cell in [g == GROUP for g in (3, 8, -1)] if scope == "prompt" else [GROUP < 99]:
            close(token[cell].sum(0), torch.zeros(token.shape[1], dtype=torch.float64))
            assert token[cell].abs().sum() > 0.01


def test_prompts_without_one_of_the_sets_are_skipped_and_counted() -> None:
    # TWO between a prompt without expert and one without rollout, and one with neither
    rewards = torch.cat([tensor([8]).log(), TWO["rewards"], tensor([9], [5]).log()])
    got = call(
        rewards,
        group=[0, *TWO["group"], 1, 7],
        positive_weight=[0, *TWO["positive_weight"], 1, 0],
        background=[1, *TWO["background"], 0, 0],
    )
    alone = call(**TWO)
    close(got.token, torch.cat([tensor([0]), alone.token, tensor([0], [0])]))
    assert (got.cells, got.skipped) == (2, 3)
    for name in ("ranking_loss", "ess", "ess_share", "largest_weight", "chi_square"):
        close(getattr(got, name), getattr(alone, name))
    # In the batch scope the same rollout and expert do take part: 6 + 8 = 14 and four experts.
    pooled = call(
        rewards,
        group=[0, *TWO["group"], 1, 7],
        positive_weight=[0, *TWO["positive_weight"], 1, 0],
        background=[1, *TWO["background"], 0, 0],
        scope="batch",
        experts_in_z=False,
    )
    close(pooled.token[[0, 7, 8], 0], tensor([8 / 14, -1 / 4, 0])[0])


@pytest.mark.parametrize("scope", ["prompt", "batch"])
def test_nothing_usable_gives_zeros(scope: str) -> None:
    for positive, background in (([1, 1], [0, 0]), ([0, 0], [1, 1])):
        got = call(tensor([1], [2]), positive_weight=positive, background=background, scope=scope)
        numbers = [got.ranking_loss, got.ess, got.ess_share, got.largest_weight, got.chi_square]
        assert torch.stack([*numbers, got.token.abs().max()]).tolist() == [0] * 6
        assert (got.cells, got.skipped) == (0, 1)


def test_positions_without_one_of_the_sets_do_not_count() -> None:
    # The expert has one token, the rollouts three: position 1 alone counts, {1, 3, 4} / 8.
    mask = torch.tensor([[True, True, True]] * 2 + [[True, False, False]])
    rewards = tensor([1, 5, 5], [3, 5, 5], [4, 5, 5]).log()
    got = call(rewards, mask, positive_weight=[0, 0, 1], background=[1, 1, 0], weighting="per_position")
    close(got.token, tensor([1 / 8, 0, 0], [3 / 8, 0, 0], [-1 / 2, 0, 0]))


# --- what shifts change


def value(rewards: Tensor, **switches: Any) -> tuple[Tensor, Tensor]:
    """Coefficients, and the loss sum c r."""
    token = call(**{**BATCH, "rewards": rewards}, **switches).token
    return token, (token * rewards).sum()


@pytest.mark.parametrize("experts_in_z", [True, False])
def test_a_constant_on_every_trajectory(experts_in_z: bool) -> None:
    rewards, lengths = BATCH["rewards"], LENGTHS[:, None]
    # 2 on R of prompt 3's trajectories, -1 on the others': spread over their tokens
    shifted = rewards + torch.where(GROUP == 3, 2, -1)[:, None].double() / lengths * BATCH["mask"]
    for weighting in ("sequence", "uniform"):
        before, after = (value(r, weighting=weighting, experts_in_z=experts_in_z) for r in (rewards, shifted))
        close(after[0], before[0])
        close(after[1], before[1])
    # The weights of length_normalized change, and so does the loss of Rbar: short rows gain more from c / len.
    before, after = (value(r, weighting="length_normalized", experts_in_z=experts_in_z) for r in (rewards, shifted))
    assert (after[0] - before[0]).abs().max() > 0.01
    before, after = (value(r, weighting="uniform", rhat="Rbar", experts_in_z=experts_in_z) for r in (rewards, shifted))
    close(after[0], before[0])
    assert (after[1] - before[1]).abs() > 0.01
    # In the batch scope z is taken as equal: a constant of one prompt moves the weights between prompts.
    before, after = (value(r, scope="batch", experts_in_z=experts_in_z) for r in (rewards, shifted))
    assert (after[0] - before[0]).abs().max() > 0.01


@pytest.mark.parametrize("experts_in_z", [True, False])
def test_a_constant_on_every_token(experts_in_z: bool) -> None:
    rewards = BATCH["rewards"]
    shifted = rewards + 1.5 * BATCH["mask"]
    for switches in (
        {"weighting": "uniform", "rhat": "Rbar"},
        {"weighting": "length_normalized", "rhat": "Rbar"},
        {"weighting": "per_position", "rhat": "R"},
        {"weighting": "per_position", "rhat": "Rbar"},
    ):
        before, after = (value(r, experts_in_z=experts_in_z, **switches) for r in (rewards, shifted))
        close(after[0], before[0])
        close(after[1], before[1])
    # R: the weights stay with uniform, yet the loss moves by 1.5 x (mean length of rollouts - of experts).
    before, after = (value(r, weighting="uniform", experts_in_z=experts_in_z) for r in (rewards, shifted))
    close(after[0], before[0])
    close(after[1] - before[1], 1.5 * before[0].sum())
    assert (after[1] - before[1]).abs() > 0.1
    for rhat in ("R", "Rbar"):
        before, after = (value(r, rhat=rhat, experts_in_z=experts_in_z) for r in (rewards, shifted))
        assert (after[0] - before[0]).abs().max() > 0.01


def test_a_constant_on_every_token_tilts_sequence_weights_by_length() -> None:
    # Rollouts of 1 and 3 tokens and equal exp(l): a constant c makes their weights 1 : exp(2 c), here 1 : 9.
    mask = torch.tensor([[True, False, False], [True, True, True], [True, False, False]])
    sets = {"positive_weight": [0, 0, 1], "background": [1, 1, 0], "experts_in_z": False}
    close(call(torch.zeros(3, 3).double(), mask, **sets).token[:2, 0], tensor([1 / 2, 1 / 2])[0])
    close(call(tensor(*[[math.log(3)] * 3] * 3), mask, **sets).token[:2, 0], tensor([1 / 10, 9 / 10])[0])


# --- size, order, padding, composition


@pytest.mark.parametrize(("weighting", "scope"), COMBINATIONS)
@pytest.mark.parametrize("experts_in_z", [True, False])
def test_large_log_weights_do_not_overflow(weighting: str, scope: str, experts_in_z: bool) -> None:
    rewards = torch.tensor([[1e4], [-1e4], [-1e4]])
    sets = {"positive_weight": [0, 0, 1], "background": [1, 1, 0]}
    got = call(rewards, weighting=weighting, scope=scope, experts_in_z=experts_in_z, **sets)
    if weighting == "uniform":
        assert torch.isfinite(got.token).all()
    else:
        assert got.token.tolist() == [[1], [0], [-1]]
        assert got.ranking_loss == 2e4
        assert (got.ess, got.largest_weight, got.chi_square) == (1, 1, 1)  # 2 x 1 - 1
    if weighting != "uniform" and experts_in_z:  # an expert far above every rollout has nothing left to gain
        done = call(-rewards, positive_weight=[0, 0, 1], background=[1, 0, 0], weighting=weighting, scope=scope)
        assert done.token.abs().max() == 0
        assert done.ranking_loss == 0


@pytest.mark.parametrize("experts_in_z", [True, False])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_several_experts_are_the_mean_of_one_at_a_time(weighting: str, experts_in_z: bool) -> None:
    rewards = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = torch.arange(4) < torch.tensor([[4], [4], [4], [2], [4], [3]])
    switches = {"weighting": weighting, "experts_in_z": experts_in_z, "background": [0, 0, 0, 1, 1, 1]}
    together = call(rewards, mask, positive_weight=[1, 1, 1, 0, 0, 0], **switches)
    single = [call(rewards, mask, positive_weight=torch.eye(6)[i], **switches) for i in range(3)]
    close(together.token, torch.stack([one.token for one in single]).mean(0))
    close(together.ranking_loss, torch.stack([one.ranking_loss for one in single]).mean())


@pytest.mark.parametrize("experts_in_z", [True, False])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_prompts_are_averaged(weighting: str, experts_in_z: bool) -> None:
    switches = {"weighting": weighting, "experts_in_z": experts_in_z, "truncate": 0.6}
    together = call(**BATCH, **switches)
    for g in (3, 8, -1):
        alone = call(**{name: x[g == GROUP] for name, x in BATCH.items()}, **switches)
        close(together.token[g == GROUP], alone.token / 3)


@pytest.mark.parametrize(("weighting", "scope"), COMBINATIONS)
def test_row_order_padding_and_prompt_numbers_do_not_matter(weighting: str, scope: str) -> None:
    switches = {"weighting": weighting, "scope": scope, "truncate": 0.7, "temperature": 0.8}
    expected = call(**BATCH, **switches)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(4))
    # three more columns; what stands in padding is anything
    padded = {name: torch.nn.functional.pad(BATCH[name], (0, 3)) for name in ("rewards", "log_ratio", "mask")}
    for name in ("rewards", "log_ratio"):
        padded[name] = padded[name].masked_fill(~padded["mask"], torch.nan)
    arguments = {name: x[order] for name, x in {**BATCH, **padded, "group": GROUP * 1000 + 7}.items()}
    got = call(**arguments, **switches)
    close(got.token[:, :6], expected.token[order])
    assert (got.token[:, 6:] == 0).all()
    for name in ("ranking_loss", "ess", "ess_share", "largest_weight", "chi_square"):
        close(getattr(got, name), getattr(expected, name))


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"weighting": "per_position", "scope": "batch"}, "set scope to 'prompt'"),
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"temperature": -1.0}, "not -1.0 and None"),
        ({"truncate": 0.0}, r"truncate in \(0, 1\]"),
        ({"truncate": 1.5}, "not 1.0 and 1.5"),
    ],
)
def test_combinations_that_mean_nothing_are_refused(switches: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(**BATCH, **switches)


@pytest.mark.parametrize("rhat", ["R", "Rbar"])
@pytest.mark.parametrize("experts_in_z", [True, False])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_step_raises_experts_and_lowers_rollouts(weighting: str, experts_in_z: bool, rhat: str) -> None:
    rewards = ONE["rewards"].clone().requires_grad_()
    optimiser = torch.optim.SGD([rewards], lr=0.1)
    before = (rewards * ONE["mask"]).sum(-1).detach()
    loss_before = call(**ONE, weighting=weighting).ranking_loss
    terms = call(**{**ONE, "rewards": rewards}, weighting=weighting, experts_in_z=experts_in_z, rhat=rhat)
    assert not terms.token.requires_grad
    (terms.token * rewards).sum().backward()
    optimiser.step()
    change = (rewards * ONE["mask"]).sum(-1).detach() - before
    assert change[2] > 0.01
    assert (change[:2] < -0.005).all()
    if weighting != "uniform":  # whose value is log of a count
        after = call(**{**ONE, "rewards": rewards.detach()}, weighting=weighting).ranking_loss
        assert after < loss_before - 0.01
