"""Flawed twins (data/flawed.py) to train on: as labelled steps, and as negatives beside the experts of any source."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import get_args

from repirl.data.flawed import Domain, FlawedTwin, flawed_twin
from repirl.data.mixture import Mixture
from repirl.data.preparation import final_answer_appended
from repirl.data.sources import Source
from repirl.data.step_labelled import LabelledSolution
from repirl.data.step_sources import StepSource
from repirl.data.steps import By, split_steps
from repirl.structs import Problem, Verifier, WrittenSolution

KINDS = ("number", "operator", "constant", "step")
OTHERS = 4
"""Solutions of other problems from which a step may be taken, for each twin of the kind "step"."""
_Twin = Callable[..., FlawedTwin | None]


class FlawedSteps(StepSource):
    """Expert solutions with labelled steps, a share of them replaced by their flawed twins. No step is labelled by hand.

    A twin is labelled up to its changed step, the first wrong one, and what follows is not read. An expert's steps all count
    as right: of a source with wrong solutions the labels are wrong. A solution whose turn it is and in which nothing can be
    changed is left out.

    Args:
        source: problems with solutions, whatever wrote them; those without are left out.
        domain: what the solutions are: `prose`, `code` (programs as they stand, without a fence) or `arithmetic`.
        share: of the solutions that are replaced, dealt evenly: of .5 it is every other one, the second first.
        kinds: what may be changed: `number`, `operator`, `constant`, `step` (one of another problem's in its place).
        steps: how a solution is cut (data/steps.py).
        seed: which place is changed. The same seed and source give the same twins.

    Raises ValueError (on construction, for settings that cannot be; in `load`, where no problem has a solution, or none of
    the replaced ones can be changed).
    """

    def __init__(
        self,
        source: Source,
        domain: Domain = "prose",
        share: float = 0.5,
        kinds: Sequence[str] = ("number", "operator", "constant"),
        steps: By = "newline",
        seed: int = 0,
    ) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"FlawedSteps: share is a part of the solutions, from 0 to 1, not {share}")
        _check("FlawedSteps", source, domain, kinds)
        self.source, self.domain, self.share, self.kinds = source, domain, Fraction(str(share)), tuple(kinds)
        self.steps, self.seed = steps, seed

    def load(self) -> list[LabelledSolution]:
        """The solutions; ids are the problem's and the solution's number, from 0."""
        given = [
            (
                f"{problem.id}/{number}",
                WrittenSolution(problem.text, split_steps(text.strip(), self.steps), prompt=problem.prompt),
            )
            for problem in self.source.load()
            for number, text in enumerate(problem.solutions)
        ]
        _require_solutions("FlawedSteps", len(given))
        twin = _maker([solution for _, solution in given], self.domain, self.kinds)
        found = []
        for number, (id, solution) in enumerate(given):
            if int((number + 1) * self.share) == int(number * self.share):
                found.append(LabelledSolution(id, solution, ()))
            elif (flawed := twin(solution, seed=self.seed)) is not None:
                wrong = (flawed.first_wrong,)
                found.append(LabelledSolution(id, flawed.solution, wrong, only_first=True, category=flawed.kind))
        if int(len(given) * self.share) and not any(one.wrong_steps for one in found):
            raise ValueError(_unchanged("FlawedSteps", self.domain, self.kinds))
        return found


class FlawedTwins(Source):
    """The problems of another source, with flawed twins of their solutions: negatives with the experts' own style.

    Twins go to `Problem.flawed` and not to `solutions`, and so are wrong by what was done to them: no verifier is asked,
    one that reads final answers alone would take a twin for an expert where its final answer is still the right one. A PRM's
    objective reads them with `wrong_experts: background` (IRL, Discriminator) or as failed responses (StepCrossEntropy);
    the others refuse them. `SFT` and evaluation do not read them.

    Where a solution lacks the final answer that an expert gets (`answers_appended`), its twins are made with it: the change
    may be in it, and none has an ending of its own.

    Args:
        source: problems with solutions; those without stay as they are. Of a mixture give each part its own wrapper.
        twins: of each solution, as far as it has so many different ones.
        domain, kinds, steps, seed: as in `FlawedSteps`; `steps` says how the kind `step` cuts.
        verifier: asked of each twin, where given; a twin that it does not call wrong gives way to another. It is for
            programs, which may still do what they should. One of final answers leaves twins with a wrong final answer alone.

    Raises ValueError as `FlawedSteps` does.
    """

    def __init__(
        self,
        source: Source,
        twins: int = 1,
        domain: Domain = "prose",
        kinds: Sequence[str] = ("number", "operator", "constant"),
        steps: By = "newline",
        seed: int = 0,
        verifier: Verifier | None = None,
    ) -> None:
        if twins < 1:
            raise ValueError(f"FlawedTwins: twins must be at least 1 of each solution, not {twins}; or leave it out")
        _check("FlawedTwins", source, domain, kinds)
        self.source, self.twins, self.domain, self.kinds = source, twins, domain, tuple(kinds)
        self.steps, self.seed, self.verifier = steps, seed, verifier

    def load(self) -> list[Problem]:
        """The problems of the source, in its order and with its ids."""
        problems = self.source.load()
        written = [self._written(problem) for problem in problems]
        _require_solutions("FlawedTwins", sum(map(len, written)))
        twin = _maker([solution for some in written for solution in some], self.domain, self.kinds)
        try:
            found = [
                replace(problem, flawed=problem.flawed + tuple(self._twins(problem, some, twin)))
                for problem, some in zip(problems, written, strict=True)
            ]
        finally:
            if self.verifier is not None:
                self.verifier.close()
        if not any(problem.flawed for problem in found):
            raise ValueError(_unchanged("FlawedTwins", self.domain, self.kinds))
        return found

    def _written(self, problem: Problem) -> list[WrittenSolution]:
        texts = [final_answer_appended(text.strip(), problem.answer) for text in problem.solutions]
        return [WrittenSolution(problem.text, split_steps(text, self.steps)) for text in texts]

    def _twins(self, problem: Problem, written: Sequence[WrittenSolution], twin: _Twin) -> Iterator[str]:
        taken = {solution.text for solution in written}
        for solution in written:
            for number in range(self.twins):
                seed = f"{self.seed}/{number}" if number else self.seed  # the first is that of `FlawedSteps`
                found = twin(solution, seed=seed, accept=partial(self._accepts, problem, taken))
                if found is not None:
                    taken.add(found.solution.text)
                    yield found.solution.text

    def _accepts(self, problem: Problem, taken: set[str], flawed: WrittenSolution) -> bool:
        if flawed.text in taken:
            return False
        return self.verifier is None or self.verifier.verify([problem], [flawed.text])[0].correct is False


def _maker(written: Sequence[WrittenSolution], domain: Domain, kinds: Sequence[str]) -> _Twin:
    """`flawed_twin` of these solutions, with steps of a few others where they may be taken."""

    def twin(
        solution: WrittenSolution, *, seed: int | str, **options: Callable[[WrittenSolution], bool]
    ) -> FlawedTwin | None:
        generator = random.Random(f"others/{seed}/{solution.problem}/{solution.text}")
        others = generator.sample(written, min(OTHERS, len(written))) if "step" in kinds else ()
        return flawed_twin(solution, domain, seed=seed, kinds=kinds, others=others, **options)

    return twin


def _check(name: str, source: Source, domain: Domain, kinds: Sequence[str]) -> None:
    if isinstance(source, Mixture):
        raise ValueError(
            f"{name}: the source is a mixture, whose shares would be lost: wrap the source of each of its parts"
        )
    if domain not in get_args(Domain):
        raise ValueError(f"{name}: domain {domain!r} is unknown; there are {', '.join(get_args(Domain))}")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        found = repr(unknown[0]) if unknown else "nothing"
        raise ValueError(f"{name}: {found} among `kinds`, of what may be changed; there are {', '.join(KINDS)}")


def _require_solutions(name: str, count: int) -> None:
    if not count:
        raise ValueError(
            f"{name}: no problem of the source has a solution to make a twin of: give `solution` in its rows"
        )


def _unchanged(name: str, domain: Domain, kinds: Sequence[str]) -> str:
    return (
        f"{name}: nothing can be changed in any solution that is to be made wrong, as {domain} and by {', '.join(kinds)}: "
        "give another `domain` or `kinds`"
    )
