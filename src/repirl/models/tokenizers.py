"""A tokenizer over an explicit list of tokens, for small models trained from scratch; and tokenizers as files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import BatchEncoding

PAD, EOS = "<pad>", "<eos>"


class _StrictTokenizer(PreTrainedTokenizerFast):
    """A word-level tokenizer that refuses text it cannot encode."""

    def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> BatchEncoding:
        # Checked here because every way to encode comes through, and the library's own error does not name the text.
        special = () if kwargs.get("split_special_tokens") else (PAD, EOS)
        allowed = _alternation([token for token in self.get_vocab() if token not in (PAD, EOS)] + list(special))
        for piece in [text] if isinstance(text, str) else text:
            end = 0
            for match in re.finditer(allowed, piece):
                if match.start() != end:
                    break
                end = match.end()
            if end != len(piece):
                raise ValueError(f"no token for {piece[end]!r}, character {end + 1} of {piece!r}")
        return super()._encode_plus(text, *args, **kwargs)


# The name goes into a saved tokenizer's configuration, from which any program must be able to load it.
_StrictTokenizer.__name__ = PreTrainedTokenizerFast.__name__


def character_tokenizer(tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with the ids 0 `<pad>`, 1 `<eos>`, then `tokens` in order.

    Text is cut into the longest token that matches at each place; decoding gives back exactly the text.
    Raises ValueError for empty or repeated tokens, and, when used, for text with a character of no token.
    """
    vocabulary = {token: number for number, token in enumerate((PAD, EOS, *tokens))}
    if len(vocabulary) != len(tokens) + 2 or "" in vocabulary:
        raise ValueError(f"tokens must be distinct, not empty, and not {PAD} or {EOS}")
    backend = Tokenizer(models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(_alternation(tokens)), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return _StrictTokenizer(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )


def _alternation(tokens: Sequence[str]) -> str:
    return "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))


def files_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """Name and content of the files that `save_pretrained` writes."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}


def from_files(files: Mapping[str, bytes]) -> PreTrainedTokenizerBase:
    """The tokenizer of such files."""
    with TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / Path(name).name).write_bytes(content)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer
