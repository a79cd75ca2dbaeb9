"""ProcessBench and PRMBench: hand-worked figures, thresholds against an exhaustive search, real parts against numpy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from repirl.metrics.prm_bench import CATEGORIES, PRMBench, prm_bench_figures, step_confusion
from repirl.metrics.process_bench import (
    ProcessBench,
    choose_threshold,
    first_below,
    harmonic_mean,
    process_bench_figures,
)
from tests.shared_data import shared_file

PARTS = {
    "gsm8k": "prm/processbench_gsm8k.jsonl",
    "math": "prm/processbench_math.jsonl",
    "olympiadbench": "prm/processbench_olympiadbench_part.jsonl",
    "omnimath": "prm/processbench_omnimath_part.jsonl",
}
REWARDS = torch.tensor([[0.9, 0.2, 0.8], [0.7, 0.6, 0.1], [0.9, 0.8, 0.0], [0.3, 0.9, 0.9], [0.4, 0.4, 0.4]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]], dtype=torch.bool)
FIRST_ERROR = torch.tensor([1, 1, -1, -1, 0])


def test_the_first_step_below_the_threshold_is_named():
    # The padding 0.0 of the third is no step; .4 is not below .4.
    assert first_below(REWARDS, MASK, 0.4).tolist() == [1, 2, -1, 0, -1]
    assert first_below(REWARDS, MASK, -1.0).tolist() == [-1] * 5


def test_figures_by_hand():
    figures = process_bench_figures(predicted=torch.tensor([1, 2, -1, 0, -1]), first_error=FIRST_ERROR)
    # erroneous: 1 = 1, 2 != 1, -1 != 0: 1/3; correct: -1, 0: 1/2; F1 = 2 (1/3)(1/2) / (5/6) = 2/5
    assert figures["accuracy_erroneous"].item() == pytest.approx(1 / 3)
    assert figures["accuracy_correct"].item() == 0.5
    assert figures["f1"].item() == pytest.approx(0.4)


def test_extremes():
    assert harmonic_mean(torch.zeros(()), torch.zeros(())).item() == 0
    nothing = process_bench_figures(predicted=torch.full((5,), -1), first_error=FIRST_ERROR)
    assert (nothing["accuracy_correct"].item(), nothing["f1"].item()) == (1, 0)  # the majority class
    one_kind = process_bench_figures(predicted=torch.tensor([-1]), first_error=torch.tensor([-1]))
    assert one_kind["f1"].isnan()


def test_the_threshold_by_hand():
    # Intervals (low, high] where each is right: (.2, .9], none (.6 < .7: (.6, .7]), (-inf, .8], (-inf, .3], (.4, inf).
    # At t in (.6, .7]: erroneous 3 of 3, correct 1 of 2: F1 = 2 * .5 / 1.5 = 2/3, the highest; midway .65.
    threshold = choose_threshold(step_rewards=REWARDS, step_mask=MASK, first_error=FIRST_ERROR)
    assert threshold == pytest.approx(0.65)
    figures = process_bench_figures(predicted=first_below(REWARDS, MASK, threshold), first_error=FIRST_ERROR)
    assert figures["f1"].item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("seed", range(20))
def test_no_threshold_is_better_than_the_chosen_one(seed: int):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randint(-6, 7, (12, 5), generator=generator).double()  # many ties
    lengths = torch.randint(1, 6, (12,), generator=generator)
    mask = torch.arange(5) < lengths[:, None]
    labels = (torch.rand(12, generator=generator) * (lengths + 1)).long() - 1
    labels[0], labels[1] = -1, 0

    def f1(threshold: float) -> float:
        named = first_below(rewards, mask, threshold)
        return process_bench_figures(predicted=named, first_error=labels)["f1"].item()

    chosen = choose_threshold(step_rewards=rewards, step_mask=mask, first_error=labels)
    assert f1(chosen) == pytest.approx(max(f1(t / 2) for t in range(-14, 16)), abs=1e-12)


def test_the_threshold_of_a_monotone_change_of_rewards_names_the_same_steps():
    changed = torch.exp(3 * REWARDS)
    before = choose_threshold(step_rewards=REWARDS, step_mask=MASK, first_error=FIRST_ERROR)
    after = choose_threshold(step_rewards=changed, step_mask=MASK, first_error=FIRST_ERROR)
    assert first_below(REWARDS, MASK, before).tolist() == first_below(changed, MASK, after).tolist()


def test_no_threshold_from_one_kind_of_solution():
    with pytest.raises(ValueError, match="0 with and 2 without"):
        choose_threshold(step_rewards=REWARDS[:2], step_mask=MASK[:2], first_error=torch.tensor([-1, -1]))


def test_parts_count_equally_whatever_their_sizes():
    metric = ProcessBench(0.4, ["gsm8k", "math", "omnimath"])
    for rows in (slice(0, 2), slice(2, 5)):
        metric.update(
            "gsm8k", step_rewards=REWARDS[rows], step_mask=MASK[rows], first_error=FIRST_ERROR[rows]
        )  # F1 .4, as above
    two = [0, 2]
    metric.update("math", step_rewards=REWARDS[two], step_mask=MASK[two], first_error=FIRST_ERROR[two])  # both right: 1
    figures = metric.compute()
    assert figures["gsm8k/f1"].item() == pytest.approx(0.4)
    assert figures["math/f1"].item() == 1
    assert figures["mean_f1"].item() == pytest.approx(0.7)
    assert not any(name.startswith("omnimath") for name in figures)


def rows_of(path: Path, seed: int) -> tuple[Tensor, Tensor, Tensor, list[list[float]]]:
    """Pseudo-random rewards, mask and labels of a part, and the rewards as lists."""
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    generator = np.random.default_rng(seed)
    rewards = [generator.normal(size=len(row["steps"])).tolist() for row in rows]
    longest = max(map(len, rewards))
    padded = torch.tensor([one + [-99.0] * (longest - len(one)) for one in rewards], dtype=torch.float64)
    mask = torch.tensor([[place < len(one) for place in range(longest)] for one in rewards])
    return padded, mask, torch.tensor([row["first_error"] for row in rows]), rewards


def independent_f1(rewards: list[list[float]], labels: list[int], threshold: float) -> float:
    matches = {True: [], False: []}
    for steps, label in zip(rewards, labels, strict=True):
        named = next((place for place, reward in enumerate(steps) if reward < threshold), -1)
        matches[label == -1].append(named == label)
    right, wrong = np.mean(matches[True]), np.mean(matches[False])
    return float(2 * right * wrong / (right + wrong))


def test_f1_of_the_real_parts_is_an_independent_computations():
    threshold, metric, expected = -1.3, ProcessBench(-1.3, list(PARTS)), []
    for seed, (part, name) in enumerate(PARTS.items()):
        rewards, mask, labels, lists = rows_of(shared_file(name), seed)
        for rows in torch.arange(len(labels)).split(128):
            metric.update(part, step_rewards=rewards[rows], step_mask=mask[rows], first_error=labels[rows])
        expected.append(independent_f1(lists, labels.tolist(), threshold))
    figures = metric.compute()
    for part, value in zip(PARTS, expected, strict=True):
        assert 0.01 < value < 0.5  # guesses
        assert figures[f"{part}/f1"].item() == pytest.approx(value, abs=1e-12)
    assert figures["mean_f1"].item() == pytest.approx(float(np.mean(expected)), abs=1e-12)


def test_the_threshold_of_the_real_gsm8k_part_is_the_best_of_all_rewards():
    rewards, mask, labels, lists = rows_of(shared_file(PARTS["gsm8k"]), 0)
    chosen = choose_threshold(step_rewards=rewards, step_mask=mask, first_error=labels)
    best = max(independent_f1(lists, labels.tolist(), t) for t in sorted(r for one in lists for r in one)[50:-50:3])
    assert independent_f1(lists, labels.tolist(), chosen) >= best


WRONG = torch.tensor([[False, True, True], [False, False, False]])
HELD_RIGHT = torch.tensor([[True, True, False], [True, False, False]])
STEPS = torch.tensor([[True, True, True], [True, True, False]])


def test_prm_bench_by_hand():
    confusion = step_confusion(predicted_right=HELD_RIGHT, is_wrong=WRONG, step_mask=STEPS)
    # right as right: 2; wrong as right: 1; right as wrong: 1 (the padding is no step); wrong as wrong: 1
    assert confusion.tolist() == [2, 1, 1, 1]
    figures = prm_bench_figures(confusion)
    assert figures["f1"].item() == pytest.approx(2 / 3)  # 4 / (4 + 1 + 1)
    assert figures["negative_f1"].item() == 0.5  # 2 / (2 + 1 + 1)
    assert figures["score"].item() == pytest.approx(7 / 12)


def test_categories_groups_and_the_whole():
    metric, rewards = PRMBench(0.5), HELD_RIGHT.float()
    metric.update("circular", step_rewards=rewards, step_mask=STEPS, is_wrong=WRONG)
    metric.update("deception", step_rewards=1 - rewards, step_mask=STEPS, is_wrong=WRONG)
    metric.update(
        "multi_solutions", step_rewards=rewards, step_mask=STEPS, is_wrong=torch.zeros(2, 3, dtype=torch.bool)
    )
    metric.update("correct", step_rewards=rewards, step_mask=STEPS, is_wrong=torch.zeros(2, 3, dtype=torch.bool))
    figures = {name: value.item() for name, value in metric.compute().items()}
    # deception, by the opposite verdicts: [1, 1, 2, 1]: f1 2 / (2 + 1 + 2), negative 2 / (2 + 2 + 1), score .4
    # multi_solutions, without wrong steps: [3, 0, 2, 0]: f1 6 / 8; its group has the mean of .4 and .75
    assert figures["circular/score"] == pytest.approx(7 / 12)
    assert figures["simplicity/score"] == pytest.approx(7 / 12)
    assert figures["deception/score"] == pytest.approx(0.4)
    assert figures["multi_solutions/score"] == pytest.approx(0.75)
    assert figures["sensitivity/score"] == pytest.approx(0.575)
    assert "soundness/score" not in figures
    # pooled: [6, 2, 5, 2]: f1 12 / 19, negative_f1 4 / 11
    assert figures["score"] == pytest.approx((12 / 19 + 4 / 11) / 2)


def test_an_unknown_category_is_refused():
    with pytest.raises(ValueError, match=r"'redundancy'; give one of redundency"):
        PRMBench(0.5).update(
            "redundancy", step_rewards=torch.ones(1, 1), step_mask=MASK[:1, :1], is_wrong=~MASK[:1, :1]
        )
    assert len(CATEGORIES) == 9


def test_without_steps_figures_are_unknown():
    assert math.isnan(PRMBench(0.5).compute()["score"].item())
