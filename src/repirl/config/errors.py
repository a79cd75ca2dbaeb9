"""Messages of the argument parser as errors that say what, where and what to do."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import inspect
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from repirl.config import Config, ConfigError, is_class


def explain(message: str, config: Config, where: Mapping[str, str], parser: argparse.ArgumentParser) -> NoReturn:
    """Raises the ConfigError for a message of the argument parser.

    config: what was parsed, command line included. where: dotted key -> file and line. parser: has the valid options.
    """
    options = [action.dest for action in parser._actions if action.option_strings]
    nodes = dict(_flatten(config))
    if found := re.search(r"(?:Option|not accept option) '([^']+)'", message):
        _unknown_key(found[1], nodes, where, options)
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        key = found[1].lstrip("-").partition("=")[0]
        if not found[1].startswith("--"):
            raise ConfigError(f"unexpected argument {found[1]!r} on the command line", "options look like --key=value")
        _unknown_key(key, nodes, where, options)
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


def refuse_unknown(keys: Iterable[str], config: Config, where: Mapping[str, str]) -> None:
    """Raises ConfigError where one of these dotted keys is no argument of the class it is in.

    The argument parser refuses such keys in files, and overlooks those of the command line inside dataclasses.
    """
    nodes = dict(_flatten(config))
    for dotted in keys:
        names = dotted.split(".")
        for place in [i for i, name in enumerate(names) if name == "init_args"]:
            class_path = str(nodes.get(".".join([*names[:place], "class_path"])))
            own = list(takewhile(lambda name: name not in ("init_args", "class_path"), names[place + 1 :]))
            if first_unknown(class_path, own) is not None:
                _unknown_key(dotted, nodes, where, [])


def _unknown_key(key: str, nodes: Mapping[str, Any], where: Mapping[str, str], options: list[str]) -> NoReturn:
    for dotted in _ending_with(key, nodes):
        names = dotted.split(".")
        for place in reversed([i for i, name in enumerate(names) if name == "init_args"]):
            class_path = str(nodes.get(".".join([*names[:place], "class_path"])))
            unknown = first_unknown(class_path, names[place + 1 :])
            if unknown is None:
                continue
            depth, valid = unknown
            *group, name = names[place + 1 : place + 2 + depth]
            near = difflib.get_close_matches(name, valid, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            full = ".".join(names[: place + 2 + depth])
            raise ConfigError(
                f"unknown key {full!r}{_at(full, where)}: {'.'.join([class_path, *group])} has no {name!r}",
                f"{hint}valid keys: {', '.join(sorted(valid))}",
            )
    for dotted in _ending_with(key, nodes):
        if key.partition(".")[0].isdigit() and dotted != key:
            items = dotted.removesuffix(f".{key}")
            raise ConfigError(
                f"unknown key {dotted!r}{_at(dotted, where)}: {items!r} is a list, whose items cannot be set one by one",
                f"give the whole of {items} in a file",
            )
    near = difflib.get_close_matches(key, options, n=1) or difflib.get_close_matches(key, nodes, n=1)
    top = sorted({option.partition(".")[0] for option in options})
    todo = f"did you mean {near[0]!r}?" if near and near[0] != key else f"valid top-level keys: {', '.join(top)}"
    raise ConfigError(f"unknown key {key!r}{_at(key, where)}", todo)


def _missing_key(names: list[str], nodes: Mapping[str, Any], where: Mapping[str, str]) -> NoReturn:
    names = [re.sub(r"^(fit|validate|test|predict)\.", "", name) for name in names]
    for dotted, node in nodes.items():
        if is_class(node):
            place, needing, given = f"{dotted}.init_args", _import(str(node["class_path"])), node.get("init_args") or {}
        elif isinstance(node, dict):
            place, needing, given = dotted, _group(dotted, nodes), node
        else:
            continue
        if needing is not None and set(names) <= set(required(needing)) - set(given):
            keys = ", ".join(repr(f"{place}.{name}") for name in names)
            who = node.get("class_path") or needing.__name__
            raise ConfigError(f"missing {keys}{_at(dotted, where)}: {who} needs it", "add it; it has no default")
    raise ConfigError(
        f"missing {', '.join(map(repr, sorted(names)))}", "add it, or give a complete file with --config FILE"
    )


def _bad_class(class_path: str, reason: str, nodes: Mapping[str, Any], where: Mapping[str, str]) -> NoReturn:
    dotted = next((key for key, value in nodes.items() if value == class_path and key.endswith("class_path")), "")
    dotted = dotted or next((key for key, value in nodes.items() if value == class_path), "")
    place = f" for {dotted!r}{_at(dotted, where)}" if dotted else ""
    todo = "give the full path of a class, such as repirl.modules.repirl.RePIRL"
    if "does not correspond" in reason:
        todo = f"give a {reason.rpartition('subclass of ')[2].strip()}"
    elif near := nearest_class(class_path):
        todo = f"did you mean {near!r}?"
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
    if missing := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", detail):
        _bad_class(".".join(missing.groups()), "", nodes, where)
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


def nearest_class(class_path: str) -> str | None:
    """The path of the class that is most likely meant: one of its module, else one of this package."""
    module, _, name = class_path.rpartition(".")
    of_module = {other: f"{module}.{other}" for other in _public_names(module)}
    for classes, cutoff in ((of_module, 0.6), (_own_classes(), 0.8)):
        same = [other for other in classes if other.lower() == name.lower()]
        if near := same or difflib.get_close_matches(name, classes, n=1, cutoff=cutoff):
            return classes[near[0]]
    return None


def _own_classes() -> dict[str, str]:
    """Name -> path of every public class of this package, read from its source: importing all would take seconds."""
    root = Path(__file__).parents[1]
    classes = {}
    for file in sorted(root.rglob("*.py")):
        module = ".".join(file.relative_to(root.parent).with_suffix("").parts)
        classes.update({name: f"{module}.{name}" for name in re.findall(r"^class ([A-Z]\w*)", file.read_text(), re.M)})
    return classes


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


def parameters(class_path: str) -> list[str]:
    """The arguments that a class accepts, those it passes on to its parents included; empty where unknown."""
    return _accepted(_import(class_path))


def _accepted(found: type | None) -> list[str]:
    from jsonargparse import ArgumentParser

    return ArgumentParser(exit_on_error=False).add_class_arguments(found, fail_untyped=False) if found else []


def first_unknown(class_path: str, names: Sequence[str]) -> tuple[int, list[str]] | None:
    """The place of the first of nested names that is no argument, and those that there are; None where all are.

    Names lead from a class through its arguments of dataclasses, and through mappings of them by any key.
    """
    found, depth = _import(class_path), 0
    while found is not None and depth < len(names):
        valid = _accepted(found)
        if valid and names[depth] not in valid:
            return depth, valid
        found, steps = _below(found, names[depth])
        depth += steps
    return None


def _below(found: type, name: str) -> tuple[type | None, int]:
    """The dataclass that an argument is, or holds by key, and how many names lead to it."""
    hint = typing.get_type_hints(found.__init__).get(name)  # type: ignore[misc]
    for kind in _within(hint):
        if dataclasses.is_dataclass(kind):
            return typing.cast(type, kind), 1
        if typing.get_origin(kind) is dict:
            inner = next((t for t in _within(typing.get_args(kind)[1]) if dataclasses.is_dataclass(t)), None)
            return typing.cast("type | None", inner), 2
    return None, 1


def _within(hint: object) -> list[object]:
    """A type, and the members of a union."""
    return [hint] if typing.get_origin(hint) is dict else [hint, *typing.get_args(hint)]


def _group(dotted: str, nodes: Mapping[str, Any]) -> type | None:
    """The dataclass that a node without a class path is read as; None for other nodes."""
    owner, _, inside = dotted.rpartition(".init_args.")
    found: type | None = _import(str(nodes.get(f"{owner}.class_path"))) if inside else None
    names = inside.split(".")
    while found is not None and names:
        found, steps = _below(found, names[0])
        if len(names) < steps:
            return None
        names = names[steps:]
    return found


def required(found: type) -> list[str]:
    """The arguments of a class that have no default."""
    signature = inspect.signature(found).parameters.values()
    return [p.name for p in signature if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
