"""One source, or several by name."""

from __future__ import annotations

from repirl.data.sources import Source
from repirl.structs import Problem

Sets = Source | dict[str, Source | None]
"""A source, or sources by name: evaluation reports each name. A name with None, as an overlay may say, is left out."""


def named(sets: Sets | None) -> dict[str, Source]:
    """Sources by name; a single one has the empty name. Raises ValueError for a name that metrics cannot carry."""
    if sets is None:
        return {}
    if isinstance(sets, Source):
        return {"": sets}
    for name in sets:
        if not name or "/" in name:
            raise ValueError(f"a data set is named {name!r}: names must not be empty or contain '/'")
    return {name: source for name, source in sets.items() if source is not None}


def loaded(sources: dict[str, Source]) -> dict[str, list[Problem]]:
    """The problems of each."""
    return {name: source.load() for name, source in sources.items()}
