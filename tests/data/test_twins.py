"""Flawed twins as labelled steps, and as negatives beside experts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from repirl.data.arithmetic import RunningSums
from repirl.data.collate import collate_rows
from repirl.data.expert import ExpertData
from repirl.data.functions import Functions
from repirl.data.mixture import Mixture, MixturePart
from repirl.data.preparation import PreparationReport, encode_problem
from repirl.data.sources import Sample, Source
from repirl.data.step_data import StepLabelData
from repirl.data.steps import split_steps
from repirl.data.twins import FlawedSteps, FlawedTwins
from repirl.learning.actor import Actor, UsableExperts
from repirl.learning.ahead import Sampled, from_plain, to_plain
from repirl.learning.prm_objectives import IRL
from repirl.learning.settings import Advantage
from repirl.models.prm import PRM
from repirl.modules.prm import SupervisedPRM
from repirl.rollout.transformers import InProcess
from repirl.structs import Expert, Problem, Prompt, Response, Verdict, Verifier
from repirl.verifiers.exact import ExactVerifier
from tests.modules.tiny import ADAM, SUMS_TEXT, TEXT, Problems, make_module, make_policy, make_sums_model, problems, run

OUTCOME_ONLY = Advantage(outcome_coef=1.0, prm_coef=0.0)
DOCS = Path(__file__).parents[2] / "docs"


def one_place(text: str, other: str) -> bool:
    """Whether two texts differ, and in one character alone."""
    return len(text) == len(other) and sum(a != b for a, b in zip(text, other, strict=True)) == 1


# ---- labelled steps ----


def test_every_other_solution_is_a_twin_labelled_up_to_its_error() -> None:
    given = Sample(limit=8).load()
    found = FlawedSteps(Sample(limit=8), kinds=["number"]).load()
    assert [one.id for one in found] == [f"{problem.id}/0" for problem in given]
    assert [one.first_error >= 0 for one in found] == [False, True] * 4
    for problem, one in zip(given, found, strict=True):
        assert one.solution.problem == problem.text
        steps = split_steps(problem.solutions[0])
        if one.first_error < 0:
            assert one.solution.steps == steps
            assert one.labels == (True,) * len(steps)
        else:
            same = [a == b for a, b in zip(steps, one.solution.steps, strict=True)]
            assert same.index(False) == one.first_error
            assert sum(same) == len(steps) - 1
            assert one_place(problem.solutions[0], one.solution.text)
            assert one.labels == (*[True] * one.first_error, False)  # what follows has no label
            assert one.category == "number"


@pytest.mark.parametrize(("share", "places"), [(0.0, []), (0.25, [3, 7]), (0.4, [2, 4, 7]), (1.0, list(range(8)))])
def test_a_share_is_dealt_evenly(share: float, places: list[int]) -> None:
    """Of .4: after 3, 5 and 8 solutions 1.2, 2 and 3.2 are due."""
    found = FlawedSteps(Sample(limit=8), share=share).load()
    assert [place for place, one in enumerate(found) if one.first_error >= 0] == places


def test_the_seed_decides_which_place() -> None:
    first, again, other = (FlawedSteps(Sample(limit=16), seed=seed).load() for seed in (1, 1, 2))
    assert first == again
    assert [one.id for one in first] == [one.id for one in other]
    assert [one.first_error >= 0 for one in first] == [one.first_error >= 0 for one in other]
    assert first != other


def test_what_cannot_be_changed_is_left_out_and_all_of_it_is_an_error() -> None:
    texts = [("p", "no number"), ("q", "none here"), ("r", "still none"), ("s", "so 1 + 1 = 2")]
    source = Problems([Problem(id=name, text=name, solutions=(text,)) for name, text in texts])
    assert [one.id for one in FlawedSteps(source).load()] == ["p/0", "r/0", "s/0"]
    with pytest.raises(ValueError, match=r"FlawedSteps: nothing can be changed in any solution .* as code"):
        FlawedSteps(source, domain="code").load()
    with pytest.raises(ValueError, match="FlawedSteps: no problem of the source has a solution"):
        FlawedSteps(Problems([Problem(id="p", text="p")])).load()


def test_a_step_of_another_problem() -> None:
    source = Problems([Problem(id=n, text=n, solutions=(f"so {n}\nthen {n}",)) for n in "abcd"])
    twins = FlawedSteps(source, kinds=["step"], share=1).load()
    assert len(twins) == 4
    for one in twins:
        wrong = one.solution.steps[one.first_error].strip()
        assert re.fullmatch(r"(so|then) [abcd]", wrong)
        assert not wrong.endswith(one.solution.problem)


def test_programs_change_in_an_operator_or_a_constant() -> None:
    twins = FlawedSteps(Functions(6, seed=1), domain="code", share=1).load()
    assert len(twins) == 6
    assert {one.category for one in twins} <= {"operator", "constant"}


def test_a_prm_is_trained_by_twins_alone() -> None:
    """Of running sums, by `SupervisedPRM` as it stands; nobody labelled a step."""
    sums = RunningSums(64, seed=1, min_steps=2, max_steps=3)
    train = FlawedSteps(sums, domain="arithmetic")
    module = SupervisedPRM(PRM(kind="q_head", backbone=make_sums_model()), prm_optimizer=ADAM, text=SUMS_TEXT)
    done = run(module, StepLabelData(train=train, batch_solutions=16), steps=2)
    losses = [figures["prm/loss"] for figures in done.figures if "prm/loss" in figures]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[1] != losses[0]


# ---- negatives ----


def test_twins_stand_beside_the_experts_and_are_marked() -> None:
    given = Sample(limit=6).load()
    found = FlawedTwins(Sample(limit=6), twins=3, kinds=["number"]).load()
    assert [replace(one, flawed=()) for one in found] == given
    for problem, one in zip(given, found, strict=True):
        expert = f"{problem.solutions[0]}\nThe answer is \\boxed{{{problem.answer}}}."  # as it is trained on
        assert len(set(one.flawed)) == 3
        assert all(one_place(expert, twin) for twin in one.flawed)
    assert FlawedTwins(Sample(limit=6), twins=3, kinds=["number"]).load() == found
    assert FlawedTwins(Sample(limit=6), twins=3, kinds=["number"], seed=1).load() != found


def test_no_twin_is_another_expert_of_the_problem() -> None:
    """6 / 3 changes into 6 * 3, which is an expert too, and the other way round: both are no twins. 9 + 1 has one."""
    pair = Problem(id="p", text="p", solutions=("so 6 / 3 = two", "so 6 * 3 = two"))
    single = Problem(id="q", text="q", solutions=("so 9 + 1 = ten",))
    first, second = FlawedTwins(Problems([pair, single]), twins=5, kinds=["operator"]).load()
    assert first.flawed == ()
    assert second.flawed == ("so 9 - 1 = ten",)


def test_a_verifier_refuses_twins_that_it_calls_right() -> None:
    """The answer stands in the box: a twin changed before it is right for a verifier of final answers."""
    source = Problems([Problem(id="p", text="p", answer="8", solutions=("a3+5=8\n\\boxed{8}",))])
    twins = FlawedTwins(source, twins=9, domain="arithmetic", verifier=ExactVerifier()).load()[0].flawed
    assert twins
    assert all(re.fullmatch(r"a3\+5=8\n\\boxed\{[0-79]\}", twin) for twin in twins)
    anywhere = FlawedTwins(source, twins=9, domain="arithmetic").load()[0].flawed
    assert any(twin.endswith("\\boxed{8}") for twin in anywhere)


@pytest.mark.parametrize("kind", [FlawedSteps, FlawedTwins])
def test_bad_settings_are_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="the source is a mixture, whose shares would be lost"):
        kind(Mixture({"a": MixturePart(Sample())}))
    with pytest.raises(
        ValueError, match=f"{kind.__name__}: domain 'poetry' is unknown; there are arithmetic, prose, code"
    ):
        kind(Sample(), domain="poetry")
    with pytest.raises(ValueError, match=f"{kind.__name__}: 'digit' among `kinds`"):
        kind(Sample(), kinds=["digit"])
    with pytest.raises(ValueError, match=f"{kind.__name__}: nothing among `kinds`"):
        kind(Sample(), kinds=[])
    with pytest.raises(ValueError, match=r"share is a part|twins must be at least 1"):
        kind(Sample(), **{"share": 1.5} if kind is FlawedSteps else {"twins": 0})


class AllRight(Verifier):
    """Takes everything for right, as one of final answers takes many twins; it keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def verify(self, given: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        self.asked += responses
        return [Verdict(True, "equal") for _ in responses]

    def close(self) -> None:
        """Nothing to end."""


def sums_with_twins() -> FlawedTwins:
    return FlawedTwins(Problems(problems(4)), twins=2, domain="arithmetic")


@pytest.mark.parametrize(("judged", "word"), [(True, True), (False, None)])
def test_twins_are_wrong_without_asking(judged: bool, word: bool | None) -> None:
    verifier = AllRight()
    actor = Actor(make_policy(), TEXT, InProcess(), verifier)
    found = sums_with_twins().load()
    report = PreparationReport()
    sizes: dict[str, Any] = {"max_prompt_tokens": 16, "max_response_tokens": 10, "max_experts": 4, "report": report}
    prompts = [encode_problem(problem, actor.codec, **sizes) for problem in found]
    assert report == PreparationReport(flawed=8)
    usable = UsableExperts(actor, drop_wrong=False, judged=judged).of([prompt for prompt in prompts if prompt])
    assert [[(e.text, e.correct) for e in some] for some in usable] == [
        [(problem.solutions[0], word), *((twin, False) for twin in problem.flawed)] for problem in found
    ]
    assert verifier.asked == ([problem.solutions[0] for problem in found] if judged else [])


def margins(train: Source) -> torch.Tensor:
    """Of each twin, how far below its expert's reward it is for a PRM trained on these problems for 30 iterations."""
    objective = IRL(wrong_experts="background", corrected="ignore")
    module = make_module(verifier=AllRight(), objective=objective, prm_optimizer=ADAM, advantage=OUTCOME_ONLY)
    done = run(module, ExpertData(train=train, batch_prompts=4), steps=30)
    assert done.figures[0]["prompts/experts_dropped"] == 0
    found = [
        (one, text) for one in sums_with_twins().load() for twin in one.flawed for text in (one.solutions[0], twin)
    ]
    prompts = [module.codec.encode_prompt(problem.text) for problem, _ in found]
    responses = [module.codec.encode_response(text) for _, text in found]
    rewards = module.score(collate_rows(prompts, responses, module.codec.pad_id, module.device)).sum(-1).view(-1, 2)
    return rewards[:, 0] - rewards[:, 1]


def test_a_prm_learns_to_put_twins_below_experts_that_the_verifier_would_not_tell_from_them() -> None:
    """Experts alone raise what is like them, their twins too."""
    with_twins, alone = margins(sums_with_twins()), margins(Problems(problems(4)))
    assert len(with_twins) == 8
    assert (with_twins > alone).all()


def test_prompts_that_wait_for_their_turn_keep_their_twins() -> None:
    problem = sums_with_twins().load()[0]
    twins = tuple(Expert(twin, (1,), correct=False) for twin in problem.flawed)
    sampled = Sampled([Prompt(problem, (1,), (Expert("x", (1,)),), flawed=twins)], [[Response((1,), "y", True)]])
    kept = json.loads(json.dumps(to_plain(sampled)))
    assert from_plain(kept).prompts == sampled.prompts
    for row in kept:  # of a checkpoint of before there were any
        del row["prompt"]["flawed"], row["prompt"]["problem"]["flawed"]
    assert from_plain(kept).prompts[0].flawed == ()


def test_a_flawed_trajectory_says_that_it_is_wrong() -> None:
    with pytest.raises(ValueError, match="problem 'p': a flawed trajectory must have correct=False"):
        Prompt(Problem("p", "p"), (1,), flawed=(Expert("x", (1,)),))


def test_an_objective_that_drops_wrong_experts_refuses_twins() -> None:
    data = ExpertData(train=sums_with_twins(), batch_prompts=4)
    with pytest.raises(
        ValueError, match=r"has flawed solutions, .* IRL or Discriminator with wrong_experts: background"
    ):
        run(make_module(verifier=AllRight()), data)


# ---- configurations ----


def blocks(page: str) -> list[str]:
    return [text for text in re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(), re.DOTALL) if "Flawed" in text]


def test_the_pages_configurations_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"problem": one.text, "solution": one.solutions[0], "answer": one.answer} for one in Sample(limit=8).load()]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (negatives,), (labelled,) = blocks("data.md"), blocks("prm-training.md")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--experts", type=ExpertData)
    parser.add_argument("--labels", type=StepLabelData)
    given = yaml.safe_load(negatives), yaml.safe_load(labelled)
    assert given[0]["model"]["init_args"]["objective"]["init_args"] == {"wrong_experts": "background"}
    made = parser.instantiate_classes(
        parser.parse_object({"experts": given[0]["data"], "labels": given[1]["data"]})
    )  # fmt: skip
    assert [len(problem.flawed) for problem in made.experts.train.load()] == [2] * 8
    assert [one.first_error >= 0 for one in made.labels.train.load()] == [False, True] * 4
