"""Process rewards become advantages: of tokens, and of steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from repirl.learning.batch import batch_of
from repirl.learning.settings import Advantage
from repirl.learning.shaping import shaped

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
