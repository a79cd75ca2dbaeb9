"""Discriminators in worked numbers: sequence form with its z, token form, GAIL; what is skipped, what z is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from repirl.objectives.discriminator import discriminator_coefficients, gail_coefficients
from repirl.objectives.prm import Coefficients


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def close(got: Tensor, expected: Tensor | float, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype), rtol=0, atol=tolerance)


def call(rewards: Tensor, **arguments: Any) -> Coefficients:
    """One prompt, every token counting, log b = log pi, unless said otherwise; log_ratio=None: GAIL."""
    function = gail_coefficients if "log_ratio" in arguments and arguments["log_ratio"] is None else None
    defaults = {
        "log_ratio": torch.zeros_like(rewards),
        "response_mask": torch.ones_like(rewards, dtype=torch.bool),
        "group": [0] * len(rewards),
    }
    arguments = {**defaults, **arguments}
    for name, kind in (("positive_weight", rewards.dtype), ("background", torch.bool), ("group", torch.long)):
        arguments[name] = torch.as_tensor(arguments[name], dtype=kind)
    if function is not None:
        del arguments["log_ratio"]
        return function(rewards=rewards, **arguments)
    return discriminator_coefficients(rewards=rewards, **arguments)


# Rollouts of 1 and 2 tokens and an expert of 2, exp(r + log b - log pi) per token of rollout 0: 7; rollout 1: 1, 3;
# expert: 3.5, 3. So exp(l) = 7, 3, 10.5, and with z = 7 exp(logit) = 1, 3/7, 3/2: D = 1/2, 3/10, 3/5, whose weighted sum
# (1/2 + 3/10) / 2 + 3/5 is 1, as z wants it.
LOG_RATIO = tensor([-0.5, 9], [0.25, -1], [2, 0.5])
ONE = {
    "log_ratio": LOG_RATIO,
    "response_mask": torch.tensor([[True, False], [True, True], [True, True]]),
    "positive_weight": [0, 0, 1],
    "background": [1, 1, 0],
}
ONE_REWARDS = tensor([7, 1], [1, 3], [3.5, 3]).log() - LOG_RATIO


def test_sequence_form() -> None:
    got = call(ONE_REWARDS, form="sequence", **ONE)
    # rollouts D / 2, expert D - 1, the same on each of their tokens
    close(got.token, tensor([1 / 4, 0], [3 / 20, 3 / 20], [-2 / 5, -2 / 5]))
    close(got.loss, -math.log(3 / 5) - (math.log(1 / 2) + math.log(7 / 10)) / 2)
    assert got.cells == 1
    close(got.figures["log_z"], math.log(7))
    close(got.figures["accuracy"], (1 + 1) / 2)  # the expert is above 0; rollouts at 0 and below


def test_token_form() -> None:
    got = call(ONE_REWARDS, form="token", **ONE)
    # D = 7/8; 1/2, 3/4; expert 7/9, 3/4. Three tokens of rollouts, two of the expert.
    close(got.token, tensor([7 / 24, 0], [1 / 6, 1 / 4], [-2 / 18, -1 / 8]))
    rollouts = (math.log(1 / 8) + math.log(1 / 2) + math.log(1 / 4)) / 3
    close(got.loss, -(math.log(7 / 9) + math.log(3 / 4)) / 2 - rollouts)
    close(got.figures["log_z"], 0)
    close(got.figures["accuracy"], (1 + 1 / 3) / 2)  # of rollout tokens only the one at logit 0 is not above


def test_gail_is_the_logit_alone() -> None:
    rewards = tensor([7, 1], [1, 3], [3.5, 3]).log()
    sequence = call(rewards, form="sequence", **{**ONE, "log_ratio": None})
    # D = 7/8, 3/4, 10.5 / 11.5 = 21/23; no z
    close(sequence.token, tensor([7 / 16, 0], [3 / 8, 3 / 8], [-2 / 23, -2 / 23]))
    close(sequence.loss, -math.log(21 / 23) - (math.log(1 / 8) + math.log(1 / 4)) / 2)
    token = call(rewards, form="token", **{**ONE, "log_ratio": None})
    close(token.token, call(ONE_REWARDS, form="token", **ONE).token)


def test_one_expert_against_one_rollout_meet_halfway() -> None:
    # exp(l) = 36 and 4: z = 12 = sqrt(36 x 4), D = 3/4 and 1/4
    got = call(tensor([36], [4]).log(), form="sequence", positive_weight=[1, 0], background=[0, 1])
    close(got.token, tensor([-1 / 4], [1 / 4]))
    close(got.figures["log_z"], math.log(12))
    close(got.loss, -2 * math.log(3 / 4))


@pytest.mark.parametrize("form", ["sequence", "token"])
def test_prompts_are_averaged_and_those_without_one_of_the_sets_skipped(form: Any) -> None:
    rewards = tensor([36], [4], [9], [1], [2], [3]).log()
    got = call(
        rewards,
        form=form,
        group=[5, 5, -2, -2, 7, 8],  # prompts 7 and 8 have one set only
        positive_weight=[1, 0, 1, 0, 1, 0],
        background=[0, 1, 0, 1, 0, 1],
    )
    pairs = {"positive_weight": [1, 0], "background": [0, 1], "form": form}
    one, two = call(rewards[:2], **pairs), call(rewards[2:4], **pairs)
    close(got.token, torch.cat([one.token, two.token, tensor([0], [0])]) / 2)
    close(got.loss, (one.loss + two.loss) / 2)
    assert got.cells == 2
    assert float(got.figures["prompts_skipped"]) == 2
    for name in ("accuracy", "log_z"):
        close(got.figures[name], (one.figures[name] + two.figures[name]) / 2)


def test_the_share_of_a_positive_is_its_weight() -> None:
    # weights 6 : 2 = 3/4, 1/4. Sequence, z = 1: exp = 1, 3 -> D 1/2, 3/4; rollout needs 1 - 3/8 - 3/16 = 7/16: exp = 7/9
    rewards = tensor([1], [3], [7 / 9]).log() + 2.5
    got = call(rewards, form="sequence", positive_weight=[6, 2, 0], background=[0, 0, 1])
    close(got.token[:, 0], tensor([-3 / 8, -1 / 16, 7 / 16])[0])
    close(got.figures["log_z"], 2.5)
    # Tokens: the first expert has two, the second one: denominator 3/4 x 2 + 1/4 = 7/4. D = 1/2; 1/2 | 3/4 | 1/4
    got = call(
        tensor([1, 1], [3, 9], [1 / 3, 9]).log(),
        form="token",
        response_mask=torch.tensor([[True, True], [True, False], [True, False]]),
        positive_weight=[6, 2, 0],
        background=[0, 0, 1],
    )
    close(got.token, tensor([-3 / 14, -3 / 14], [-1 / 28, 0], [1 / 4, 0]))


def test_a_row_can_be_positive_and_background() -> None:
    # Alone in both sets: D = 1/2 and nothing to learn. Beside a plain rollout it is pushed up on balance.
    alone = call(tensor([5]), form="sequence", positive_weight=[1], background=[1])
    close(alone.token, tensor([0]))
    close(alone.loss, 2 * math.log(2))
    # z = 1: D_0 + (D_0 + D_1) / 2 = 1: D_0 = 1/2 = D_1 at equal scores: c_0 = 1/4 - 1/2
    both = call(tensor([0], [0]), form="sequence", positive_weight=[1, 0], background=[1, 1])
    close(both.token, tensor([-1 / 4], [1 / 4]))


@pytest.mark.parametrize("form", ["sequence", "token"])
def test_the_loss_is_the_value_whose_gradient_is_followed(form: Any) -> None:
    """Also through z: c at constant z is the whole gradient, since z minimises the loss."""
    analytic = call(ONE_REWARDS, form=form, **ONE).token
    for row, column in [(0, 0), (1, 1), (2, 0)]:
        shift = torch.zeros_like(ONE_REWARDS)
        shift[row, column] = 1e-5
        up, down = (call(ONE_REWARDS + s, form=form, **ONE).loss for s in (shift, -shift))
        close(analytic[row, column], (up - down) / 2e-5, 1e-9)


@pytest.mark.parametrize("form", ["sequence", "token"])
@pytest.mark.parametrize("log_ratio", [LOG_RATIO, None])
def test_a_step_raises_experts_and_lowers_rollouts(form: Any, log_ratio: Tensor | None) -> None:
    got = call(ONE_REWARDS, form=form, **{**ONE, "log_ratio": log_ratio})
    mask = ONE["response_mask"]
    assert (got.token[2] < -0.01).all()
    assert (got.token[:2][mask[:2]] > 0.01).all()
    stepped = call(ONE_REWARDS - 0.1 * got.token, form=form, **{**ONE, "log_ratio": log_ratio})
    assert stepped.loss < got.loss - 0.005


def test_nothing_usable_gives_zeros() -> None:
    for form in ("sequence", "token"):
        got = call(tensor([1], [2]), form=form, positive_weight=[1, 1], background=[0, 0])
        assert (got.token == 0).all()
        assert (got.cells, float(got.loss), float(got.figures["prompts_skipped"])) == (0, 0, 1)
