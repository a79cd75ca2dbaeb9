"""Whether two models are the same policy, or PRM: log-probabilities, or rewards, that they give a few rows of tokens."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

TOLERANCE = {"float32": 0.01, "float16": 0.02, "bfloat16": 0.2}
"""Mean absolute difference of log-probabilities, in nats a token, by the weights' type: what rounding alone explains.

A logit of 30 is right to 0.06 in bfloat16, and float32 matrices may be multiplied in TF32.
"""
REWARD_TOLERANCE = 1e-4
"""Mean absolute difference of rewards in float32, as a share of their mean size, or of 1 where that is below 1."""
ROWS, PROMPT, RESPONSE = 4, 4, 12


def probe_rows(vocabulary: int) -> list[list[int]]:
    """Rows of PROMPT + RESPONSE tokens from all over the vocabulary, always the same."""
    generator = torch.Generator().manual_seed(0)
    rows: list[list[int]] = torch.randint(vocabulary, (ROWS, PROMPT + RESPONSE), generator=generator).tolist()
    return rows


@torch.no_grad()
def log_probs_of(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> Float[Tensor, " tokens"]:
    """Log-probabilities of all response tokens, one row after the other, on the CPU, by one plain forward pass."""
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    with torch.autocast(model.device.type, enabled=False):
        every = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
    chosen = every[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].cpu()
    parts = [
        chosen[row, len(prompt) - 1 : len(prompt) - 1 + len(response)]
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]
    return torch.cat(parts)


def probe(model: PreTrainedModel) -> Float[Tensor, " tokens"]:
    """Log-probabilities of the probe's rows."""
    rows = probe_rows(model.config.get_text_config().vocab_size)
    return log_probs_of(model, [row[:PROMPT] for row in rows], [row[PROMPT:] for row in rows])


def require_same(expected: Tensor, got: Tensor, dtype: str, what: str) -> None:
    """Raises ValueError, with `what` and the difference, where log-probabilities differ by more than rounding."""
    gap = float((expected - got).abs().mean())
    if not gap <= TOLERANCE[dtype]:  # a NaN is no equality
        raise ValueError(
            f"{what}: its log-probabilities differ from the policy's by {gap:.3g} nats a token, where {dtype} explains at "
            f"most {TOLERANCE[dtype]}"
        )


def require_same_rewards(expected: Float[Tensor, "rows time"], got: Float[Tensor, "rows time"], what: str) -> None:
    """Raises ValueError, with `what` and the difference, where rewards in float32 differ by more than rounding."""
    gap, allowed = float((expected - got).abs().mean()), REWARD_TOLERANCE * max(1.0, float(expected.abs().mean()))
    if not gap <= allowed:  # a NaN is no equality
        raise ValueError(
            f"{what}: its rewards differ from the PRM's by {gap:.3g} a token, where rounding explains at most {allowed:.2g}"
        )
