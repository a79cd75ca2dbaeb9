"""`repirl export --checkpoint RUN.ckpt --output FOLDER`: a run's policy or PRM as a folder that loads without repirl."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from repirl import checkpoints
from repirl.applications.card import Run, policy_card, prm_card, run_of
from repirl.config import ConfigError
from repirl.models.export import save_prm
from repirl.models.policy import Policy
from repirl.models.prm import PRM

FORMATS = ("hf",)
PARTS = ("policy", "prm", "both")
TEXT_FILE = "repirl_text.json"
"""File of an exported PRM that says how problems become prompts (learning/settings.py, Text)."""


def main(arguments: Sequence[str]) -> int:
    """Writes the folder. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="repirl export", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a .ckpt file of `repirl fit`, of weights alone too"
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder to write; it must not be there yet")
    parser.add_argument("--to", default="hf", help="the format: hf, a Hugging Face folder (default)")
    parser.add_argument("--part", default="policy", help="policy (default), prm, or both in folders of these names")
    parser.add_argument("--adapter", action="store_true", help="of the policy write its LoRA adapters alone, for PEFT")
    options = parser.parse_args(list(arguments))
    for name, value, known in (("--to", options.to, FORMATS), ("--part", options.part, PARTS)):
        if value not in known:
            raise ConfigError(f"{name}: unknown value {value!r}", f"give {' or '.join(known)}")
    if options.adapter and options.part == "prm":
        raise ConfigError("--adapter: a PRM is exported whole", "leave --adapter out, or export the policy")
    if not options.checkpoint.is_file():
        raise ConfigError(f"--checkpoint: {str(options.checkpoint)!r} does not exist", "give an existing .ckpt file")
    try:
        export(options.checkpoint, options.output, part=options.part, adapter=options.adapter)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"nothing was exported: {error}", "REPIRL_TRACEBACK=1 shows where it was refused") from error
    print(f"{options.output} is written, read again, and says the same; its README.md needs your licence")
    return 0


def export(checkpoint: Path, output: Path, *, part: str = "policy", adapter: bool = False) -> None:
    """Writes policy, PRM, or both in folders of these names; `output` is whole or not there.

    Raises:
        ValueError: the checkpoint is unfit, the folder exists or cannot be written, or what it holds says something else.
    """
    with _new_folder(output) as folder:
        content = _read(checkpoint, part)
        run = run_of(content, checkpoint)
        for one in ("policy", "prm") if part == "both" else (part,):
            inner, name = (folder / one, f"{output.name}/{one}") if part == "both" else (folder, output.name)
            described, weights = checkpoints.part_of(content, checkpoint, one)
            write = _write_prm if one == "prm" else _write_adapter if adapter else _write_policy
            card = write(described, weights, inner, name, run)
            (inner / "README.md").write_text(card, encoding="utf-8")


def _read(checkpoint: Path, part: str) -> dict[str, Any]:
    """The checkpoint without optimisers' states. Raises ConfigError where a PRM is asked for and there is none."""
    content = checkpoints.read(checkpoint)
    content.pop("optimizer_states", None)
    if part != "policy" and not any(name.startswith("prm.") for name in content["state_dict"]):
        raise ConfigError(
            f"checkpoint {str(checkpoint)!r} holds no PRM", "export its policy, or give that of a run that trained one"
        )
    return content


# ---- each writes a folder and returns its card ----

Described = Mapping[str, Any]


def _write_policy(described: Described, weights: Mapping[str, Tensor], folder: Path, name: str, run: Run) -> str:
    policy = Policy.restored(described, weights).eval()
    policy.save_pretrained(folder)
    return policy_card(run, policy, name=name)


def _write_adapter(described: Described, weights: Mapping[str, Tensor], folder: Path, name: str, run: Run) -> str:
    base = described["arguments"]["path"]
    if described["arguments"]["lora"] is not None and base is None:
        raise ConfigError(
            "--adapter: the policy's base was made from a configuration, and is nowhere to be loaded from",
            "leave --adapter out: the adapters are merged then",
        )
    policy = Policy.restored(described, weights).eval()
    policy.save_adapter(folder, str(base))
    return policy_card(run, policy, name=name, base=str(base))


def _write_prm(described: Described, weights: Mapping[str, Tensor], folder: Path, name: str, run: Run) -> str:
    prm = PRM.restored(described, weights).eval()
    save_prm(prm, folder)
    if run.text is not None:
        (folder / TEXT_FILE).write_text(json.dumps(asdict(run.text), indent=2) + "\n", encoding="utf-8")
    return prm_card(run, prm, name=name)


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder beside the target that becomes it where the block ends well, and is removed otherwise."""
    if target.exists() or target.is_symlink():
        raise ConfigError(f"--output: {str(target)!r} exists", "name another folder, or remove this one")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(
            f"--output: {str(target)!r} cannot be written: {error.strerror}", "name another folder"
        ) from error
    try:
        yield part
        part.rename(target)
    except OSError as error:
        raise ValueError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
