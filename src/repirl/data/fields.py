"""Fields of a row, checked. Errors name the field; the reader of the table adds file and line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from typing import Any

LONGEST_POSITIONAL = 25  # digits of a number that is written without an exponent
LONGEST_SHOWN = 200  # characters of a list of names in a message
PROMPT_TEXT = "prompt_text"  # what the policy reads in the place of `problem`, in rows that are written here


class WrittenFloat(float):
    """A number of a JSON text that remembers how it was written."""

    written: str

    def __new__(cls, text: str) -> WrittenFloat:
        """From the JSON text."""
        number = super().__new__(cls, text)
        number.written = text
        return number

    def __reduce__(self) -> tuple[type[WrittenFloat], tuple[str]]:
        return WrittenFloat, (self.written,)


def required(row: Mapping[str, Any], column: str, field: str) -> Any:
    """The value of a field that must be there. Raises ValueError."""
    if column not in row:
        raise ValueError(
            f"no field {column!r}; there is {_names(row)}. Name the right one with columns={{{field!r}: ...}}"
        )
    if row[column] is None:
        raise ValueError(f"field {column!r}: found null, expected a text")
    return row[column]


def optional(row: Mapping[str, Any], column: str, *, required: bool) -> Any | None:
    """The value, None where the field is missing; where `required`, a missing field is an error."""
    if required and column not in row:
        raise ValueError(f"no field {column!r}, which `columns` names; there is {_names(row)}")
    return row.get(column)


def as_text(value: Any, column: str) -> str:
    """A text that is not blank. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"field {column!r}: found {shown(value)}, expected a text")
    if not value.strip():
        raise ValueError(f"field {column!r}: found an empty text; write null or leave the row out")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        where = f"field {column!r}: character {error.start + 1}"
        raise ValueError(f"{where} is half a surrogate pair; repair the text") from error
    return value


def prompt_text(row: Mapping[str, Any]) -> str | None:
    """What the policy reads in the place of the problem (`Problem.prompt`); None without that field. Raises ValueError."""
    value = row.get(PROMPT_TEXT)
    return None if value is None else as_text(value, PROMPT_TEXT)


def as_texts(value: Any, column: str) -> tuple[str, ...]:
    """A non-empty list of such texts. Raises ValueError."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"field {column!r}: found {shown(value)}, expected a non-empty list of texts")
    return tuple(as_text(item, f"{column}[{number}]") for number, item in enumerate(value))


def as_scalar(value: Any, column: str) -> str:
    """Text of a text, number or date. A number as it was written, or in as few digits as name it; 72.0 is written 72."""
    if isinstance(value, str):
        return as_text(value, column).strip()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError(f"field {column!r}: found {shown(value)}, expected a text or a number")
    if not math.isfinite(value):
        raise ValueError(f"field {column!r}: found {value}, expected a finite number; write it as text or null")
    if isinstance(value, int):
        return str(value)
    return written(Decimal(value.written if isinstance(value, WrittenFloat) else str(value)))


def written(number: Decimal) -> str:
    """The digits of a number without idle zeros after the point; with an exponent (1e300) where it would be very long."""
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    figures = "".join(map(str, digits)).rstrip("0") or "0"
    exponent += len(digits) - len(figures) if any(digits) else -exponent
    if max(len(figures) + max(exponent, 0), -exponent) <= LONGEST_POSITIONAL:
        text = f"{Decimal((sign, tuple(map(int, figures)), exponent)):f}"
    else:
        point = f".{figures[1:]}" if len(figures) > 1 else ""
        text = f"{'-' if sign else ''}{figures[0]}{point}e{exponent + len(figures) - 1}"
    return text.removeprefix("-") if text == "-0" else text


def shown(value: Any) -> str:
    """Type and value for a message, cut to 60 characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # a nest of lists; an integer of more digits than Python writes
        return f"{type(value).__name__} too deep or too long to show"
    return f"{type(value).__name__} {cut(text)}"


def cut(text: str, length: int = 60) -> str:
    """A text for a message, its middle left out where it is long, so that it stays on a line."""
    text = text.replace("\n", "\\n")
    return text if len(text) <= length else f"{text[: length - 13]}...{text[-10:]}"


def _names(row: Iterable[str]) -> str:
    return cut(", ".join(repr(cut(str(name))) for name in row) or "none", LONGEST_SHOWN)
