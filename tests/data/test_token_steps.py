"""Steps in tokens: where they end, and that they are the steps of the text."""

from __future__ import annotations

import random

import pytest

from repirl.data.codec import ChatCodec
from repirl.data.steps import split_steps
from repirl.data.token_steps import PATTERNS, ends_of_steps, separator_ids, texts_of_steps
from repirl.models.policy import Policy
from tests.data.tokenizers_of_kinds import byte_level
from tests.models.tiny import EOS, LLAMA, TOKENS

CODEC = ChatCodec(Policy(config=LLAMA, tokens=TOKENS).tokenizer)
NEWLINES = separator_ids(CODEC.tokenizer, PATTERNS["newline"])


def ends(text: str, *, ended: bool = True) -> tuple[int, ...]:
    ids = CODEC.encode_response(text)
    return ends_of_steps(ids if ended else ids[:-1], NEWLINES, lambda part: not CODEC.decode(part).strip())


def test_where_steps_end() -> None:
    assert ends("ab\nc") == (3, 5)  # a b newline | c end
    assert ends("ab\nc\n") == (3, 6)  # the end token alone is no step
    assert ends("ab\n\n\nc", ended=False) == (5, 6)  # empty lines belong to the step before them
    assert ends("\n\nab\nc", ended=False) == (5, 6)  # at the beginning to the one after them
    assert ends("ab") == (3,)
    assert ends("\n\n") == ends("") == ()
    assert CODEC.encode_response("")[0] == EOS


def test_steps_are_those_of_the_text() -> None:
    draw = random.Random(0)
    for _ in range(200):
        text = "".join(draw.choice("ab\n") for _ in range(12))
        if text.strip():
            ids = CODEC.encode_response(text)
            assert texts_of_steps(ids, ends(text), CODEC.decode) == split_steps(text)


def test_separators_are_tokens_whose_text_matches() -> None:
    assert {CODEC.tokenizer.convert_tokens_to_ids("\n")} == NEWLINES
    letters = separator_ids(CODEC.tokenizer, "[ab]")
    assert letters == {CODEC.tokenizer.convert_tokens_to_ids(letter) for letter in "ab"}
    for pattern, message in [
        ("z", "no token of this tokenizer matches the step pattern 'z'"),
        ("(", "no regular expr"),
    ]:
        with pytest.raises(ValueError, match=message):
            separator_ids(CODEC.tokenizer, pattern)


def test_a_token_that_was_not_the_tokenizers_choice_is_left_as_it_was() -> None:
    """Sampled tokens need not be those of the text: the steps are theirs nevertheless."""
    codec = ChatCodec(byte_level())
    newlines = separator_ids(codec.tokenizer, PATTERNS["newline"])
    (newline,) = codec.encode_response("\n")[:-1]
    (a,) = codec.encode_response("a")[:-1]
    ids = (a, newline, newline, a)
    assert newline in newlines
    found = ends_of_steps(ids, newlines, lambda part: not codec.decode(part).strip())
    assert found == (3, 4)
    assert texts_of_steps(ids, found, codec.decode) == ("a\n\n", "a")
