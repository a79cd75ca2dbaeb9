"""How many of a number of things are done, as a line of progress."""

from __future__ import annotations

import time

from repirl.progress.line import Line
from repirl.progress.pace import time_left
from repirl.progress.words import duration

EVERY_S = 30.0  # between two lines where there is no terminal


class Count:
    """A context that shows `name done/total unit` and the time left.

    done: how many there were at the start; the speed is that of those that came since.
    """

    def __init__(self, name: str, unit: str, total: int, done: int = 0) -> None:
        self.name, self.unit, self.total, self.done = name, unit, total, done
        self._before = done
        self._line, self._start = Line(EVERY_S), time.monotonic()

    def __enter__(self) -> Count:
        self._line.open()
        return self

    def __exit__(self, *error: object) -> None:
        self._line.close()

    def show(self, note: str = "") -> None:
        """Shows the count where it is time to, with a note behind it."""
        if not self._line.due():
            return
        elapsed = time.monotonic() - self._start
        left = time_left(done=self.done - self._before, total=self.total - self._before, elapsed=elapsed)
        parts = [
            f"{self.name} {self.done}/{self.total} {self.unit}",
            "" if left is None else f"{duration(left)} left",
            note,
        ]
        self._line.show("  ".join(filter(None, parts)))
