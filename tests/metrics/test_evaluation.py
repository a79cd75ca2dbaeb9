"""Figures of evaluation: worked numbers, enumeration, and coverage of the intervals."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from repirl.metrics import (
    best_of_n,
    bootstrap_interval,
    first_error_accuracy,
    interquartile_mean,
    majority_vote,
    mean_of_last,
    paired_comparison,
    pass_at_k,
    stratified_interval,
    weighted_vote,
    wrong_step_accuracy,
    wrong_step_auroc,
)

# --- several responses


def test_pass_at_k_in_numbers() -> None:
    correct, samples = torch.tensor([0, 1, 2, 4]), torch.tensor([4, 4, 4, 4])
    assert pass_at_k(correct=correct, samples=samples, k=1).tolist() == [0, 1 / 4, 2 / 4, 1]
    # 1 - C(3,2)/C(4,2) = 1 - 3/6;  1 - C(2,2)/C(4,2) = 1 - 1/6
    assert pass_at_k(correct=correct, samples=samples, k=2).tolist() == pytest.approx([0, 1 / 2, 5 / 6, 1])
    assert pass_at_k(correct=correct, samples=samples, k=4).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 3), (6, 1, 4), (7, 3, 2)])
def test_pass_at_k_is_the_mean_over_all_subsets(n: int, c: int, k: int) -> None:
    outcomes = [True] * c + [False] * (n - c)
    subsets = [any(chosen) for chosen in itertools.combinations(outcomes, k)]
    (found,) = pass_at_k(correct=torch.tensor([c]), samples=torch.tensor([n]), k=k).tolist()
    assert found == pytest.approx(sum(subsets) / len(subsets), abs=1e-15)


def test_pass_at_k_with_too_few_samples_is_unknown() -> None:
    found = pass_at_k(correct=torch.tensor([1, 1]), samples=torch.tensor([2, 3]), k=3)
    assert found[0].isnan()
    assert found[1] == 1
    # Thousands of samples neither overflow nor lose the small difference from 1.
    big = pass_at_k(correct=torch.tensor([1]), samples=torch.tensor([10_000]), k=5000)
    assert big.tolist() == pytest.approx([0.5])
    with pytest.raises(ValueError, match="no problem have more right answers than samples"):
        pass_at_k(correct=torch.tensor([3]), samples=torch.tensor([2]), k=1)


def test_majority_vote() -> None:
    assert majority_vote(["2", "3", "3", None, None, None]) == 1
    assert majority_vote(["2", "3", "3", "2"]) == 0  # a tie: the earlier answer
    assert majority_vote([None, None]) is None
    assert majority_vote([]) is None


def test_weighted_vote_sums_exponentials() -> None:
    # "7" has e^1 = 2.72 against e^0 + e^0 = 2 of "5"; at .6 it has 1.82 and loses.
    assert weighted_vote(["5", "7", "5"], [0.0, 1.0, 0.0]) == 1
    assert weighted_vote(["5", "7", "5"], [0.0, 0.6, 0.0]) == 0
    assert weighted_vote([None, "5"], [9.0, -9.0]) == 1
    # Only differences of scores matter, however large they are.
    assert weighted_vote(["5", "7", "5"], [1e4, 1e4 + 1, 1e4]) == 1
    assert weighted_vote(["5", "7", "5"], [-1e4, -1e4 + 0.6, -1e4]) == 0


def test_best_of_n() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.3], [2.0, -1.0, 2.0], [0.0, 0.0, 0.0]])
    correct = torch.tensor([[0.0, 1.0, math.nan], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    # the second has two best, one of them right; a PRM that says nothing picks by lot
    assert best_of_n(scores=scores, correct=correct).tolist() == pytest.approx([1, 1 / 2, 1 / 3])
    assert best_of_n(scores=-scores[:2], correct=correct[:2]).tolist() == [0, 1]


# --- steps

STEPS: dict[str, Any] = {
    "step_rewards": torch.tensor([[0.5, -1.0, -0.5], [0.2, 0.1, -0.3], [1.0, 2.0, -9.0], [0.0, -1.0, 0.3]]),
    # the third trace has two steps, its -9 is no step; the fourth is without error
    "step_mask": torch.tensor([[True, True, True], [True, True, True], [True, True, False], [True, True, True]]),
    "is_wrong": torch.tensor([[False, True, True], [False, True, True], [True, False, True], [False, False, False]]),
}


def test_first_error_and_wrong_step_accuracy() -> None:
    # lowest: step 1, 2 and 0; first wrong: 1, 1 and 0; the second's lowest is wrong, but not the first wrong one
    assert float(first_error_accuracy(**STEPS)) == pytest.approx(2 / 3)
    assert float(wrong_step_accuracy(**STEPS)) == 1
    upside_down = STEPS | {"step_rewards": -STEPS["step_rewards"]}  # lowest: 0 (right), 0 (right), 1 (right)
    assert float(first_error_accuracy(**upside_down)) == 0
    assert float(wrong_step_accuracy(**upside_down)) == 0


def test_accuracies_of_flawless_traces_are_unknown() -> None:
    flawless = STEPS | {"is_wrong": torch.zeros_like(STEPS["is_wrong"])}
    assert first_error_accuracy(**flawless).isnan()
    assert wrong_step_accuracy(**flawless).isnan()


def test_wrong_step_auroc_rewards_low_wrong_steps() -> None:
    rewards, wrong = torch.tensor([-1.0, 0.5, 0.0, -0.2]), torch.tensor([True, True, False, False])
    # -1 is below 0 and -.2; .5 is below neither: 2 of 4 pairs
    assert wrong_step_auroc(rewards, wrong) == 0.5
    assert wrong_step_auroc(torch.tensor([-1.0, -0.5, 0.0, 2.0]), wrong) == 1


# --- uncertainty


def test_interquartile_mean_in_numbers() -> None:
    assert interquartile_mean(torch.tensor([9.0, 1.0, 2.0, 4.0])) == 3  # 2 and 4 are left
    assert interquartile_mean(torch.tensor([0.0, 1.0, 2.0, 3.0, 100.0])) == 2  # 1 2 3
    assert interquartile_mean(torch.tensor([1.0, 5.0, 9.0])) == 5  # a quarter of 3 is none
    assert interquartile_mean(torch.tensor([[9.0, 1.0, 2.0, 4.0], [0.0, 0.0, 8.0, 8.0]])).tolist() == [3, 4]


def test_the_interval_of_a_mean_is_near_the_normal_one() -> None:
    values = (torch.arange(400) % 5 == 0).float()  # mean .2, standard error sqrt(.16 / 400) = .02
    low, high = bootstrap_interval(values, resamples=4000)
    assert low == pytest.approx(0.2 - 1.96 * 0.02, abs=0.004)
    assert high == pytest.approx(0.2 + 1.96 * 0.02, abs=0.004)
    assert bootstrap_interval(values, resamples=4000) == (low, high)  # the seed decides
    assert bootstrap_interval(values, resamples=4000, seed=1) != (low, high)
    narrow = bootstrap_interval(values, resamples=4000, level=0.5)
    assert low < narrow[0] < 0.2 < narrow[1] < high
    assert bootstrap_interval(torch.full((7,), 3.0)) == (3, 3)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for seed in range(200):
        values = (torch.rand(80, generator=generator) < 0.3).float()
        low, high = bootstrap_interval(values, resamples=300, level=0.9, seed=seed)
        hits += low <= 0.3 <= high
    assert 0.84 <= hits / 200 <= 0.95  # 90 % in 200 trials: standard error 2 %


def test_strata_keep_their_own_runs() -> None:
    # Two tasks, constant over runs, far apart: resampling runs within tasks changes nothing; pooled it would.
    scores = torch.tensor([[0.0, 10.0], [0.0, 10.0], [0.0, 10.0]])
    assert stratified_interval(scores, statistic=mean_of_last) == (5, 5)
    low, high = bootstrap_interval(scores.flatten())
    assert low < 4
    assert high > 6
    assert stratified_interval(scores) == (5, 5)  # without 1 of 6 at each end: 0 0 10 10
    # Tasks are resampled apart: whole rows would give .5 every time, apart 0 and 1 come in a quarter of cases each.
    assert stratified_interval(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), statistic=mean_of_last) == (0, 1)


@pytest.mark.parametrize(("values", "level"), [(torch.zeros(0), 0.95), (torch.zeros(3), 1.0)])
def test_an_interval_of_nothing_is_refused(values: torch.Tensor, level: float) -> None:
    with pytest.raises(ValueError, match="an interval needs scores, and a level"):
        bootstrap_interval(values, level=level)


def test_paired_comparison_in_numbers() -> None:
    first = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    second = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    found = paired_comparison(first, second)
    assert (found.problems, found.better, found.worse) == (8, 4, 1)
    assert (found.first, found.second, found.difference) == (3 / 8, 6 / 8, 3 / 8)
    # McNemar: of 5 discordant pairs 1 or fewer either way: 2 (1 + 5) / 2^5
    assert found.p_value == pytest.approx(12 / 32)
    assert found.low < 3 / 8 < found.high
    back = paired_comparison(second, first)
    assert back.difference == -3 / 8
    assert back.p_value == found.p_value


def test_runs_that_do_not_differ_have_p_value_one() -> None:
    same = torch.tensor([0.0, 1.0, 0.5])
    assert paired_comparison(same, same).p_value == 1
    assert paired_comparison(same, same).low == paired_comparison(same, same).high == 0


def test_random_sign_flips_agree_with_all_of_them() -> None:
    generator = torch.Generator().manual_seed(3)
    first, second = torch.rand(2, 12, generator=generator)
    second = second + 0.15
    exact = paired_comparison(first, second, resamples=2**12).p_value
    differences = (second - first).double()
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=12)), dtype=torch.float64)
    by_hand = ((signs @ differences).abs() >= differences.sum().abs() - 1e-9).double().mean()
    assert exact == pytest.approx(float(by_hand), abs=1e-12)
    assert 0.02 < exact < 0.9
    # 4,000 draws: standard error below .008
    assert paired_comparison(first, second, resamples=4000).p_value == pytest.approx(exact, abs=0.03)


def test_pairing_sees_what_two_separate_intervals_do_not() -> None:
    hard = (torch.arange(200) % 2).float()  # problems differ a lot, the runs in ten of them, all one way
    better = hard.clone()
    better[torch.arange(0, 20, 2)] = 1
    found = paired_comparison(hard, better)
    assert found.p_value == pytest.approx(2 / 2**10)
    assert found.low > 0
    assert bootstrap_interval(hard)[1] > bootstrap_interval(better)[0]
