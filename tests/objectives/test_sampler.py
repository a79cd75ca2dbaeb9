"""The sampler's gap, its mask and its truncated ratios in worked numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from repirl.objectives.policy import clipped_surrogate
from repirl.objectives.sampler import gap_figures, is_far, truncated_ratios

NAN = float("nan")  # what stands outside the mask must not matter
MASK = torch.tensor([[True, True, True], [True, False, False]])
PI = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, NAN, NAN]])
LN2, LN3 = math.log(2), math.log(3)
#       d = log pi - log mu:    0    ln 2   -ln 3         ln 2
MU = torch.tensor([[-1.0, -2.0 - LN2, -0.5 + LN3], [-3.0 - LN2, NAN, NAN]])


def of(pi: Tensor = PI, mu: Tensor = MU, mask: Tensor = MASK) -> dict[str, Tensor]:
    return {"log_probs": pi, "sampler_log_probs": mu, "response_mask": mask}


def test_gap_figures() -> None:
    found = gap_figures(**of())
    assert float(found["gap_mean"]) == pytest.approx((2 * LN2 + LN3) / 4)  # |0|, ln 2, ln 3, ln 2 over four tokens
    assert float(found["gap_max"]) == pytest.approx(LN3)
    # e^d - 1 - d: 0; 2 - 1 - ln 2; 1/3 - 1 + ln 3; 2 - 1 - ln 2
    assert float(found["kl"]) == pytest.approx((2 * (1 - LN2) + LN3 - 2 / 3) / 4)


def test_the_kl_is_that_of_sampler_against_policy() -> None:
    """By its expectation over the sampler's tokens, in a vocabulary of three: sum_a mu(a) (e^d - 1 - d) = KL(mu || pi)."""
    mu, pi = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    every = [
        gap_figures(**of(p.log().view(1, 1), m.log().view(1, 1), MASK[:1, :1])) for p, m in zip(pi, mu, strict=True)
    ]
    expected = sum(float(m) * float(found["kl"]) for m, found in zip(mu, every, strict=True))
    forward, backward = float((mu * (mu / pi).log()).sum()), float((pi * (pi / mu).log()).sum())
    assert expected == pytest.approx(forward)
    assert abs(forward - backward) > 0.04


def test_no_row_has_no_gap() -> None:
    empty = gap_figures(**of(PI[:0], MU[:0], MASK[:0]))
    assert {name: float(value) for name, value in empty.items()} == {"gap_mean": 0, "gap_max": 0, "kl": 0}


def test_equal_probabilities_have_no_gap() -> None:
    assert all(float(value) == 0 for value in gap_figures(**of(mu=PI)).values())
    assert not is_far(**of(mu=PI), above=1e-9).any()
    assert truncated_ratios(**of(mu=PI), max_ratio=2.0).tolist() == [[1, 1, 1], [1, 0, 0]]


def test_is_far_reads_the_mean_of_each_row() -> None:
    # row means of |d|: (0 + .693 + 1.099) / 3 = .597; .693
    assert is_far(**of(), above=0.5).tolist() == [True, True]
    assert is_far(**of(), above=0.65).tolist() == [False, True]
    assert is_far(**of(), above=0.7).tolist() == [False, False]
    # a gap counts whichever of the two is larger
    assert is_far(log_probs=MU, sampler_log_probs=PI, response_mask=MASK, above=0.65).tolist() == [False, True]


def test_truncated_ratios_of_tokens() -> None:
    # pi / mu = 1, 2, 1/3 and 2
    whole = truncated_ratios(**of(), max_ratio=5.0)
    torch.testing.assert_close(whole, torch.tensor([[1.0, 2.0, 1 / 3], [2.0, 0.0, 0.0]]))
    cut = truncated_ratios(**of(), max_ratio=1.5)
    torch.testing.assert_close(cut, torch.tensor([[1.0, 1.5, 1 / 3], [1.5, 0.0, 0.0]]))


def test_truncated_ratios_of_sequences() -> None:
    # 1 x 2 x 1/3 = 2/3 at each token of the first row; 2, cut at 1.5, in the second
    got = truncated_ratios(**of(), max_ratio=1.5, level="sequence")
    torch.testing.assert_close(got, torch.tensor([[2 / 3, 2 / 3, 2 / 3], [1.5, 0.0, 0.0]]))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_huge_ratio_is_the_cap_and_not_infinite(level: str) -> None:
    mu = torch.full((1, 40), -500.0)
    got = truncated_ratios(
        **of(torch.zeros(1, 40), mu, torch.ones(1, 40, dtype=torch.bool)), max_ratio=2.0, level=level
    )  # type: ignore[arg-type]
    torch.testing.assert_close(got, torch.full((1, 40), 2.0))
    none = truncated_ratios(**of(mu, torch.zeros(1, 40), torch.ones(1, 40, dtype=torch.bool)), max_ratio=2.0)
    assert none.eq(0).all()


def test_ratios_correct_an_expectation() -> None:
    """E_mu[min(pi/mu, C) f] is E_pi[f] where nothing is cut, and less than E_mu[f] is off where something is."""
    mu, pi, f = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5]), torch.tensor([1.0, 2.0, 4.0])
    exact, plain = float((pi * f).sum()), float((mu * f).sum())  # 2.8, 1.9
    ratios = {
        cap: truncated_ratios(**of(pi.log()[:, None], mu.log()[:, None], MASK[[1] * 3, :1]), max_ratio=cap)[:, 0]
        for cap in (2.0, 3.0)
    }
    assert float((mu * ratios[3.0] * f).sum()) == pytest.approx(exact)
    cut = float((mu * ratios[2.0] * f).sum())  # .5 x .4 x 1 + .3 x 1 x 2 + .2 x 2 x 4 = 2.4
    assert cut == pytest.approx(2.4)
    assert abs(cut - exact) < abs(plain - exact)


@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_the_clipped_surrogate_is_homogeneous_in_advantages(dual_clip: float | None) -> None:
    """So that a ratio may multiply the advantage before clipping or the value after it."""
    torch.manual_seed(0)
    log_probs, behaviour = torch.randn(4, 5), torch.randn(4, 5)
    advantages, ratios = torch.randn(4, 5), torch.rand(4, 5) * 2
    common = {"log_probs": log_probs, "old_log_probs": behaviour, "dual_clip": dual_clip}
    before = clipped_surrogate(advantages=advantages * ratios, **common)  # type: ignore[arg-type]
    after = clipped_surrogate(advantages=advantages, **common) * ratios  # type: ignore[arg-type]
    torch.testing.assert_close(before, after)
