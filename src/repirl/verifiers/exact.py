"""Exact match of the boxed answer, for tasks whose answers have one spelling."""

from collections.abc import Sequence

from repirl.structs import Problem, Verdict, Verifier
from repirl.verifiers.answers import extract_box


class ExactVerifier(Verifier):
    """Right is the last boxed answer that equals the gold one character by character, outer whitespace aside."""

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """One verdict a pair. Raises ValueError for a problem without a gold answer."""
        verdicts = []
        for problem, response in zip(problems, responses, strict=True):
            if problem.answer is None:
                raise ValueError(
                    f"problem {problem.id!r} has no answer to verify against: add `answer`, or leave the verifier out"
                )
            found = extract_box(response)
            if found is None:
                verdicts.append(Verdict(False, "no_answer"))
            else:
                right = found.strip() == problem.answer.strip()
                verdicts.append(Verdict(right, "equal" if right else "not_equal"))
        return verdicts

    def close(self) -> None:
        """Nothing to end."""
