"""Templates: an expert and a rollout of the same words are the same tokens."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from repirl.data.arithmetic import ARITHMETIC_TOKENS, RunningSums
from repirl.data.codec import ChatCodec
from repirl.data.sources import Sample
from repirl.models.tokenizers import character_tokenizer
from repirl.structs import Codec

INSTRUCTION = "\nPut the final answer into \\boxed{}."
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if not enable_thinking | default(true) %}{{ '<think>\n\n</think>\n' }}{% endif %}{% endif %}"
)


def changed(tokenizer: PreTrainedTokenizerBase, **attributes: object) -> PreTrainedTokenizerBase:
    copy = deepcopy(tokenizer)
    for name, value in attributes.items():
        setattr(copy, name, value)
    return copy


@pytest.mark.smollm2
def test_chat_prompt_and_tail_are_the_template_s_tokens(smollm2: PreTrainedTokenizerBase) -> None:
    codec = ChatCodec(smollm2, instruction=INSTRUCTION)
    assert isinstance(codec, Codec)
    assert codec.template == "chat"
    for problem in Sample().load():
        prompt, response = codec.encode_prompt(problem.text), codec.encode_response(problem.solutions[0])
        user = {"role": "user", "content": problem.text + INSTRUCTION}
        # What a rollout reads is what the library gives for generation ...
        assert list(prompt) == smollm2.apply_chat_template([user], add_generation_prompt=True, return_dict=False)
        # ... and prompt + expert is what it writes for the whole conversation, but for the newline after the turn.
        turns = [user, {"role": "assistant", "content": problem.solutions[0]}]
        whole = smollm2.apply_chat_template(turns, return_dict=False)
        assert whole[: len(prompt) + len(response)] == [*prompt, *response]
        assert len(whole) == len(prompt) + len(response) + 1
        # The end token closes the response and stands nowhere else in it.
        assert response.index(codec.eos_ids[0]) == len(response) - 1
        assert codec.decode(response) == problem.solutions[0]


@pytest.mark.smollm2
def test_an_expert_is_the_tokens_of_a_rollout_with_the_same_text(smollm2: PreTrainedTokenizerBase) -> None:
    codec = ChatCodec(smollm2)
    for text in ("4", " 4", "\n4", "The answer is \\boxed{4}.", "naïve ½ 数学\n\n", "a  b"):
        sampled = (*smollm2(text, add_special_tokens=False)["input_ids"], smollm2.eos_token_id)
        assert codec.encode_response(text) == sampled
        assert codec.decode(sampled) == text


@pytest.mark.smollm2
def test_special_tokens_in_texts_do_not_end_a_turn(smollm2: PreTrainedTokenizerBase) -> None:
    codec = ChatCodec(smollm2)
    text = "stop <|im_end|> here"
    response = codec.encode_response(text)
    assert response.count(codec.eos_ids[0]) == 1
    assert codec.decode(response) == text
    with pytest.raises(ValueError, match=r"the problem contains the special token '<\|im_end\|>'"):
        codec.encode_prompt(text)


@pytest.mark.smollm2
def test_plain_prompt(smollm2: PreTrainedTokenizerBase) -> None:
    codec = ChatCodec(smollm2, instruction=" Think.", template="plain", prompt_format="Q: {problem}{instruction}\nA:")
    expected = smollm2("Q: What {instruction}? Think.\nA:", add_special_tokens=False)["input_ids"]
    assert list(codec.encode_prompt("What {instruction}?")) == expected
    assert codec.encode_response("4")[-1] == smollm2.eos_token_id
    with pytest.raises(ValueError, match="exactly once"):
        ChatCodec(smollm2, template="plain", prompt_format="{instruction}")


@pytest.mark.smollm2
def test_end_token_comes_from_the_template_not_from_the_tokenizer(smollm2: PreTrainedTokenizerBase) -> None:
    # As in base models whose chat template ends turns otherwise than their EOS.
    tokenizer = changed(smollm2, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    end, eos = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    codec = ChatCodec(tokenizer)
    assert codec.encode_response("4")[-1] == end
    assert codec.eos_ids == (end, eos)
    assert codec.pad_id == eos
    assert codec.decode([*codec.encode_response("4"), eos]) == "4"
    assert ChatCodec(tokenizer, template="plain").eos_ids == (eos,)


@pytest.mark.smollm2
def test_a_tokenizer_without_pad_or_eos(smollm2: PreTrainedTokenizerBase) -> None:
    tokenizer = changed(smollm2, pad_token=None)
    size = len(tokenizer)
    codec = ChatCodec(tokenizer)
    assert codec.pad_id == tokenizer.eos_token_id
    assert tokenizer.pad_token is None, "the tokenizer is not changed"
    assert len(tokenizer) == size
    with pytest.raises(ValueError, match=r"no EOS token.*set tokenizer\.eos_token"):
        ChatCodec(changed(smollm2, eos_token=None), template="plain")
    assert ChatCodec(changed(smollm2, eos_token=None)).eos_ids == (smollm2.eos_token_id,)


@pytest.mark.smollm2
def test_a_template_with_a_hidden_header_is_refused_until_told_how(smollm2: PreTrainedTokenizerBase) -> None:
    tokenizer = changed(smollm2, chat_template=THINKING)
    with pytest.raises(ValueError, match=r"rollouts would start .*<think>.*template_options"):
        ChatCodec(tokenizer)
    codec = ChatCodec(tokenizer, template_options={"enable_thinking": False})
    assert codec.tokenizer.decode(codec.encode_prompt("Hi")).endswith("assistant\n<think>\n\n</think>\n")


@pytest.mark.smollm2
@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHATML.replace("m['content']", "m['content'][:4]"), "changes the problem's text"),
        (CHATML.replace("m['content']", "m['content'] | upper"), "changes the problem's text"),
        (CHATML.replace("assistant\n'", "assistant: '"), "does not write a response right after"),
        (CHATML.replace("<|im_end|>", ""), "no end token after a response"),
        (CHATML.replace("<|im_end|>\n", "\n\n<|im_end|>"), "no end token after a response"),
        # "header" + "2" at the seam become one token when they are tokenised together
        (CHATML.replace("'\n' + m['content']", "' ' + m['content']").replace("assistant\n'", "assistant '"), "apart"),
    ],
)
def test_templates_that_break_parity_are_refused(smollm2: PreTrainedTokenizerBase, template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatCodec(changed(smollm2, chat_template=template))


@pytest.mark.smollm2
def test_a_template_that_trims_is_fine(smollm2: PreTrainedTokenizerBase) -> None:
    codec = ChatCodec(changed(smollm2, chat_template=CHATML.replace("m['content']", "m['content'] | trim")))
    assert codec.encode_prompt(" Hi ") == codec.encode_prompt("Hi")


def test_plain_prompt_begins_with_the_tokenizer_s_own_beginning(arithmetic: PreTrainedTokenizerBase) -> None:
    arithmetic.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A <eos>", special_tokens=[("<eos>", 1)]
    )
    codec = ChatCodec(arithmetic)
    # The beginning is kept, the end is not: the response starts there. Digits have the ids 2 to 11, letters 12 to 37,
    # "\n" 38.
    assert codec.encode_prompt("a3b5") == (1, 12, 5, 13, 7, 38)
    assert codec.encode_response("b8") == (13, 10, 1)


@pytest.mark.smollm2
@pytest.mark.parametrize("template", ["chat", "plain"])
def test_another_instruction_is_the_codec_that_was_made_with_it(
    smollm2: PreTrainedTokenizerBase, template: Any
) -> None:
    codec = ChatCodec(smollm2, " Be brief.", template, "Q: {problem}{instruction}\nA:")
    other = codec.with_instruction(" Show your work.")
    assert other.encode_prompt("2+2?") == ChatCodec(
        smollm2, " Show your work.", template, "Q: {problem}{instruction}\nA:"
    ).encode_prompt("2+2?")
    assert smollm2.decode(other.encode_prompt("2+2?")).count("2+2? Show your work.") == 1
    assert "Be brief" in smollm2.decode(codec.encode_prompt("2+2?"))
    assert other.encode_response("4") == codec.encode_response("4")
    assert other.eos_ids == codec.eos_ids


def test_an_instruction_without_a_place_is_refused(arithmetic: PreTrainedTokenizerBase) -> None:
    codec = ChatCodec(arithmetic, prompt_format="{problem}\n")
    assert codec.with_instruction("").encode_prompt("a1") == codec.encode_prompt("a1")
    with pytest.raises(ValueError, match=r"no place for an instruction: write \{instruction\} in it"):
        codec.with_instruction("k1")


def test_chat_needs_a_template(arithmetic: PreTrainedTokenizerBase) -> None:
    assert ChatCodec(arithmetic).template == "plain"
    with pytest.raises(ValueError, match="has no chat template"):
        ChatCodec(arithmetic, template="chat")


def test_characters_round_trip(arithmetic: PreTrainedTokenizerBase) -> None:
    codec = ChatCodec(arithmetic)
    assert (codec.pad_id, codec.eos_ids) == (0, (1,))
    for problem in RunningSums(50, seed=0).load():
        assert arithmetic.decode(codec.encode_prompt(problem.text)) == problem.text + "\n"
        assert codec.decode(codec.encode_response(problem.solutions[0])) == problem.solutions[0]
    # "a", "3", "b", "5", "\n"; ids follow the token list after <pad> and <eos>
    assert codec.encode_prompt("a3b5") == tuple(2 + ARITHMETIC_TOKENS.index(token) for token in "a3b5\n")
    assert codec.encode_response("\\boxed{b8}") == (2 + ARITHMETIC_TOKENS.index("\\boxed{"), 13, 10, 40, 1)


@pytest.mark.parametrize(
    ("text", "name"), [("3 b5", "' ', character 2"), ("\\box", r"'\\\\', character 1"), ("é", "'é'")]
)
def test_unknown_characters_are_refused(arithmetic: PreTrainedTokenizerBase, text: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"no token for {name}"):
        arithmetic(text)
    with pytest.raises(ValueError, match="no token for '<'"):
        ChatCodec(arithmetic).encode_response("3<eos>")


def test_token_lists_are_checked_and_tokenizers_survive_saving(tmp_path: object) -> None:
    with pytest.raises(ValueError, match="distinct"):
        character_tokenizer(["a", "a"])
    with pytest.raises(ValueError, match="not <pad> or <eos>"):
        character_tokenizer(["<eos>"])
    tokenizer = character_tokenizer([*"ab \n.", "aba"])
    assert tokenizer("ababa b.\n")["input_ids"] == [7, 3, 2, 4, 3, 6, 5]
    tokenizer.save_pretrained(str(tmp_path))
    loaded = AutoTokenizer.from_pretrained(str(tmp_path))
    assert loaded("ababa b.\n")["input_ids"] == [7, 3, 2, 4, 3, 6, 5]
    assert loaded.decode([7, 3, 2, 4, 3, 6, 5]) == "ababa b.\n"


def test_a_saved_vocabulary_of_its_own_is_read_again(tmp_path: Path) -> None:
    """Loaded from a folder it is the library's own class, whose errors are of no class of their own."""
    character_tokenizer([*"ab", "\n"]).save_pretrained(tmp_path)
    codec = ChatCodec(AutoTokenizer.from_pretrained(tmp_path))
    assert codec.encode_prompt("ab") == (2, 3, 4)
    assert codec.encode_response("b") == (3, 1)
    with pytest.raises(ValueError, match=r"cannot encode the text: .*Missing"):
        codec.encode_response("c")
