"""Micro-batches keep every row once and their promise about size."""

from __future__ import annotations

import torch

from repirl.models.micro_batches import micro_batches, packed_batches, padded_batches
from tests.models.tiny import rows_of


def test_padded_batches() -> None:
    # by length: 9 | 5 4 (2 x 5 <= 10) | 3 3 2 (3 x 3 <= 10)
    assert padded_batches([3, 9, 5, 2, 3, 4], 10) == [[1], [2, 5], [0, 4, 3]]
    assert padded_batches([12, 3], 10) == [[0], [1]]  # longer than the budget: by itself
    assert padded_batches([5, 5], 10) == [[0, 1]]
    assert padded_batches([5, 5], 9) == [[0], [1]]
    assert padded_batches([], 10) == []


def test_padded_batches_keep_every_row_once_and_their_promise() -> None:
    lengths = torch.randint(1, 40, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    for budget in (1, 30, 100, 10**6):
        batches = padded_batches(lengths, budget)
        assert sorted(i for batch in batches for i in batch) == list(range(200))
        assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget for batch in batches)
    assert len(padded_batches(lengths, 10**6)) == 1


def test_packed_batches() -> None:
    # prompt 1 has 4 tokens: 4 + 3 + 2 = 9, and its last row needs the prompt again, 4 + 1; then prompt 0, 2 + 3 = 5
    assert packed_batches([0, 1, 1, 1], [2, 4, 4, 4], [3, 2, 1, 3], 9) == [[3, 1], [2], [0]]
    assert packed_batches([0, 1, 1, 1], [2, 4, 4, 4], [3, 2, 1, 3], 10) == [[3, 1, 2], [0]]
    assert packed_batches([0, 1, 1, 1], [2, 4, 4, 4], [3, 2, 1, 3], 15) == [[3, 1, 2, 0]]
    assert packed_batches([0, 0], [9, 9], [9, 1], 10) == [[0], [1]]  # longer than the budget: by itself
    assert packed_batches([], [], [], 10) == []


def test_packed_batches_keep_every_row_once_and_their_promise() -> None:
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, 30, (200,), generator=generator).tolist()
    of_prompt = torch.randint(1, 40, (30,), generator=generator)[prompts].tolist()
    of_response = torch.randint(1, 40, (200,), generator=generator).tolist()
    for budget in (1, 90, 300, 10**6):
        batches = packed_batches(prompts, of_prompt, of_response, budget)
        assert sorted(i for batch in batches for i in batch) == list(range(200))
        for batch in batches:
            size = sum(of_response[i] for i in batch) + sum({prompts[i]: of_prompt[i] for i in batch}.values())
            assert len(batch) == 1 or size <= budget
    assert len(packed_batches(prompts, of_prompt, of_response, 10**6)) == 1


def test_rows_of_one_prompt_stay_together() -> None:
    rows = rows_of([[2, 3], [4, 5, 6], [2, 3], [4, 5, 6]], [[3], [4], [5], [6]], left=1)
    assert [batch.tolist() for batch in micro_batches(rows, 5, packs=True)] == [[1, 3], [0, 2]]
    assert [batch.tolist() for batch in micro_batches(rows, 5, packs=False)] == [[1], [3], [0], [2]]
