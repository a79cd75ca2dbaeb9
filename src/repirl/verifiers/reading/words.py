r"""Answers in words. A run of letters is a word or a product of variables: `tea` is a word, `ab` and `xyz` are products."""

from __future__ import annotations

import re

from repirl.verifiers.reading.structure import listed

_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_WORDS = re.compile(r"[^\W\d_][^\W\d_ .,'’()/&-]*(?:[ .'’()/&-]+[^\W\d_]+)*[ .'’)]*")
_RUN = re.compile(r"[^\W\d_]+")
# e is Euler's number and i the imaginary unit, o and u are hardly ever variables: a run with one of them is a word.
_VOWEL = re.compile(r"[eiou]", re.IGNORECASE)
_FUNCTION = frozenset(listed("sin cos tan cot sec csc ln log exp gcd lcm max min"))
_SYLLABLE = re.compile(r"[^aeiouxyz]+[ay][^aeiouxyz]+", re.IGNORECASE)


def is_words(text: str) -> bool:
    r"""Whether a text is words: all of it in `\text{}`, or letters alone that are no product of variables.

    Two and three letters without e, i, o, u are a product (`ab`, `xyz`), unless they are a syllable (`cat`).
    """
    bare = _TEXT.sub(r"\1", text)
    if _WORDS.fullmatch(bare) is None:
        return False
    runs = _RUN.findall(bare)
    if len(bare) > 1 and text.startswith(r"\text{") and "}" in text:
        return True
    return any(_is_word(run) for run in runs) and not any(run in _FUNCTION for run in runs)


def _is_word(run: str) -> bool:
    if len(run) < 2:
        return False
    return len(run) > 3 or not run.isascii() or _VOWEL.search(run) is not None or _SYLLABLE.fullmatch(run) is not None


def words_key(text: str) -> str:
    """Letters and digits in small letters, by which words are compared."""
    return "".join(char for char in _TEXT.sub(r" \1 ", text).casefold() if char.isalnum())
