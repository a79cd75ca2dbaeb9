"""How fast something goes, and how long the rest will take."""

from __future__ import annotations

from collections import deque
from statistics import median


class Pace:
    """Seconds and tokens of the last iterations, and the time that validations among them take.

    Args:
        window: iterations that are looked back on.
    """

    def __init__(self, window: int = 20) -> None:
        self._last: deque[tuple[float, int]] = deque(maxlen=window)
        self._iterations = 0
        self._validated_s = self._validation_s_each = 0.0

    def add(self, seconds: float, tokens: int) -> None:
        """Counts an iteration: its wall seconds without validation, and its tokens."""
        self._last.append((seconds, tokens))
        self._iterations += 1

    def add_validation(self, seconds: float) -> None:
        """Counts a validation, which then is taken to come after each so many iterations as so far."""
        self._validated_s += seconds
        self._validation_s_each = self._validated_s / max(self._iterations, 1)

    @property
    def seconds(self) -> float | None:
        """Median seconds of an iteration; None before the first has ended."""
        return median(seconds for seconds, _ in self._last) if self._last else None

    @property
    def rate(self) -> float | None:
        """Tokens a second over the last iterations; None where no tokens were counted."""
        seconds, tokens = (sum(column) for column in zip(*self._last, strict=True)) if self._last else (0, 0)
        return tokens / seconds if tokens and seconds else None

    def left(self, iterations: int, elapsed: float = 0.0) -> float | None:
        """Seconds that so many iterations will take, the first of which has run for `elapsed` seconds."""
        each = self.seconds
        if each is None:
            return None
        return max(iterations * (each + self._validation_s_each) - min(elapsed, each), 0.0)


def time_left(*, done: int, total: int, elapsed: float) -> float | None:
    """Seconds for the rest at the average speed so far; None before anything is done."""
    return elapsed * (total - done) / done if done else None
