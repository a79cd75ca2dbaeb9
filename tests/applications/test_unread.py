"""Solutions that a PRM cannot read: a search that is told to skip them ranks them last and goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import repirl
from repirl.__main__ import main
from repirl.applications.scoring import TokenScorer
from repirl.applications.search_report import outcomes_of
from repirl.applications.searching import UNREAD, ResponseScorer, rewards_of
from repirl.data.token_steps import separator_ids
from repirl.models.prm import PRM
from repirl.structs import Problem, WrittenSolution
from tests.applications.test_scoring import trained
from tests.applications.test_search import table, unit


def test_an_unread_solution_has_no_say() -> None:
    """The second is unread. Best of three is the third; of the votes by weights 8 has .5 and 7 has .2, both by one voter."""
    given = unit([(0.2,), (), (0.5,)], [True, False, False], ["7", "8", "8"])
    methods = ["best_of_n", "weighted_vote", "exp_weighted_vote", "majority_vote"]
    found = outcomes_of(given, methods, [3], aggregation="min", subsets=9, seed=0)
    assert [one["accuracy"] for one in found] == [0, 0, 0, 0]
    other = unit([(0.5,), (), (0.2,)], [True, False, False], ["7", "8", "8"])
    found = outcomes_of(other, methods, [3], aggregation="min", subsets=9, seed=0)
    assert [one["accuracy"] for one in found] == [1, 1, 1, 0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> repirl.Run:
    path = tmp_path_factory.mktemp("run") / "run.ckpt"
    trained(path, prm=PRM("q_head"))
    return repirl.load(path)


def narrow(run: repirl.Run, context: int) -> TokenScorer:
    scorer = run.scorer()
    scorer.context = context
    return scorer


def test_responses_in_tokens(run: repirl.Run) -> None:
    """ "a1b2" and "b1" are 4 + 3 tokens with the end, "b1b1" 4 + 5."""
    problems = [Problem("p", "a1b2", "b3")] * 2
    responses = [run.codec.encode_response(text) for text in ("b1", "b1b1")]
    prompt = len(run.codec.encode_prompt("a1b2"))
    separators = separator_ids(run.policy.tokenizer, "[0-9]")
    whole = ResponseScorer(run.scorer(), run.codec, separators).of(problems, responses, [True, True])
    some = ResponseScorer(narrow(run, prompt + 3), run.codec, separators, "skip")
    assert some.by_token is not None
    read, unread = some.of(problems, responses, [True, True])
    assert (read.rewarded, read.read, unread) == (3, prompt + 3, UNREAD)
    assert read.steps == pytest.approx(whole[0].steps, abs=1e-6)
    assert some.of(problems[:1], responses[1:], [True]) == [UNREAD]
    refusing = ResponseScorer(narrow(run, prompt + 3), run.codec, separators)
    with pytest.raises(ValueError, match=f"has {prompt + 5} tokens .* the PRM reads {prompt + 3}: give too_long: skip"):
        refusing.of(problems, responses, [True, True])


def test_solutions_in_words(run: repirl.Run) -> None:
    """The second is too long; the third has a letter that the tokenizer does not know."""
    prompt = len(run.codec.encode_prompt("a1b2"))
    solutions = [WrittenSolution("a1b2", (text,)) for text in ("b1", "b1b1", "\u00e9", "b2")]
    found = rewards_of(narrow(run, prompt + 3), solutions, "skip")
    assert [one == UNREAD for one in found] == [False, True, True, False]
    assert found[3].steps == pytest.approx(rewards_of(run.scorer(), solutions[3:])[0].steps, abs=1e-6)
    with pytest.raises(ValueError, match="leave it out"):
        rewards_of(narrow(run, prompt + 3), solutions[:2])


def test_solutions_that_were_skipped_by_score_or_search_are_searched_among(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"steps": ["\\boxed{2}"], "step_rewards": [0.1]},
        {"steps": ["\\boxed{3}"], "step_rewards": []},
        {"steps": ["\\boxed{4}"], "step_rewards": None, "mean": None},
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"problem": "1 + 1", "gold": "2"} | row) + "\n" for row in rows))
    words = ["search", "--input", str(path), "--n=[3]", "--methods=[best_of_n]", "--output"]
    main([*words, str(tmp_path / "out")])
    assert float(table(tmp_path / "out" / "curves.csv")["best_of_n", 3]["accuracy"]) == 1
    assert json.loads((tmp_path / "out" / "search.json").read_text())["unread"] == 2
    main(["search", "--input", str(tmp_path / "out" / "samples.jsonl"), *words[3:], str(tmp_path / "again")])
    assert json.loads((tmp_path / "again" / "search.json").read_text())["unread"] == 2
