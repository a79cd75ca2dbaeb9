"""Small tokenizers of the kinds that models have, trained on a few sentences."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

TEXTS = [
    "What is 2 + 3?\n2 + 3 = 5\nThe answer is \\boxed{5}.",
    "The cat has 4 legs and the dog has 4 legs, so there are 8 legs.\nThe answer is 8.",
    "Question: how many answers are there? Answer: the answer is one.\n\nThen add 10 and 12 and get 22.",
] * 20
LINES = [
    line for text in TEXTS for line in text.split("\n") if line
]  # SentencePiece reads lines: no token has a newline
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{number:02X}>" for number in range(256)]


def wrapped(backend: Tokenizer, **options: Any) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, **({"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} | options)
    )


def begins_with_bos(backend: Tokenizer) -> Tokenizer:
    bos = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return backend


def llama(prepend: bool = True) -> PreTrainedTokenizerBase:
    """As Llama 1 and 2: spaces become ▁, one is put before each text, bytes where no token fits."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    steps = [normalizers.Prepend("▁")] if prepend else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prepend else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*SPECIAL, *BYTES], show_progress=False)
    backend.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")  # words, while it is trained
    backend.train_from_iterator(LINES, trainer)
    return wrapped(begins_with_bos(with_byte_fallback(backend, pre_tokenizer=None)))


def with_byte_fallback(backend: Tokenizer, **changes: Any) -> Tokenizer:
    """The trainer takes bytes as special tokens; in a model they are ordinary ones, for what no token fits."""
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in BYTES]
    state["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(state | changes))


def metaspace(scheme: Any, kind: str = "bpe", lines: Sequence[str] = LINES) -> PreTrainedTokenizerBase:
    """As T5, Mistral and Llama in today's form: a pre-tokenizer puts ▁ before the first word, every word, or none."""
    trainer: Any
    if kind == "bpe":
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*SPECIAL, *BYTES], show_progress=False)
    else:
        backend = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=400, special_tokens=[*SPECIAL, *BYTES], unk_token="<unk>", show_progress=False
        )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    strip = [] if scheme == "never" else [decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    backend.train_from_iterator(lines, trainer)
    return wrapped(begins_with_bos(with_byte_fallback(backend)))


def byte_level(add_prefix_space: bool = False) -> PreTrainedTokenizerBase:
    """As GPT-2."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=500, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return wrapped(backend, unk_token=None)


def word_piece() -> PreTrainedTokenizerBase:
    """As BERT: lower case, white space lost."""
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    )
    return wrapped(begins_with_bos(backend))


KINDS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "llama": llama,
    "llama without a first space": lambda: llama(prepend=False),
    "metaspace always": lambda: metaspace("always"),
    "metaspace first": lambda: metaspace("first"),
    "metaspace never": lambda: metaspace("never"),
    "unigram always": lambda: metaspace("always", "unigram"),
    "unigram first": lambda: metaspace("first", "unigram"),
    "byte level": byte_level,
    "byte level with a first space": lambda: byte_level(add_prefix_space=True),
    "word piece": word_piece,
}


def with_tokens(tokenizer: PreTrainedTokenizerBase, *texts: str, special: bool) -> PreTrainedTokenizerBase:
    tokenizer.add_tokens(
        [AddedToken(text, special=special, normalized=False) for text in texts], special_tokens=special
    )
    return tokenizer
