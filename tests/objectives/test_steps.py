"""Where steps end, and rewards summed over them."""

from __future__ import annotations

import itertools

import pytest
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


def ends_of(text: str) -> str:
    """w: a word; n: a newline; x: a word that ends a line; s: a space; e: the end token; capitals: where steps end."""
    separator = torch.tensor([[c in "nx" for c in text]])
    blank = torch.tensor([[c in "nse" for c in text]])
    ends = step_ends(is_separator=separator, response_mask=torch.ones_like(separator), is_blank=blank)
    return "".join(c.upper() if end else c for c, end in zip(text, ends[0].tolist(), strict=True))


@pytest.mark.parametrize(
    "expected",
    [
        "wwNwwE",
        "wnNwE",  # two newline tokens: one step
        "wnnnNwE",
        "wnsnNwE",  # a line of spaces
        "XwE",
        "XXwE",  # lines that end with their words
        "xnNwE",
        "nnwNwE",  # blank lines at the start
        "snwE",
        "wwnE",  # an end token alone is no step
        "wNwnnE",
        "wwnN",  # nothing after it: the last token ends the step
        "nN",
        "E",
        "wW",
        "wnsnsE",
    ],
)
def test_blank_lines_make_no_step(expected: str) -> None:
    assert ends_of(expected.lower()) == expected


def test_every_step_has_a_word_and_padding_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randint(4, (200, 14), generator=generator)  # word, newline, space, word that ends a line
    lengths = torch.randint(1, 15, (200, 1), generator=generator)
    mask = torch.arange(14) < lengths
    separator, blank = (kinds == 1) | (kinds == 3), (kinds == 1) | (kinds == 2)
    ends = step_ends(is_separator=separator, response_mask=mask, is_blank=blank)
    assert not (ends & ~mask).any()
    assert int(ends.sum()) > 400
    for row in range(200):
        n = int(lengths[row])
        alone = step_ends(
            is_separator=separator[row : row + 1, :n],
            response_mask=mask[row : row + 1, :n],
            is_blank=blank[row : row + 1, :n],
        )
        assert torch.equal(alone[0], ends[row, :n])
        words = (~blank[row, :n]).tolist()
        places = ends[row, :n].nonzero()[:, 0].tolist()
        steps = [any(words[a + 1 : b + 1]) for a, b in itertools.pairwise([-1, *places])]
        assert all(steps) or not any(words)


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
