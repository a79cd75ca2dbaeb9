"""Fields of a row, checked. Errors name the field; the reader of the table adds file and line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def required(row: Mapping[str, Any], column: str, field: str) -> Any:
    """The value of a field that must be there. Raises ValueError."""
    if column not in row:
        raise ValueError(
            f"no field {column!r}; there is {', '.join(map(repr, row)) or 'none'}. "
            f"Name the right one with columns={{{field!r}: ...}}"
        )
    if row[column] is None:
        raise ValueError(f"field {column!r}: found null, expected a text")
    return row[column]


def optional(row: Mapping[str, Any], column: str, *, required: bool) -> Any | None:
    """The value, None where the field is missing; where `required`, a missing field is an error."""
    if required and column not in row:
        raise ValueError(f"no field {column!r}, which `columns` names; there is {', '.join(map(repr, row)) or 'none'}")
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


def as_texts(value: Any, column: str) -> tuple[str, ...]:
    """A non-empty list of such texts. Raises ValueError."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"field {column!r}: found {shown(value)}, expected a non-empty list of texts")
    return tuple(as_text(item, f"{column}[{number}]") for number, item in enumerate(value))


def as_scalar(value: Any, column: str) -> str:
    """Text of a text or number; 72.0 is written 72."""
    if isinstance(value, str):
        return as_text(value, column).strip()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"field {column!r}: found {shown(value)}, expected a text or a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"field {column!r}: found {value}, expected a finite number; write it as text or null")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def shown(value: Any) -> str:
    """Type and value for a message, cut to 60 characters."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
