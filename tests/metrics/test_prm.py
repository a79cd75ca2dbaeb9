"""AUROC against counting pairs, and the PRM's diagnostics in worked numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from repirl.metrics import auroc, correlation, prm_diagnostics, saturated_share


def by_counting(scores: Tensor, positive: Tensor) -> float:
    high, low = scores[positive][:, None], scores[~positive][None]
    return float(((high > low).double() + 0.5 * (high == low).double()).mean())


def test_auroc_in_numbers() -> None:
    # pairs: .8 beats .3 and .5; .5 beats .3 and ties .5: (2 + 1 + .5) / 4
    scores, positive = torch.tensor([0.8, 0.3, 0.5, 0.5]), torch.tensor([True, False, True, False])
    assert auroc(scores, positive) == 3.5 / 4
    assert auroc(-scores, positive) == 0.5 / 4
    assert auroc(torch.ones(5), torch.tensor([True, False, False, True, False])) == 0.5


@pytest.mark.parametrize("levels", [2, 5, 40, 10**9])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_auroc_counts_pairs_and_half_of_ties(levels: int, share: float) -> None:
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (60,), generator=generator).double() / 3 - 5
    positive = torch.rand(60, generator=generator) < share
    scores += 0.3 * levels * positive
    assert 0 < positive.sum() < 60
    assert float(auroc(scores, positive)) == pytest.approx(by_counting(scores, positive), abs=1e-12)


@pytest.mark.parametrize("transform", [lambda x: x * 1e30, lambda x: x * 1e-30, torch.exp, lambda x: x / 3 + 40])
def test_auroc_depends_on_order_only(transform) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-60, 60, (50,), generator=generator).float()
    positive = torch.rand(50, generator=generator) < 0.4
    assert auroc(transform(scores), positive) == auroc(scores, positive)
    infinite = torch.tensor([-math.inf, 1e38, math.inf, -1e38])
    assert auroc(infinite, torch.tensor([False, False, True, True])) == 0.75  # inf beats both, -1e38 one


def test_auroc_of_one_class_is_nan() -> None:
    assert auroc(torch.tensor([1.0, 2.0]), torch.tensor([True, True])).isnan()
    assert auroc(torch.tensor([1.0, 2.0]), torch.tensor([False, False])).isnan()


def test_auroc_of_many_scores_is_exact() -> None:
    # rank sums beyond 2^24 would lose places in float32
    scores = torch.arange(40_000).float()
    assert auroc(scores, scores >= 20_000) == 1
    assert float(auroc(scores, scores % 2 == 1)) == pytest.approx(0.5 + 0.5 / 20_000, abs=1e-7)


def test_prm_diagnostics() -> None:
    found = prm_diagnostics(
        mean_rewards=torch.tensor([3.0, 1.0, 2.0, 0.0, 4.0]),
        lengths=torch.tensor([9.0, 1.0, 2.0, 3.0, 4.0]),
        is_expert=torch.tensor([True, False, False, False, False]),
        outcome=torch.tensor([1.0, 1.0, 0.0, math.nan, 1.0]),
    )
    expected = {
        "reward_expert": 3.0,
        "reward_policy": 7 / 4,  # 1 2 0 4
        "reward_correct": 5 / 2,  # 1 4
        "reward_failed": 2.0,
        "margin": 5 / 4,
        "auroc_expert_policy": 3 / 4,  # 3 beats 1 2 0
        "auroc_correct_failed": 1 / 2,  # 4 beats 2, 1 does not
        "auroc_expert_correct": 1 / 2,
        # 1 2 0 4 against 1 2 3 4: deviations (-3 1 -7 9) / 4 and (-3 -1 1 3) / 2: 28 / sqrt(140 x 20)
        "length_correlation": 28 / math.sqrt(2800),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value), name


def test_figures_without_rows_are_left_out() -> None:
    rows = {"mean_rewards": torch.tensor([1.0, 2.0]), "lengths": torch.tensor([3.0, 3.0])}
    unknown = torch.full((2,), math.nan)
    found = prm_diagnostics(**rows, is_expert=torch.tensor([False, False]), outcome=unknown)
    assert found == {"reward_policy": 1.5, "length_correlation": 0}
    assert prm_diagnostics(**rows, is_expert=torch.tensor([True, True]), outcome=unknown) == {"reward_expert": 1.5}


def test_saturated_share() -> None:
    rewards = torch.tensor([[0.96, -0.97, 0.5], [0.94, 0.99, 0.99]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert saturated_share(rewards, mask, bound=1.0) == 2 / 4
    assert saturated_share(rewards, mask, bound=0.5) == 4 / 4
    assert saturated_share(rewards, mask, bound=2.0) == 0
    assert saturated_share(rewards, torch.zeros_like(mask), bound=1.0) == 0


def test_correlation() -> None:
    x = torch.tensor([1.0, 2.0, 4.0])
    assert float(correlation(x, 3 - 2 * x)) == pytest.approx(-1)
    # deviations (-4 -1 5) / 3 and -1 1 0 (against 0 2 1): 3 / 3 / (sqrt(42) / 3 x sqrt 2) = 3 / sqrt 84
    assert float(correlation(x, torch.tensor([0.0, 2.0, 1.0]))) == pytest.approx(3 / math.sqrt(84))
    assert correlation(x, torch.full((3,), 7.0)) == 0
    assert correlation(torch.full((3,), 7.0), x) == 0
