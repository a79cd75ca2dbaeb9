"""Training prompts of all parts of a mixture, and the strata that batches are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from lightning import Trainer

from repirl.data.mixture import MixturePart
from repirl.data.preparation import ExpertRule, prepared
from repirl.data.strata import Stratum
from repirl.structs import Problem, Prompt


def prepared_parts(
    trainer: Trainer | None,
    parts: Mapping[str, MixturePart],
    problems: Mapping[str, Sequence[Problem]],
    *,
    max_experts: int,
    require_experts: bool,
) -> tuple[list[Prompt], list[Stratum]]:
    """The training prompts of all parts, one after another, and the strata that batches are drawn from.

    require_experts: of parts without an `expert_share`. Raises ValueError as `prepared`, and for an empty stratum.
    """
    prompts: list[Prompt] = []
    strata: list[Stratum] = []
    total = sum(_exact(part.weight) for part in parts.values())
    for name, part in parts.items():
        of_part = prepared(
            trainer,
            "train",
            problems[name],
            max_experts=max_experts,
            experts=_rule(part.expert_share, require_experts),
            dataset=name,
            instruction=part.instruction,
        )
        first = len(prompts)
        prompts += of_part
        for label, share, places in _by_experts(of_part, part.expert_share, f"train {name}".strip()):
            stratum_share = share * _exact(part.weight) / total
            strata.append(Stratum(label, stratum_share, tuple(first + place for place in places)))
    return prompts, strata


def _by_experts(
    prompts: Sequence[Prompt], expert_share: float | None, where: str
) -> list[tuple[str, Fraction, list[int]]]:
    """Name, share and places of the prompts with experts and of those without; of all where no share is mixed."""
    if expert_share in (None, 0, 1):
        return [(where, Fraction(1), list(range(len(prompts))))]
    assert expert_share is not None
    share = _exact(expert_share)
    found = []
    for label, part, has in (("with experts", share, True), ("without experts", 1 - share, False)):
        places = [place for place, prompt in enumerate(prompts) if bool(prompt.experts) is has]
        if not places:
            raise ValueError(
                f"{where}: expert_share is {expert_share}, but none of its {len(prompts)} usable prompts is {label}; "
                f"set expert_share to {0 if has else 1}, or give it such problems"
            )
        found.append((f"{where}, {label}", part, places))
    return found


def _rule(expert_share: float | None, require_experts: bool) -> ExpertRule:
    if expert_share is None:
        return "required" if require_experts else "optional"
    return "required" if expert_share == 1 else "optional" if expert_share else "excluded"


def _exact(number: float) -> Fraction:
    """The decimal number that was written: 0.1 is a tenth."""
    return Fraction(str(number))
