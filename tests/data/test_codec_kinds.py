"""Tokenizers of every kind: an expert's tokens continue the prompt's, and control tokens come from the template alone."""

from __future__ import annotations

import pytest

from repirl.data.codec import ChatCodec
from tests.data.tokenizers_of_kinds import KINDS, byte_level, llama, with_tokens

CONTINUED = ["The answer is 5.", "2 + 3", "then\nThe dog", "so", "10 and 12", "\\boxed{5}.", "naïve ½ 数", "a  b"]
PROBLEM = "What is 2 + 3?"


@pytest.mark.parametrize("kind", KINDS)
def test_an_expert_s_tokens_are_those_that_continue_the_prompt(kind: str) -> None:
    tokenizer = KINDS[kind]()
    codec = ChatCodec(tokenizer)
    prompt = codec.encode_prompt(PROBLEM)
    for text in CONTINUED:
        response = codec.encode_response(text)
        assert [*prompt, *response[:-1]] == tokenizer(f"{PROBLEM}\n{text}")["input_ids"]
        if kind != "word piece":  # which loses case and white space
            assert codec.decode(response) == text
            spaced = tokenizer(f"{PROBLEM}\n {text}")["input_ids"][len(prompt) :]
            assert codec.decode(spaced) == f" {text}"  # a rollout that begins with a space keeps it


@pytest.mark.parametrize("kind", ["llama", "metaspace always", "metaspace first", "unigram first"])
def test_the_first_token_has_no_leading_space(kind: str) -> None:
    tokenizer = KINDS[kind]()
    spaced = tokenizer("The answer", add_special_tokens=False)["input_ids"][0]
    assert tokenizer.convert_ids_to_tokens(spaced) == "▁The"
    first = ChatCodec(tokenizer).encode_response("The answer")[0]
    assert tokenizer.convert_ids_to_tokens(first) == "The"


@pytest.mark.parametrize(
    "form", ["Q: {problem}{instruction}\nA:", "{problem}{instruction}\n\n", "{problem}{instruction} So:\n"]
)
@pytest.mark.parametrize("kind", ["llama", "metaspace first", "byte level"])
def test_other_formats_are_continued_too(kind: str, form: str) -> None:
    tokenizer = KINDS[kind]()
    codec = ChatCodec(tokenizer, prompt_format=form, instruction=" Think.")
    prompt = codec.encode_prompt(PROBLEM)
    whole = form.format(problem=PROBLEM, instruction=" Think.") + "The answer is 5."
    assert [*prompt, *codec.encode_response("The answer is 5.")[:-1]] == tokenizer(whole)["input_ids"]


@pytest.mark.parametrize("kind", ["llama", "metaspace first", "metaspace never", "byte level"])
def test_a_format_whose_end_merges_with_responses_is_refused(kind: str) -> None:
    with pytest.raises(
        ValueError, match=r"merges the end of the prompt, .*with the beginning of a response.*not with a space"
    ):
        ChatCodec(KINDS[kind](), prompt_format="{problem}\nA: ")


def test_a_chat_template_over_sentencepiece_is_continued() -> None:
    tokenizer = llama()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}"
        "{% if m['role'] == 'assistant' %}{{ '</s>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
    ).replace("m['role'] + ': ' + m['content'] + '\n'", "m['role'] + ':\n' + m['content']")
    codec = ChatCodec(tokenizer)
    assert codec.template == "chat"
    response = codec.encode_response("The answer")
    assert tokenizer.convert_ids_to_tokens(response) == ["The", "▁answer", "</s>"]
    assert codec.decode(response) == "The answer"


# --- tokens that are special, and tokens that are not

SPECIAL, ORDINARY = "<|im_end|>", "<think>"


def plain(instruction: str = "", form: str = "{problem}{instruction}\n") -> ChatCodec:
    tokenizer = with_tokens(with_tokens(byte_level(), SPECIAL, special=True), ORDINARY, "<tool_call>", special=False)
    return ChatCodec(tokenizer, instruction=instruction, prompt_format=form)


def chat(instruction: str = "") -> ChatCodec:
    tokenizer = with_tokens(with_tokens(byte_level(), SPECIAL, "<|im_start|>", special=True), ORDINARY, special=False)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return ChatCodec(tokenizer, instruction=instruction)


@pytest.mark.parametrize("problem", ["<|im_end|>", "a <|im_end|> b", "a</s>", "<s>x", "x<|im_end|><|im_end|>"])
def test_special_tokens_in_a_problem_are_refused(problem: str) -> None:
    for codec in (plain(), chat()):
        with pytest.raises(ValueError, match="the problem contains the special token"):
            codec.encode_prompt(problem)


@pytest.mark.parametrize("cut", range(1, len(SPECIAL)))
def test_a_special_token_split_over_problem_and_instruction_is_refused(cut: int) -> None:
    for codec in (plain(SPECIAL[cut:]), chat(SPECIAL[cut:])):
        codec.encode_prompt("ordinary ")
        with pytest.raises(ValueError, match=r"has a part, beside the instruction or template, of the special token"):
            codec.encode_prompt(f"What? {SPECIAL[:cut]}")


@pytest.mark.parametrize(
    ("form", "problem"),
    [
        ("<|im_{problem}\n", "end|> 2"),
        ("{problem}im_end|>\n", "2 <|"),
        ("Q<{problem}>\n", "|im_end|"),
        ("<{problem}\n", "/s>"),
    ],
)
def test_a_special_token_split_over_problem_and_format_is_refused(form: str, problem: str) -> None:
    codec = plain(form=form)
    codec.encode_prompt("What is 2 + 3?")
    with pytest.raises(ValueError, match="the problem has a part"):
        codec.encode_prompt(problem)


def test_a_special_token_split_over_problem_and_chat_template_is_refused() -> None:
    codec = chat()
    codec.tokenizer.chat_template = codec.tokenizer.chat_template.replace("m['role'] + '\n'", "m['role'] + '\n<|im_'")
    with pytest.raises(
        ValueError, match=r"more special tokens than the template's own; they come from the problem 'end"
    ):
        codec.encode_prompt("end|> of it")


def test_special_tokens_of_format_and_instruction_stay() -> None:
    codec = plain(instruction=" <|im_end|>", form="<s>{problem}{instruction}\n")
    tokens = codec.tokenizer.convert_ids_to_tokens(codec.encode_prompt("What?"))
    assert tokens[0] == "<s>"
    assert tokens.count(SPECIAL) == 1


@pytest.mark.parametrize("text", [SPECIAL, f"so {SPECIAL} it", f"{SPECIAL}{SPECIAL}", "</s>", "a</s>b", "<s>5"])
def test_special_tokens_in_a_solution_are_text(text: str) -> None:
    for codec in (plain(), chat()):
        response = codec.encode_response(text)
        specials = {codec.tokenizer.convert_tokens_to_ids(t) for t in (SPECIAL, "</s>", "<s>")}
        assert not specials & set(response[:-1])
        assert codec.decode(response) == text


def test_special_tokens_in_a_solution_are_text_in_sentencepiece_too() -> None:
    codec = ChatCodec(llama())
    for text in ("</s>", "5</s>", "<s>5 </s> 6"):
        response = codec.encode_response(text)
        assert response.count(codec.eos_ids[0]) == 1
        assert codec.decode(response) == text


@pytest.mark.parametrize("text", [ORDINARY, f"{ORDINARY}so", f"a {ORDINARY} b", "<think>2</think>"])
def test_added_tokens_that_are_not_special_are_words_everywhere(text: str) -> None:
    for codec in (plain(), chat()):
        token = codec.tokenizer.convert_tokens_to_ids(ORDINARY)
        assert codec.encode_prompt(text).count(token) == 1
        assert codec.encode_response(text).count(token) == 1
        assert codec.decode(codec.encode_response(text)) == text


def test_a_tokenizer_that_reads_special_tokens_anyway_is_noticed() -> None:
    codec = plain()
    real = codec.tokenizer

    class Eager:
        """Ignores split_special_tokens, as tokenizers of other makes may."""

        def __call__(self, *args: object, **kwargs: object) -> object:
            return real(*args, **{**kwargs, "split_special_tokens": False})

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

    codec.tokenizer = Eager()  # type: ignore[assignment]
    with pytest.raises(
        ValueError, match="reads a special token in the solution 'so <|im_end|>'"[:60].replace("|", r"\|")
    ):
        codec.encode_response(f"so {SPECIAL}")


def test_the_unknown_token_is_no_control_token() -> None:
    codec = ChatCodec(KINDS["word piece"]())
    assert codec.tokenizer.unk_token_id in codec.encode_prompt("数学?")
    assert codec.tokenizer.unk_token_id in codec.encode_response("数学")
