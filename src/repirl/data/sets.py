"""Evaluation sets: one source, or several by name, each with an instruction of its own where it needs one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from repirl.data.sources import Source
from repirl.structs import Problem


@dataclass(frozen=True)
class EvalSet:
    """A set of problems with the instruction that goes with it.

    Args:
        source: the problems.
        instruction: text put right after every problem, in place of the model's `text.instruction`; empty for no text,
            None for the model's.
    """

    source: Source
    instruction: str | None = None


Sets = Source | dict[str, Source | EvalSet | None]
"""A source, or sources by name: evaluation reports each name. A name with None, as an overlay may say, is left out."""


def named(sets: Source | Mapping[str, Source | EvalSet | None] | None) -> dict[str, EvalSet]:
    """Sets by name; a single source has the empty name. Raises ValueError for a name that metrics cannot carry."""
    if sets is None:
        return {}
    if isinstance(sets, Source):
        return {"": EvalSet(sets)}
    check_names(sets)
    return {name: EvalSet(one) if isinstance(one, Source) else one for name, one in sets.items() if one is not None}


def check_names(sets: Mapping[str, object]) -> None:
    """Raises ValueError for a name that ids and metrics cannot carry."""
    for name in sets:
        if not name or "/" in name:
            raise ValueError(f"a data set is named {name!r}: names must not be empty or contain '/'")


def loaded(sets: Mapping[str, EvalSet]) -> dict[str, list[Problem]]:
    """The problems of each."""
    return {name: one.source.load() for name, one in sets.items()}
