"""Masked means, last tokens, sums by group."""

from __future__ import annotations

import torch

from repirl.objectives.reduce import group_sum, last_token, masked_mean, response_means

MASK = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
NAN = float("nan")  # what stands outside the mask must not matter


def test_masked_mean() -> None:
    values = torch.tensor([[1.0, 4.0, NAN], [-2.0, NAN, NAN], [NAN, NAN, NAN]])
    assert masked_mean(values, MASK) == 1  # (1 + 4 - 2) / 3
    assert masked_mean(values, torch.zeros_like(MASK)) == 0


def test_response_means() -> None:
    values = torch.tensor([[1.0, 4.0, NAN], [-2.0, NAN, NAN], [NAN, NAN, NAN]])
    assert response_means(values, MASK).tolist() == [2.5, -2, 0]  # (1 + 4) / 2; -2 / 1; nothing


def test_last_token() -> None:
    mask = torch.tensor([[True] * 3, [True, True, False], [True, False, False], [False] * 3, [True, False, True]])
    expected = [[False, False, True], [False, True, False], [True, False, False], [False] * 3, [False, False, True]]
    assert last_token(mask).tolist() == expected


def test_group_sum() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]])
    # rows 0 and 2 together: 1 + 5, 2 + 7; group 1 has no row
    assert group_sum(values, torch.tensor([2, 0, 2]), 3).tolist() == [[3, 4], [0, 0], [6, 9]]
    assert group_sum(values[:, 0], torch.tensor([0, 0, 1]), 2).tolist() == [4, 5]
    assert group_sum(values[:0], torch.tensor([], dtype=torch.long), 0).tolist() == []
