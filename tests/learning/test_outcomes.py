"""Where outcomes come from; and that no gold answer reaches a gradient where they are withheld, or the majority's."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from repirl.learning.ahead import Sampled
from repirl.learning.batch import batch_of
from repirl.learning.outcomes import Outcomes, majority_outcomes, outcomes_of, verdicts_on
from repirl.learning.prm_objectives import IRL, Prime
from repirl.learning.prompt_filter import PromptFilter
from repirl.learning.recorder import majority_figures
from repirl.learning.settings import Advantage
from repirl.models.prm import PRM
from repirl.structs import CodeTests, Problem, Prompt, Response, Verdict
from repirl.verifiers.exact import ExactVerifier
from repirl.verifiers.math import MathVerifier
from tests.modules.tiny import (
    RIGHT,
    WRONG,
    EvenDigits,
    Run,
    distance,
    make_data,
    make_module,
    problems,
    run,
    start_weights,
    with_experts,
)

KNOWN, UNKNOWN = Problem("known", "1+1", answer="2"), Problem("unknown", "2+2")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["5", "7", "5", None], [1, 0, 1, 0]),
        (["7", "5", "5", "7"], [1, 0, 0, 1]),  # two of each: 7 was sampled first
        (["3", "7", "5", "5", "7"], [0, 1, 0, 0, 1]),  # the single first answer is not among the most frequent
        ([None, "4", None, None], [0, 1, 0, 0]),  # having no answer is no answer, however frequent
        ([None, None], [0, 0]),
        (["1"], [1]),
        ([], []),
    ],
)
def test_the_majority_by_hand(answers: list[str | None], expected: list[float]) -> None:
    assert majority_outcomes(answers) == expected


def test_prompts_of_different_sizes_vote_each_for_itself_in_normal_form() -> None:
    texts = [
        [r"so \boxed{\dfrac12}", r"\boxed{3}", r"thus \boxed{\frac{1}{2}}", "3", r"\boxed{ 3 } no, \boxed{\frac12}"],
        [r"\boxed{3}", r"\boxed{4}"],
        ["nothing"],
    ]
    known: list[list[Verdict | None]] = [[Verdict(False, "not_equal")] * len(row) for row in texts]
    three = [KNOWN, UNKNOWN, UNKNOWN]
    assert outcomes_of("majority", three, texts, known) == [[1, 0, 1, 0, 1], [1, 0], [0]]
    withheld = outcomes_of("withheld", three, texts, known)
    assert [len(row) for row in withheld] == [5, 2, 1]
    assert all(math.isnan(value) for row in withheld for value in row)
    assert outcomes_of("gold", three, texts, known) == [[0] * 5, [0, 0], [0]]


def test_programs_have_no_majority() -> None:
    program = Problem("p", "write f", tests=CodeTests("asserts", code="assert f() == 1"))
    with pytest.raises(ValueError, match="problem 'p' asks for a program, and programs have no majority"):
        outcomes_of("majority", [KNOWN, program], [["a"], ["b"]], [[None], [None]])
    assert len(outcomes_of("withheld", [program], [["b"]], [[None]])) == 1


def test_a_problem_without_an_answer_is_not_judged_unless_gold_is_asked_for() -> None:
    actor = make_module(verifier=ExactVerifier()).actor
    both, texts = [UNKNOWN, KNOWN], [[r"\boxed{4}", ""], [r"\boxed{2}", r"\boxed{3}"]]
    right, wrong = Verdict(True, "equal"), Verdict(False, "not_equal")
    for outcomes in ("majority", "withheld"):
        assert verdicts_on(outcomes, actor, both, texts) == [[None, None], [right, wrong]]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="problem 'unknown' has no answer to verify against"):
        verdicts_on("gold", actor, both, texts)


def collected(outcomes: Outcomes) -> Any:
    """The batch and figures of two prompts, of which one has an answer: three rollouts and two."""
    module = make_module(verifier=ExactVerifier(), outcomes=outcomes)
    start_weights(module)
    prompts = [Prompt(KNOWN, (2, 3)), Prompt(UNKNOWN, (2, 3))]
    texts = [[r"\boxed{3}", r"\boxed{2}", r"\boxed{3}"], [r"\boxed{9}", ""]]
    rollouts = [[Response((4, 5), text, True) for text in row] for row in texts]
    batch = module.alternation.collect(Sampled(prompts, rollouts))
    return module, batch, module.recorder.take()


def test_training_reads_the_majority_and_the_log_the_verifier() -> None:
    _, batch, figures = collected("majority")
    assert batch.outcome.tolist() == [1, 0, 1, 1, 0]
    assert batch.gold_outcome[:3].tolist() == [0, 1, 0]
    assert batch.gold_outcome[3:].isnan().all()
    assert figures["rollout/accuracy"] == pytest.approx(1 / 3)  # of the three that have an answer
    assert figures["rollout/unscorable"] == 0
    assert figures["rollout/majority_share"] == pytest.approx(3 / 5)
    assert figures["rollout/majority_accuracy"] == 0  # of one prompt: its majority says 3, its answer is 2


def test_withheld_outcomes_are_unknown_and_the_sampler_is_told_nothing() -> None:
    module, batch, figures = collected("withheld")
    assert batch.outcome.isnan().all()
    assert figures["rollout/accuracy"] == pytest.approx(1 / 3)
    told: list[Any] = []
    assert module.alternation.keep(batch, tell=lambda *what: told.append(what)) is batch
    assert told == []
    assert module.recorder.take() == {"prompts/kept": 2}


def test_figures_of_the_majority_by_hand() -> None:
    """Prompt 0: 2 of 3 agree, rightly; prompt 1: 1 of 2, wrongly; prompt 2: nobody; prompt 3: 1 of 1, unknown."""
    nan = math.nan
    batch = batch_of(
        response_mask=torch.ones(7, 1, dtype=torch.bool),
        group=torch.tensor([0, 0, 0, 1, 1, 2, 3]),
        is_expert=torch.zeros(7, dtype=torch.bool),
        outcome=torch.tensor([1.0, 0, 1, 0, 1, 0, 1]),
        gold_outcome=torch.tensor([1.0, 0, 1, 1, 0, 0, nan]),
    )
    figures = majority_figures(batch)
    assert float(figures["majority_share"]) == pytest.approx(4 / 7)
    assert float(figures["majority_accuracy"]) == pytest.approx(1 / 2)


# ---- no gold answer in a gradient ----


def trained(outcomes: Outcomes, verifier: Any, **options: Any) -> Run:
    settings: dict[str, Any] = {"objective": IRL(corrected="copy"), "advantage": Advantage(prm_coef=1.0)}
    module = make_module(verifier=verifier, outcomes=outcomes, **(settings | options))
    return run(module, make_data(with_experts()), steps=2)


def test_withheld_trains_as_if_there_were_no_verifier_and_gold_does_not() -> None:
    """Outcomes would make pseudo-experts, advantages, and drop experts: WRONG rejects every one of them."""
    without = trained("gold", None)
    for verifier in (EvenDigits(), RIGHT, WRONG):
        withheld = trained("withheld", verifier)
        assert distance(withheld.weights, without.weights) == 0
        assert distance(trained("gold", verifier).weights, without.weights) > 1e-4
    assert [figures["rollout/accuracy"] for figures in withheld.figures] == [0, 0]
    assert "rollout/accuracy" not in without.figures[0]


def test_the_majority_trains_the_same_whatever_the_verifier_says() -> None:
    first, *others = (trained("majority", verifier) for verifier in (None, RIGHT, WRONG))
    assert all(distance(other.weights, first.weights) == 0 for other in others)


def test_prompts_without_an_answer_are_trained_on_and_with_gold_refused() -> None:
    bare = [replace(problem, answer=None) for problem in problems()]
    for outcomes in ("majority", "withheld"):
        module = make_module(verifier=MathVerifier(), outcomes=outcomes)
        done = run(module, make_data(bare), steps=2)
        assert len(done.figures) == 2
        assert not [name for name in done.figures[0] if name.startswith("rollout/acc")]
    with pytest.raises(ValueError, match="8 of 8 problems have no gold answer"):
        run(make_module(verifier=MathVerifier()), make_data(bare))


# ---- settings ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outcomes": "silver"}, "outcomes must be one of gold, majority, withheld, not 'silver'"),
        (
            {"outcomes": "withheld", "verifier": RIGHT, "prompt_filter": PromptFilter(kind="strict")},
            "prompt_filter 'strict' needs a verifier: it reads rollout accuracies, and outcomes 'withheld' gives none",
        ),
        (
            {"outcomes": "withheld", "verifier": RIGHT, "objective": Prime()},
            "objective Prime learns from outcomes: .* and outcomes 'withheld' gives none",
        ),
        ({"outcomes": "withheld", "verifier": RIGHT, "prm": None}, "every reward of this module has weight 0"),
        ({"outcomes": "withheld", "prm": None}, "without prm and without verifier there is nothing to learn from"),
    ],
)
def test_outcomes_that_training_needs_are_not_withheld(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_module(**options)


def test_a_majority_needs_neither_prm_nor_verifier() -> None:
    assert make_module(prm=None, outcomes="majority").alternation.has_outcomes
    make_module(outcomes="majority", prompt_filter=PromptFilter(kind="strict"), objective=Prime())
    assert not make_module(prm=PRM(), outcomes="withheld", verifier=RIGHT).alternation.has_outcomes
