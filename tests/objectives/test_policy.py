"""Clipped surrogate and KL estimators in worked numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from repirl.objectives.policy import clipped_surrogate, kl_estimate, policy_objective, was_clipped

# rho:                         inside   above   below   inside   above   below
RHO = torch.tensor([[1.1, 1.5, 0.5, 0.9, 1.5, 0.5]], dtype=torch.float64)
ADVANTAGES = torch.tensor([[2.0, 2.0, 2.0, -2.0, -2.0, -2.0]], dtype=torch.float64)
BEHAVIOUR = torch.tensor([[-1.0, -2.0, -0.5, -3.0, -0.1, -1.0]], dtype=torch.float64)


def surrogate(rho: Tensor, advantages: Tensor, **bounds: float) -> tuple[Tensor, Tensor]:
    """Values, and their gradient in log pi."""
    behaviour = BEHAVIOUR[:, : rho.shape[1]]
    log_probs = (behaviour + rho.log()).requires_grad_()
    values = clipped_surrogate(log_probs=log_probs, old_log_probs=behaviour, advantages=advantages, **bounds)
    (gradient,) = torch.autograd.grad(values.sum(), log_probs)
    return values.detach(), gradient


def close(got: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(got, torch.tensor([expected], dtype=got.dtype), rtol=0, atol=1e-12)


def test_clipped_surrogate() -> None:
    values, gradient = surrogate(RHO, ADVANTAGES)
    # A = 2: 1.1 x 2; min(3, 1.2 x 2); min(1, .8 x 2). A = -2: .9 x -2; min(-3, 1.2 x -2); min(-1, .8 x -2)
    close(values, [2.2, 2.4, 1.0, -1.8, -3.0, -1.6])
    # d/d log pi = rho A, and 0 where the clipped value was taken
    close(gradient, [2.2, 0, 1.0, -1.8, -3.0, 0])


def test_bounds_can_differ() -> None:
    values, gradient = surrogate(RHO, ADVANTAGES, clip_low=0.6, clip_high=0.05)
    # above 1.05: 2.1 twice; .5 is within 1 - .6
    close(values, [2.1, 2.1, 1.0, -1.8, -3.0, -1.0])
    close(gradient, [0, 0, 1.0, -1.8, -3.0, -1.0])


def test_on_policy_the_gradient_is_the_advantage() -> None:
    _, gradient = surrogate(torch.ones_like(RHO), ADVANTAGES)
    close(gradient, [2, 2, 2, -2, -2, -2])


def test_dual_clip_bounds_the_loss_of_bad_tokens_only() -> None:
    rho = torch.tensor([[5.0, 2.9, 0.5, 5.0]], dtype=torch.float64)
    advantages = torch.tensor([[-2.0, -2.0, -2.0, 2.0]], dtype=torch.float64)
    values, gradient = surrogate(rho, advantages, dual_clip=3.0)
    # max(-10, -6); -5.8 > -6; -1.6 as before; 1.2 x 2
    close(values, [-6, -5.8, -1.6, 2.4])
    close(gradient, [0, -5.8, 0, 0])
    values, gradient = surrogate(rho, advantages)
    close(values, [-10, -5.8, -1.6, 2.4])


@pytest.mark.parametrize("bounds", [{}, {"clip_low": 0.6, "clip_high": 0.05}, {"dual_clip": 1.1}])
def test_was_clipped_is_where_the_gradient_is_gone(bounds: dict[str, float]) -> None:
    _, gradient = surrogate(RHO, ADVANTAGES, **bounds)
    arguments = {"log_probs": BEHAVIOUR + RHO.log(), "old_log_probs": BEHAVIOUR}
    clipped = was_clipped(advantages=ADVANTAGES, **arguments, **bounds)
    assert clipped.any()
    assert torch.equal(clipped, gradient == 0)
    assert not was_clipped(advantages=torch.zeros_like(ADVANTAGES), **arguments, **bounds).any()


FAR = [-1000.0, -100.0, -50.0, -1.0, 0.0, 1.0, 50.0, 100.0, 1000.0]


@pytest.mark.parametrize("dual_clip", [None, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ratios_of_any_size_have_finite_gradients(dtype: torch.dtype, dual_clip: float | None) -> None:
    def gradients(advantage: float) -> dict[float, float]:
        log_probs = torch.tensor([FAR], dtype=dtype).requires_grad_()
        zeros = torch.zeros_like(log_probs)
        values = clipped_surrogate(
            log_probs=log_probs, old_log_probs=zeros, advantages=zeros + advantage, dual_clip=dual_clip
        )
        (gradient,) = torch.autograd.grad(values.sum(), log_probs)
        assert values.isfinite().all()
        assert gradient.isfinite().all()
        clipped = was_clipped(log_probs=log_probs, old_log_probs=zeros, advantages=zeros + advantage)
        if dual_clip is None:
            assert not gradient[clipped].any()
        return dict(zip(FAR, gradient[0].tolist(), strict=True))

    # d/d log pi = rho A where nothing is clipped: A > 0 up to rho = 1.2, A < 0 from rho = .8 on
    good, bad = gradients(2.0), gradients(-2.0)
    assert good[0.0] == 2
    assert good[-1.0] == pytest.approx(2 / math.e)
    assert good[-50.0] == pytest.approx(2 * math.exp(-50))
    assert [good[d] for d in (1.0, 50.0, 100.0, 1000.0)] == [0] * 4
    assert good[-1000.0] == 0  # rounded
    assert [bad[d] for d in (-1000.0, -100.0, -50.0, -1.0)] == [0] * 4
    if dual_clip is None:
        assert bad[1.0] == pytest.approx(-2 * math.e)
        assert bad[50.0] == pytest.approx(-2 * math.exp(50))
    else:  # rho > 3
        assert bad[1.0] == pytest.approx(-2 * math.e)
        assert bad[50.0] == 0
    assert bad[100.0] == bad[1000.0] == 0
    assert set(gradients(0.0).values()) == {0.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kl_of_any_distance_has_a_finite_gradient(dtype: torch.dtype) -> None:
    log_probs = torch.tensor([FAR], dtype=dtype).requires_grad_()
    values = kl_estimate(log_probs=log_probs, reference_log_probs=torch.zeros_like(log_probs))
    (gradient,) = torch.autograd.grad(values.sum(), log_probs)
    assert values.isfinite().all()
    assert (values >= 0).all()
    # 1 - exp(-d), and 0 where d was cut
    expected = [0, 0, 1 - math.exp(50), 1 - math.e, 0, 1 - 1 / math.e, 1, 1, 1]
    torch.testing.assert_close(gradient, torch.tensor([expected], dtype=dtype))
    assert values[0, -1] == 999


def test_kl_estimates() -> None:
    # pi / ref = 2, 1/2, 1: d = ln 2, -ln 2, 0
    log_probs = torch.tensor([[0.4, 0.2, 0.3]], dtype=torch.float64).log()
    reference = torch.tensor([[0.2, 0.4, 0.3]], dtype=torch.float64).log()
    pair = {"log_probs": log_probs, "reference_log_probs": reference}
    ln2 = math.log(2)
    close(kl_estimate(**pair, estimator="k1"), [ln2, -ln2, 0])
    close(kl_estimate(**pair, estimator="k2"), [ln2**2 / 2, ln2**2 / 2, 0])
    close(kl_estimate(**pair, estimator="k3"), [1 / 2 - 1 + ln2, 2 - 1 - ln2, 0])
    assert torch.equal(kl_estimate(**pair), kl_estimate(**pair, estimator="k3"))


def test_k3_is_never_negative() -> None:
    log_probs, reference = (
        -5 * torch.rand(1, 1000, generator=torch.Generator().manual_seed(i)).double() for i in (0, 1)
    )
    assert (kl_estimate(log_probs=log_probs, reference_log_probs=reference) >= 0).all()
    assert (kl_estimate(log_probs=log_probs, reference_log_probs=reference, estimator="k1") < 0).any()


def test_expected_values_and_gradients_are_those_of_the_kl() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 7, generator=generator, dtype=torch.float64).requires_grad_()
    reference = torch.randn(1, 7, generator=generator, dtype=torch.float64).log_softmax(-1)
    log_probs = logits.log_softmax(-1)
    probabilities = log_probs.exp()
    kl = (probabilities * (log_probs - reference)).sum()
    (gradient,) = torch.autograd.grad(kl, logits, retain_graph=True)
    assert kl > 0.1
    for estimator in ("k1", "k3"):  # unbiased values
        estimate = kl_estimate(log_probs=log_probs, reference_log_probs=reference, estimator=estimator)
        torch.testing.assert_close((probabilities * estimate).sum(), kl)
    # k2: the gradient at a sample, averaged over samples, is that of the KL; the gradient of k1 averages to nothing.
    for estimator, expected in (("k2", gradient), ("k1", torch.zeros_like(gradient))):
        estimate = kl_estimate(log_probs=log_probs, reference_log_probs=reference, estimator=estimator)
        (got,) = torch.autograd.grad((probabilities.detach() * estimate).sum(), logits, retain_graph=True)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_the_policy_s_objective_adds_entropy_and_takes_the_kl() -> None:
    # rho = 1.1, 1.5; A = 2, -2: surrogate 2.2, -3. Entropy .5, .8 times .1: +.05, +.08.
    # pi / start = 2, 1/2: k3 = 1/2 - 1 + ln 2, 2 - 1 - ln 2, times .2, is taken off.
    log_probs = torch.tensor([[0.4, 0.2]], dtype=torch.float64).log()
    rho = torch.tensor([[1.1, 1.5]], dtype=torch.float64)
    arguments = {
        "log_probs": log_probs,
        "entropy": torch.tensor([[0.5, 0.8]], dtype=torch.float64),
        "old_log_probs": log_probs - rho.log(),
        "advantages": torch.tensor([[2.0, -2.0]], dtype=torch.float64),
        "reference_log_probs": torch.tensor([[0.2, 0.4]], dtype=torch.float64).log(),
    }
    ln2 = math.log(2)
    got = policy_objective(**arguments, entropy_coef=0.1, kl_coef=0.2)
    close(got.value, [2.25 - 0.2 * (ln2 - 0.5), -2.92 - 0.2 * (1 - ln2)])
    close(got.kl, [ln2 - 0.5, 1 - ln2])
    close(got.old_gap, [math.log(1.1), math.log(1.5)])
    assert got.clipped.tolist() == [[False, False]]
    close(policy_objective(**arguments, entropy_coef=0.1).value, [2.25, -2.92])
    close(policy_objective(**arguments, clip_high=0.05).value, [2.1, -3])


def test_entropy_is_a_bonus() -> None:
    """Without advantages a step on the objective makes a policy less sure (the paper's eq. 6 prints the other sign)."""
    logits = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64).requires_grad_()

    def entropy(at: Tensor) -> Tensor:
        return -(at.softmax(-1) * at.log_softmax(-1)).sum(-1, keepdim=True)

    log_probs = logits.log_softmax(-1)[:, :1]
    value = policy_objective(
        log_probs=log_probs,
        entropy=entropy(logits),
        old_log_probs=log_probs.detach(),
        advantages=torch.zeros_like(log_probs),
        entropy_coef=0.1,
    ).value
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert entropy(logits + gradient) > entropy(logits) + 1e-3
