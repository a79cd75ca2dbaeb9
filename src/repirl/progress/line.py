"""One line that shows where a program is: written over itself in a terminal, now and then elsewhere."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, TextIO

from repirl.progress.words import cut

REFRESH_S = 0.1  # between two lines in a terminal
_CLEAR = "\r\x1b[K"


class Line:
    """Shows one line at a time, between `open` and `close`; also a context manager.

    In a terminal, whatever else is printed meanwhile stands above the line: standard output and error, and the log
    handlers that write there, are led through here. Output of other processes into the same terminal is not.

    Args:
        every_s: seconds between two lines where neither standard error nor standard output is a terminal.
    """

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self._terminal: TextIO | None = None
        self._text, self._on_screen = "", False
        self._after_part = False  # of a line of other output, whose end is still to come
        self._shown_at: float | None = None
        self._lock = threading.RLock()  # re-entrant: a signal handler may print while a line is being drawn
        self._led: list[_Led] = []
        self._is_open = False

    def open(self) -> None:
        """Begins; the first line is due at once."""
        if self._is_open:
            return
        self._is_open, self._shown_at, self._after_part = True, None, False
        self._terminal = next((s for s in (sys.stderr, sys.stdout) if _is_terminal(s)), None)
        if self._terminal is not None:
            self._lead_streams()

    def due(self, *, rarely: bool = False) -> bool:
        """Whether it is time for another line.

        rarely: events are seconds apart, so that in a terminal each is shown.
        """
        if not self._is_open:
            return False
        wait = self.every_s if self._terminal is None else 0.0 if rarely else REFRESH_S
        return self._shown_at is None or time.monotonic() - self._shown_at >= wait

    @property
    def width(self) -> int | None:
        """Columns of the terminal but the last; None elsewhere."""
        if self._terminal is None:
            return None
        try:
            columns = os.get_terminal_size(self._terminal.fileno()).columns
        except (OSError, ValueError):  # no terminal after all, or closed
            columns = 0
        return (columns or 80) - 1

    def show(self, text: str) -> None:
        """Shows the text in place of the one before, or as a line of its own."""
        if not self._is_open:
            return
        self._shown_at = time.monotonic()
        if self._terminal is None:
            _write(sys.stderr, f"{text}\n")
            return
        with self._lock:
            self._text = text
            self._draw()

    def close(self, text: str | None = None) -> None:
        """Ends, with a last line or, in a terminal, without a trace. Safe to call twice."""
        if not self._is_open:
            return
        self._is_open = False
        if self._terminal is not None:
            with self._lock:
                self._erase()
                self._text = ""
                self._release_streams()
        if text is not None:
            _write(self._terminal or sys.stderr, f"{text}\n")
        self._terminal = None

    def __enter__(self) -> Line:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def beside(self, stream: TextIO, text: str) -> int:
        """Writes other output above the line."""
        with self._lock:
            self._erase()
            try:
                return stream.write(text)
            finally:
                self._after_part = not text.endswith("\n") if text else self._after_part
                self._draw()

    def _draw(self) -> None:
        if self._terminal is None or not self._text or self._after_part:
            return
        _write(self._terminal, _CLEAR + cut(self._text, self.width or 0))
        self._on_screen = True

    def _erase(self) -> None:
        if self._terminal is not None and self._on_screen:
            _write(self._terminal, _CLEAR)
        self._on_screen = False

    def _lead_streams(self) -> None:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if _is_terminal(stream):
                led = _Led(self, name, stream)
                self._led.append(led)
                setattr(sys, name, led)
                for handler in _handlers_on(stream):
                    handler.setStream(led)

    def _release_streams(self) -> None:
        for led in self._led:
            for handler in _handlers_on(led):
                handler.setStream(led.stream)
            if getattr(sys, led.name) is led:
                setattr(sys, led.name, led.stream)
        self._led = []


class _Led:
    """A standard stream whose output goes above a line."""

    def __init__(self, line: Line, name: str, stream: TextIO) -> None:
        self.line, self.name, self.stream = line, name, stream

    def write(self, text: str) -> int:
        """As the stream's."""
        return self.line.beside(self.stream, text)

    def writelines(self, lines: Iterable[str]) -> None:
        """As the stream's."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False


def _handlers_on(stream: Any) -> list[logging.StreamHandler[Any]]:
    """Log handlers that hold the stream; those that look it up at each message need nothing."""
    known = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    handlers = [handler for log in known if isinstance(log, logging.Logger) for handler in log.handlers]
    return [h for h in handlers if isinstance(h, logging.StreamHandler) and vars(h).get("stream") is stream]


def _write(stream: TextIO, text: str) -> None:
    """Writes at once. A reader that has gone must not end the program that is only showing where it is."""
    with contextlib.suppress(OSError, ValueError):
        stream.write(text)
        stream.flush()
