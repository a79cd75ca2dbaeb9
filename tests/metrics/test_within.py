"""AUROC within generators: what pooling hides, by hand and on published model-written solutions."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict

import pytest
import torch

from repirl.metrics import auroc_within
from repirl.metrics.accumulate import AUROCWithin
from tests.shared_data import shared_file


def test_a_score_that_tells_generators_apart_alone_is_worth_nothing_within_one():
    # The good generator is right 3 times of 4, the poor one 1 of 4; the score is 1 and 0 by generator.
    metric = AUROCWithin(["good", "poor"])
    positive = torch.tensor([True, True, True, False, True, False, False, False])
    scores = torch.tensor([1.0] * 4 + [0.0] * 4)
    metric.update(scores[:5], positive[:5], ["good"] * 4 + ["poor"])
    metric.update(scores[5:], positive[5:], ["poor"] * 3)
    figures = {name: value.item() for name, value in metric.compute().items()}
    # pooled, of 16 pairs: 3 * 3 better, 3 * 1 + 1 * 3 equal, 1 worse: (9 + 3) / 16
    assert figures == {"within/good": 0.5, "within/poor": 0.5, "mean": 0.5, "pooled": 0.75}


def test_each_group_by_hand():
    scores = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0, 9.0])
    positive = torch.tensor([True, False, True, False, True, True])
    within = auroc_within(scores, positive, torch.tensor([0, 0, 0, 1, 1, 2]), 4)
    assert within[:2].tolist() == [1, 0]
    assert within[2:].isnan().all()


def test_groups_are_known():
    with pytest.raises(ValueError, match="unknown group 'c'; there are a, b"):
        AUROCWithin(["a", "b"]).update(torch.zeros(1), torch.tensor([True]), ["c"])
    with pytest.raises(ValueError, match="distinct groups"):
        AUROCWithin(["a", "a"])
    empty = AUROCWithin(["a"]).compute()
    assert all(value.isnan() for value in empty.values())


def test_length_alone_within_the_published_generators():
    path = shared_file("traces/gsm8k_model_solutions.jsonl.gz")
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).split(b"\n") if line]
    lengths = [-float(sum(map(len, row["steps"]))) for row in rows]
    kinds: dict[str, dict[bool, list[float]]] = defaultdict(lambda: {True: [], False: []})
    for row, length in zip(rows, lengths, strict=True):
        kinds[row["generator"]][row["is_correct"]].append(length)
    metric = AUROCWithin(list(kinds))
    metric.update(
        torch.tensor(lengths, dtype=torch.float64),
        torch.tensor([row["is_correct"] for row in rows]),
        [row["generator"] for row in rows],
    )
    figures = metric.compute()
    assert len(kinds) == 4
    for name, of in kinds.items():
        right, wrong = (torch.tensor(of[kind], dtype=torch.float64) for kind in (True, False))
        gap = right[:, None] - wrong[None, :]
        pairs = ((gap > 0).double() + (gap == 0).double() / 2).mean().item()
        assert figures[f"within/{name}"].item() == pytest.approx(pairs, abs=1e-12)
        assert 0.5 < pairs < 0.8  # shorter solutions are of easier problems: a baseline to beat
