"""How the process of a program ends: an exit status, and a word for the report of its server."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

NOTES = 5  # descriptor of the process for what its server reports
RAISED, OUT_OF_MEMORY, TOO_MUCH_WRITTEN = 81, 82, 83  # exit statuses


def leave(status: int, note: str) -> NoReturn:
    """Ends the process with a word for the report."""
    try:
        os.write(NOTES, note[:2000].encode("utf-8", "replace"))
    finally:  # the program may have closed it, which is its own loss
        os._exit(status)


def guarded(action: Callable[[], Any]) -> Any:
    """Runs the program's code; whatever escapes from it ends the process."""
    try:
        return action()
    except BaseException as error:
        leave(over_a_limit(error) or RAISED, describe(error))


def over_a_limit(error: BaseException) -> int:
    """The exit status for an error that a limit has caused; 0 for any other."""
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    return TOO_MUCH_WRITTEN if isinstance(error, OSError) and error.errno == errno.EFBIG else 0


def describe(error: BaseException) -> str:
    """Type, message and line in the program."""
    try:
        text = f"{type(error).__name__}: {error}"[:1000]
        walked = traceback.walk_tb(error.__traceback__)
        lines = [line for frame, line in walked if frame.f_code.co_filename == "<program>"]
    except BaseException:  # an exception of the program's own making
        return type(error).__name__
    return f"{text} (line {lines[-1]} of the program)" if lines else text
