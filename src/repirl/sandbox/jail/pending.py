"""When tests see what a program has done to their arguments: after the statement that called it, not within.

    assert same(solution(*inputs), reference(*inputs))

A program that empties its arguments and returns nothing must not have the reference work on what is left. So changes wait
until the statement is over, or the operand of `and` and `or` that the call stands in.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any

TESTS = "<tests>"  # the file name of the tests' own code

Position = tuple[int, int]  # line, column in bytes
Span = tuple[Position, Position]


class Pending:
    """Changes that wait. code: of the tests."""

    def __init__(self, code: str) -> None:
        self.code = code
        self._actions: list[Callable[[], None]] = []
        self._frame: FrameType | None = None
        self._span: Span | None = None

    def add(self, action: Callable[[], None], frame: FrameType | None) -> None:
        """Does it when the part of the tests that this frame is in has ended; at once where none of them is."""
        frame = _of_tests(frame)
        if frame is None:
            action()
            return
        self._actions.append(action)
        if self._frame is None:
            self._follow(frame)

    def settle(self) -> None:
        """Does what waits."""
        if self._frame is not None:
            self._leave()
        actions, self._actions = self._actions, []
        for action in actions:
            action()

    def _follow(self, frame: FrameType) -> None:
        self._frame, self._span = frame, _around(_spans(self.code), _position(frame))
        frame.f_trace_lines, frame.f_trace_opcodes, frame.f_trace = False, True, self._step
        sys.settrace(_nothing)

    def _leave(self) -> None:
        assert self._frame is not None
        sys.settrace(None)
        self._frame.f_trace, self._frame.f_trace_opcodes = None, False
        self._frame = None

    def _step(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame is not self._frame:
            return None
        if event == "opcode":
            position = _position(frame)
            if position is not None and not _within(position, self._span):
                self.settle()
                return None
        elif event == "return":
            self._leave()
            outer = _of_tests(frame.f_back)
            if outer is None:
                self.settle()
            else:
                self._follow(outer)
            return None
        return self._step


def raising_lines(code: str) -> set[int]:
    """Lines of the `raise` statements."""
    return {node.lineno for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Raise)}


def _nothing(*_: Any) -> None:
    """Traces no other frame."""


def _of_tests(frame: FrameType | None) -> FrameType | None:
    while frame is not None and frame.f_code.co_filename != TESTS:
        frame = frame.f_back
    return frame


@lru_cache(maxsize=1)
def _spans(code: str) -> list[Span]:
    """Of statements, without the bodies of compound ones, and of operands."""
    found: list[ast.expr | ast.stmt] = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.BoolOp):
            found += node.values
        elif isinstance(node, ast.For | ast.AsyncFor):
            found.append(node.iter)
        elif isinstance(node, ast.If | ast.While):
            found.append(node.test)
        elif isinstance(node, ast.With | ast.AsyncWith):
            found += [item.context_expr for item in node.items]
        elif isinstance(node, ast.stmt) and not hasattr(node, "body"):
            found.append(node)
    return [((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)) for node in found]


def _around(spans: list[Span], position: Position | None) -> Span | None:
    """The innermost span."""
    return None if position is None else max((span for span in spans if _within(position, span)), default=None)


def _within(position: Position, span: Span | None) -> bool:
    return span is not None and span[0] <= position < span[1]


@lru_cache(maxsize=64)
def _positions(code: CodeType) -> list[Position | None]:
    return [None if line is None or column is None else (line, column) for line, _, column, _ in code.co_positions()]


def _position(frame: FrameType) -> Position | None:
    """Where the instruction stands that a frame is at; None for one without a place."""
    return _positions(frame.f_code)[frame.f_lasti // 2] if frame.f_lasti >= 0 else None
