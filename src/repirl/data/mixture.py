"""Training prompts from several sources in stated shares, each with an instruction and a share of experts of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from repirl.data.sources import Source
from repirl.structs import Problem

AVERAGE = "average"
"""The name of the mean over data sets among their figures."""


@dataclass(frozen=True)
class MixturePart:
    """One source of a mixture.

    Args:
        source: the problems.
        weight: share of the prompts drawn that are its own, relative to the other parts' weights.
        instruction: text put right after every problem, in place of the model's `text.instruction`; empty for no text,
            None for the model's.
        expert_share: share of its prompts drawn that have an expert trajectory, in [0, 1]: with 1 and 0 the others are left
            out. None = the data module's `require_experts` says which prompts are used, in any proportion.
    """

    source: Source
    weight: float = 1.0
    instruction: str | None = None
    expert_share: float | None = None


class Mixture(Source):
    """Several sources to train on. Each batch has each part's share of prompts; each part is shuffled by itself.

    Args:
        parts: by name, which each of its prompts has as `dataset`. A name with None, as an overlay may say, is left out.

    Raises: ValueError for no part, a name that ids and metrics cannot carry, a weight or a share that is none.
    """

    def __init__(self, parts: dict[str, MixturePart | None]) -> None:
        self.parts = {name: part for name, part in parts.items() if part is not None}
        if not self.parts:
            raise ValueError("a mixture needs at least one part: give `parts` a name with a source")
        check_names(parts)
        for name, part in self.parts.items():
            if not (math.isfinite(part.weight) and part.weight > 0):
                raise ValueError(
                    f"mixture part {name!r}: weight must be above 0, not {part.weight}; write `{name}: null` to leave it out"
                )
            check_expert_share(part.expert_share, f"mixture part {name!r}")
            if isinstance(part.source, Mixture):
                raise ValueError(
                    f"mixture part {name!r} is a mixture itself, whose shares would be lost: list its parts here, with "
                    "weights multiplied"
                )

    def load(self) -> list[Problem]:
        """The problems of all parts, one part after another."""
        return [problem for problems in loaded_parts(self.parts).values() for problem in problems]


def check_names(names: Iterable[str]) -> None:
    """Raises ValueError for a name that ids and metrics cannot carry."""
    for name in names:
        if not name or "/" in name:
            raise ValueError(f"a data set is named {name!r}: names must not be empty or contain '/'")
        if name == AVERAGE:
            raise ValueError(
                f"a data set is named {name!r}, as the mean over data sets is in the log: choose another name"
            )


def check_expert_share(share: float | None, where: str) -> None:
    """Raises ValueError for a share that is none."""
    if share is not None and not 0 <= share <= 1:
        raise ValueError(f"{where}: expert_share is a share of prompts, from 0 to 1, not {share}")


def parts_of(train: Source, expert_share: float | None) -> dict[str, MixturePart]:
    """The parts of a mixture; a single source is one without a name. Raises ValueError for a share that is none."""
    check_expert_share(expert_share, "ExpertData")
    if not isinstance(train, Mixture):
        return {"": MixturePart(train, expert_share=expert_share)}
    if expert_share is not None:
        raise ValueError("expert_share is for a single source, and train is a mixture: give it to the parts instead")
    return dict(train.parts)


def loaded_parts(parts: Mapping[str, MixturePart]) -> dict[str, list[Problem]]:
    """The problems of each part. Where it has a name, ids begin with it, so that no two parts share an id."""
    return {
        name: [replace(problem, id=f"{name}/{problem.id}") if name else problem for problem in part.source.load()]
        for name, part in parts.items()
    }
