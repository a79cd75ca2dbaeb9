"""Rollouts in the training process: a lean decoding loop over a Hugging Face causal LM.

One prefill per prompt serves all its samples (past.py); finished rows leave the batch; each row's randomness depends only
on its own seed, so the samples do not change with the batch they are drawn in, nor with the number of ranks.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from repirl.rollout.past import prefill, remaining
from repirl.structs import Generator, Response

_STEPS_BETWEEN_DROPS = {"cpu": 1}  # of finished rows; 8 on other devices


class InProcess(Generator):
    """Samples by the policy's own forward pass.

    Args:
        max_batch_rows: rows decoded at a time; more only where one prompt has more samples, which go together.
        stop_strings: a response ends when its text contains one (besides EOS).
    """

    def __init__(self, max_batch_rows: int = 128, stop_strings: list[str] | None = None) -> None:
        if max_batch_rows < 1:
            raise ValueError(f"rollout: max_batch_rows must be at least 1, not {max_batch_rows}")
        self.max_batch_rows, self.stop_strings = max_batch_rows, stop_strings or []

    def attach(
        self,
        model: PreTrainedModel,
        *,
        decode: Callable[[Sequence[int]], str],
        pad_id: int,
        eos_ids: Sequence[int],
        max_response_tokens: int,
    ) -> None:
        """Says whose weights to use and when a response ends; the weights are read anew at every call."""
        self.model, self.decode, self.pad_id = model, decode, pad_id
        self.eos_ids, self.max_response_tokens = tuple(eos_ids), max_response_tokens

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        seeds: Sequence[int],
        temperature: float = 1.0,
        limits: Sequence[int] | None = None,
    ) -> list[list[Response]]:
        """`samples` responses to each prompt, of at most max_response_tokens tokens; `temperature` 0 is greedy."""
        most = limits_of(prompts, seeds, limits, self.max_response_tokens)
        step = max(1, self.max_batch_rows // samples)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # similar lengths pad least
        found: dict[int, list[Response]] = {}
        for first in range(0, len(order), step):
            chunk = order[first : first + step]
            uniforms = torch.cat([_uniforms(seeds[i], samples, self.max_response_tokens) for i in chunk])
            with _evaluating(self.model):
                tokens = self._decode_chunk(
                    [prompts[i] for i in chunk], samples, uniforms, temperature, [most[i] for i in chunk]
                )
            for row, i in enumerate(chunk):
                found[i] = [self._response(ids) for ids in tokens[row * samples : (row + 1) * samples]]
        return [found[i] for i in range(len(prompts))]

    def _response(self, ids: list[int]) -> Response:
        text = self.decode(ids)
        finished = ids[-1] in self.eos_ids or any(s in text for s in self.stop_strings)
        return Response(token_ids=tuple(ids), text=text, finished=finished)

    def _decode_chunk(
        self,
        prompts: list[Sequence[int]],
        samples: int,
        uniforms: Float[Tensor, "rows time"],
        temperature: float,
        limits: list[int],
    ) -> list[list[int]]:
        device = self.model.device
        logits, past = prefill(self.model, prompts, samples, self.pad_id)
        logits, uniforms = logits.repeat_interleave(samples, 0), uniforms.to(device)
        lengths = torch.tensor([len(p) for p in prompts], device=device).repeat_interleave(samples)
        eos = torch.tensor(self.eos_ids, dtype=torch.long, device=device)
        # Asking which rows are done makes the CPU wait for the device: there they may run on for some steps.
        every = 1 if self.stop_strings else _STEPS_BETWEEN_DROPS.get(device.type, 8)

        rows = len(prompts) * samples
        longest = max(limits)
        out = torch.full((rows, longest), self.pad_id, device=device)
        count = torch.tensor(limits, device=device).repeat_interleave(samples)
        active = torch.arange(rows, device=device)  # the original row of each row in the batch
        for t in range(longest):
            token = draw(logits, uniforms[active, t], temperature)
            out[active, t] = token
            ends = (token[:, None] == eos).any(-1) | self._stopped(out, active, t)
            count[active] = torch.where(ends, count[active].clamp(max=t + 1), count[active])
            if t + 1 == longest:
                break
            if (t + 1) % every == 0 and (done := count[active] <= t + 1).any():
                order = remaining(done)
                if not len(order):
                    break
                active, token = active[order], token[order]
                past.keep(order)
            logits = past.step(self.model, token, lengths[active] + t)
        return [row[:n] for row, n in zip(out.tolist(), count.tolist(), strict=True)]

    def _stopped(self, out: Int[Tensor, "rows time"], active: Int[Tensor, " n"], t: int) -> Bool[Tensor, " n"]:
        """Rows whose last few tokens complete a stop string."""
        if not self.stop_strings:
            return torch.zeros(len(active), dtype=torch.bool, device=out.device)
        reach = max(len(s.encode()) for s in self.stop_strings)  # a token has at least one byte, not one character
        tails = out[active, max(0, t - reach) : t + 1].tolist()
        texts = [self.decode(tail) for tail in tails]
        return torch.tensor([any(s in text for s in self.stop_strings) for text in texts], device=out.device)


def limits_of(
    prompts: Sequence[Sequence[int]], seeds: Sequence[int], limits: Sequence[int] | None, most: int
) -> list[int]:
    """The most tokens of each prompt's responses. Raises ValueError where a prompt has no seed or no room."""
    if len(prompts) != len(seeds) or (limits is not None and len(limits) != len(prompts)):
        counts = f"{len(prompts)} prompts but {len(seeds)} seeds"
        raise ValueError(counts if limits is None else f"{counts} and {len(limits)} limits")
    if limits is not None and min(limits, default=1) < 1:
        raise ValueError(f"a response has at least 1 token: its limit cannot be {min(limits)}")
    return [most] * len(prompts) if limits is None else [min(limit, most) for limit in limits]


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout; and in training mode gradient checkpointing would drop the cache."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def draw(
    logits: Float[Tensor, "rows vocabulary"], uniform: Float[Tensor, " rows"], temperature: float
) -> Int[Tensor, " rows"]:
    """One token a row: argmax at temperature 0, else the inverse CDF of softmax(logits / temperature) at `uniform`."""
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = (logits.float() if temperature == 1 else logits.float() / temperature).softmax(-1).cumsum(-1)
    # The first index whose cumulative probability exceeds u * total: a token of probability 0 is never drawn.
    target = (uniform * cumulative[:, -1]).clamp(max=cumulative[:, -1].nextafter(cumulative.new_zeros(())))
    # NaN logits would give an index past the end; the module's check of log-probabilities then names the prompt.
    return torch.searchsorted(cumulative, target[:, None], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def _uniforms(seed: int, samples: int, steps: int) -> Float[Tensor, "samples steps"]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, steps, generator=generator)


def row_seed(*keys: int) -> int:
    """A 63-bit seed from integers (run seed, iteration, position in the global batch)."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
