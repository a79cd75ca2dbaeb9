"""One verifier for mixed sets: programs to one, final answers to another."""

from collections.abc import Sequence

from repirl.structs import Problem, Verdict, Verifier


class ByKind(Verifier):
    """Problems with tests go to `code`, all others to `math`."""

    def __init__(self, math: Verifier, code: Verifier) -> None:
        self.math, self.code = math, code

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """One verdict a pair, in order."""
        found: dict[int, Verdict] = {}
        for verifier, is_program in ((self.math, False), (self.code, True)):
            own = [index for index, problem in enumerate(problems) if (problem.tests is not None) == is_program]
            if own:
                verdicts = verifier.verify([problems[i] for i in own], [responses[i] for i in own])
                found.update(zip(own, verdicts, strict=True))
        return [found[index] for index in range(len(problems))]

    def check_golds(self, problems: Sequence[Problem]) -> list[tuple[str, str]]:
        """(id, gold answer) of each problem whose gold answer cannot be read, in order."""
        return self.math.check_golds([problem for problem in problems if problem.tests is None])

    def close(self) -> None:
        """Ends the processes of both."""
        self.math.close()
        self.code.close()
