"""Cross-entropy of outcomes and of step labels in worked numbers: unknown labels, soft labels, where the gradient goes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from repirl.objectives.prm import penalty_coefficients, prime_coefficients, step_cross_entropy_coefficients

NAN = float("nan")


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def close(got: Tensor, expected: Tensor | float) -> None:
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype), rtol=0, atol=1e-12)


# exp(R) = 3, 1/3, 4, 9: sigma = 3/4, 1/4, 4/5, 9/10. Column 2 of row 1 is padding.
PRIME = {
    "rewards": tensor([1.5, 2], [1 / 3, 100], [1, 4], [3, 3]).log(),
    "response_mask": torch.tensor([[True, True], [True, False], [True, True], [True, True]]),
}


def test_prime() -> None:
    got = prime_coefficients(outcome=tensor([1, 1, 0, NAN])[0], **PRIME)
    # (sigma - o) / 3: -1/12, -3/12, 4/15; the unknown one has no part
    close(got.token, tensor([-1 / 12, -1 / 12], [-1 / 4, 0], [4 / 15, 4 / 15], [0, 0]))
    close(got.loss, -(math.log(3 / 4) + math.log(1 / 4) + math.log(1 / 5)) / 3)
    assert got.cells == 3
    close(got.figures["accuracy"], 1 / 3)


def test_prime_has_soft_outcomes() -> None:
    # At R = logit of the label nothing is left to learn: the optimum is the log-odds of a right answer.
    got = prime_coefficients(outcome=tensor([3 / 4, 1 / 4, 4 / 5, 9 / 10])[0], **PRIME)
    close(got.token, torch.zeros(4, 2))
    assert got.cells == 4


def test_prime_without_any_known_outcome() -> None:
    got = prime_coefficients(outcome=tensor([NAN] * 4)[0], **PRIME)
    assert (got.token == 0).all()
    assert (got.cells, float(got.loss)) == (0, 0)


def test_outcomes_outside_the_unit_interval_are_refused() -> None:
    with pytest.raises(ValueError, match=r"outcome: -1 at \[2\] is outside \[0, 1\]"):
        prime_coefficients(outcome=tensor([1, 0, -1, NAN])[0], **PRIME)


# Row 0: steps of 2 and 1 tokens, exp(sum) = 3 and 1/4; row 1: one step of 2, exp = 9, and padding. sigma = 3/4, 1/5, 9/10
STEPS = {
    "rewards": tensor([1.5, 2, 1 / 4], [3, 3, 50]).log(),
    "ends": torch.tensor([[False, True, True], [False, True, False]]),
    "response_mask": torch.tensor([[True, True, True], [True, True, False]]),
}


def test_step_cross_entropy() -> None:
    got = step_cross_entropy_coefficients(labels=tensor([NAN, 1, 0], [NAN, 0.5, NAN]), **STEPS)
    # (3/4 - 1) / 3 on both tokens of the step; (1/5 - 0) / 3; (9/10 - 1/2) / 3
    close(got.token, tensor([-1 / 12, -1 / 12, 1 / 15], [2 / 15, 2 / 15, 0]))
    close(got.loss, -(math.log(3 / 4) + math.log(4 / 5) + (math.log(9 / 10) + math.log(1 / 10)) / 2) / 3)
    assert got.cells == 3
    close(got.figures["accuracy"], 2 / 3)  # a label of one half is on neither side: it counts as not right


def test_an_unlabelled_step_has_no_part() -> None:
    got = step_cross_entropy_coefficients(labels=tensor([NAN, NAN, 0], [NAN, 1, NAN]), **STEPS)
    close(got.token, tensor([0, 0, 1 / 10], [-1 / 20, -1 / 20, 0]))
    assert got.cells == 2
    nothing = step_cross_entropy_coefficients(labels=torch.full((2, 3), NAN).double(), **STEPS)
    assert (nothing.token == 0).all()
    assert (nothing.cells, float(nothing.loss)) == (0, 0)


def test_rewards_that_stand_at_step_ends_already_give_the_same() -> None:
    """Granularity `step`: what a step's tokens were is summed onto its end before."""
    labels = tensor([NAN, 1, 0], [NAN, 0.5, NAN])
    summed = {**STEPS, "rewards": tensor([1, 3, 1 / 4], [1, 9, 1]).log()}
    first, second = (step_cross_entropy_coefficients(labels=labels, **x) for x in (STEPS, summed))
    close(second.token, first.token)
    close(second.loss, first.loss)


def test_tokens_after_the_last_end_belong_to_no_step() -> None:
    got = step_cross_entropy_coefficients(
        rewards=tensor([3, 7, 7]).log(),
        labels=tensor([1, NAN, NAN]),
        ends=torch.tensor([[True, False, False]]),
        response_mask=torch.ones(1, 3, dtype=torch.bool),
    )
    close(got.token, tensor([-1 / 4, 0, 0]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[NAN, 1, 0], [NAN, 1.5, NAN]], r"labels: 1.5 at \[1, 1\] is outside \[0, 1\]"),
        ([[NAN, 1, 0], [1, NAN, NAN]], "row 1, token 0 has a label but ends no step"),
        ([[NAN, 1, 0], [NAN, 1, 0]], "row 1, token 2 has a label but ends no step"),
    ],
)
def test_labels_that_mean_nothing_are_refused(labels: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        step_cross_entropy_coefficients(labels=tensor(*labels), **STEPS)


def test_the_losses_are_the_values_whose_gradients_are_followed() -> None:
    outcome, labels = tensor([1, 1, 0, NAN])[0], tensor([NAN, 1, 0], [NAN, 0.5, NAN])
    for call, rewards in (
        (lambda r: prime_coefficients(outcome=outcome, **{**PRIME, "rewards": r}), PRIME["rewards"]),
        (lambda r: step_cross_entropy_coefficients(labels=labels, **{**STEPS, "rewards": r}), STEPS["rewards"]),
    ):
        analytic = call(rewards).token
        assert analytic.abs().max() > 0.05
        for place in ((0, 1), (1, 0), (1, 1)):
            shift = torch.zeros_like(rewards)
            shift[place] = 1e-5
            numeric = (call(rewards + shift).loss - call(rewards - shift).loss) / 2e-5
            torch.testing.assert_close(analytic[place], numeric, rtol=0, atol=1e-9)


def test_the_penalty_is_the_gradient_of_the_mean_square_of_response_tokens() -> None:
    rewards = tensor([1, -2, 50], [3, 0, 0]).requires_grad_()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    got = penalty_coefficients(rewards.detach(), mask, 0.5)
    close(got, tensor([1 / 5, -2 / 5, 0], [3 / 5, 0, 0]))
    (0.5 * rewards[mask].square().mean()).backward()
    close(got, rewards.grad)
    assert (penalty_coefficients(rewards.detach(), torch.zeros_like(mask), 0.5) == 0).all()
