"""Steps of a response in tokens, cut at separators as it was sampled: nothing is tokenised again."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

PATTERNS = {"newline": r"\n", "blank_line": r"\n(?:[^\S\n]*\n)+"}
"""What a token's text holds that ends a step, by the names of `By` (data/steps.py)."""


def separator_ids(tokenizer: PreTrainedTokenizerBase, pattern: str) -> frozenset[int]:
    """The tokens whose own text matches; special tokens are none.

    Raises:
        ValueError: it is no regular expression, or no token matches.
    """
    try:
        ends = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"step pattern {pattern!r} is no regular expression: {error}") from error
    special = set(tokenizer.all_special_ids)
    pieces = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    found = frozenset(i for i, piece in enumerate(pieces) if i not in special and ends.search(piece))
    if not found:
        raise ValueError(
            f"no token of this tokenizer matches the step pattern {pattern!r}, so no step would end: give another"
        )
    return found


def ends_of_steps(
    token_ids: Sequence[int], separators: Collection[int], is_blank: Callable[[Sequence[int]], bool]
) -> tuple[int, ...]:
    """The number of tokens up to the end of each step; the last one is their number. Empty where there are no words.

    A step ends with a separator. A piece without words, such as an empty line or an end token, is no step: it belongs to
    the step before it, at the beginning to the one after it.
    """
    cuts = [i + 1 for i, token in enumerate(token_ids) if token in separators]
    if token_ids and (not cuts or cuts[-1] < len(token_ids)):
        cuts.append(len(token_ids))
    ends: list[int] = []
    start = 0
    for cut in cuts:
        if not is_blank(token_ids[start:cut]):
            ends.append(cut)
        elif ends:
            ends[-1] = cut
        else:
            continue  # what begins without words goes to the first step
        start = cut
    return tuple(ends)


def texts_of_steps(
    token_ids: Sequence[int], ends: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> tuple[str, ...]:
    """The text of each step; joined they are the response's."""
    text = decode(token_ids)
    places = [0, *(len(decode(token_ids[:end])) for end in ends[:-1]), len(text)]
    return tuple(text[first:last] for first, last in pairwise(places)) if ends else ()
