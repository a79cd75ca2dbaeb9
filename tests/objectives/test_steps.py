"""Where steps end, and rewards summed over them."""

from __future__ import annotations

import torch

from repirl.objectives.steps import step_ends, sum_to_step_ends

SEPARATOR = torch.tensor([[0, 1, 0, 0, 1], [1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 1, 1, 1]]).bool()
MASK = torch.arange(5) < torch.tensor([[5], [3], [4], [3]])


def test_step_ends() -> None:
    ends = step_ends(is_separator=SEPARATOR, response_mask=MASK)
    assert ends.int().tolist() == [
        [0, 1, 0, 0, 1],  # the last token is a separator: no second end
        [1, 1, 1, 0, 0],  # an empty line; the last response token although no separator; nothing in padding
        [0, 0, 0, 1, 0],  # no separator: one step
        [0, 0, 1, 0, 0],
    ]


def test_rewards_are_summed_onto_the_last_token_of_their_step() -> None:
    rewards = torch.tensor([[1.0, 2, 4, 8, 16], [1, 2, 4, 9, 9], [1, 2, 4, 8, 9], [1, 2, 4, 9, 9]])
    ends = step_ends(is_separator=SEPARATOR, response_mask=MASK)
    summed = sum_to_step_ends(rewards=rewards, ends=ends, response_mask=MASK)
    # 1 + 2, 4 + 8 + 16; single tokens; 1 + 2 + 4 + 8; 1 + 2 + 4
    assert summed.tolist() == [[0, 3, 0, 0, 28], [1, 2, 4, 0, 0], [0, 0, 0, 15, 0], [0, 0, 7, 0, 0]]


def test_row_sums_stay_and_padding_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    separator = torch.rand(50, 12, generator=generator) < 0.3
    mask = torch.arange(12) < torch.randint(1, 13, (50, 1), generator=generator)
    rewards = torch.randn(50, 12, generator=generator, dtype=torch.float64).masked_fill(~mask, torch.nan)
    ends = step_ends(is_separator=separator, response_mask=mask)
    summed = sum_to_step_ends(rewards=rewards, ends=ends, response_mask=mask)
    torch.testing.assert_close(summed.sum(-1), rewards.nansum(-1), rtol=0, atol=1e-12)
    assert (summed[~ends] == 0).all()
    for row, where, row_mask, got in zip(rewards, separator, mask, summed, strict=True):
        total, expected = 0.0, []
        for t in range(int(row_mask.sum())):
            total += float(row[t])
            closes = bool(where[t]) or t == int(row_mask.sum()) - 1
            expected.append(total if closes else 0.0)
            total = 0.0 if closes else total
        torch.testing.assert_close(got[: len(expected)], torch.tensor(expected).double(), rtol=0, atol=1e-6)


def test_rewards_reach_the_gradient_of_their_step_s_end() -> None:
    rewards = torch.ones(1, 4, requires_grad=True)
    mask = torch.tensor([[True, True, True, False]])
    ends = torch.tensor([[False, True, True, False]])
    summed = sum_to_step_ends(rewards=rewards, ends=ends, response_mask=mask)
    (gradient,) = torch.autograd.grad(3 * summed[0, 1] + 5 * summed[0, 2], rewards)
    assert gradient.tolist() == [[3, 3, 5, 0]]
