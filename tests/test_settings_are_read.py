"""No setting does nothing: what a constructor takes is used there, or kept and read by some line of the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import repirl

SOURCES = [ast.parse(path.read_text(encoding="utf-8")) for path in Path(repirl.__file__).parent.rglob("*.py")]
GROUPS = {
    "Text",
    "Advantage",
    "Schedule",
    "PromptFilter",
    "SamplerGap",
    "Budget",
    "EvalSet",
    "MixturePart",
}  # of settings, as dataclasses


def constructors() -> Iterator[tuple[str, ast.FunctionDef]]:
    for tree in SOURCES:
        for kind in ast.walk(tree):
            if isinstance(kind, ast.ClassDef):
                yield from (
                    (kind.name, node)
                    for node in kind.body
                    if isinstance(node, ast.FunctionDef) and node.name == "__init__"
                )


def fields() -> Iterator[tuple[str, str]]:
    """Of dataclasses."""
    for tree in SOURCES:
        for kind in ast.walk(tree):
            if isinstance(kind, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in kind.decorator_list):
                yield from (
                    (kind.name, node.target.id)
                    for node in kind.body
                    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
                )


def attributes_read() -> set[str]:
    return {
        node.attr
        for tree in SOURCES
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def only_stored_as(argument: str, function: ast.FunctionDef) -> set[str] | None:
    """The attributes that hold the argument, where the constructor does nothing else with it; else None."""
    stored: set[str] = set()
    pairs: list[tuple[ast.expr, ast.expr]] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            both = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
            pairs += zip(target.elts, value.elts, strict=True) if both else [(target, value)]  # type: ignore[attr-defined]
    plain = [(t, v) for t, v in pairs if isinstance(v, ast.Name) and v.id == argument and isinstance(t, ast.Attribute)]
    stored = {target.attr for target, _ in plain if isinstance(target, ast.Attribute)}
    uses = [node for node in ast.walk(function) if isinstance(node, ast.Name) and node.id == argument]
    return stored if len(uses) == len(plain) else None


def test_every_argument_is_used_or_kept_and_read() -> None:
    read = attributes_read()
    seen, unread = 0, []
    for name, function in constructors():
        for argument in (*function.args.args[1:], *function.args.kwonlyargs):
            seen += 1
            stored = only_stored_as(argument.arg, function)
            if stored is not None and not stored & read:
                unread.append(f"{name}.{argument.arg}")
    assert seen > 150
    assert not unread


def test_every_field_is_read() -> None:
    read = attributes_read()
    found = [(kind, name) for kind, name in fields() if kind in GROUPS]
    assert {kind for kind, _ in found} == GROUPS
    assert not [f"{kind}.{name}" for kind, name in found if name not in read]


def test_a_setting_that_nothing_reads_would_be_found() -> None:
    tree = ast.parse("class A:\n  def __init__(self, a, b, c):\n    self.a, self.b = a, b\n    f(c)\n")
    (function,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert [only_stored_as(name, function) for name in "abc"] == [{"a"}, {"b"}, None]
    assert only_stored_as("d", function) == set()
