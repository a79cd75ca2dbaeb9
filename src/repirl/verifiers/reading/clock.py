"""Times of day: 3:00 p.m., 15:00, 3 PM, noon."""

from __future__ import annotations

import re
from dataclasses import dataclass

HALF_DAY_S, DAY_S = 43_200, 86_400

_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_CLOCK = re.compile(
    r"(?P<hour>\d{1,2})(?::(?P<minute>[0-5]\d))?(?::(?P<second>[0-5]\d))? ?"
    r"(?:(?P<half>[ap]) ?\.? ?m ?\.?|(?P<noon>noon|midnight)|(?P<day>o'clock|h|hrs|hours)?)"
)
_NAMED = {"noon": HALF_DAY_S, "midnight": 0, "midday": HALF_DAY_S}


@dataclass(frozen=True, slots=True)
class Clock:
    """seconds: since midnight, or since either twelve o'clock where `half_known` is False. has_minutes: 3 p.m. has none."""

    seconds: int
    half_known: bool
    latex: str
    has_minutes: bool = True

    def same(self, other: Clock) -> bool:
        """Whether both are one time. A missing a.m. or p.m. is implied; a time without it is not one of the 24-hour clock."""
        if self.half_known == other.half_known:
            return self.seconds == other.seconds
        known = self if self.half_known else other
        return ("m" in known.latex or "noon" in known.latex) and (self.seconds - other.seconds) % HALF_DAY_S == 0


def read_clock(text: str) -> Clock | None:
    """A time with minutes, or an hour with a.m., p.m. or o'clock. `3:5` and `30:12` are ratios, as is `1:20:30`."""
    plain = re.sub(r" +", " ", _TEXT.sub(r" \1 ", text).lower()).strip()
    if plain in _NAMED:
        return Clock(_NAMED[plain], True, plain)
    match = _CLOCK.fullmatch(plain)
    if match is None:
        return None
    hour, marked = int(match["hour"]), bool(match["half"] or match["noon"])
    if hour > 24 or (match["minute"] is None and not (marked or match["day"] == "o'clock")):
        return None
    if match["second"] and not marked:
        return None
    seconds = 3600 * (hour % 24) + 60 * int(match["minute"] or 0) + int(match["second"] or 0)
    if marked and hour <= 12:
        late = match["half"] == "p" or match["noon"] == "noon"
        seconds = seconds % HALF_DAY_S + (HALF_DAY_S if late else 0)
    known = marked or hour > 12 or hour == 0
    return Clock(seconds if known else seconds % HALF_DAY_S, known, plain, match["minute"] is not None)
