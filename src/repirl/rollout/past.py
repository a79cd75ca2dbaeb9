"""What the rows of a decoding step attend to: keys and values of the tokens before, written in place.

`SharedPast` holds those of each prompt once for all its samples, where that pays and the model has the attention of
models/packing.py. `RepeatedPast` repeats them, in transformers' own cache, and serves every model.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from repirl.structs import SHARED_PREFIX

# Prompt tokens that would be repeated for a prompt's other samples: with fewer, one attention over repeated keys takes
# less time than two over shared ones.
SHARED_FROM = 400
_ROOM = 32  # tokens a row at first; doubled whenever they are used up


def remaining(done: Bool[Tensor, " rows"]) -> Int[Tensor, " remaining"]:
    """The rows that are not done, in a new order: the last take the places of those that are, the others stay."""
    count = int((~done).sum())
    order = torch.arange(count, device=done.device)
    order[done[:count]] = count + (~done[count:]).nonzero()[:, 0]
    return order


class _Moves:
    """How rows come into a new order in place: only those that change their place are copied."""

    def __init__(self, order: Int[Tensor, " remaining"]) -> None:
        self._count = len(order)
        self._to = (order != torch.arange(len(order), device=order.device)).nonzero()[:, 0]
        self._from = order[self._to]

    def __call__(self, x: Tensor) -> Tensor:
        """`x` with the rows in their new order."""
        x[self._to] = x[self._from]
        return x[: self._count]


class InPlaceLayer(DynamicLayer):
    """One layer's keys and values [rows, kv heads, tokens, width], as views of larger buffers.

    transformers' own layer copies everything at every token.
    """

    keys: Tensor
    values: Tensor
    _buffers: tuple[Tensor, Tensor]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Adds the new tokens' and returns all."""
        before = self.get_seq_length()
        total = before + key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = (key_states[:, :, :0], value_states[:, :, :0])
        if total > self._buffers[0].shape[2]:
            self._buffers = (self._with_room(self._buffers[0], total), self._with_room(self._buffers[1], total))
        keys, values = self._buffers
        keys[:, :, before:total], values[:, :, before:total] = key_states, value_states
        self.keys, self.values = keys[:, :, :total], values[:, :, :total]
        return self.keys, self.values

    @staticmethod
    def _with_room(x: Tensor, total: int) -> Tensor:
        rows, heads, before, width = x.shape
        return torch.cat([x, x.new_empty(rows, heads, max(_ROOM, before, total - before), width)], dim=2)

    def keep(self, moves: _Moves) -> None:
        """Only these rows go on."""
        if self.is_initialized:
            count = len(moves(self.keys))
            moves(self.values)
            self.keys, self.values = self.keys[:count], self.values[:count]
            self._buffers = (self._buffers[0][:count], self._buffers[1][:count])


class SharedPast:
    """Of R rows, `samples` for each of G prompts.

    cache: of the prompts alone, keys and values [G, kv heads, P, width] a layer; they are changed in place.
    real: [G, P], False where a prompt is padded.
    """

    def __init__(self, cache: DynamicCache, real: Bool[Tensor, "prompts columns"], samples: int) -> None:
        layers: list[Any] = cache.layers
        self._prompts: list[tuple[Tensor, Tensor]] = [(layer.keys, layer.values) for layer in layers]
        self._own = [InPlaceLayer() for _ in layers]  # of the rows' own tokens
        self._samples = samples
        self._prompt = torch.arange(len(real), device=real.device).repeat_interleave(samples)  # of each row
        self._sample = torch.arange(samples, device=real.device).repeat(len(real))  # its number among its prompt's
        bias = torch.zeros(real.shape, dtype=self._prompts[0][0].dtype, device=real.device)
        self._bias = bias.masked_fill(~real, -torch.inf)[:, None, None]
        # A mask of four dimensions is taken as it is: transformers then builds none.
        self._no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=real.device)

    def step(
        self, model: PreTrainedModel, tokens: Int[Tensor, " rows"], positions: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows vocabulary"]:
        """The logits after one more token a row."""
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
        own_keys, own_values = self._own[layer].update(key, value)
        # The query heads that read the same key head stand beside one another, so that no key is repeated for them.
        q = (query * scaling).view(rows, key.shape[1], -1, width)
        on_prompt = self._by_row(self._by_prompt(q) @ prompt_keys.mT + self._bias)
        scores = torch.cat([on_prompt, q @ own_keys.mT], dim=-1)
        weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
        on_prompt, on_own = weights.split([prompt_keys.shape[2], own_keys.shape[2]], dim=-1)
        out: Tensor = self._by_row(self._by_prompt(on_prompt) @ prompt_values) + on_own @ own_values
        return out.reshape(rows, 1, heads, width)

    def keep(self, order: Int[Tensor, " remaining"]) -> None:
        """Only these rows go on, in this order, and only their prompts."""
        moves = _Moves(order)
        for own in self._own:
            own.keep(moves)
        self._prompt, self._sample = self._prompt[order], self._sample[order]
        unused = torch.ones(len(self._bias), dtype=torch.bool, device=order.device)
        unused[self._prompt] = False
        if not unused.any():
            return
        left = remaining(unused)
        number = left.new_zeros(len(unused))
        number[left] = torch.arange(len(left), device=left.device)
        self._prompt, self._bias = number[self._prompt], self._bias[left]
        moves = _Moves(left)
        self._prompts = [(moves(keys), moves(values)) for keys, values in self._prompts]

    def _by_prompt(self, x: Float[Tensor, "rows kv_heads n m"]) -> Float[Tensor, "prompts kv_heads samples_n m"]:
        """All rows of a prompt beside one another; where a row has left stands anything, which nobody reads."""
        _, heads, n, m = x.shape
        grid = x.new_empty(len(self._bias), heads, self._samples, n, m)
        grid[self._prompt, :, self._sample] = x
        return grid.view(-1, heads, self._samples * n, m)

    def _by_row(self, x: Float[Tensor, "prompts kv_heads samples_n m"]) -> Float[Tensor, "rows kv_heads n m"]:
        """The inverse of `_by_prompt`."""
        prompts, heads, _, m = x.shape
        return x.view(prompts, heads, self._samples, -1, m)[self._prompt, :, self._sample]


class RepeatedPast:
    """Of R rows, `samples` for each of G prompts, whose keys and values are repeated for each row.

    cache: of the prompts alone. real: [G, P], False where a prompt is padded; None where none is.
    ready_mask: the attention takes such a mask of each row's columns, so that transformers need not build one.
    """

    def __init__(
        self, cache: DynamicCache, real: Bool[Tensor, "prompts columns"] | None, samples: int, *, ready_mask: bool
    ) -> None:
        cache.batch_repeat_interleave(samples)
        self._layers: list[Any] = cache.layers
        for number, layer in enumerate(self._layers):
            # Others keep a window or a state, of a size that stays.
            if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
                self._layers[number] = in_place = InPlaceLayer()
                in_place.update(layer.keys, layer.values)
            else:
                ready_mask = False
        self._cache = cache
        self._real = None if real is None else real.repeat_interleave(samples, 0)
        if self._real is not None and ready_mask:
            self._real = self._real[:, None, None]

    def step(
        self, model: PreTrainedModel, tokens: Int[Tensor, " rows"], positions: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows vocabulary"]:
        """The logits after one more token a row."""
        if self._real is not None:
            self._real = nn.functional.pad(self._real, (0, 1), value=True)
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
        moves = _Moves(order)
        for layer in self._layers:
            if isinstance(layer, InPlaceLayer):
                layer.keep(moves)
            else:
                layer.batch_select_indices(order)
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
    attention = model.config.get_text_config()._attn_implementation
    if attention == SHARED_PREFIX and (samples - 1) * width >= SHARED_FROM:
        return logits, SharedPast(cache, real, samples)
    ready_mask = attention in ("sdpa", SHARED_PREFIX)
    return logits, RepeatedPast(cache, real if padded else None, samples, ready_mask=ready_mask)
