"""Evaluation sets: one source, or several by name, each with an instruction of its own where it needs one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from repirl.data.mixture import Mixture, check_names
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
    """Sets by name; a single source has the empty name.

    Raises ValueError for a name that metrics cannot carry, and for a mixture, whose weights evaluation has no use for.
    """
    given = {"": sets} if isinstance(sets, Source) else dict(sets or {})
    if not isinstance(sets, Source):
        check_names(given)
    found = {n: EvalSet(one) if isinstance(one, Source) else one for n, one in given.items() if one is not None}
    if any(isinstance(one.source, Mixture) for one in found.values()):
        raise ValueError("a mixture is for training: evaluation takes several sets by name, each with a source")
    return found


def loaded(sets: Mapping[str, EvalSet]) -> dict[str, list[Problem]]:
    """The problems of each."""
    return {name: one.source.load() for name, one in sets.items()}
