"""YAML configurations: reading and merging overlays and the command line. `errors.py` explains the parser's messages.

Several files merge from left to right. A node is a mapping; one with a `class_path` names a class and its `init_args`.
An overlay that names another class drops the old class's arguments, so that nothing leaks from one into the other.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from repirl import LAZY
from repirl.config.output import KEY, PLACE, filled, placed, uses

Config = dict[str, Any]

COMMAND_LINE = "command line"
_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
_FLOAT = re.compile(r"^(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)$", re.I)


class ConfigError(ValueError):
    """A mistake in a configuration. Its text has two lines: what is wrong and where; what to do."""

    def __init__(self, what: str, todo: str) -> None:
        super().__init__(f"{_one_line(what)}\n{_one_line(todo)}")


# ---------------------------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-5 as a number and leaves dates as text."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which `_Loader` would read as a number."""


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in pairs if not tag.endswith((":float", ":timestamp"))]
        for first, pairs in _class.yaml_implicit_resolvers.items()
    }
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def read(path: str | Path) -> tuple[Config, dict[str, int]]:
    """One YAML file as a mapping, and the line that sets each dotted key."""
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, _yaml_names(path.parent), n=1)
        todo = f"did you mean {str(path.parent / near[0])!r}?" if near else "give the path of an existing YAML file"
        raise ConfigError(f"configuration file {str(path)!r} does not exist", todo)
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        content = loader.construct_document(root) if root is not None else None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem}", "correct that line") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}", "save the file as plain UTF-8 text") from error
    if root is None:
        raise ConfigError(f"{path}:1: the file is empty", "write at least one key, or leave the file out")
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            f"{path}:{root.start_mark.line + 1}: the top level is a {type(content).__name__}, not a mapping",
            "start with keys such as 'trainer:', 'model:' and 'data:'",
        )
    assert isinstance(content, dict)
    return content, dict(_lines(root, "", path))


def dump(config: Config) -> str:
    """A mapping as YAML, in its own order."""
    text: str = yaml.dump(config, Dumper=_Dumper, sort_keys=False)
    return text


def parse_value(text: str) -> object:
    """A command-line value as YAML would read it; text that is not YAML stays text."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError:
        return text


def _yaml_names(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml")] if folder.is_dir() else []


def _lines(node: yaml.Node, prefix: str, path: Path) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield f"{prefix}{index}", item.start_mark.line + 1
            yield from _lines(item, f"{prefix}{index}.", path)
    elif isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in first:
                raise ConfigError(
                    f"{path}:{line}: key {prefix + name!r} is given twice, first in line {first[name]}",
                    "keep one of the two",
                )
            first[name] = line
            yield prefix + name, line
            yield from _lines(value, f"{prefix}{name}.", path)


# --------------------------------------------------------------------------------------------------------------- merge


def merge(base: Config, overlay: Config) -> Config:
    """`overlay` on top of `base`: mappings merge, anything else (lists and null too) replaces.

    A node that changes its class loses the old class's init_args and dict_kwargs.
    """
    if changes_class(base, overlay):
        base = {key: value for key, value in base.items() if key not in ("init_args", "dict_kwargs")}
    merged = dict(base)
    for key, value in overlay.items():
        old = base.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def load(paths: Sequence[str | Path]) -> Config:
    """Several YAML files, merged from left to right."""
    merged: Config = {}
    for path in paths:
        merged = merge(merged, read(path)[0])
    return merged


def origins(paths: Sequence[str | Path]) -> dict[str, str]:
    """Dotted key -> `file:line` of the last file that sets it."""
    return {key: f"{path}:{line}" for path in paths for key, line in read(path)[1].items()}


def changes_class(base: object, overlay: object) -> bool:
    """True if both nodes name a class and the two differ."""
    if not (isinstance(base, dict) and isinstance(overlay, dict)):
        return False
    old, new = base.get("class_path"), overlay.get("class_path")
    return isinstance(old, str) and isinstance(new, str) and not _same_class(old, new)


def _same_class(a: str, b: str) -> bool:
    """Equal paths; `repirl.Name` and its full path; a bare name and a path that ends in it."""
    a, b = (f"{LAZY[p[7:]]}.{p[7:]}" if p.startswith("repirl.") and p[7:] in LAZY else p for p in (a, b))
    return a == b or (a.rpartition(".")[2] == b.rpartition(".")[2] and ("." not in a or "." not in b))


# -------------------------------------------------------------------------------------------------------- command line


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes every `--config X`, `--config=X` and `-c X` out of a command line: their values, and the rest."""
    paths: list[str] = []
    rest: list[str] = []
    items = iter(argv)
    for item in items:
        if item in ("-c", "--config"):
            value = next(items, None)
            if value is None:
                raise ConfigError(f"{item} has no value", f"give a YAML file: {item} configs/quickstart.yaml")
            paths.append(value)
        elif item.startswith("--config="):
            paths.append(item.partition("=")[2])
        else:
            rest.append(item)
    return paths, rest


def overrides(args: Sequence[str]) -> list[tuple[str, str]]:
    """The `--key value` and `--key=value` pairs of a command line; flags without a value are left out."""
    pairs = []
    for position, item in enumerate(args):
        if not item.startswith("--"):
            continue
        key, equals, value = item[2:].partition("=")
        following = args[position + 1] if position + 1 < len(args) else "--"
        if equals or not following.startswith("--"):
            pairs.append((key, value if equals else following))
    return pairs


@dataclass(frozen=True)
class Merged:
    """A command line with its files: the subcommand, if any, and what follows it without the files.

    files: the merged files, without arguments of classes that the command line replaces. final: with the command line too.
    where: dotted key -> the file and line, or the command line, that set it last.
    """

    command: list[str]
    rest: list[str]
    files: Config
    final: Config
    where: dict[str, str]


def merged(argv: Sequence[str]) -> Merged:
    """Reads the files of a command line and merges them with its overrides, from left to right."""
    paths, rest = split(argv)
    command = rest[:1] if rest and not rest[0].startswith("-") else []
    files = final = load(paths)
    where = origins(paths)
    for key, text in overrides(rest):
        value = parse_value(text)
        dotted = canonical(final, key, value)
        final = assign(final, dotted, value)
        where[dotted] = COMMAND_LINE
    files, rest = forget_replaced(files, final), rest[len(command) :]
    output = final.get(KEY)
    if output is None and not uses(final):
        return Merged(command, rest, files, final, where)
    if not isinstance(output, str) or not output:
        named = f"output is {output!r} ({where[KEY]})" if KEY in final else "'{output}' is used, and there is no output"
        raise ConfigError(named, "give the folder of the run: output: outputs/my_run, or --output=...")
    trains = command in ([], ["fit"])
    files, final = (placed(config, output, trains=trains) for config in (files, final))
    return Merged(command, filled(_without(rest, KEY), {PLACE: output}), files, final, where)


def settled(given: Merged) -> Merged:
    """The same with single values of the command line written into the files, where nothing after them depends on how.

    A second reading, for where the parser refuses the first: it reads the files before it reads the command line, so
    that a bad value in them counts although it was replaced, and null is no value to it there.
    """
    files, rest, written = given.files, list(given.rest), []
    for key, text in overrides(given.rest):
        value = parse_value(text)
        dotted = canonical(files, key, value)
        parent = _node(files, dotted.rpartition(".")[0])
        before = _child(parent, dotted.rpartition(".")[2])
        single = value is None or (not isinstance(value, dict | list) and not isinstance(before, dict | list))
        if not (isinstance(parent, dict) and single) or dotted.endswith(("class_path", "+")):
            written.append(key)
        elif not any(key.startswith(f"{other}.") for other in written):
            files = assign(files, dotted, value)
            rest = _without(rest, key)
    return replace(given, files=files, rest=rest)


def _node(config: Config, dotted: str) -> object:
    node: object = config
    for part in dotted.split(".") if dotted else ():
        node = _child(node, part)
    return node


def _without(args: Sequence[str], key: str) -> list[str]:
    """A command line without `--key value` and `--key=value`."""
    kept, skip = [], False
    for item in args:
        if not skip and not item.startswith(f"--{key}=") and item != f"--{key}":
            kept.append(item)
        skip = item == f"--{key}"
    return kept


def canonical(config: Config, key: str, value: object) -> str:
    """The full dotted key that a command-line override sets: `init_args` and `class_path` may be left out there."""
    node: object = config
    path: list[str] = []
    for part in key.split("."):
        if is_class(node) and part not in _CLASS_KEYS:
            path.append("init_args")
            node = _child(node, "init_args")
        path.append(part)
        node = _child(node, part)
    if isinstance(value, str) and is_class(node):
        path.append("class_path")
    return ".".join(path)


def assign(config: Config, dotted: str, value: object) -> Config:
    """A new mapping with one dotted key set."""
    first, _, rest = dotted.partition(".")
    return merge(config, {first: assign({}, rest, value) if rest else value})


def forget_replaced(config: Config, final: Config) -> Config:
    """`config` without the arguments of classes that `final` replaces by others."""
    if changes_class(config, final):
        return {"class_path": final["class_path"]}
    return {
        key: forget_replaced(value, final[key])
        if isinstance(value, dict) and isinstance(final.get(key), dict)
        else value
        for key, value in config.items()
    }


def is_class(node: object) -> bool:
    """Whether a node names a class."""
    return isinstance(node, dict) and "class_path" in node


def _child(node: object, key: str) -> object:
    return node.get(key) if isinstance(node, dict) else None


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 400 else text[:397] + "..."
