"""One key for all that a run writes: `output`, a folder, which `{output}` stands for in any text of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEY = "output"
PLACE = "{output}"


def filled(node: Any, values: Mapping[str, str]) -> Any:
    """The node with every text in it changed: names in it give way to their values."""
    if isinstance(node, dict):
        return {key: filled(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [filled(value, values) for value in node]
    if isinstance(node, str):
        for name, value in values.items():
            node = node.replace(name, value)
    return node


def placed(config: dict[str, Any], output: str, *, trains: bool) -> dict[str, Any]:
    """The configuration with its output in place: in its texts, as the trainer's folder, of loggers where none is named."""
    rest = {key: value for key, value in config.items() if key != KEY}
    result: dict[str, Any] = filled(rest, {PLACE: output})
    trainer = {"default_root_dir": output} | (result.get("trainer") or {})
    if trains and "logger" not in trainer:
        trainer["logger"] = [
            {"class_path": f"lightning.pytorch.loggers.{kind}", "init_args": {"save_dir": output, "name": name}}
            for kind, name in (("CSVLogger", "csv"), ("TensorBoardLogger", "tensorboard"))
        ]
    return result | {"trainer": trainer}


def uses(node: Any) -> bool:
    """Whether a text of the configuration names the output."""
    if isinstance(node, dict):
        return any(map(uses, node.values()))
    return any(map(uses, node)) if isinstance(node, list) else isinstance(node, str) and PLACE in node
