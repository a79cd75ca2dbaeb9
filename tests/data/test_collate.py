"""Padding."""

from __future__ import annotations

import pytest
import torch

from repirl.data.collate import collate_rows, select

T, F = True, False


def test_prompts_are_padded_left_and_responses_right() -> None:
    rows = collate_rows([[5], [6, 7, 8]], [[1, 2], [3]], pad_id=9)
    assert rows.prompt_ids.tolist() == [[9, 9, 5], [6, 7, 8]]
    assert rows.prompt_mask.tolist() == [[F, F, T], [T, T, T]]
    assert rows.response_ids.tolist() == [[1, 2], [3, 9]]
    assert rows.response_mask.tolist() == [[T, T], [T, F]]
    assert rows.prompt_ids.dtype == torch.long
    assert rows.response_mask.dtype == torch.bool


def test_a_token_equal_to_the_pad_id_counts() -> None:
    rows = collate_rows([[0], [1, 0]], [[0, 0], [0]], pad_id=0)
    assert rows.prompt_mask.tolist() == [[F, T], [T, T]]
    assert rows.response_mask.tolist() == [[T, T], [T, F]]


def test_select_keeps_order_and_trims_padding() -> None:
    rows = collate_rows([[1], [2, 3, 4], [5, 6]], [[7, 8, 9], [1], [2, 3]], pad_id=0)
    chosen = select(rows, [2, 0])
    assert chosen.prompt_ids.tolist() == [[5, 6], [0, 1]]
    assert chosen.prompt_mask.tolist() == [[T, T], [F, T]]
    assert chosen.response_ids.tolist() == [[2, 3, 0], [7, 8, 9]]
    assert chosen.response_mask.tolist() == [[T, T, F], [T, T, T]]
    again = select(chosen, torch.tensor([0]))
    assert again.prompt_ids.tolist() == [[5, 6]]
    assert again.response_ids.tolist() == [[2, 3]]


def test_select_equals_collating_the_chosen() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 9, (20, 2), generator=generator).tolist()
    prompts = [list(range(1, p + 1)) for p, _ in sizes]
    responses = [list(range(1, r + 1)) for _, r in sizes]
    index = torch.randperm(20, generator=generator)[:7].tolist()
    expected = collate_rows([prompts[i] for i in index], [responses[i] for i in index], pad_id=0)
    found = select(collate_rows(prompts, responses, pad_id=0), index)
    for name in ("prompt_ids", "prompt_mask", "response_ids", "response_mask"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_what_cannot_be_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="not 0 and 0"):
        collate_rows([], [], pad_id=0)
    with pytest.raises(ValueError, match="not 1 and 2"):
        collate_rows([[1]], [[1], [2]], pad_id=0)
    with pytest.raises(ValueError, match="row 1: the response has no tokens"):
        collate_rows([[1], [1]], [[1], []], pad_id=0)
    with pytest.raises(ValueError, match="row 0: the prompt has no tokens"):
        collate_rows([[]], [[1]], pad_id=0)
