"""YAML configurations: reading, merging overlays, and errors that say what, where and what to do.

Several files merge from left to right. A node is a mapping; one with a `class_path` names a class and its `init_args`.
An overlay that names another class drops the old class's arguments, so that nothing leaks from one into the other.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from repirl import LAZY

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


def canonical(config: Config, key: str, value: object) -> str:
    """The full dotted key that a command-line override sets: `init_args` and `class_path` may be left out there."""
    node: object = config
    path: list[str] = []
    for part in key.split("."):
        if _is_class(node) and part not in _CLASS_KEYS:
            path.append("init_args")
            node = _child(node, "init_args")
        path.append(part)
        node = _child(node, part)
    if isinstance(value, str) and _is_class(node):
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


def _is_class(node: object) -> bool:
    return isinstance(node, dict) and "class_path" in node


def _child(node: object, key: str) -> object:
    return node.get(key) if isinstance(node, dict) else None


# -------------------------------------------------------------------------------------------------------------- errors


def explain(message: str, config: Config, where: Mapping[str, str], options: Iterable[str]) -> NoReturn:
    """Raises the ConfigError for a message of the argument parser.

    config: what was parsed, command line included. where: dotted key -> file and line. options: the valid options.
    """
    nodes = dict(_flatten(config))
    if found := re.search(r"(?:Option|not accept option) '([^']+)'", message):
        _unknown_key(found[1], nodes, where, list(options))
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        key = found[1].lstrip("-").partition("=")[0]
        if not found[1].startswith("--"):
            raise ConfigError(f"unexpected argument {found[1]!r} on the command line", "options look like --key=value")
        _unknown_key(key, nodes, where, list(options))
    if found := re.search(r"arguments are required: (.+)", message):
        _missing_key(found[1].split(", "), nodes, where)
    bad_class = r"Problem with given class_path '([^']+)':\s*(?!Parser key)(\S.+)"
    for pattern in (bad_class, r"(?:Import path|path string:) (\S+)[ ]?(.*)"):
        for name, reason in re.findall(pattern, message)[-1:]:
            if pattern == bad_class or name in (v for k, v in nodes.items() if k.endswith("class_path")):
                _bad_class(name, reason, nodes, where)
    if found := re.search(r'.*Parser key "([^"]+)":\s*(.+)', message, re.S):  # the innermost of several
        _wrong_type(found[1], found[2], nodes, where)
    raise ConfigError(message, "see 'repirl fit --help' for every option")


def _unknown_key(key: str, nodes: Mapping[str, Any], where: Mapping[str, str], options: list[str]) -> NoReturn:
    for dotted in _ending_with(key, nodes):
        owner, _, inside = dotted.rpartition(".init_args.")
        *group, name = inside.split(".")
        class_path = str(nodes.get(f"{owner}.class_path"))
        valid = parameters(class_path, group) if inside else []
        if valid and name not in valid:
            near = difflib.get_close_matches(name, valid, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"unknown key {dotted!r}{_at(dotted, where)}: {'.'.join([class_path, *group])} has no {name!r}",
                f"{hint}valid keys: {', '.join(sorted(valid))}",
            )
    near = difflib.get_close_matches(key, options, n=1) or difflib.get_close_matches(key, nodes, n=1)
    top = sorted({option.partition(".")[0] for option in options})
    todo = f"did you mean {near[0]!r}?" if near and near[0] != key else f"valid top-level keys: {', '.join(top)}"
    raise ConfigError(f"unknown key {key!r}{_at(key, where)}", todo)


def _missing_key(names: list[str], nodes: Mapping[str, Any], where: Mapping[str, str]) -> NoReturn:
    names = [re.sub(r"^(fit|validate|test|predict)\.", "", name) for name in names]
    for dotted, node in nodes.items():
        if not _is_class(node):
            continue
        given = node.get("init_args") or {}
        if set(names) <= set(required(str(node["class_path"]))) - set(given):
            keys = ", ".join(repr(f"{dotted}.init_args.{name}") for name in names)
            raise ConfigError(
                f"missing {keys}{_at(dotted, where)}: {node['class_path']} needs it", "add it; it has no default"
            )
    raise ConfigError(
        f"missing {', '.join(map(repr, sorted(names)))}", "add it, or give a complete file with --config FILE"
    )


def _bad_class(class_path: str, reason: str, nodes: Mapping[str, Any], where: Mapping[str, str]) -> NoReturn:
    dotted = next((key for key, value in nodes.items() if value == class_path and key.endswith("class_path")), "")
    dotted = dotted or next((key for key, value in nodes.items() if value == class_path), "")
    place = f" for {dotted!r}{_at(dotted, where)}" if dotted else ""
    module, _, name = class_path.rpartition(".")
    todo = "give the full path of a class, such as repirl.modules.repirl.RePIRL"
    if "does not correspond" in reason:
        todo = f"give a {reason.rpartition('subclass of ')[2].strip()}"
    elif near := difflib.get_close_matches(name, _public_names(module), n=1):
        todo = f"did you mean '{module}.{near[0]}'?"
    what = "a class of the wrong kind" if "does not correspond" in reason else "unknown class path"
    raise ConfigError(f"{what} {class_path!r}{place}{f': {reason}' if reason else ''}", todo)


def _wrong_type(key: str, detail: str, nodes: Mapping[str, Any], where: Mapping[str, str]) -> NoReturn:
    key = re.sub(r"^(fit|validate|test|predict)\.", "", key)
    got = re.search(r"(?:Got value|Given value): (.*?)(?:\. Got value: .*)?$", detail, re.M)
    text = got[1].strip() if got else ""
    places = _ending_with(key, nodes)
    dotted = next((place for place in places if text and str(nodes[place]) == text), places[0] if places else key)
    expected = ""
    if found := re.search(r"Subtypes: \[(.+)\]", detail) or re.search(r"Expected an? (.+?)\. Got value", detail, re.S):
        expected = _readable_type(found[1])
    if expected and text.startswith("{") and (inner := re.search(r"Errors:\s+- (.+)", detail)):
        expected, detail = "", inner[1]  # a node of the right kind: what its first reading failed on says more
    value = f" is {text}" if text and len(text) < 80 else " has a wrong value"
    near = difflib.get_close_matches(text, re.findall(r"'([^']*)'", expected), n=1)
    raise ConfigError(
        f"wrong type: {dotted!r}{value}{_at(dotted, where)}"
        if expected
        else f"{dotted!r}{_at(dotted, where)}: {detail}",
        (f"expected {expected}" + (f"; did you mean {near[0]!r}?" if near else ""))
        if expected
        else "correct that value",
    )


def _readable_type(text: str) -> str:
    text = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", text)
    text = re.sub(r"\btyping\.|\bcollections\.abc\.|\b[\w.]+\.(?=[A-Z]\w*)", "", text)
    return re.sub(r"\bLiteral\[([^\]]*)\]", r"one of \1", text.replace("NoneType", "null"))


def _flatten(node: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every node under its dotted key; items of a list under their index."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        yield f"{prefix}{key}", value
        yield from _flatten(value, f"{prefix}{key}.")


def _ending_with(key: str, nodes: Mapping[str, Any]) -> list[str]:
    return [dotted for dotted in nodes if dotted == key] or [dotted for dotted in nodes if dotted.endswith("." + key)]


def _at(dotted: str, where: Mapping[str, str]) -> str:
    """` (file:line)` of a key or of the nearest node above it; empty where unknown."""
    while dotted and dotted not in where:
        dotted = dotted.rpartition(".")[0]
    return f" ({where[dotted]})" if dotted else ""


def _public_names(module: str) -> list[str]:
    try:
        return [name for name in dir(importlib.import_module(module)) if not name.startswith("_")]
    except (ImportError, ValueError):  # the path was wrong already in its module: nothing to propose
        return []


def _import(class_path: str) -> type | None:
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):  # a short name, or the very mistake that is being explained
        return None
    return found if isinstance(found, type) else None


def parameters(class_path: str, group: Sequence[str] = ()) -> list[str]:
    """The arguments that a class accepts, those it passes on to its parents included; empty where unknown.

    group: names that lead to a dataclass among its arguments, whose fields are wanted instead.
    """
    from jsonargparse import ArgumentParser

    found = _import(class_path)
    for name in group:
        hint = typing.get_type_hints(found.__init__).get(name) if found else None  # type: ignore[misc]
        found = next((t for t in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(t)), None)  # type: ignore[assignment]
    return ArgumentParser(exit_on_error=False).add_class_arguments(found, fail_untyped=False) if found else []


def required(class_path: str) -> list[str]:
    """The arguments of a class that have no default; empty where unknown."""
    found = _import(class_path)
    signature = inspect.signature(found).parameters.values() if found else ()
    return [p.name for p in signature if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 400 else text[:397] + "..."
