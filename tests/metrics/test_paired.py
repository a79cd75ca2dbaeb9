"""A few paired differences: Student's t, sign flips, Holm, equivalence; by hand, by tables and by coverage."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from repirl.metrics import (
    bootstrap_interval,
    equivalence,
    exact_sign_flip,
    holm,
    paired_comparison,
    paired_t_interval,
    paired_t_test,
)
from repirl.metrics.student import central_probability, cumulative_probability, quantile

DIFFERENCES = torch.tensor([0.1, 0.3, 0.2, 0.0, 0.4])  # mean .2, variance .1 / 4, standard error sqrt(.005)
ERROR = math.sqrt(0.005)


# --- Student's t


@pytest.mark.parametrize(
    ("level", "freedom", "expected"),
    [  # printed tables, ten digits
        (0.95, 1, 12.7062047362),
        (0.95, 2, 4.3026527297),
        (0.95, 4, 2.7764451052),
        (0.90, 4, 2.1318467863),
        (0.95, 7, 2.3646242516),
        (0.90, 7, 1.8945786051),
        (0.99, 9, 3.2498355416),
        (0.95, 30, 2.0422724563),
    ],
)
def test_quantiles_are_those_of_the_tables(level: float, freedom: int, expected: float) -> None:
    assert quantile(level, freedom) == pytest.approx(expected, abs=1e-8)
    assert central_probability(expected, freedom) == pytest.approx(level, abs=1e-9)
    assert cumulative_probability(expected, freedom) == pytest.approx((1 + level) / 2, abs=1e-9)
    assert cumulative_probability(-expected, freedom) == pytest.approx((1 - level) / 2, abs=1e-9)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 4.0, 100.0])
def test_one_and_two_degrees_have_closed_forms_and_many_are_normal(t: float) -> None:
    assert central_probability(t, 1) == pytest.approx(2 / math.pi * math.atan(t), abs=1e-12)
    assert central_probability(t, 2) == pytest.approx(t / math.sqrt(2 + t * t), abs=1e-12)
    assert central_probability(t, 4001) == pytest.approx(math.erf(t / math.sqrt(2)), abs=1e-3)


@pytest.mark.parametrize("freedom", [3, 6])
def test_the_probability_is_the_integral_of_the_density(freedom: int) -> None:
    constant = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    grid = torch.linspace(0, 1.7, 20001, dtype=torch.float64)
    density = constant * (1 + grid.square() / freedom) ** (-(freedom + 1) / 2)
    assert central_probability(1.7, freedom) == pytest.approx(2 * float(torch.trapezoid(density, grid)), abs=1e-8)


def test_no_degree_of_freedom_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 degree of freedom, not 0"):
        central_probability(1.0, 0)


# --- interval and test


def test_the_t_interval_in_numbers() -> None:
    low, high = paired_t_interval(DIFFERENCES)
    assert low == pytest.approx(0.2 - 2.7764451 * ERROR, abs=1e-6)
    assert high == pytest.approx(0.2 + 2.7764451 * ERROR, abs=1e-6)
    # t = .2 / sqrt(.005) = sqrt 8; with 4 degrees P(|T| <= t) = sin (1 + cos^2 / 2), tan^2 = 8 / 4: sin^2 = 2/3, cos^2 = 1/3
    assert paired_t_test(DIFFERENCES) == pytest.approx(1 - math.sqrt(2 / 3) * (1 + 1 / 6), abs=1e-6)


def test_the_t_test_and_the_interval_agree() -> None:
    for level in (0.9, 0.95, 0.99):
        low, _ = paired_t_interval(DIFFERENCES, level=level)
        assert (low > 0) == (paired_t_test(DIFFERENCES) < 1 - level)
    low, _ = paired_t_interval(DIFFERENCES, level=1 - paired_t_test(DIFFERENCES))
    assert low == pytest.approx(0, abs=1e-6)


def test_differences_that_are_all_equal_leave_no_doubt() -> None:
    assert paired_t_interval(torch.full((4,), 0.25)) == (0.25, 0.25)
    assert paired_t_test(torch.full((4,), 0.25)) == 0
    assert paired_t_test(torch.zeros(4)) == 1


@pytest.mark.parametrize("values", [torch.zeros(0), torch.ones(1)])
def test_one_pair_is_refused(values: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=f"at least 2 pairs, not {len(values)}"):
        paired_t_interval(values)


def test_a_level_outside_the_unit_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="a level in \\(0, 1\\), not 1"):
        paired_t_interval(DIFFERENCES, level=1.0)


# --- sign flips


def test_sign_flips_in_numbers() -> None:
    # of 8 patterns of 1 2 3 only all plus and all minus reach 6
    assert exact_sign_flip(torch.tensor([1.0, 2.0, 3.0])) == 2 / 8
    # 1 + 2 - 3 = 0: every pattern is as far
    assert exact_sign_flip(torch.tensor([1.0, 2.0, -3.0])) == 1
    # -1 + 2 + 3 = 4: +++ 6, -++ 4, and both mirrored
    assert exact_sign_flip(torch.tensor([-1.0, 2.0, 3.0])) == 4 / 8
    assert exact_sign_flip(torch.tensor([1.0, 0.0, 2.0, 3.0, 0.0])) == 2 / 8  # zeros change nothing
    assert exact_sign_flip(torch.zeros(3)) == 1
    assert exact_sign_flip(torch.ones(5)) == 0.0625
    assert exact_sign_flip(torch.ones(8)) == 2 / 256


def test_sign_flips_list_every_pattern() -> None:
    values = torch.randn(9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=9)), dtype=torch.float64)
    by_hand = ((signs @ values).abs() >= values.sum().abs() - 1e-12).double().mean()
    assert exact_sign_flip(values) == float(by_hand)


def test_too_many_sign_patterns_are_refused() -> None:
    assert exact_sign_flip(torch.cat([torch.ones(3), torch.zeros(100)])) == 2 / 8
    with pytest.raises(ValueError, match=r"21 differences have 2\^21 sign patterns.*use paired_comparison"):
        exact_sign_flip(torch.ones(21))


# --- several tests


def test_holm_in_numbers() -> None:
    # sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, and none below the one before
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1, 1]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_holm_keeps_the_chance_of_any_false_finding() -> None:
    drawn = torch.rand(4000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    false = sum(min(holm(one)) < 0.05 for one in drawn) / len(drawn)
    assert 0.04 < false < 0.06  # standard error .0034
    assert sum(min(one) < 0.05 for one in drawn) / len(drawn) > 0.2  # 1 - .95^5 = .226 without


# --- equivalence


def test_equivalence_in_numbers() -> None:
    found = equivalence(DIFFERENCES - 0.2, margin=0.2)  # both t are sqrt 8: half the two-sided p each
    assert found.p_value == pytest.approx(paired_t_test(DIFFERENCES) / 2, abs=1e-6)
    assert found.high == pytest.approx(2.1318468 * ERROR, abs=1e-6)
    assert found.low == pytest.approx(-found.high, abs=1e-6)
    # at the margin itself the chance is a half
    assert equivalence(DIFFERENCES, margin=0.2).p_value == pytest.approx(0.5, abs=1e-6)
    assert equivalence(torch.zeros(3), margin=0.05).p_value == 0
    assert equivalence(torch.full((3,), 0.1), margin=0.05).p_value == 1


def test_equivalence_holds_where_the_interval_lies_within_the_margin() -> None:
    for shift in (-0.3, -0.1, 0.0, 0.05, 0.2):
        for margin in (0.1, 0.2, 0.4):
            found = equivalence(DIFFERENCES - 0.2 + shift, margin=margin)
            assert (found.p_value < 0.05) == (-margin < found.low and found.high < margin)


def test_a_large_p_value_of_no_difference_is_no_equivalence() -> None:
    noisy = torch.tensor([0.3, -0.3, 0.2, -0.25, 0.1])
    assert paired_t_test(noisy) > 0.9
    assert equivalence(noisy, margin=0.05).p_value > 0.3


@pytest.mark.parametrize("margin", [0.0, -0.05, math.nan])
def test_a_margin_must_be_positive(margin: float) -> None:
    with pytest.raises(ValueError, match="a margin above 0"):
        equivalence(DIFFERENCES, margin=margin)


# --- coverage at the number of seeds that studies have


@pytest.mark.parametrize("count", [3, 5, 8])
def test_the_t_interval_of_few_normal_differences_covers_as_often_as_it_says(count: int) -> None:
    values = torch.randn(4000, count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    intervals = [paired_t_interval(one) for one in values]
    covered = sum(low <= 0 <= high for low, high in intervals) / len(intervals)
    assert abs(covered - 0.95) < 0.012  # standard error .0034


@pytest.mark.parametrize(("count", "share", "low", "high"), [(8, 0.4, 0.93, 0.97), (8, 0.125, 0.6, 0.73)])
def test_the_t_interval_misses_a_collapse_that_few_seeds_do_not_show(
    count: int, share: float, low: float, high: float
) -> None:
    """Differences near .75 in a share of the seeds and near 0 in the others, as where one of two arms may collapse."""
    generator = torch.Generator().manual_seed(0)
    collapsed = (torch.rand(2000, count, generator=generator) < share).double()
    values = 0.75 * collapsed + 0.05 * torch.randn(2000, count, generator=generator, dtype=torch.float64)
    intervals = [paired_t_interval(one) for one in values]
    assert low < sum(least <= 0.75 * share <= most for least, most in intervals) / len(intervals) < high


def test_a_bootstrap_interval_of_five_is_too_narrow() -> None:
    values = torch.randn(1000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    intervals = [bootstrap_interval(one, resamples=400, seed=n) for n, one in enumerate(values)]
    covered = sum(low <= 0 <= high for low, high in intervals) / len(intervals)
    assert 0.78 < covered < 0.9


def test_equivalence_is_wrong_in_one_case_of_twenty_at_the_margin() -> None:
    values = torch.randn(2000, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wrong = sum(equivalence(one + 2, margin=2.0).p_value < 0.05 for one in values) / len(values)
    assert 0.035 < wrong < 0.065


# --- within a comparison


def test_a_comparison_of_few_problems_has_the_t_interval() -> None:
    few = paired_comparison(torch.zeros(5), DIFFERENCES)
    assert (few.low, few.high) == paired_t_interval(DIFFERENCES)
    assert few.p_value == exact_sign_flip(DIFFERENCES) == 2 / 16  # one difference is 0
    many = paired_comparison(torch.zeros(15), DIFFERENCES.repeat(3))
    assert (many.low, many.high) == bootstrap_interval(DIFFERENCES.repeat(3), resamples=10000)
    one = paired_comparison(torch.zeros(1), torch.ones(1))
    assert math.isnan(one.low)
    assert math.isnan(one.high)
