"""What a line of progress says, and how it is read again. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping

_LINE = re.compile(r"(?:fit|validate|test|predict) (?P<count>\d+(?:/\d+)?)(?:  .*)?")
_GAP = "  "


def duration(seconds: float) -> str:
    """Minutes and seconds such as 3:12, with hours where there are any."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number(value: float) -> str:
    """Three digits, or whole with commas from 1,000."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def figure(name: str, value: float) -> str:
    """A logged figure without its group; a share of right answers in per cent."""
    label = name.partition("/")[2] or name
    if not label.endswith("accuracy"):
        return f"{label} {number(value)}"
    of_what = label.removesuffix("accuracy").rstrip("_/")
    return f"{of_what} {100 * value:.0f} % right".lstrip()


def progress_line(
    verb: str,
    *,
    done: int,
    total: int | None,
    phase: str = "",
    figures: Mapping[str, float] | None = None,
    rate: float | None = None,
    left: float | None = None,
    took: float | None = None,
    width: int | None = None,
) -> str:
    """One line, such as `fit 37/120  policy_update  41 % right  1,240 tokens/s  3:12 left`.

    Args:
        verb: fit, validate, test or predict.
        done: iterations or problems.
        total: how many there will be; None where nobody knows.
        phase: what is being done.
        figures: logged name -> value; shares of right answers come first.
        rate: tokens a second.
        left: seconds to come.
        took: seconds that have passed.
        width: columns; figures leave, from the last, until the line fits. None = any.
    """
    head = [f"{verb} {done}" if total is None else f"{verb} {done}/{total}", phase]
    tail = [
        "" if rate is None else f"{number(rate)} tokens/s",
        "" if left is None else f"{duration(left)} left",
        "" if took is None else f"took {duration(took)}",
    ]
    ordered = sorted((figures or {}).items(), key=lambda item: not item[0].endswith("accuracy"))
    shown = [figure(name, value) for name, value in ordered]
    while True:
        line = _GAP.join(part for part in (*head, *shown, *tail) if part)
        if width is None or len(line) <= width or not shown:
            return line
        shown.pop()


def cut(line: str, width: int) -> str:
    """The line in at most so many columns."""
    return line if len(line) <= width else line[: max(width - 1, 0)] + "…"


def last_brief(log: str) -> str | None:
    """Count and time left, such as `37/120 3:12 left`, of the last line of progress in a log; None where there is none."""
    for line in reversed(log.rpartition("\n")[0].splitlines()):  # without a line that is being written
        if match := _LINE.fullmatch(line):
            left = line.rpartition(_GAP)[2]
            return f"{match['count']} {left}" if left.endswith(" left") else match["count"]
    return None
