"""Places of a Python program where one operator or one integer can be changed, the rest kept letter by letter."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from itertools import pairwise

_LINE_END = re.compile(rb"\r\n|\r|\n")  # as Python's parser counts lines
_COMMENT = re.compile(rb"#[^\r\n]*")
_ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "//"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "%"),
    ast.Mod: ("%", "//"),
}
_COMPARISON: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", ">"),
    ast.Gt: (">", "<"),
    ast.LtE: ("<=", ">="),
    ast.GtE: (">=", "<="),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
}

Edit = tuple[int, int, str]


def program_edits(text: str) -> dict[str, list[Edit]]:
    """By kind, operator and constant, the changes that leave another program that parses; none for what is no program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the program's author should know
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return {}
        before = ast.dump(tree)
        places = _Places(text)
        return {
            kind: [edit for edit in edits if _is_another_program(text, edit, before)]
            for kind, edits in (
                ("operator", list(_operators(tree, places))),
                ("constant", list(_constants(tree, places))),
            )
        }


class _Places:
    """Bytes of a program by line and column, as the parser counts them, and the characters they are."""

    def __init__(self, text: str) -> None:
        self.source = text.encode("utf-8")
        self.lines = [0, *(match.end() for match in _LINE_END.finditer(self.source))]

    def at(self, line: int | None, column: int | None) -> int:
        assert line is not None
        assert column is not None
        return self.lines[line - 1] + column

    def of_bytes(self, start: int, end: int, replacement: str) -> Edit:
        first = len(self.source[:start].decode("utf-8"))
        return first, first + len(self.source[start:end].decode("utf-8")), replacement


def _operators(tree: ast.AST, places: _Places) -> Iterator[Edit]:
    for node in _outside_strings(tree):
        if isinstance(node, ast.BinOp) and (signs := _ARITHMETIC.get(type(node.op))):
            yield from _between(node.left, node.right, signs, places)
        if isinstance(node, ast.Compare):
            for (left, right), operator in zip(pairwise([node.left, *node.comparators]), node.ops, strict=True):
                if compared := _COMPARISON.get(type(operator)):
                    yield from _between(left, right, compared, places)


def _between(left: ast.expr, right: ast.expr, signs: tuple[str, str], places: _Places) -> Iterator[Edit]:
    """The change of the operator between two operands: nothing else is there but brackets, white space and comments."""
    start, end = places.at(left.end_lineno, left.end_col_offset), places.at(right.lineno, right.col_offset)
    gap = _COMMENT.sub(lambda comment: b" " * len(comment[0]), places.source[start:end])
    at = gap.find(signs[0].encode())
    assert at >= 0, f"no {signs[0]} in {gap!r}"
    yield places.of_bytes(start + at, start + at + len(signs[0]), signs[1])


def _constants(tree: ast.AST, places: _Places) -> Iterator[Edit]:
    for node in _outside_strings(tree):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            start, end = places.at(node.lineno, node.col_offset), places.at(node.end_lineno, node.end_col_offset)
            for value in (node.value - 1, node.value + 1):
                if value >= 0:
                    yield places.of_bytes(start, end, str(value))


def _outside_strings(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those within f-strings, whose places older parsers do not know."""
    if not isinstance(node, ast.JoinedStr):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from _outside_strings(child)


def _is_another_program(text: str, edit: Edit, before: str) -> bool:
    start, end, replacement = edit
    try:
        return ast.dump(ast.parse(text[:start] + replacement + text[end:])) != before
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
