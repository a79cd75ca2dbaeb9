"""Settings of a program as a dataclass: from YAML files and the command line, errors in two lines."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from jsonargparse import ArgumentParser

from repirl import config
from repirl.build import explained
from repirl.config import COMMAND_LINE, ConfigError
from repirl.config.errors import explain
from repirl.learning.settings import Text

T = TypeVar("T")


def parser_of(command: str, kind: type, description: str | None) -> ArgumentParser:
    """The parser of a subcommand whose settings are the fields of a dataclass."""
    parser = ArgumentParser(prog=f"repirl {command}", description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", help="a YAML file of these settings; several are merged")
    parser.add_class_arguments(kind, None)
    return parser


def settings_of(
    parser: ArgumentParser, kind: type[T], arguments: Sequence[str], *, classes: Collection[str]
) -> tuple[T, config.Config]:
    """The settings of YAML files and the command line, and the mapping they came from.

    classes: the settings whose value may be the name of a class.

    Raises:
        ConfigError: a file, key or value is wrong.
    """
    paths, rest = config.split(arguments)
    given, where = config.load(paths), config.origins(paths)
    if stray := [
        word for i, word in enumerate(rest) if not word.startswith("--") and (not i or _takes_none(rest[i - 1]))
    ]:
        raise ConfigError(f"unexpected argument {stray[0]!r} on the command line", "options look like --n=[1,2,4]")
    for key, text in config.overrides(rest):
        value = config.parse_value(text)
        if key in classes and isinstance(value, str):
            key = f"{key}.class_path"
        dotted = config.canonical(given, key, value)
        given = config.assign(given, dotted, value)
        where[dotted] = COMMAND_LINE
    try:
        settings = parser.parse_object(given)
    except argparse.ArgumentError as error:
        explain(str(error), given, where, parser)
    with explained():
        made = parser.instantiate(settings)
        values: dict[str, Any] = {one.name: made[one.name] for one in fields(kind)}  # type: ignore[arg-type]
        return kind(**values), given


def given_text(text: Text | None, given: config.Config) -> dict[str, Any]:
    """Those of the settings of `text` that were given: a checkpoint's own stand for the others."""
    return {} if text is None else {name: getattr(text, name) for name in given["text"]}


def _takes_none(word: str) -> bool:
    return not word.startswith("--") or "=" in word
