"""Closed forms against all subsets one by one, and numbers worked by hand."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import fmean

import pytest
import torch

from repirl.metrics.selection import (
    AGGREGATIONS,
    aggregated,
    expected_best_of_n,
    expected_pass,
    expected_vote,
    exponential_weights,
    subsets_of,
)

SCORES = torch.tensor([0.9, 0.5, 0.5, 0.2, 0.5, 0.1])
RIGHT = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0])
ANSWERS = ["7", "8", None, "8", "8", "7"]


def test_step_rewards_become_a_score() -> None:
    rewards = (0.5, 0.25, 1.0)
    # mean 1.75 / 3; product .125; token_mean 1.75 over 7 tokens
    expected = {"mean": 1.75 / 3, "min": 0.25, "last": 1.0, "sum": 1.75, "product": 0.125, "token_mean": 0.25}
    assert {by: aggregated(rewards, by, 7) for by in AGGREGATIONS} == pytest.approx(expected)
    assert aggregated((), "mean") == -math.inf
    for given, by, message in [
        ((1.0,), "median", "cannot be aggregated by 'median': give mean, sum, min, last, product, token_mean"),
        ((-1.0, -2.0), "product", "needs probabilities, and one is -2"),
        ((1.0,), "token_mean", "no tokens"),
    ]:
        with pytest.raises(ValueError, match=message):
            aggregated(given, by)


def test_best_of_two_by_hand() -> None:
    """Of .9 (wrong), .5 .5 .5 (2 of 3 right), .2 (right), .1 (wrong): 15 pairs.

    5 hold .9; 3 + 3 * 2 = 9 of the others have a .5 as the best; 1 pair is left, .2 and .1. So 9/15 * 2/3 + 1/15.
    """
    assert expected_best_of_n(scores=SCORES, right=RIGHT, n=2) == pytest.approx(9 / 15 * 2 / 3 + 1 / 15)
    assert expected_best_of_n(scores=SCORES, right=RIGHT, n=1) == pytest.approx(0.5)  # the mean: there is no choice
    assert expected_best_of_n(scores=SCORES, right=RIGHT, n=6) == 0  # the highest of all is wrong
    assert expected_pass(right=RIGHT, n=2) == pytest.approx(1 - 3 / 15)  # 3 of 15 pairs are wrong twice


@pytest.mark.parametrize("n", range(1, 7))
def test_closed_forms_are_the_mean_over_all_subsets(n: int) -> None:
    best, passed, voted = [], [], []
    for subset in combinations(range(6), n):
        highest = max(float(SCORES[i]) for i in subset)
        best.append(fmean(float(RIGHT[i]) for i in subset if float(SCORES[i]) == highest))
        passed.append(max(float(RIGHT[i]) for i in subset))
        votes = {answer: sum(ANSWERS[i] == answer for i in subset) for answer in ("7", "8")}
        most = max(votes.values())
        voted.append(fmean(answer == "8" for answer, count in votes.items() if count == most) if most else 0.0)
    right = torch.tensor([float(answer == "8") for answer in ANSWERS])
    subsets = subsets_of(6, n, most=1000, seed=0)
    assert len(subsets) == math.comb(6, n)
    assert expected_best_of_n(scores=SCORES, right=RIGHT, n=n) == pytest.approx(fmean(best))
    assert expected_pass(right=RIGHT, n=n) == pytest.approx(fmean(passed))
    found = expected_vote(answers=ANSWERS, weights=torch.ones(6), right=right, subsets=subsets)
    assert found == pytest.approx(fmean(voted))


def test_votes_by_hand() -> None:
    answers, right = ["7", "8", "8", None], torch.tensor([1.0, 0.0, 0.0, 0.0])
    whole = subsets_of(4, 4, most=1, seed=0)

    def vote(*weights: float) -> float:
        return expected_vote(
            answers=answers, weights=torch.tensor(weights, dtype=torch.float64), right=right, subsets=whole
        )

    assert vote(1, 1, 1, 1) == 0  # two against one
    assert vote(0.9, 0.3, 0.4, 5) == 1  # .9 against .7; what has no answer has no vote
    assert vote(0.7, 0.3, 0.4, 0) == 0.5  # a tie, which rounding does not break
    assert vote(-1.0, -0.6, -0.6, 0) == 1  # a sum of negative scores: a second vote speaks against its answer
    weights = exponential_weights(torch.tensor([-1.0, -0.6, -0.6, 0.0]))
    assert weights.tolist() == pytest.approx([math.exp(-1), math.exp(-0.6), math.exp(-0.6), 1])
    assert vote(*weights.tolist()) == 0  # e^-1 = .37 against 2 e^-.6 = 1.10
    none = expected_vote(answers=[None] * 4, weights=torch.ones(4), right=torch.zeros(4), subsets=whole)
    assert none == 0
    assert exponential_weights(torch.tensor([1000.0, 999.0])).tolist() == pytest.approx([1, math.exp(-1)])
    assert exponential_weights(torch.full((2,), -math.inf)).tolist() == [0, 0]


def test_drawn_subsets_come_near_all_of_them_and_depend_on_the_seed_alone() -> None:
    answers = [str(i % 3) for i in range(12)]
    right = torch.tensor([float(answer == "0") for answer in answers])
    given = {"answers": answers, "weights": torch.linspace(0, 1, 12), "right": right}
    exact = expected_vote(**given, subsets=subsets_of(12, 5, most=792, seed=0))
    drawn = subsets_of(12, 5, most=700, seed=3)
    assert drawn.shape == (700, 5)
    assert all(len(set(row)) == 5 for row in drawn.tolist())
    assert torch.equal(drawn, subsets_of(12, 5, most=700, seed=3))
    assert not torch.equal(drawn, subsets_of(12, 5, most=700, seed=4))
    assert expected_vote(**given, subsets=drawn) == pytest.approx(exact, abs=4 * (0.25 / 700) ** 0.5)


@pytest.mark.parametrize("n", [0, 7])
def test_no_more_than_there_are(n: int) -> None:
    with pytest.raises(ValueError, match="from 1 to the number of samples, 6"):
        expected_best_of_n(scores=SCORES, right=RIGHT, n=n)
    with pytest.raises(ValueError, match="from 1 to the number of samples, 6"):
        subsets_of(6, n, most=9, seed=0)
