"""The figures of an evaluation, worked by hand from records."""

from __future__ import annotations

from typing import Any

import pytest

from repirl.learning.actor import Actor
from repirl.learning.evaluation import Evaluation
from repirl.learning.figures import EvaluationFigures
from repirl.learning.records import Answer, ProblemRecord
from repirl.rollout.transformers import InProcess
from repirl.structs import CodeTests, Problem, Prompt, Verdict, Verifier
from tests.modules.tiny import RIGHT, TEXT, make_policy


def answer(final: str | None, correct: bool | None = None, *, score: float | None = None, **more: Any) -> Answer:
    status = {True: "equal", False: "not_equal", None: "infra_error"}[correct]
    options: dict[str, Any] = {"tokens": 10, "finished": True, "readable": final is not None} | more
    return Answer(response="r", answer=final, correct=correct, status=status, prm_mean_reward=score, **options)


def record(
    number: int, greedy: Answer | None, *samples: Answer, dataset: str = "", votes: bool = True
) -> ProblemRecord:
    return ProblemRecord((0, number), dataset, f"p{number}", "1 + 1 = ?", "2", votes, greedy, samples)


RIGHT_ONE, WRONG_ONE = answer("1", True), answer("2", False)


def summarise(records: list[ProblemRecord]) -> dict[str, float]:
    """The figures of the records, added in two batches."""
    figures = EvaluationFigures()
    for part in (records[:1], records[1:]):
        figures.update(part)
    return figures.results()


def without_intervals(found: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if not name.endswith(("_low", "_high"))}


def test_figures_in_numbers() -> None:
    records = [
        # 2 of 4 right; the majority is "1", right
        record(0, answer("1", True, tokens=20), RIGHT_ONE, RIGHT_ONE, WRONG_ONE, answer("3", False)),
        # 1 of 4 right; the majority is "2", wrong
        record(1, answer(None, False, finished=False), RIGHT_ONE, WRONG_ONE, WRONG_ONE, answer(None, False)),
    ]
    found = without_intervals(summarise(records))
    assert found == {
        "greedy_accuracy": 1 / 2,
        "greedy_tokens": 15,
        "greedy_truncated": 1 / 2,
        "greedy_unparsable": 1 / 2,
        "sampled_accuracy": 3 / 8,
        "sampled_tokens": 10,
        "sampled_truncated": 0,
        "sampled_unparsable": 1 / 8,
        # 1 - C(2,2)/C(4,2) = 5/6 and 1 - C(3,2)/C(4,2) = 1/2
        "pass@2": pytest.approx((5 / 6 + 1 / 2) / 2),
        "pass@4": 1,
        "maj@4": 1 / 2,
    }


def test_a_missing_verdict_is_never_a_wrong_answer() -> None:
    unknown = answer("1", None)
    records = [
        record(0, unknown, RIGHT_ONE, unknown, answer("3", False)),
        record(1, RIGHT_ONE, unknown, unknown, unknown),
    ]
    found = without_intervals(summarise(records))
    assert found["greedy_accuracy"] == 1  # of the one that is known
    assert found["sampled_accuracy"] == 1 / 2  # p0: 1 of 2; p1: unknown
    assert found["pass@2"] == 1  # p0: both known samples; p1: none
    assert "pass@3" not in found  # nowhere three known samples
    assert found["maj@3"] == 1  # p0: "1", whose first sample is right; p1: unknown


def test_the_prm_chooses() -> None:
    records = [
        record(0, None, answer("1", True, score=0.9), answer("2", False, score=0.5), answer("2", False, score=0.5)),
        record(1, None, answer("1", True, score=-1.0), answer("2", False, score=2.0), answer("3", False, score=0.0)),
    ]
    found = summarise(records)
    assert found["best@3"] == 1 / 2
    # p0: e^.9 = 2.46 of "1" against 2 e^.5 = 3.30 of "2"
    assert found["weighted@3"] == 0
    assert found["maj@3"] == 1 / 2  # p1: a tie, the first, right
    # .9 beats .5 .5 0 and not 2; -1 beats none: 3 of 8
    assert found["auroc_correct_failed"] == 3 / 8
    assert "greedy_accuracy" not in found


def test_programs_are_not_voted_on() -> None:
    programs = [record(n, None, answer(None, True, readable=True), answer(None, False), votes=False) for n in range(3)]
    found = summarise(programs)
    assert found["pass@2"] == 1
    assert not any(name.startswith("maj@") for name in found)
    mixed = summarise([*programs, record(9, None, RIGHT_ONE, RIGHT_ONE)])
    assert mixed["maj@2"] == 1


def test_intervals_are_of_problems() -> None:
    records = [record(n, answer("1", n % 2 == 0), *[answer("1", n % 2 == 0)] * 50) for n in range(40)]
    found = summarise(records)
    # 40 problems at .5: standard error .079; 2,000 samples alone would suggest .011
    assert found["greedy_accuracy_low"] == pytest.approx(0.5 - 1.96 * 0.079, abs=0.03)
    assert found["sampled_accuracy_high"] == pytest.approx(0.5 + 1.96 * 0.079, abs=0.03)


def test_sets_have_their_own_figures_and_an_average() -> None:
    records = [
        record(0, RIGHT_ONE, dataset="a"),
        record(1, WRONG_ONE, dataset="b"),
        record(2, WRONG_ONE, RIGHT_ONE, dataset="b"),
        record(3, RIGHT_ONE, dataset="b"),
    ]
    found = without_intervals(summarise(records))
    assert found["a/greedy_accuracy"] == 1
    assert found["b/greedy_accuracy"] == 1 / 3
    assert found["average/greedy_accuracy"] == 2 / 3  # of sets, not of problems
    assert "average/sampled_accuracy" not in found  # only one has it
    assert "average/greedy_accuracy_low" not in summarise(records)


def test_sets_with_names_nearly_alike_are_kept_apart() -> None:
    names = ["gsm.8k", "gsm_8k", "gsm_d8k", "gsm__8k"]
    found = summarise([record(n, answer("1", n % 2 == 0), dataset=name) for n, name in enumerate(names)])
    assert [found[f"{name}/greedy_accuracy"] for name in names] == [1, 0, 1, 0]


# --- from a policy


class LastDigit(Verifier):
    """Right are even final digits; without a digit there is no answer."""

    def verify(self, problems: Any, responses: Any) -> list[Verdict]:
        digits = [[c for c in text if c.isdigit()] for text in responses]
        return [
            Verdict(False, "no_answer")
            if not d
            else Verdict(int(d[-1]) % 2 == 0, ("not_equal", "equal")[int(d[-1]) % 2 == 0])
            for d in digits
        ]

    def close(self) -> None:
        """Nothing to end."""


def evaluated(names: list[str], batches: list[int], samples: int = 3, seed: int = 0) -> list[ProblemRecord]:
    """The records of prompts answered in batches of these sizes."""
    actor = Actor(make_policy(), TEXT, InProcess(), LastDigit())
    actor.load()
    prompts = [
        Prompt(Problem(name, "a1b2", "3"), tuple(actor.codec.encode_prompt("a1b2")), dataset="s") for name in names
    ]
    evaluation = Evaluation()
    evaluation.start()
    for number, size in enumerate(batches):
        batch, prompts = prompts[:size], prompts[size:]
        evaluation.add(actor, batch, number, samples, seed)
    return evaluation.records()


def test_samples_depend_on_seed_and_problem_alone() -> None:
    whole = evaluated(["a", "b", "c"], [3])
    assert len({answer.response for record in whole for answer in record.samples}) > 1
    assert [r.samples for r in evaluated(["a", "b", "c"], [1, 2])] == [r.samples for r in whole]
    (alone,) = evaluated(["b"], [1])
    assert alone.samples == whole[1].samples
    assert [r.samples for r in evaluated(["a", "b", "c"], [3], seed=1)] != [r.samples for r in whole]
    assert [r.id for r in whole] == ["a", "b", "c"]


def test_what_is_read_of_a_response() -> None:
    for record in evaluated(["a", "b"], [2]):
        assert record.greedy is not None
        for answer in (record.greedy, *record.samples):
            assert answer.readable == (answer.status != "no_answer") == any(c.isdigit() for c in answer.response)
            assert answer.correct is (answer.status == "equal")
            assert answer.finished or answer.tokens == TEXT.max_response_tokens


def test_programs_have_no_answer() -> None:
    actor = Actor(make_policy(), TEXT, InProcess(), RIGHT)
    actor.load()
    problem = Problem("p", "a1", tests=CodeTests("asserts", "assert f"))
    evaluation = Evaluation()
    evaluation.start()
    evaluation.add(actor, [Prompt(problem, tuple(actor.codec.encode_prompt("a1")))], 0, 2, 0)
    (record,) = evaluation.records()
    assert not record.votes
    assert {answer.answer for answer in record.samples} == {None}
