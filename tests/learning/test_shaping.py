"""Rewards become advantages: of tokens, of steps, of outcomes and of the policy's own certainty."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from repirl.learning.batch import GlobalBatch, batch_of
from repirl.learning.prompt_filter import PromptFilter
from repirl.learning.settings import Advantage
from repirl.learning.shaping import combined, mean_reward, outcome_source, reward_sources, shaped
from tests.modules.tiny import LLAMA, SGD, TOKENS, WRONG, distance, make_module, run, start_weights

MASK = torch.tensor([[True, True, True, True], [True, True, False, False], [True, True, True, False]])
ENDS = torch.tensor([[False, True, False, True], [False, True, False, False], [False, False, True, False]])
LOG_Q = torch.full((3, 4), -0.25).masked_fill(~MASK, 0)


def advantages(rewards: torch.Tensor, estimator: Any, *, by_step: bool, maxent_coef: float = 0.0) -> torch.Tensor:
    zero, none = torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.bool)
    given = {"behaviour_log_probs": LOG_Q, "reference_log_probs": torch.zeros(3, 4)}
    batch = batch_of(response_mask=MASK, group=zero, is_expert=none, step_ends=ENDS, **given)
    settings = Advantage(outcome_coef=0.0, prm_coef=1.0, prm_estimator=estimator, whiten=False)
    options: dict[str, Any] = {"judged": False, "maxent_coef": maxent_coef, "of_reference": True}
    return shaped(batch, settings=settings, prm_rewards=rewards, by_step=by_step, **options)


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "prime"])
def test_equal_steps_are_no_preference_but_the_zeros_between_them_would_be(estimator: Any) -> None:
    steps = ENDS.float()
    assert (advantages(steps, estimator, by_step=True) == 0).all()
    assert advantages(steps, estimator, by_step=False).abs().max() > 0.1


def test_what_is_added_to_a_step_s_reward_sits_at_its_end() -> None:
    # Steps of 1, with .25 added for each of their tokens: 1.5 and 1.5; 1.5; 1.75. Their mean is 1.5625.
    got = advantages(ENDS.float(), "dr_grpo", by_step=True, maxent_coef=1.0)
    expected = [[-0.125, -0.125, -0.0625, -0.0625], [-0.0625, -0.0625, 0, 0], [0.1875, 0.1875, 0.1875, 0]]
    torch.testing.assert_close(got, torch.tensor(expected))
    # A token PRM's tokens are compared one by one: .25 1.25 .25 1.25; .25 1.25; .25 .25 1.25. Their mean is 6.25 / 9.
    got = advantages(ENDS.float(), "dr_grpo", by_step=False, maxent_coef=1.0)
    torch.testing.assert_close(got[1], torch.tensor([1.5 - 2 * 6.25 / 9, 1.25 - 6.25 / 9, 0, 0]))


# ---- certainty, and the mean reward ----


def batch_with(**tensors: torch.Tensor) -> GlobalBatch:
    zero, none = torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.bool)
    return batch_of(response_mask=MASK, group=zero, is_expert=none, **tensors)


NO_PRM: dict[str, Any] = {"prm_rewards": None, "maxent_coef": 0.0, "of_reference": False, "by_step": False}


def test_certainty_by_hand() -> None:
    """Mean entropies 1, .5 and .3, so rewards -1, -.5 and -.3; each less the mean of the other two. 99 is beyond the end."""
    entropies = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.5, 0.5, 99.0, 99.0], [0.0, 0.0, 0.9, 99.0]])
    settings = Advantage(outcome_coef=0.0, prm_coef=0.0, certainty_coef=2.0, whiten=False)
    batch = batch_with(entropies=entropies)
    got = shaped(batch, settings=settings, judged=False, **NO_PRM)
    expected = torch.tensor([-0.6, 0.15, 0.45])[:, None] * 2 * MASK  # the surest is raised
    torch.testing.assert_close(got, expected)
    sources = reward_sources(batch, settings=settings, judged=False, **NO_PRM)
    assert float(mean_reward(batch, sources)["reward"]) == pytest.approx(2 * (-1 - 0.5 - 0.3) / 3)
    surest = shaped(batch_with(entropies=torch.zeros(3, 4)), settings=settings, judged=False, **NO_PRM)
    assert (surest == 0).all()


def certain(coefficient: float, steps: int, **model: Any) -> Any:
    from repirl.models.policy import Policy

    return run(
        make_module(
            prm=None,
            policy=Policy(config=LLAMA | model, tokens=TOKENS),
            policy_optimizer=SGD,
            advantage=Advantage(outcome_coef=0.0, prm_coef=0.0, certainty_coef=coefficient),
        ),
        steps=steps,
    )


def test_a_uniform_policy_has_minus_log_v() -> None:
    done = certain(0.5, 1, initializer_range=1e-9)  # logits of nearly 0
    assert done.figures[0]["rollout/reward"] == pytest.approx(-0.5 * math.log(done.module.policy.vocabulary_size))


def test_certainty_alone_makes_a_policy_surer() -> None:
    figures = certain(1.0, 12).figures
    assert figures[-1]["policy/entropy"] < figures[0]["policy/entropy"] - 0.1
    assert figures[-1]["rollout/reward"] > figures[0]["rollout/reward"] + 0.1


def test_certainty_of_no_prompts_changes_nothing() -> None:
    """The filter leaves no prompt, so that there are no entropies."""
    settings = Advantage(outcome_coef=0.0, prm_coef=0.0, certainty_coef=1.0)
    module = make_module(prm=None, verifier=WRONG, prompt_filter=PromptFilter("strict"), advantage=settings)
    before = start_weights(module)
    done = run(module)
    assert done.figures[0]["prompts/kept"] == 0
    assert "rollout/reward" not in done.figures[0]
    assert distance(done.weights, before) == 0


def test_the_mean_reward_by_hand() -> None:
    """Outcomes 1, 0 and unknown, times 2; format 0, -1, 0, times .5; 4, 2 and 3 tokens of 1, times .1."""
    batch = batch_with(outcome=torch.tensor([1.0, 0.0, math.nan]), format_reward=torch.tensor([0.0, -1.0, 0.0]))
    settings = Advantage(outcome_coef=2.0, prm_coef=0.1, format_coef=0.5)
    options = NO_PRM | {"prm_rewards": torch.ones(3, 4)}
    sources = reward_sources(batch, settings=settings, judged=True, **options)
    # 2 + 0 + .4, 0 - .5 + .2, 0 + 0 + .3
    assert float(mean_reward(batch, sources)["reward"]) == pytest.approx((2.4 - 0.3 + 0.3) / 3)
    assert torch.equal(combined(batch, sources, settings), shaped(batch, settings=settings, judged=True, **options))


@pytest.mark.parametrize("coefficient", [-0.1, math.inf, math.nan])
def test_bad_weights_of_certainty_are_refused(coefficient: float) -> None:
    with pytest.raises(ValueError, match="certainty_coef must be a number from 0"):
        Advantage(certainty_coef=coefficient)


def test_a_rollout_without_a_verdict_is_nobodys_baseline() -> None:
    """RLOO over outcomes 1, 0, unknown: the first two have each other for a baseline, the third has no advantage."""
    mask = torch.ones(3, 1, dtype=torch.bool)
    batch = batch_of(
        response_mask=mask,
        group=torch.zeros(3, dtype=torch.long),
        is_expert=torch.zeros(3, dtype=torch.bool),
        outcome=torch.tensor([1.0, 0.0, torch.nan]),
    )
    settings = Advantage(whiten=False)
    given = combined(batch, [outcome_source(batch, settings)], settings)
    assert given[:, 0].tolist() == [1.0, -1.0, 0.0]
