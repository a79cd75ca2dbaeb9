"""Rows without padding: each distinct prompt once, then its responses, as one sequence of tokens.

Linear layers, norms and the output layer, which is where a transformer's time goes, then see no padding and no prompt twice;
only attention lays its queries, keys and values out in rows. Exact: every token attends to what it would attend to alone.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from repirl.structs import SHARED_PREFIX, Rows


@dataclass(frozen=True, slots=True)
class Packed:
    """G distinct prompts of at most P tokens, then R responses of at most T, as one sequence of L tokens.

    ids, positions: [1, L]. read: the place in the sequence of the state of each response token, rows one after the other.
    prompt_slots, response_slots: where the sequence's tokens lie in [G x P] and [R x T]. sizes: (G, P, R, T).
    prompt_of: [R], each response's prompt. visible: [R, 1, T, P + T], what its tokens attend to.
    """

    ids: Int[Tensor, "1 tokens"]
    positions: Int[Tensor, "1 tokens"]
    read: Int[Tensor, " actions"]
    prompt_slots: Int[Tensor, " prompt_tokens"]
    response_slots: Int[Tensor, " response_tokens"]
    sizes: tuple[int, int, int, int]
    prompt_of: Int[Tensor, " responses"]
    visible: Bool[Tensor, "responses 1 time columns"]


def distinct_prompts(rows: Rows) -> tuple[Int[Tensor, " rows"], Int[Tensor, " prompts"]]:
    """Each row's prompt as a number, and one row of each prompt. Rows share a prompt where their tokens are the same."""
    ids = torch.where(rows.prompt_mask, rows.prompt_ids, -1)
    _, number, counts = ids.unique(dim=0, return_inverse=True, return_counts=True)
    first = number.argsort(stable=True)[counts.cumsum(0) - counts]
    return number, first


def pack(rows: Rows, *, with_last: bool) -> Packed:
    """Packs rows; `read` is the token itself `with_last`, else the token before it, where the last token is not needed."""
    prompt_of, first = distinct_prompts(rows)
    prompt_lengths = rows.prompt_mask[first].sum(-1)
    lengths = rows.response_mask.sum(-1)
    kept = lengths if with_last else lengths - 1
    width, time = int(prompt_lengths.max()), int(kept.max())
    device = lengths.device
    columns, steps = torch.arange(width, device=device), torch.arange(time, device=device)
    in_prompt, in_response = columns < prompt_lengths[:, None], steps < kept[:, None]
    prompt_slots, response_slots = in_prompt.flatten().nonzero()[:, 0], in_response.flatten().nonzero()[:, 0]

    prompt_ids = rows.prompt_ids[first][rows.prompt_mask[first]]
    response_ids = rows.response_ids[:, :time][in_response]
    positions = torch.cat([columns.expand_as(in_prompt)[in_prompt],
                           (prompt_lengths[prompt_of][:, None] + steps)[in_response]])  # fmt: skip

    starts = len(prompt_ids) + kept.cumsum(0) - kept  # of each response in the sequence
    every = torch.arange(rows.response_ids.shape[1], device=device)
    place = starts[:, None] + every - (0 if with_last else 1)
    if not with_last:  # the first token is predicted by its prompt's last
        place[:, 0] = (prompt_lengths.cumsum(0) - 1)[prompt_of]

    causal = (steps[:, None] >= steps).expand(len(kept), time, time)
    prefix = in_prompt[prompt_of][:, None, :].expand(-1, time, -1)
    return Packed(
        ids=torch.cat([prompt_ids, response_ids])[None],
        positions=positions[None],
        read=place[rows.response_mask],
        prompt_slots=prompt_slots,
        response_slots=response_slots,
        sizes=(len(first), width, len(kept), time),
        prompt_of=prompt_of,
        visible=torch.cat([prefix, causal], dim=-1)[:, None],
    )


def use_shared_prefix(model: PreTrainedModel) -> bool:
    """Gives the model the attention that reads packed rows; False, and nothing changed, where it needs its own.

    That is so for sliding windows, soft-capped scores, recurrent layers, or an attention that is not transformers' own.
    """
    config = model.config.get_text_config()
    special = any(getattr(config, name, None) for name in ("sliding_window", "attn_logit_softcapping"))
    others = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if config._attn_implementation != "sdpa" or not model._supports_attention_backend or special or others:
        return False
    model.set_attn_implementation(SHARED_PREFIX)
    rows = Rows(*(torch.tensor(x, device=model.device) for x in _PROBE))
    with torch.no_grad():
        packed, joined = pack(rows, with_last=True), join(rows)
        states = packed_states(model.base_model, packed)[packed.read]
        expected = joined_states(model.base_model, joined)[rows.response_mask]
    if torch.allclose(states, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
        return True
    model.set_attn_implementation("sdpa")
    return False


# Two prompts of unequal length, one of them with two responses of unequal length.
_PROBE = (
    [[0, 1, 2], [0, 1, 2], [3, 2, 1]],
    [[False, True, True], [False, True, True], [True, True, True]],
    [[3, 1, 2], [2, 1, 0], [1, 3, 0]],
    [[True, True, True], [True, False, False], [True, True, False]],
)


@dataclass(frozen=True, slots=True)
class Joined:
    """Prompt and response of each row, right-padded: for models whose attention can't be replaced.

    ids: [N, L]. at: [N, T], the column of each response token.
    """

    ids: Int[Tensor, "rows columns"]
    at: Int[Tensor, "rows time"]


def join(rows: Rows) -> Joined:
    """Joins prompt and response without a gap: causal attention then needs no mask, and positions are plain columns."""
    lengths = rows.prompt_mask.sum(-1)
    total = int((lengths + rows.response_mask.sum(-1)).max())
    columns = torch.arange(rows.prompt_ids.shape[1] + rows.response_ids.shape[1], device=lengths.device)
    both = torch.cat([rows.prompt_ids, rows.response_ids], dim=1)
    start = rows.prompt_ids.shape[1] - lengths  # the first real column of a left-padded prompt
    index = (columns[:total] + start[:, None]).clamp(max=len(columns) - 1)
    steps = torch.arange(rows.response_ids.shape[1], device=lengths.device)
    return Joined(ids=both.gather(1, index), at=(lengths[:, None] + steps).clamp(max=total - 1))


def joined_states(model: nn.Module, joined: Joined, *, before: bool = False) -> Float[Tensor, "rows time hidden"]:
    """Last hidden states at each response token, or at the one `before` it, by a model without its output layer."""
    hidden: Tensor = model(input_ids=joined.ids, use_cache=False).last_hidden_state
    at = joined.at - 1 if before else joined.at
    return hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1]))


def packed_states(model: nn.Module, packed: Packed) -> Float[Tensor, "tokens hidden"]:
    """Last hidden states of the packed tokens by a model without its output layer."""
    # A mask of four dimensions is taken as it is: without it transformers would build one of tokens x tokens for nothing.
    no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packed.ids.device)
    output = model(
        input_ids=packed.ids, attention_mask=no_mask, position_ids=packed.positions, use_cache=False, packed=packed
    )
    states: Tensor = output.last_hidden_state[0]
    return states


class Past(Protocol):
    """What the new tokens of a decoding step attend to."""

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "rows heads 1 width"],
        key: Float[Tensor, "rows kv_heads 1 width"],
        value: Float[Tensor, "rows kv_heads 1 width"],
        scaling: float,
    ) -> Float[Tensor, "rows 1 heads width"]:
        """Attention of one new token a row; its key and value are kept for the next."""


def shared_prefix_attention(
    module: nn.Module,
    query: Float[Tensor, "rows heads tokens width"],
    key: Float[Tensor, "rows kv_heads tokens width"],
    value: Float[Tensor, "rows kv_heads tokens width"],
    attention_mask: Tensor | None,
    packed: Packed | None = None,
    past: Past | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "rows tokens heads width"], None]:
    """Attention over packed rows, or of one new token a row to its `past`; without either that of transformers.

    Packed prompts attend to themselves, responses to their prompt and themselves.
    """
    if past is not None:
        layer: Any = module.layer_idx
        return past.attend(layer, query, key, value, scaling or query.shape[-1] ** -0.5), None
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    prompts, width, responses, time = packed.sizes
    split = len(packed.prompt_slots)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [tokens, heads, width]

    def laid_out(x: Tensor) -> tuple[Tensor, Tensor]:
        of_prompts = _put(x[:split], packed.prompt_slots, prompts * width).view(prompts, width, *x.shape[1:])
        of_responses = _put(x[split:], packed.response_slots, responses * time).view(responses, time, *x.shape[1:])
        return of_prompts, of_responses

    (q_p, q_r), (k_p, k_r), (v_p, v_r) = laid_out(q), laid_out(k), laid_out(v)
    grouped = {"scale": scaling, "enable_gqa": q.shape[1] != k.shape[1]}
    first = _attend(q_p, k_p, v_p, is_causal=True, **grouped)
    k_r, v_r = (torch.cat([p[packed.prompt_of], r], dim=1) for p, r in ((k_p, k_r), (v_p, v_r)))
    second = _attend(q_r, k_r, v_r, attn_mask=packed.visible, **grouped)
    out = [x.flatten(0, 1)[slots] for x, slots in ((first, packed.prompt_slots), (second, packed.response_slots))]
    return torch.cat(out)[None], None


def _put(x: Tensor, slots: Tensor, size: int) -> Tensor:
    return x.new_zeros(size, *x.shape[1:]).index_copy(0, slots, x)


def _attend(q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> Float[Tensor, "rows columns heads width"]:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v, **kwargs).transpose(1, 2)


AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_PREFIX, sdpa_mask)
