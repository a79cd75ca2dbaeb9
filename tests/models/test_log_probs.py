"""Chunked log-probabilities and entropies against a plain log-softmax."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from repirl.models.log_probs import token_log_probs


def inputs(count: int, dtype: torch.dtype, with_bias: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(count)
    hidden, weight, bias = (torch.randn(*s, generator=generator, dtype=dtype) for s in ((count, 5), (11, 5), (11,)))
    tokens = torch.randint(11, (count,), generator=generator)
    return hidden, weight, tokens, bias if with_bias else None


def plain(hidden: Tensor, weight: Tensor, tokens: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    logits = hidden.double() @ weight.double().T + (0 if bias is None else bias.double())
    log_p = logits.log_softmax(-1)
    return log_p[torch.arange(len(tokens)), tokens], -(log_p.exp() * log_p).sum(-1)


def test_by_hand() -> None:
    # logits ln 1, ln 2, ln 5: probabilities 1/8, 1/4, 5/8
    hidden, weight = torch.ones(1, 1), torch.tensor([[1.0], [2.0], [5.0]]).log()
    log_prob, entropy = token_log_probs(hidden, weight, torch.tensor([1]))
    p = torch.tensor([1 / 8, 1 / 4, 5 / 8])
    torch.testing.assert_close(log_prob, torch.tensor([0.25]).log())
    torch.testing.assert_close(entropy, -(p * p.log()).sum()[None])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("chunk", [1, 3, 7, 100, None])
def test_values_and_gradients(chunk: int | None, with_bias: bool, dtype: torch.dtype) -> None:
    hidden, weight, tokens, bias = inputs(7, dtype, with_bias)  # 7 = 3 + 3 + 1
    leaves = [x.requires_grad_() for x in (hidden, weight, bias) if x is not None]
    got, expected = token_log_probs(hidden, weight, tokens, bias, chunk), plain(hidden, weight, tokens, bias)
    generator = torch.Generator().manual_seed(9)
    upstream = torch.randn(2, 7, generator=generator)
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other.float(), rtol=1e-5, atol=1e-5)
    # gradients of the log-probability alone, the entropy alone, and both with different factors
    for factors in (upstream * torch.tensor([[1], [0]]), upstream * torch.tensor([[0], [1]]), upstream):
        ours, plainly = (
            torch.autograd.grad(
                sum((v * f).sum() for v, f in zip(pair, factors, strict=True)), leaves, retain_graph=True
            )
            for pair in (got, expected)
        )
        for one, other in zip(ours, plainly, strict=True):
            assert one.dtype == dtype
            assert other.abs().max() > 0.05
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_chunk_size_changes_nothing(dtype: torch.dtype) -> None:
    found = []
    for chunk in (1, 2, 3, 50):
        hidden, weight, tokens, bias = inputs(20, dtype)
        leaves = [x.requires_grad_() for x in (hidden, weight, bias) if x is not None]
        log_probs, entropies = token_log_probs(hidden, weight, tokens, bias, chunk)
        found.append([log_probs, entropies, *torch.autograd.grad((log_probs + 0.3 * entropies).sum(), leaves)])
    for other in found[1:]:
        for x, y in zip(found[0], other, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_only_what_needs_a_gradient_gets_one() -> None:
    hidden, weight, tokens, bias = inputs(5, torch.float32)
    assert not token_log_probs(hidden, weight, tokens, bias, 2)[0].requires_grad
    hidden.requires_grad_()
    token_log_probs(hidden, weight, tokens, bias, 2)[0].sum().backward()
    frozen = hidden.grad
    assert frozen is not None
    assert weight.grad is None
    weight.requires_grad_()
    hidden.grad = None
    token_log_probs(hidden, weight, tokens, bias, 2)[0].sum().backward()
    assert weight.grad is not None
    assert torch.equal(hidden.grad, frozen)  # type: ignore[arg-type]


def test_large_logits_stay_finite() -> None:
    hidden, weight, tokens, bias = inputs(6, torch.float32)
    hidden = (hidden * 1e4).requires_grad_()
    log_probs, entropies = token_log_probs(hidden, weight, tokens, bias, 4)
    expected = plain(hidden.detach(), weight, tokens, bias)
    torch.testing.assert_close(log_probs, expected[0].float(), rtol=1e-5, atol=1e-2)
    (log_probs.sum() + entropies.sum()).backward()
    assert torch.isfinite(hidden.grad).all()  # type: ignore[arg-type]
    assert entropies.abs().max() < 0.1  # all but one token are out of reach


def test_bfloat16_is_normalised_in_float32() -> None:
    hidden, weight, tokens, bias = inputs(6, torch.bfloat16)
    every = [token_log_probs(hidden, weight, torch.full_like(tokens, a), bias, 4)[0] for a in range(11)]
    # Probabilities of all tokens add up to 1 far better than bfloat16 resolves.
    torch.testing.assert_close(torch.stack(every).exp().sum(0), torch.ones(6), rtol=0, atol=1e-5)
    hidden.requires_grad_()
    token_log_probs(hidden, weight, tokens, bias, 4)[0].sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16


def test_no_tokens() -> None:
    hidden, weight, tokens, bias = inputs(0, torch.float64)
    for values in token_log_probs(hidden, weight, tokens, bias):
        assert values.shape == (0,)
        assert values.dtype == torch.float32
