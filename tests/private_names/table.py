"""The table of docs/private-names.md, what the source uses of it, and how a canary says where to look."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "repirl"
PAGE = "docs/private-names.md"
DOCUMENTED = {"_exit", "_getframe"}  # of os and sys
BY_NAME = ("getattr", "hasattr", "setattr", "delattr")


@dataclass(frozen=True)
class Row:
    """One line of the table. name: dotted. files: below src/repirl. without: what happens when it is gone."""

    library: str
    version: str
    name: str
    files: tuple[str, ...]
    purpose: str
    without: str

    @property
    def last(self) -> str:
        return self.name.rpartition(".")[2]


def rows(text: str | None = None) -> dict[str, Row]:
    """The table, by library and name."""
    text = (ROOT / PAGE).read_text(encoding="utf-8") if text is None else text
    table = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if len(cells) != 5 or "`" not in cells[1]:
            continue
        library, version = cells[0].split()
        name, files = cells[1].strip("`"), tuple(re.findall(r"`([^`]+)`", cells[2]))
        table[name] = Row(library, version, name, files, cells[3], cells[4])
    return table


# ---- what the source uses ----


def is_private(name: str) -> bool:
    return name.startswith("_") and name.strip("_") != "" and not name.endswith("__")


def defined_in(tree: ast.AST) -> set[str]:
    """Names that a file defines itself: functions, classes, variables, attributes of `self` and `cls`, slots."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                names.add(node.attr)
        elif isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "__slots__" for target in node.targets):
            names |= set(ast.literal_eval(node.value))
    return names


def of_others(tree: ast.AST, ours: set[str]) -> Iterator[tuple[int, str]]:
    """Line and name of each private name that is not ours: attributes, by `getattr` too, and imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in ours:
            yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and not (node.level or (node.module or "").split(".")[0] == "repirl"):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from ((node.lineno, name) for name in names if is_private(name))
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
            yield from ((node.lineno, name) for name in names if is_private(name))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BY_NAME:
            name = node.args[1].value if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) else None
            if isinstance(name, str) and is_private(name) and name not in ours:
                yield node.lineno, name


def used(root: Path = SOURCE) -> dict[tuple[str, str], int]:
    """File and private name -> a line, for names that neither the file nor another of its folder defines."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(root.rglob("*.py"))}
    lines = {}
    for path, tree in trees.items():
        beside = [other for file, other in trees.items() if file.parent == path.parent]
        ours = {name for other in beside for name in defined_in(other)} | DOCUMENTED
        for line, name in of_others(tree, ours):
            lines[path.relative_to(root).as_posix(), name] = line
    return lines


def replaced() -> dict[tuple[str, str], int]:
    """File and name -> line of each private method, or list, of ours that takes the place of another library's."""
    package = importlib.import_module("repirl")
    lines = {}
    for info in pkgutil.walk_packages(package.__path__, "repirl."):
        if info.name.endswith("__main__"):
            continue
        for kind in vars(importlib.import_module(info.name)).values():
            if not inspect.isclass(kind) or kind.__module__ != info.name:
                continue
            for name, value in vars(kind).items():
                if is_private(name) and isinstance(value, FunctionType | list) and _of_another(kind, name):
                    file = Path(inspect.getfile(kind)).relative_to(SOURCE).as_posix()
                    lines[file, name] = inspect.getsourcelines(kind if isinstance(value, list) else value)[1]
    return lines


def _of_another(kind: type, name: str) -> bool:
    return any(name in vars(base) and not base.__module__.startswith("repirl.") for base in kind.__mro__[1:])


# ---- canaries ----


def canary(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Marks the test of these rows; where it fails, its message says which rows and files to look at."""

    def mark(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def told(*args: Any, **kwargs: Any) -> None:
            try:
                test(*args, **kwargs)
            except Exception as error:
                raise AssertionError(advice(names, error)) from error

        return told

    return mark


def with_canaries() -> dict[str, str]:
    """Name of each row that a canary is for -> its file. Read, not imported: some libraries may be missing."""
    files = {}
    for path in [*sorted(Path(__file__).parent.glob("test_*.py")), ROOT / "tests" / "vllm" / "test_private_names.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "canary":
                files.update({ast.literal_eval(name): path.relative_to(ROOT).as_posix() for name in node.args})
    return files


def advice(names: tuple[str, ...], error: Exception) -> str:
    table = rows()
    lines = [f"a private name is gone or acts otherwise: {type(error).__name__}: {error}", f"look at {PAGE}, rows:"]
    for name in names:
        row = table[name]
        files = ", ".join(f"src/repirl/{file}" for file in row.files)
        lines.append(f"  {row.library}: {name}, read in {row.version}, used in {files}: {row.purpose}")
        lines.append(f"    without it: {row.without}")
    return "\n".join(lines)
