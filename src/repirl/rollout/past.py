"""What the rows of a decoding step attend to: keys and values of the tokens before.

`SharedPast` holds each prompt's once, for all its samples, and writes each row's own in place. Models that need an
attention of their own (sliding windows, recurrent layers) keep transformers' cache: `RepeatedPast`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from repirl.structs import SHARED_PREFIX

_FIRST_CAPACITY = 64  # response tokens; doubled whenever it is full


def remaining(done: Bool[Tensor, " rows"]) -> Int[Tensor, " remaining"]:
    """The rows that are not done, in a new order: the last take the places of those that are, the others stay."""
    count = int((~done).sum())
    order = torch.arange(count, device=done.device)
    order[done[:count]] = count + (~done[count:]).nonzero()[:, 0]
    return order


class SharedPast:
    """Of R rows, `samples` for each of G prompts, in a model with the attention of models/packing.py.

    prompts: each layer's keys and values, both [G, kv heads, P, width]; they are changed in place.
    real: [G, P], False where a prompt is padded.
    """

    def __init__(
        self, prompts: list[tuple[Tensor, Tensor]], real: Bool[Tensor, "prompts columns"], samples: int
    ) -> None:
        self._prompts, self._samples = prompts, samples
        self._own: list[tuple[Tensor, Tensor]] = []  # the same of the rows' own: [R, kv heads, capacity, width]
        self._length = 0  # how much of the capacity is used
        self._slots = torch.arange(len(real) * samples, device=real.device)  # of each row in prompts x samples
        bias = torch.zeros(real.shape, dtype=prompts[0][0].dtype, device=real.device)
        self._bias = bias.masked_fill(~real, -torch.inf)[:, None, None]
        # A mask of four dimensions is taken as it is: transformers then builds none.
        self._no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=real.device)

    def step(
        self, model: PreTrainedModel, tokens: Int[Tensor, " rows"], positions: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows vocabulary"]:
        """The logits after one more token a row."""
        self._length += 1
        logits: Tensor = model(
            input_ids=tokens[:, None],
            attention_mask=self._no_mask,
            position_ids=positions[:, None],
            use_cache=False,
            past=self,
        ).logits[:, -1]
        return logits

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "rows heads 1 width"],
        key: Float[Tensor, "rows kv_heads 1 width"],
        value: Float[Tensor, "rows kv_heads 1 width"],
        scaling: float,
    ) -> Float[Tensor, "rows 1 heads width"]:
        """Attention of each row's new token to its prompt, its own tokens before, and itself: one softmax over all."""
        rows, heads, _, width = query.shape
        prompt_keys, prompt_values = self._prompts[layer]
        own_keys, own_values = self._written(layer, key, value)
        # The query heads that read the same key head stand beside one another, so that no key is repeated for them.
        q = (query * scaling).view(rows, key.shape[1], -1, width)
        of_prompt = self._by_row(self._by_prompt(q) @ prompt_keys.mT + self._bias)
        scores = torch.cat([of_prompt, q @ own_keys.mT], dim=-1)
        weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
        on_prompt, on_own = weights.split([prompt_keys.shape[2], self._length], dim=-1)
        out = self._by_row(self._by_prompt(on_prompt) @ prompt_values) + on_own @ own_values
        return out.reshape(rows, 1, heads, width)

    def keep(self, order: Int[Tensor, " remaining"]) -> None:
        """Only these rows go on, in this order, and only their prompts; those that stay in their place are not copied."""
        self._own = [(_kept(k, order, self._length), _kept(v, order, self._length)) for k, v in self._own]
        self._slots = self._slots[order]
        prompts, sample = self._slots // self._samples, self._slots % self._samples
        unused = torch.ones(len(self._bias), dtype=torch.bool, device=order.device)
        unused[prompts] = False
        if not unused.any():
            return
        left = remaining(unused)
        number = torch.empty_like(unused, dtype=torch.long)
        number[left] = torch.arange(len(left), device=left.device)
        self._slots = number[prompts] * self._samples + sample
        self._bias = self._bias[left]
        self._prompts = [(_kept(k, left), _kept(v, left)) for k, v in self._prompts]

    def _written(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [R, kv heads, length, width] of the rows' own tokens, the new one included."""
        if layer == len(self._own):
            rows, heads, _, width = key.shape
            room = (rows, heads, _FIRST_CAPACITY, width)
            self._own.append((key.new_empty(room), key.new_empty(room)))
        keys, values = self._own[layer]
        if keys.shape[2] < self._length:
            keys, values = (torch.cat([x, torch.empty_like(x)], dim=2) for x in (keys, values))
            self._own[layer] = keys, values
        keys[:, :, self._length - 1], values[:, :, self._length - 1] = key[:, :, 0], value[:, :, 0]
        return keys[:, :, : self._length], values[:, :, : self._length]

    def _by_prompt(self, x: Float[Tensor, "rows kv_heads n m"]) -> Float[Tensor, "prompts kv_heads samples_n m"]:
        """All rows of a prompt beside one another, 0 where a row has left."""
        _, heads, n, m = x.shape
        grid = x.new_zeros(len(self._bias) * self._samples, heads, n, m).index_copy_(0, self._slots, x)
        return grid.view(-1, self._samples, heads, n, m).transpose(1, 2).reshape(-1, heads, self._samples * n, m)

    def _by_row(self, x: Float[Tensor, "prompts kv_heads samples_n m"]) -> Float[Tensor, "rows kv_heads n m"]:
        """The inverse of `_by_prompt`."""
        prompts, heads, _, m = x.shape
        grid = x.view(prompts, heads, self._samples, -1, m).transpose(1, 2)
        return grid.reshape(prompts * self._samples, heads, -1, m)[self._slots]


def _kept(x: Tensor, order: Int[Tensor, " remaining"], columns: int | None = None) -> Tensor:
    """`x` cut to the rows `order`, in place: only those that change their place are copied, and of them `columns`."""
    moved = (order != torch.arange(len(order), device=order.device)).nonzero()[:, 0]
    x[moved, :, :columns] = x[order[moved], :, :columns]
    return x[: len(order)]


class RepeatedPast:
    """transformers' own cache, with the prompt's keys and values repeated for each of its rows."""

    def __init__(self, cache: DynamicCache, real: Bool[Tensor, "prompts columns"] | None, samples: int) -> None:
        cache.batch_repeat_interleave(samples)
        self._cache, self._real = cache, None if real is None else real.repeat_interleave(samples, 0)

    def step(
        self, model: PreTrainedModel, tokens: Int[Tensor, " rows"], positions: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows vocabulary"]:
        """The logits after one more token a row."""
        if self._real is not None:
            self._real = torch.nn.functional.pad(self._real, (0, 1), value=True)
        logits: Tensor = model(
            input_ids=tokens[:, None],
            attention_mask=self._real,
            position_ids=positions[:, None],
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]
        return logits

    def keep(self, order: Int[Tensor, " remaining"]) -> None:
        """Only these rows go on, in this order."""
        self._cache.batch_select_indices(order)
        self._real = None if self._real is None else self._real[order]


def prefill(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], samples: int, pad_id: int
) -> tuple[Float[Tensor, "prompts vocabulary"], SharedPast | RepeatedPast]:
    """Runs each prompt once: the logits of its first response token, and the past of `samples` rows a prompt."""
    device, width = model.device, max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    starts = torch.tensor([width - len(p) for p in prompts], device=device)[:, None]
    columns = torch.arange(width, device=device)
    real = columns >= starts
    padded = min(map(len, prompts)) < width
    cache = DynamicCache(config=model.config)
    logits: Tensor = model(
        input_ids=ids,
        attention_mask=real if padded else None,
        position_ids=(columns - starts).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    if model.config.get_text_config()._attn_implementation == SHARED_PREFIX:
        return logits, SharedPast([(layer.keys, layer.values) for layer in cache.layers], real, samples)
    return logits, RepeatedPast(cache, real if padded else None, samples)
