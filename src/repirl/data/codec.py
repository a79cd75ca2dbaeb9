"""Words to tokens and back over a Hugging Face tokenizer. The only place where templates are applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

_PROBE_PROBLEM = "What is 2 + 3?"
# A digit and a letter merge differently with what precedes them.
_PROBE_RESPONSES = ("2 + 3 = 5\nThe answer is \\boxed{5}.", "The answer is \\boxed{5}.")


class ChatCodec:
    """The `Codec` of a tokenizer.

    `chat`: the prompt is the chat template's, up to and including the header of the assistant's turn; a response ends
    with the token that the template puts after an assistant's turn. `plain`: the prompt is `prompt_format` (after the
    tokenizer's own beginning-of-text token, if it adds one); a response ends with the tokenizer's EOS.
    Prompt and response are never tokenised together, so the tokens of one do not depend on the other. Yet a response's
    tokens are those that continue a prompt: SentencePiece tokenizers put a space before the first word of a text, which a
    response is not; there it is tokenised after the prompt's last character, and decoded after it.

    Attributes:
        pad_id: the tokenizer's pad token, or the end token where it has none: masks decide what counts.
        eos_ids: all tokens that end a response; the first is the one that `encode_response` appends.
        anchor, anchor_ids: what stands before a response when it is tokenised, and its tokens; mostly nothing.

    Args:
        tokenizer: any tokenizer of the transformers library; it is not changed.
        instruction: text put right after every problem.
        template: `auto` is `chat` where the tokenizer has a chat template, else `plain`.
        prompt_format: the plain prompt; `{problem}` and `{instruction}` are filled in.
        template_options: variables for the chat template, e.g. {"enable_thinking": False}.

    Raises: ValueError, here, when the template and the rollouts' view of it disagree on a probe conversation, or when the
        tokenizer merges the end of a prompt with the beginning of a response.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        instruction: str = "",
        template: Literal["auto", "chat", "plain"] = "auto",
        prompt_format: str = "{problem}{instruction}\n",
        template_options: dict[str, Any] | None = None,
    ) -> None:
        if template == "chat" and not tokenizer.chat_template:
            raise ValueError(
                "template 'chat': this tokenizer has no chat template; use 'plain', or set tokenizer.chat_template"
            )
        if prompt_format.count("{problem}") != 1:
            raise ValueError(f"prompt_format must contain {{problem}} exactly once: {prompt_format!r}")
        self.tokenizer = tokenizer
        self.instruction = instruction
        self.template: Literal["chat", "plain"] = (
            ("chat" if tokenizer.chat_template else "plain") if template == "auto" else template
        )
        if self.template == "plain" and instruction and "{instruction}" not in prompt_format:
            raise ValueError(
                f"prompt_format {prompt_format!r} has no place for an instruction: write {{instruction}} in it, or "
                f"leave {instruction!r} out"
            )
        self.prompt_format = prompt_format
        self.template_options = dict(template_options or {})
        known = set(tokenizer.all_special_tokens)
        known.update(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        self._special_texts = sorted(known, key=len, reverse=True)
        # The unknown token is no control token: ordinary text may have it.
        special_ids = {int(tokenizer.convert_tokens_to_ids(text)) for text in self._special_texts}  # type: ignore[arg-type]
        self._special_ids = special_ids - {tokenizer.unk_token_id}
        self._before, self._after = prompt_format.replace("{instruction}", instruction).split("{problem}")
        self.anchor, self.anchor_ids = "", tuple[int, ...]()  # what stands before a response when it is tokenised
        if self.template == "chat":
            end_id = self._checked_end_id()
        elif tokenizer.eos_token_id is None:
            raise ValueError("this tokenizer has no EOS token, so no response could end; set tokenizer.eos_token")
        else:
            end_id = int(tokenizer.eos_token_id)
            self._check_plain()
        eos_id = end_id if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys((end_id, eos_id)))
        self.pad_id: int = end_id if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

    def with_instruction(self, instruction: str) -> ChatCodec:
        """The codec of the same tokenizer and template with another instruction. Raises ValueError as the constructor."""
        return ChatCodec(self.tokenizer, instruction, self.template, self.prompt_format, self.template_options)

    def encode_prompt(self, problem: str) -> tuple[int, ...]:
        """The prompt's tokens, up to and including the header after which the response starts.

        Raises ValueError where the problem has the text of a special token, or a part of one that becomes whole beside
        instruction or template: it would end or open a turn.
        """
        return self.encode_prompts([problem])[0]

    def encode_prompts(self, problems: Sequence[str]) -> list[tuple[int, ...]]:
        """`encode_prompt` of each, at a fraction of the time."""
        before, after = ("", self.instruction) if self.template == "chat" else (self._before, self._after)
        for problem in problems:
            self._refuse_special(before, problem, after)
        if self.template == "chat":
            encoded = self._tokens([self._rendered(problem) for problem in problems])
        else:
            encoded = self._with_beginning([before + problem + after for problem in problems])
        for problem, tokens in zip(problems, encoded, strict=True):
            if self._count_special(tokens) != self._special_in_prompt:
                raise ValueError(
                    f"the prompt has more special tokens than the template's own; they come from the problem {problem[:60]!r}"
                )
        return encoded

    def encode_response(self, text: str) -> tuple[int, ...]:
        """The text's tokens and the end token. The text of a special token is encoded as ordinary text."""
        return self.encode_responses([text])[0]

    def encode_responses(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """`encode_response` of each, at a fraction of the time."""
        encoded = self._continuations(texts)
        for text, tokens in zip(texts, encoded, strict=True):
            if self._count_special(tokens):
                raise ValueError(f"this tokenizer reads a special token in the solution {text[:60]!r}; remove it there")
        return [(*tokens, self.eos_ids[0]) for tokens in encoded]

    def spans(self, text: str) -> tuple[tuple[int, int], ...]:
        """Where each token of a response stands in its text, the end token left out: first character, one after the last.

        Tokenizers differ in whether white space at a token's sides is in its span. Raises ValueError where this one does
        not know where its tokens stand.
        """
        if not self.tokenizer.is_fast:
            raise ValueError("this tokenizer does not say where its tokens stand in a text; use one of the fast kind")
        options = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": True}
        skipped, count = len(self.anchor), len(self.anchor_ids)
        offsets = self.tokenizer(self.anchor + text, **options)["offset_mapping"][count:]
        return tuple((max(first - skipped, 0), max(last - skipped, 0)) for first, last in offsets)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text, without special and end tokens."""
        kept = [token for token in token_ids if token not in self.eos_ids]
        return self._text([*self.anchor_ids, *kept])[self._anchor_length :]

    @cached_property
    def beginning_ids(self) -> tuple[int, ...]:
        """What the tokenizer itself puts before a text, such as a beginning-of-text token, in prompts of `plain`."""
        text = self._some_text()
        bare, full = self._tokens([text])[0], self._encoded([text])[0]
        return _beginning(bare, full)

    def _refuse_special(self, before: str, problem: str, after: str) -> None:
        """Raises ValueError where a special token's text stands in the problem, wholly or in part."""
        whole, first, last = before + problem + after, len(before), len(before) + len(problem)
        for special in self._special_texts:
            if whole.find(special, max(0, first - len(special) + 1), last + len(special) - 1) < 0:
                continue
            where = "contains" if special in problem else "has a part, beside the instruction or template, of"
            raise ValueError(f"the problem {where} the special token {special!r}; remove it from {problem[:60]!r}")

    def _count_special(self, tokens: Sequence[int]) -> int:
        return sum(token in self._special_ids for token in tokens)

    @cached_property
    def _special_in_prompt(self) -> int:
        """Special tokens of every prompt: those of template, tokenizer and instruction."""
        if self.template == "chat":
            return self._count_special(self._tokens([self._rendered(_PROBE_PROBLEM)])[0])
        neutral = self._some_text()
        return self._count_special(self._with_beginning([self._before + neutral + self._after])[0])

    def _some_text(self) -> str:
        """A word of the tokenizer's own, for tokenizers that refuse what they have no token for."""
        ordinary = (i for i in range(len(self.tokenizer)) if i not in self._special_ids)
        return str(self.tokenizer.decode([next(ordinary, 0)])).strip() or "x"

    def _continuations(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """The tokens of texts that continue a prompt, without an end token."""
        encoded = self._tokens([self.anchor + text for text in texts], parse_special=False)
        count = len(self.anchor_ids)
        for text, tokens in zip(texts, encoded, strict=True):
            if tokens[:count] != self.anchor_ids:
                raise ValueError(
                    f"this tokenizer merges the prompt's last character {self.anchor!r} with the solution "
                    f"{text[:60]!r}; end text.prompt_format otherwise, say with a newline or a colon"
                )
        return [tokens[count:] for tokens in encoded]

    def _find_anchor(self, prompt: str, continues: Callable[[], bool]) -> bool:
        """Whether responses are tokenised as they continue the prompt: as texts of their own, or after its last character."""
        for anchor in ("", prompt[-1:]):
            self.anchor, self.anchor_ids = anchor, self._tokens([anchor], parse_special=False)[0] if anchor else ()
            if continues():
                return True
        return False

    @cached_property
    def _anchor_length(self) -> int:
        return len(self._text(self.anchor_ids)) if self.anchor_ids else 0

    def _text(self, token_ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _tokens(self, texts: Sequence[str], *, parse_special: bool = True) -> list[tuple[int, ...]]:
        return self._encoded(texts, add_special_tokens=False, split_special_tokens=not parse_special)

    def _encoded(self, texts: Sequence[str], **options: bool) -> list[tuple[int, ...]]:
        """What the tokenizer makes of the texts. Raises ValueError where it has no token for a character."""
        if not texts:
            return []
        try:
            return [tuple(ids) for ids in self.tokenizer(list(texts), **options)["input_ids"]]
        except Exception as error:
            if type(error) is not Exception:  # the tokenizers library raises nothing more specific
                raise
            raise ValueError(f"this tokenizer cannot encode the text: {error}") from error

    def _with_beginning(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """The texts after what the tokenizer itself puts before a text: its beginning-of-text token, or nothing."""
        if not texts:
            return []
        bare, full = self._tokens(texts), self._encoded(texts)
        return [_beginning(b, f) + b for b, f in zip(bare, full, strict=True)]

    def _rendered(self, problem: str, response: str | None = None) -> str:
        turns = [{"role": "user", "content": problem + self.instruction}]
        if response is not None:
            turns.append({"role": "assistant", "content": response})
        return str(
            self.tokenizer.apply_chat_template(
                turns, add_generation_prompt=response is None, tokenize=False, **self.template_options
            )
        )

    def _checked_end_id(self) -> int:
        """The end token of an assistant's turn. Raises ValueError where the template does not fit."""
        advice = "use template 'plain', or set template_options to what the template needs"
        prompt = self._rendered(_PROBE_PROBLEM)
        if (_PROBE_PROBLEM + self.instruction).strip() not in prompt:
            raise ValueError(f"the chat template changes the problem's text; it writes {prompt!r}; {advice}")
        special_ids = {*self.tokenizer.added_tokens_decoder, *self.tokenizer.all_special_ids}
        expected = []
        for response in _PROBE_RESPONSES:
            whole = self._rendered(_PROBE_PROBLEM, response)
            if not whole.startswith(prompt + response):
                raise ValueError(
                    f"the chat template does not write a response right after the header that opens it: rollouts would "
                    f"start after {prompt[-40:]!r}, a written response with {whole[len(prompt) :][:80]!r}; {advice}"
                )
            opening, together, tail = self._tokens([prompt, whole, whole[len(prompt + response) :]])
            if not tail or tail[0] not in special_ids:
                raise ValueError(f"the chat template puts no end token after a response; {advice}")
            expected.append((opening, together, tail[:1]))
        if not self._find_anchor(prompt, lambda: self._continues(expected)):
            raise ValueError(f"prompt and response, tokenised apart, are not the chat template's tokens; {advice}")
        return tail[0]

    def _check_plain(self) -> None:
        """Raises ValueError where the end of a prompt and the beginning of a response become one token."""
        prompt = self._before + _PROBE_PROBLEM + self._after
        try:
            opening, *together = self._with_beginning([prompt, *(prompt + response for response in _PROBE_RESPONSES)])
        except ValueError:  # a tokenizer over an explicit list of tokens, which has none for the probe's characters
            return
        if not self._find_anchor(prompt, lambda: self._continues([(opening, whole, ()) for whole in together])):
            raise ValueError(
                f"the tokenizer merges the end of the prompt, {prompt[-20:]!r}, with the beginning of a response, so that "
                "experts would begin with other tokens than rollouts; end text.prompt_format otherwise: not with a space, or "
                "with a newline or a colon"
            )

    def _continues(self, expected: Sequence[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]) -> bool:
        """Whether prompt, response and tail, tokenised apart, are the tokens that they are together."""
        responses = self._tokens([self.anchor + text for text in _PROBE_RESPONSES], parse_special=False)
        count = len(self.anchor_ids)
        return all(
            response[:count] == self.anchor_ids and together[: len(parts)] == parts
            for response, (opening, together, tail) in zip(responses, expected, strict=True)
            for parts in [opening + response[count:] + tail]
        )


def _beginning(bare: tuple[int, ...], full: tuple[int, ...]) -> tuple[int, ...]:
    """What comes before `bare` in `full`."""
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    raise ValueError("this tokenizer changes a text's tokens when it adds special tokens; it cannot be used here")
