"""Training problems that are also evaluation problems: equal texts, and near-duplicates by shared word sequences."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from repirl.structs import Problem

WORDS = 13  # of a sequence that counts, as in GPT-3's report
NEAR = 0.5  # share of a problem's sequences in one training problem, from which on it is a near-duplicate


@dataclass(frozen=True, slots=True)
class Overlap:
    """What a set shares with the training problems.

    equal: ids whose letters and digits equal those of a training problem. near: (id, id of the training problem, share
    of the word sequences that are in it), of the others, highest share first.
    """

    problems: int
    equal: tuple[str, ...]
    near: tuple[tuple[str, str, float], ...]

    def __str__(self) -> str:
        parts = []
        if self.equal:
            parts.append(
                f"{len(self.equal)} of {self.problems} are also training problems (first: {_first(self.equal)})"
            )
        if self.near:
            pairs = [f"{name} near {other} ({share:.0%})" for name, other, share in self.near]
            parts.append(f"{len(self.near)} of {self.problems} are near-duplicates of one (first: {_first(pairs)})")
        return "; ".join(parts) or f"none of {self.problems} is a training problem or nearly one"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3])


def overlap(
    training: Iterable[Problem], evaluation: Sequence[Problem], *, words: int = WORDS, near: float = NEAR
) -> Overlap:
    """Compares the statements, prompts and answers aside. The training problems are read once, the memory is the set's.

    A statement shorter than `words` words has one sequence, itself. Sequences that stand in more than a hundredth of the
    set, but at least in five problems, are its boilerplate and are not counted.
    """
    equal_to: defaultdict[str, list[int]] = defaultdict(list)
    places: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, problem in enumerate(evaluation):
        equal_to[_letters_and_digits(problem.text)].append(index)
        for sequence in _sequences(problem.text, words):
            places[sequence].append(index)
    common = max(5, len(evaluation) / 100)
    places = defaultdict(list, {sequence: found for sequence, found in places.items() if len(found) <= common})
    counted = Counter(index for found in places.values() for index in found)
    equal: set[int] = set()
    best: dict[int, tuple[float, str]] = {}
    for problem in training:
        equal.update(equal_to.get(_letters_and_digits(problem.text), ()))
        shared = Counter(index for sequence in _sequences(problem.text, words) for index in places.get(sequence, ()))
        for index, number in shared.items():
            share = number / counted[index]
            if share >= near and share > best.get(index, (0.0, ""))[0]:
                best[index] = share, problem.id
    close = sorted((index for index in best if index not in equal), key=lambda index: -best[index][0])
    return Overlap(
        problems=len(evaluation),
        equal=tuple(evaluation[index].id for index in sorted(equal)),
        near=tuple((evaluation[index].id, best[index][1], best[index][0]) for index in close),
    )


def _letters_and_digits(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())


def _sequences(text: str, words: int) -> set[tuple[str, ...]]:
    found = re.findall(r"[^\W_]+", text.casefold())
    return {tuple(found[start : start + words]) for start in range(max(1, len(found) - words + 1))}
