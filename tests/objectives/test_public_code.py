"""Advantages and losses that public code computes, to 1e-6.

Every constant is what the named function returned on the inputs here, in float64 where it takes that. Versions: TRL 1.16
(`GRPOTrainer`, `RLOOTrainer`), verl b178a3cd (`core_algos.py`), OpenRLHF 3c3be623 (`loss.py`), and the paper's own code,
ucsb-mlsec/irl 0159023 (`recipe/irl/irl_core_algos.py`).
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from repirl.objectives.advantages import scale_rewards
from repirl.objectives.estimators import RewardSource, combine
from repirl.objectives.estimators import estimator as of_name
from repirl.objectives.policy import LossAggregation, loss_denominator, policy_objective, row_weights
from repirl.objectives.reduce import last_token
from tests.objectives.estimating import estimate

NAN = float("nan")


def masked(*lengths: int) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def close(got: Tensor, expected: list[list[float]] | list[float], tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(got, torch.tensor(expected, dtype=got.dtype), rtol=0, atol=tolerance)


# Three prompts of three, two and one rows. `return`s are sums of token rewards, outcomes sit on the last token.
LENGTHS = masked(3, 1, 2, 2, 2, 2)
GROUP = torch.tensor([0, 0, 0, 1, 1, 2])
OUTCOME = torch.tensor([1.0, 0, 0, 1, 1, 1], dtype=torch.float64)
DENSE = torch.tensor(
    [[0.5, -0.2, 0.3], [0.7, 0, 0], [-0.4, 0.1, 0], [0.2, 0.6, 0], [-0.1, 0.9, 0], [0.3, -0.8, 0]], dtype=torch.float64
)


def of_verl(estimator: Any, rewards: Tensor, **settings: float) -> Tensor:
    return estimate(
        estimator,
        rewards=rewards,
        rewarded=last_token(LENGTHS),
        response_mask=LENGTHS,
        group=GROUP,
        scorable=torch.ones(6, dtype=torch.bool),
        **settings,
    )


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # compute_rloo_outcome_advantage: r K / (K - 1) - mean K / (K - 1); a lone row keeps r
        ("rloo", [1.0, -0.5, -0.5, 0, 0, 1.0]),
        # compute_grpo_outcome_advantage: (r - mean) / (std + 1e-6), std over K - 1; of a lone row we and TRL make 0
        ("grpo", [1.154698538, -0.577349269, -0.577349269, 0, 0, 0]),
        # the same with norm_adv_by_std_in_grpo=False
        ("dr_grpo", [2 / 3, -1 / 3, -1 / 3, 0, 0, 0]),
    ],
)
def test_outcomes_as_in_verl(estimator: Any, expected: list[float]) -> None:
    got = of_verl(estimator, last_token(LENGTHS) * OUTCOME[:, None])
    close(got, (torch.tensor(expected)[:, None] * LENGTHS).tolist())


def test_token_rewards_with_rloo_as_in_verl() -> None:
    # compute_rloo_outcome_advantage sums them first: .6 .7 -.3; .8 .8; -.5
    expected = torch.tensor([0.4, 0.55, -0.95, 0.0, 0.0, -0.5])
    close(of_verl("rloo", DENSE), (expected[:, None] * LENGTHS).tolist())


@pytest.mark.parametrize(
    ("estimator", "settings", "expected"),
    [
        # RLOOTrainer: r - (nansum - r) / (scorable - 1); NaN to 0, a lone scorable row too
        ("rloo", {"alone": "drop"}, [2 / 3, -2 / 3, -2 / 3, 2 / 3, 0.5, 0, -1, 0.5, 0, 0, 0, 0, 0, 0, 0, 0]),
        # GRPOTrainer: (r - nanmean) / (nanstd + 1e-4)
        (
            "grpo",
            {"std_eps": 1e-4},
            [0.865875417, -0.865875417, -0.865875417, 0.865875417, 0.577250287, 0, -1.154500573, 0.577250287, *[0] * 8],
        ),
        # scale_rewards="none"
        ("dr_grpo", {}, [0.5, -0.5, -0.5, 0.5, 1 / 3, 0, -2 / 3, 1 / 3, *[0] * 8]),
    ],
)
def test_outcomes_as_in_trl(estimator: Any, settings: dict[str, Any], expected: list[float]) -> None:
    """Four prompts of four: mixed; one unscorable; all equal; one scorable row alone. Lengths do not matter."""
    outcome = torch.tensor([1, 0, 0, 1, 1, NAN, 0, 1, 1, 1, 1, 1, NAN, NAN, 1, NAN], dtype=torch.float64)
    mask = masked(3, 1, 2, 3, 2, 1, 3, 1, 1, 2, 3, 3, 1, 1, 2, 3)
    got = estimate(
        estimator,
        rewards=torch.where(last_token(mask), outcome[:, None], 0.0),
        rewarded=last_token(mask),
        response_mask=mask,
        group=torch.arange(16) // 4,
        scorable=~outcome.isnan(),
        **settings,
    )
    close(got, (torch.tensor(expected)[:, None] * mask).tolist())


# Two prompts of four rows each, of the paper's public code.
STEPS = masked(3, 2, 2, 3, 3, 3, 2, 1)
STEP_GROUP = torch.arange(8) // 4
STEP_OUTCOME = torch.tensor([1.0, 0, 0, 1, 1, 0, 1, 1], dtype=torch.float64)
STEP_REWARDS = torch.tensor(
    [
        *([0.5, -0.2, 0.3], [0.7, 0.2, 0], [-0.4, 0.1, 0], [0.6, -0.3, 0.9]),
        *([0.2, 0.6, 0.1], [-0.1, 0.9, 0.4], [0.3, -0.8, 0], [0.1, 0, 0]),
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (  # masked_rloo
            "rloo_per_step",
            [
                *([0, -0.2, -0.6], [0.4, -1 / 15, 0], [-1.2, -0.2, 0], [0.8, 7 / 15, 0.6]),
                *([0.633333333, 0.45, -0.3], [1.033333333, 1.35, 0.3], [-1.233333333, -1.8, 0], [-0.433333333, 0, 0]),
            ],
        ),
        (  # masked_grpo
            "grpo_per_step",
            [
                *([0, -0.840168050, -1.414213562], [0.617213400, -0.280056017, 0]),
                *([-1.851640200, -0.840168050, 0], [1.234426800, 1.960392118, 1.414213562]),
                *([0.820483682, 0.416025147, -1.414213562], [1.338683903, 1.248075442, 1.414213562]),
                *([-1.597784013, -1.664100589, 0], [-0.561383572, 0, 0]),
            ],
        ),
    ],
)
def test_token_rewards_as_in_the_paper_s_code(estimator: Any, expected: list[list[float]]) -> None:
    got = estimate(
        estimator,
        rewards=STEP_REWARDS,
        rewarded=STEPS,
        response_mask=STEPS,
        group=STEP_GROUP,
        scorable=torch.ones(8, dtype=torch.bool),
    )
    close(got, expected)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (
            "rloo_per_step",
            [
                *([0.987250118, 0.975858779, -0.034173994], [-0.964467482, -0.991047273, 0]),
                *([-1.055598195, -0.998641499, 0], [1.032815475, 1.013829910, 0.034174041]),
                *([0.529697645, 0.766068152, 1.463788245], [-1.422019955, -1.403983668, -1.463788199]),
                *([0.423378479, 0.637915586, 0], [0.468943836, 0, 0]),
            ],
        ),
        (
            "grpo_per_step",
            [
                *([0.999296729, 0.962941970, -0.061194149], [-0.972589449, -1.011415030, 0]),
                *([-1.079418762, -1.035651536, 0], [1.052711385, 1.084124498, 0.061194204]),
                *([0.612447222, 0.767474353, 1.162689362], [-1.672906716, -1.444939884, -1.162689307]),
                *([0.507806803, 0.677465612, 0], [0.552652697, 0, 0]),
            ],
        ),
    ],
)
def test_both_rewards_together_as_in_the_paper_s_code(estimator: Any, expected: list[list[float]]) -> None:
    """`compute_advantage_return`: scaled process rewards times .05, outcomes, whitened.

    It whitens by the standard deviation over n - 1 tokens, ours is over n: one factor for all tokens.
    """
    every = torch.ones(8, dtype=torch.bool)
    scaled = scale_rewards(rewards=STEP_REWARDS * STEPS, response_mask=STEPS, scale="max_abs_return")
    sources = [
        RewardSource(0.05, of_name(estimator), scaled, STEPS, every),
        RewardSource(1.0, of_name(estimator), last_token(STEPS) * STEP_OUTCOME[:, None], last_token(STEPS), every),
    ]
    got = combine(sources, response_mask=STEPS, group=STEP_GROUP, is_expert=~every)
    tokens = int(STEPS.sum())
    close(got * math.sqrt((tokens - 1) / tokens), expected)


# ---- loss aggregation


def aggregated(values: Tensor, mask: Tensor, aggregation: LossAggregation, length: float = 5.0) -> Tensor:
    rows, tokens = (n.sum().to(values.dtype) for n in (mask.any(-1), mask))
    total = (values * row_weights(mask, aggregation) * mask).sum()
    return total / loss_denominator(aggregation, tokens=tokens, rows=rows, length=length)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        # sum of all .3, over 8 tokens. verl token-mean; TRL dapo (and bnpo in one micro-batch); OpenRLHF token_level_loss
        ("token_mean", 0.0375),
        # (-.4 / 3 + .7 - .3 / 2 + .3 / 2) / 4. verl seq-mean-token-mean; TRL grpo; OpenRLHF without token_level_loss; the
        # paper's code, whose micro-batches have one row
        ("sequence_mean", 0.141666667),
        # .3 / 4 responses. verl seq-mean-token-sum
        ("sequence_sum", 0.075),
        # .3 / (4 responses x 5). TRL dr_grpo with max_completion_length 5; 4 times that: verl seq-mean-token-sum-norm, .06
        ("constant", 0.015),
    ],
)
def test_losses_are_aggregated_as_in_public_code(aggregation: LossAggregation, expected: float) -> None:
    mask = masked(3, 1, 2, 2)
    losses = torch.tensor([[0.5, -1.2, 0.3], [0.7, 9, 9], [-0.4, 0.1, 9], [0.6, -0.3, 9]], dtype=torch.float64)
    assert float(aggregated(losses, mask, aggregation)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("token_mean", -0.679266268), ("sequence_sum", -1.358532536), ("sequence_mean", -0.447553283)],
)
def test_the_clipped_loss_is_verl_s(aggregation: LossAggregation, expected: float) -> None:
    # compute_policy_loss_vanilla with clip .2 / .28 and dual clip 3, by token-mean, seq-mean-token-sum, seq-mean-token-mean
    mask = masked(3, 1, 2, 2)
    log_probs = [[-1.0, -2.0, -0.5], [-0.3, 0, 0], [-1.5, -0.7, 0], [-0.2, -2.5, 0]]
    old = [[-1.2, -1.5, -0.5], [-0.9, 0, 0], [-1.4, -0.2, 0], [-0.1, -2.9, 0]]
    advantages = [[1.0, 1, 1], [-0.5, 0, 0], [-0.5, -0.5, 0], [2, 2, 0]]
    new, behaviour, advantage = (torch.tensor(x, dtype=torch.float64) for x in (log_probs, old, advantages))
    terms = policy_objective(
        log_probs=new,
        entropy=torch.zeros_like(new),
        old_log_probs=behaviour,
        advantages=advantage,
        clip_high=0.28,
        dual_clip=3.0,
    )
    assert float(aggregated(-terms.value, mask, aggregation)) == pytest.approx(expected, abs=1e-6)
