"""Training problems that are also evaluation problems: equal texts, and near-duplicates by shared word sequences."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from repirl.structs import Problem

_log = logging.getLogger(__name__)
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
        return "; ".join(parts) or f"no overlap with training ({self.problems} problems checked)"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3])


def overlap(
    training: Iterable[Problem], evaluation: Sequence[Problem], *, words: int = WORDS, near: float = NEAR
) -> Overlap:
    """Compares the statements, prompts and answers aside. The training problems are read once, the memory is the set's.

    A statement shorter than `words` words has one sequence, itself. Sequences that stand in more than a hundredth of the
    set, but at least in five problems, are its boilerplate and are not counted.
    """
    statements = _Statements(evaluation, words)
    equal: set[int] = set()
    best: dict[int, tuple[float, str]] = {}
    for problem in training:
        equal.update(statements.equal(problem))
        for index, share in statements.shares(problem).items():
            if share >= near and share > best.get(index, (0.0, ""))[0]:
                best[index] = share, problem.id
    close = sorted((index for index in best if index not in equal), key=lambda index: -best[index][0])
    return Overlap(
        problems=len(evaluation),
        equal=tuple(evaluation[index].id for index in sorted(equal)),
        near=tuple((evaluation[index].id, best[index][1], best[index][0]) for index in close),
    )


def contaminated(
    training: Iterable[Problem], evaluation: Sequence[Problem], *, words: int = WORDS, near: float = NEAR
) -> dict[str, str]:
    """As `overlap`, seen from the other side: id of a training problem -> id of the evaluation problem it is nearest to."""
    statements = _Statements(evaluation, words)
    found: dict[str, str] = {}
    for problem in training:
        if equal := statements.equal(problem):
            found[problem.id] = evaluation[equal[0]].id
        elif close := {index: share for index, share in statements.shares(problem).items() if share >= near}:
            found[problem.id] = evaluation[max(close, key=lambda index: close[index])].id
    return found


class _Statements:
    """The statements of a set, to be compared with others one by one."""

    def __init__(self, problems: Sequence[Problem], words: int) -> None:
        self.words = words
        self._equal_to: defaultdict[str, list[int]] = defaultdict(list)
        places: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for index, problem in enumerate(problems):
            self._equal_to[_letters_and_digits(problem.text)].append(index)
            for sequence in _sequences(problem.text, words):
                places[sequence].append(index)
        common = max(5, len(problems) / 100)
        self._places = {sequence: some for sequence, some in places.items() if len(some) <= common}
        self._counted = Counter(index for some in self._places.values() for index in some)

    def equal(self, problem: Problem) -> Sequence[int]:
        """Places of the problems with the same letters and digits."""
        return self._equal_to.get(_letters_and_digits(problem.text), ())

    def shares(self, problem: Problem) -> dict[int, float]:
        """Place of a problem -> share of its sequences that this one has, where it has any."""
        sequences = _sequences(problem.text, self.words)
        shared = Counter(index for sequence in sequences for index in self._places.get(sequence, ()))
        return {index: number / self._counted[index] for index, number in shared.items()}


def _letters_and_digits(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())


def _sequences(text: str, words: int) -> set[tuple[str, ...]]:
    found = re.findall(r"[^\W_]+", text.casefold())
    return {tuple(found[start : start + words]) for start in range(max(1, len(found) - words + 1))}


def reported_overlaps(
    problems: Sequence[Problem], others: Mapping[str, Mapping[str, Sequence[Problem]]]
) -> dict[str, Overlap]:
    """What each set of each kind, such as `val`, shares with the training problems: in one log message a set."""
    overlaps = {}
    for kind, sets in others.items():
        for name, some in sets.items():
            where = f"{kind} {name}".strip()
            shared = overlaps[where] = overlap(problems, some)
            level = logging.WARNING if shared.equal or shared.near else logging.INFO
            advice = ": results on them are not held out" if level == logging.WARNING else ""
            _log.log(level, "%s: %s%s", where, shared, advice)
    return overlaps
