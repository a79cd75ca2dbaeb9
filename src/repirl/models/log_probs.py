"""Token log-probabilities and entropies from hidden states without a full [tokens, vocabulary] tensor."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 2**24  # of logits in float32 at a time: 64 MiB


class _TokenLogProbs(torch.autograd.Function):
    """Forward and backward over chunks of tokens; the backward pass recomputes the logits instead of keeping them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden, weight, bias, tokens)
        ctx.chunk = chunk
        log_probs, entropies = [], []
        for h, a in zip(hidden.split(chunk), tokens.split(chunk), strict=True):
            logits = torch.nn.functional.linear(h, weight, bias).float()
            normaliser = logits.logsumexp(-1)
            log_probs.append(logits.gather(-1, a[:, None])[:, 0] - normaliser)
            # H = logsumexp - E_p[logit]; softmax in place of the logits' storage would lose them, so one more chunk is held.
            entropies.append(normaliser - (logits.softmax(-1) * logits).sum(-1))
        return torch.cat(log_probs), torch.cat(entropies)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_log_probs: Tensor, grad_entropies: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        hidden, weight, bias, tokens = ctx.saved_tensors
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        grad_hidden = []
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if want_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if want_bias else None
        for h, a, g_log_prob, g_entropy in zip(
            hidden.split(ctx.chunk),
            tokens.split(ctx.chunk),
            grad_log_probs.split(ctx.chunk),
            grad_entropies.split(ctx.chunk),
            strict=True,
        ):
            log_p = torch.nn.functional.linear(h, weight, bias).float().log_softmax(-1)
            p = log_p.exp()
            # d log p(a) / d logit = onehot(a) - p;  d H / d logit = -p (log p + H)
            entropy = -(p * log_p).sum(-1, keepdim=True)
            # In the storage of log_p: a chunk of logits is the largest thing here, and three at a time are enough.
            grad = log_p.add_(entropy).mul_(g_entropy[:, None]).add_(g_log_prob[:, None]).mul_(p).neg_()
            del log_p, p
            grad.scatter_add_(-1, a[:, None], g_log_prob[:, None].float())
            if want_hidden:
                grad_hidden.append(grad.to(weight.dtype) @ weight)
            if grad_weight is not None:
                grad_weight.addmm_(grad.t(), h.float())
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        return (
            torch.cat(grad_hidden).to(hidden.dtype) if want_hidden else None,
            grad_weight.to(weight.dtype) if grad_weight is not None else None,
            grad_bias.to(bias.dtype) if grad_bias is not None else None,
            None,
            None,
        )


def token_log_probs(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocabulary hidden"],
    tokens: Int[Tensor, " tokens"],
    bias: Float[Tensor, " vocabulary"] | None = None,
    chunk: int | None = None,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Log softmax(W h + b)[a] and the entropy (nats) of softmax(W h + b), both float32 and differentiable once.

    chunk: tokens whose logits exist at a time; None = what fits into 64 MiB.
    """
    chunk = chunk or max(1, CHUNK_ELEMENTS // len(weight))
    if not len(hidden):
        empty = hidden.new_zeros(0, dtype=torch.float32)
        return empty, empty
    apply: Any = _TokenLogProbs.apply
    log_probs, entropies = apply(hidden, weight, bias, tokens, chunk)
    return log_probs, entropies
