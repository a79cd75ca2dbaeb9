"""A terminal for a process, and what stands on its screen in the end."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.processes import limited


def in_terminal(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    columns: int = 80,
    watch: Callable[[subprocess.Popen[bytes], str], None] | None = None,
) -> tuple[int, str]:
    """The status of a command whose output is a terminal, and all that it wrote; `watch` sees it grow."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = subprocess.Popen(
        command, cwd=cwd, env={**env, "TERM": "xterm"}, stdin=inner, stdout=inner, stderr=inner, start_new_session=True
    )
    os.close(inner)
    written = b""
    with limited(process):
        while True:
            try:
                new = os.read(outer, 65536)
            except OSError:  # the last writer has closed it
                break
            written += new
            if watch is not None:
                watch(process, written.decode(errors="ignore"))
        status = process.wait(60)
    os.close(outer)
    return status, written.decode()


def on_screen(written: str) -> list[str]:
    """Lines that stand there after carriage returns and clearings to the end of the line; no other control is known."""
    lines = []
    for row in written.split("\n"):
        shown: list[str] = []
        column = 0
        rest = row
        while rest:
            if rest.startswith("\x1b[K"):
                del shown[column:]
                rest = rest[3:]
                continue
            character, rest = rest[0], rest[1:]
            if character == "\r":
                column = 0
                continue
            shown[column : column + 1] = [character]
            column += 1
        lines.append("".join(shown))
    return lines
