"""`repirl search`: figures worked by hand, steps as they were sampled, every problem once through a kill too."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import repirl
from repirl.__main__ import main
from repirl.applications.journal import Journal
from repirl.applications.scoring import Score, Scorer
from repirl.applications.search import _parser, parsed
from repirl.applications.search_report import curves_of, outcomes_of
from repirl.applications.searching import ResponseScorer, Solver
from repirl.config import ConfigError
from repirl.data.token_steps import separator_ids
from repirl.learning.actor import Actor
from repirl.learning.settings import Text
from repirl.metrics.selection import aggregated
from repirl.models.prm import PRM
from repirl.rollout.transformers import InProcess
from repirl.structs import Problem, Prompt, WrittenSolution
from repirl.verifiers.exact import ExactVerifier
from tests.applications.test_scoring import trained
from tests.models.hub.test_hub import implicit_pair
from tests.modules.tiny import TEXT
from tests.processes import limited, wait_for

CONFIGS = Path(__file__).parents[2] / "configs" / "search"
METHODS = ["random", "majority_vote", "best_of_n", "weighted_vote", "exp_weighted_vote", "pass_at_n"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run.ckpt"
    trained(path, prm=PRM("q_head"))
    return path


@pytest.fixture(scope="module")
def settings(checkpoint: Path) -> dict[str, Any]:
    return {
        "checkpoint": str(checkpoint),
        "problems": {
            "class_path": "repirl.data.arithmetic.RunningSums",
            "init_args": {"count": 5, "seed": 1, "min_steps": 1, "max_steps": 3, "split": "test"},
        },
        "verifier": {"class_path": "repirl.verifiers.exact.ExactVerifier"},
        "step_pattern": "[0-9]",
        "methods": [*METHODS, "beam_search", "dvts"],
        "n": [1, 3],
        "beams": [4],
        "children": 2,
        "aggregation": "min",
        "temperature": 4.0,  # else this policy's responses end at once
        "problems_at_once": 2,
    }


def written(path: Path, content: dict[str, Any]) -> list[str]:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return ["-c", str(path)]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(path: Path) -> dict[tuple[str, int], dict[str, str]]:
    with path.open(newline="") as file:
        return {(row["method"], int(row["n"])): row for row in csv.DictReader(file)}


# --- figures


def unit(
    rewards: Sequence[Sequence[float]], right: Sequence[bool | None], answers: Sequence[str | None]
) -> dict[str, Any]:
    samples = [
        {"right": r, "answer": a, "step_rewards": list(s), "rewarded_tokens": None, "finished": True}
        for r, a, s in zip(right, answers, rewards, strict=True)
    ]
    spent = {"generated_tokens": 40, "policy_tokens": 50, "prm_tokens": 80}
    about = {"id": "p", "method": "sampled", "n": len(samples), "prompt_tokens": 10}
    return {**about, "spent": spent, "samples": samples}


def test_figures_by_hand() -> None:
    """Scores by min: .2, .5, .1, .5; answers 7 (right), 8, 8, 7 (right).

    n = 2: of 6 pairs {1,2} -> .5, 8; {1,3} -> 7; {1,4} -> 7; {2,3} -> 8; {2,4} tied .5; {3,4} -> 7: best of n 3.5 / 6.
    Majority: {1,4} right, {2,3} wrong, 4 pairs tied: 3 / 6. Sums of scores: {1,2} 8, {1,3} 7, {1,4} 7, {2,3} 8, {2,4}
    tied, {3,4} 7: 3.5 / 6 as well. pass: only {2,3} fails: 5 / 6.
    """
    given = unit([(0.2, 0.9), (0.5, 0.6), (0.1,), (0.5, 0.5)], [True, False, False, True], ["7", "8", "8", "7"])
    found = outcomes_of(given, METHODS, [2, 4], aggregation="min", subsets=100, seed=0)
    accuracy = {(one["method"], one["n"]): one["accuracy"] for one in found}
    expected = {"random": 0.5, "majority_vote": 0.5, "best_of_n": 3.5 / 6, "weighted_vote": 3.5 / 6, "pass_at_n": 5 / 6}
    assert {name: accuracy[name, 2] for name in expected} == pytest.approx(expected)
    # All four: .5 is tied between a right and a wrong one; 7 has .2 + .5 = .7, 8 has .6
    assert (accuracy["best_of_n", 4], accuracy["weighted_vote", 4], accuracy["majority_vote", 4]) == (0.5, 1, 0.5)
    by_last = outcomes_of(given, ["best_of_n"], [4], aggregation="last", subsets=100, seed=0)
    assert by_last[0]["accuracy"] == 1  # .9 is the last of the first
    # 2 of 4 samples: half of what was sampled, the prompt once; the PRM reads where it is asked
    cost = {one["method"]: (one["generated_tokens"], one["policy_tokens"], one["prm_tokens"]) for one in found[:6]}
    assert cost["majority_vote"] == (20, 30, 0)
    assert cost["best_of_n"] == (20, 30, 40)
    rows = curves_of([*found, *found], policy_parameters=1000, prm_parameters=100, seed=0)
    (best,) = [row for row in rows if (row["method"], row["n"]) == ("best_of_n", 2)]
    assert best["operations"] == 2 * (1000 * 30 + 100 * 40)
    assert best["problems"] == 2
    without = curves_of(found, policy_parameters=None, prm_parameters=None, seed=0)
    assert without[0]["operations"] is None
    assert math.isnan(without[0]["low"])  # of one problem


def test_a_problem_without_a_verdict_is_left_out() -> None:
    given = unit([(0.1,), (0.2,)], [True, None], ["7", "8"])
    assert outcomes_of(given, METHODS, [1], aggregation="min", subsets=9, seed=0) == []


def test_the_best_beam_is_one_that_ended_by_itself() -> None:
    given = unit([(0.9,), (0.4,), (0.4,)], [False, True, False], ["7", "8", "9"]) | {"method": "dvts"}
    given["samples"][0]["finished"] = False
    (one,) = outcomes_of(given, METHODS, [1], aggregation="min", subsets=9, seed=0)
    assert (one["method"], one["n"], one["accuracy"], one["prm_tokens"]) == ("dvts", 3, 0.5, 80)


# --- the whole command


def test_a_search_on_a_tiny_model(settings: dict[str, Any], checkpoint: Path, tmp_path: Path) -> None:
    main(["search", *written(tmp_path / "s.yaml", settings), "--output", str(tmp_path / "out")])
    names = {"curves.csv", "curves.png", "problems.jsonl", "samples.jsonl", "search.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    report = json.loads((tmp_path / "out" / "search.json").read_text())
    assert len(report["ids"]) == 5
    assert report["settings"]["aggregation"] == "min"
    assert report["settings"]["text"]["max_response_tokens"] == TEXT.max_response_tokens
    run = repirl.load(checkpoint)
    assert run.prm is not None
    assert report["parameters"]["policy"] == sum(p.numel() for p in run.policy.parameters())
    samples = read(tmp_path / "out" / "samples.jsonl")
    assert [one["sample"] for one in samples if one["method"] == "sampled"] == [0, 1, 2] * 5
    compared = 0
    for one in samples:
        assert len(one["step_rewards"]) == len(one["steps"])
        assert all(sum(c.isdigit() for c in step) == 1 for step in one["steps"][:-1])
        prompt, ids = run.codec.encode_prompt(one["problem"]), run.codec.encode_response("".join(one["steps"]))
        ids = ids if one["finished"] else ids[:-1]
        if len(ids) == one["generated_tokens"] and one["steps"]:  # else it has special tokens, which are no text
            rewards = run.scorer().token_rewards([prompt], [ids])
            assert sum(one["step_rewards"]) == pytest.approx(float(rewards.sum()), abs=1e-4)
            compared += len(one["steps"]) > 1
    assert compared > 10
    rows = table(tmp_path / "out" / "curves.csv")
    assert set(rows) == {(name, n) for name in METHODS for n in (1, 3)} | {("beam_search", 4), ("dvts", 4)}
    assert float(rows["random", 1]["accuracy"]) == pytest.approx(
        sum(bool(s["right"]) for s in samples[:15]) / 15, abs=1e-6
    )
    with pytest.raises(ConfigError, match="exists"):
        main_of(written(tmp_path / "s.yaml", settings), tmp_path / "out")
    # What is there is not sampled again: the same figures from the samples, and others by other aggregations.
    again = {name: settings[name] for name in ("verifier", "step_pattern", "n", "aggregation")}
    again |= {"input": str(tmp_path / "out" / "samples.jsonl"), "methods": METHODS}
    main(["search", *written(tmp_path / "a.yaml", again), "--output", str(tmp_path / "again")])
    for key, row in table(tmp_path / "again" / "curves.csv").items():
        assert {k: row[k] for k in ("accuracy", "generated_tokens", "prm_tokens")} == {
            k: rows[key][k] for k in ("accuracy", "generated_tokens", "prm_tokens")}  # fmt: skip


def main_of(words: Sequence[str], output: Path) -> None:
    from repirl.applications import search

    search.main([*words, "--output", str(output)])


def test_samples_do_not_depend_on_what_is_beside_them(settings: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for at_once in (1, 5):
        output = tmp_path / f"out{at_once}"
        main(
            ["search", *written(tmp_path / "s.yaml", settings | {"problems_at_once": at_once}), "--output", str(output)]
        )
        found.append([(one["id"], one["method"], one["steps"]) for one in read(output / "samples.jsonl")])
    assert found[0] == found[1]


def test_a_killed_search_goes_on(settings: dict[str, Any], tmp_path: Path) -> None:
    long = settings | {"problems_at_once": 1, "n": [1, 64]}
    long["problems"] = {**long["problems"], "init_args": long["problems"]["init_args"] | {"count": 16}}
    words = ["search", *written(tmp_path / "s.yaml", long)]
    output, part = tmp_path / "out", tmp_path / "out" / ".samples.jsonl.part"
    with limited(subprocess.Popen([sys.executable, "-m", "repirl", *words, "--output", str(output)])) as killed:
        assert wait_for(lambda: part.exists() and part.read_bytes().count(b"\n") > 4)
        os.kill(killed.pid, signal.SIGKILL)
    assert 0 < part.read_bytes().count(b"\n") - 1 < 48
    assert not (output / "samples.jsonl").exists()
    with part.open("ab") as file:
        file.write(b'{"id": "runn')  # what a kill leaves of a line
    with pytest.raises(ConfigError, match="was begun with another settings"):
        main_of([*words[1:3], "--seed=4"], output)
    main([*words, "--output", str(output)])
    main([*words, "--output", str(tmp_path / "whole")])
    for name in ("samples.jsonl", "problems.jsonl", "curves.csv"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    keys = [(one["id"], one["method"], one["sample"]) for one in read(output / "samples.jsonl")]
    assert len(keys) == len(set(keys))


def test_a_search_goes_on_over_the_same_problems_alone(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of problems that was changed meanwhile: the first half would be of others than the second."""
    rows = [{"id": "p", "problem": "a1b2", "answer": "b3"}, {"id": "q", "problem": "a2b2", "answer": "b4"}]
    source = {"class_path": "repirl.data.sources.Table", "init_args": {"path": str(tmp_path / "p.jsonl")}}
    words = written(tmp_path / "s.yaml", settings | {"problems": source, "methods": ["pass_at_n"]})
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", lambda journal, lines: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main_of(words, tmp_path / "out")
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row | {"answer": "b5"}) + "\n" for row in rows))
    with pytest.raises(ConfigError, match="was begun with another problems"):
        main_of(words, tmp_path / "out")


# --- steps by a PRM with another tokenizer


class Digits(Scorer):
    """A PRM that reads words: 1 for a step with an even digit, 0 for one with an odd one."""

    def __init__(self) -> None:
        self.seen: list[WrittenSolution] = []

    def lengths(self, solutions: Sequence[WrittenSolution]) -> list[int]:
        return [len(one.text) for one in solutions]

    def _scores(self, solutions: Sequence[WrittenSolution]) -> list[Score]:
        self.seen += solutions
        return [Score(s.steps, tuple(float(any(c in "02468" for c in step)) for step in s.steps)) for s in solutions]


def test_another_tokenizer_s_prm_reads_text_and_its_aggregation_is_used(checkpoint: Path) -> None:
    run = repirl.load(checkpoint)
    actor = Actor(run.policy, Text(max_prompt_tokens=16, max_response_tokens=10), InProcess(), ExactVerifier())
    actor.load()
    prm = Digits()
    rewards = ResponseScorer(prm, actor.codec, separator_ids(run.policy.tokenizer, "[0-9]"))
    assert rewards.by_token is None
    solver = Solver(actor, rewards, scores=True, aggregation="last", temperature=4.0, seed=0)
    prompts = [Prompt(Problem(t, t, "b1"), actor.codec.encode_prompt(t)) for t in ("a1b2", "a3b5c9")]
    units = solver.searched(prompts, "beam_search", 4, 2)
    assert {one.ended for one in prm.seen} == {True, False}
    for one in units:
        assert one["spent"]["prm_tokens"] > 0
        for sample in one["samples"]:
            expected = [float(any(c in "02468" for c in step)) for step in sample["steps"]]
            assert sample["step_rewards"] == expected
            assert sample["rewarded_tokens"] is None
    # A beam whose last step is odd goes on only where too few are even.
    for unit_, problem in zip(units, ("a1b2", "a3b5c9"), strict=True):
        first = [s for s in prm.seen if s.problem == problem and len(s.steps) == 1 and not s.ended]
        best = sorted((aggregated(s, "last") for s in (prm._scores([f])[0].step_rewards for f in first)), reverse=True)[
            :2
        ]
        went_on = {s.steps[0] for s in prm.seen if s.problem == problem and len(s.steps) == 2}
        assert len(went_on) <= 2
        assert sum(any(c in "02468" for c in step) for step in went_on) == min(sum(best), len(went_on))
        assert unit_["method"] == "beam_search"


# --- solutions that are there


def test_scored_solutions_need_neither_policy_nor_prm(tmp_path: Path) -> None:
    rows = [
        {"problem": "1 + 1", "gold": "2", "steps": ["So\n", "\\boxed{2}"], "step_rewards": [0.5, 0.1]},
        {"problem": "1 + 1", "gold": "2", "steps": ["\\boxed{3}"], "step_rewards": [0.2]},
        {"problem": "1 + 2", "gold": "3", "steps": ["\\boxed{3.0}"], "step_rewards": [0.4]},
        {"problem": "1 + 2", "gold": "3", "steps": ["\\boxed{4}"], "step_rewards": [0.3]},
        {"problem": "1 + 2", "gold": "3", "method": "dvts", "steps": ["\\boxed{4}"], "step_rewards": [0.9]},
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--input", str(path), "--n=[1,2]", "--methods=[best_of_n,random]"]
    main(["search", *given, "--output", str(tmp_path / "mean")])
    main(["search", *given, "--output", str(tmp_path / "last"), "--aggregation=last"])
    by_mean, by_last = table(tmp_path / "mean" / "curves.csv"), table(tmp_path / "last" / "curves.csv")
    assert [float(by_mean["best_of_n", n]["accuracy"]) for n in (1, 2)] == [0.5, 1]  # .3 against .2, .4 against .3
    assert [float(by_last["best_of_n", n]["accuracy"]) for n in (1, 2)] == [0.5, 0.5]  # .1 against .2
    assert by_mean["best_of_n", 2]["generated_tokens"] == ""  # nothing says how many


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["best_of_m"]}, "best_of_m"),
        ({"aggregation": "median"}, "median"),
        ({"beams": [4, 6], "children": 4}, "beams: 6 cannot be shared out to 4 children each"),
        ({"checkpoint": None}, "solutions come from one of checkpoint, policy and input, and there is none"),
        ({"policy": "folder"}, "there is checkpoint and policy"),
        ({"problems": None}, "no problems to solve"),
        ({"steps": "numbered", "step_pattern": None}, "'numbered' cannot be told while a solution is sampled"),
        ({"step_pattern": "€"}, "no token of this tokenizer matches the step pattern '€'"),
        ({"n": [0, 2]}, r"n: \[0, 2\] has no number, or one below 1"),
        ({"samples": 2}, "2 are too few to choose from 3"),
        ({"temperature": 0.0}, "temperature: 0.0"),
        ({"methods": []}, "methods: there is none"),
        ({"aggregation": "product"}, "a product of step rewards needs probabilities"),
        ({"prm": "there/is/none.ckpt"}, "no such checkpoint"),
        ({"checkpoint": "none.ckpt"}, "none.ckpt"),
        ({"widht": 3}, "widht"),
        ({"beta": 0.5}, "beta: it is of the PRM that prm names, and there is none"),
        ({"kind": "trl"}, "kind: it is of the PRM that prm names"),
        ({"prm": "folder", "beta": 0.5}, r"prm: beta 0\.5 is of a PRM of kind 'implicit'"),
        ({"prm": "folder", "kind": "implicit"}, "is two models, and no other is: give `reference`"),
        ({"device": "abacus"}, "device 'abacus' is not to be had here"),
    ],
)
def test_mistakes_are_told_in_two_lines(
    settings: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        main_of(written(tmp_path / "s.yaml", settings | changes), tmp_path / "out")
    assert len(str(raised.value).splitlines()) == 2


def test_a_repaired_mistake_is_not_held_against_the_folder(settings: dict[str, Any], tmp_path: Path) -> None:
    """A search that ended before it made anything may be given again with other settings."""
    with pytest.raises(ConfigError, match="no token of this tokenizer"):
        main_of(written(tmp_path / "s.yaml", settings | {"step_pattern": "€"}), tmp_path / "out")
    main_of(written(tmp_path / "s.yaml", settings | {"methods": ["random"]}), tmp_path / "out")
    assert set(table(tmp_path / "out" / "curves.csv")) == {("random", 1), ("random", 3)}


SCORED = '{{"problem": "a", "steps": ["x"], "step_rewards": {}, "answer": 2}}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "there are no solutions in it"),
        ('{"problem": "a", "answer": 2}\n', "line 1: no solution, solutions or steps field"),
        ('{"problem": "a", "solutions": ["x", "y"]}\n', "line 1: no gold answer as `gold` or `answer`"),
        ('{"problem": "a", "solutions": ["x", "y"], "answer": 2}\n', "problem 'a' has 2 solutions, too few to choose"),
        ('{"problem": "a", "solutions": ["x", "y", "z"], "answer": 2}\n', "have no step_rewards, and no PRM is named"),
        (SCORED.format('["x"]'), r"line 1: field 'step_rewards': found list \['x'\], expected a finite number"),
        (SCORED.format("[1e999]"), r"line 1: field 'step_rewards': found list \[inf\]"),
        (SCORED.format("[1, 2]"), "line 1: field 'step_rewards': 2 rewards of 1 steps"),
        (SCORED.format("[1]") + SCORED.format("[1]").replace("2}", "3}"), "line 2: id 'a' stands for another problem"),
    ],
)
def test_solutions_that_do_not_do_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "in.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=message):
        main_of(["--input", str(tmp_path / "in.jsonl"), "--n=[1,3]"], tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--problems=repirl.data.arithmetic.RunningSums", "--problems.count=2", "--problems.seed=1"], "problems"),
        (["--text.max_response_tokens=9"], "text"),
        (["--samples=4"], "samples"),
        (["--temperature=0.8"], "temperature"),
        (["--rollout=repirl.rollout.transformers.InProcess"], "rollout"),
    ],
)
def test_what_an_input_leaves_unread_is_refused(tmp_path: Path, words: list[str], name: str) -> None:
    (tmp_path / "in.jsonl").write_text(SCORED.format("[1]"))
    given = ["--input", str(tmp_path / "in.jsonl"), "--n=[1]", "--methods=[best_of_n]"]
    with pytest.raises(ConfigError, match=f"{name}: input is sampled already, and nothing would read it"):
        main_of([*given, *words], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    main_of(given, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "search.json").read_text())["settings"]
    assert settings[name] is settings["beams"] is settings["children"] is None
    assert settings["aggregation"] == "mean"


def test_the_second_model_of_implicit_is_the_same_throughout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned, start = implicit_pair(tmp_path)
    (tmp_path / "in.jsonl").write_text(json.dumps({"problem": "2 + 3?", "solutions": ["5", "6"], "answer": 5}))
    given = ["--input", str(tmp_path / "in.jsonl"), "--n=[1,2]", "--methods=[best_of_n]"]
    given += ["--prm", tuned, "--kind=implicit", "--reference", start]
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", lambda journal, lines: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main_of(given, tmp_path / "out")
    (Path(start) / "model.safetensors").write_bytes((Path(tuned) / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="was begun with another files"):
        main_of(given, tmp_path / "out")


@pytest.mark.parametrize("aggregation", ["product", "token_mean"])
def test_stored_rewards_that_do_not_permit_the_aggregation_are_told_in_two_lines(
    tmp_path: Path, aggregation: str
) -> None:
    (tmp_path / "in.jsonl").write_text(SCORED.format("[-1]") + SCORED.format("[2]"))
    given = ["--input", str(tmp_path / "in.jsonl"), "--n=[1,2]", f"--aggregation={aggregation}"]
    with pytest.raises(ConfigError, match="give mean, sum, min or last"):
        main_of(given, tmp_path / "out")


def test_files_of_others_in_the_folder_stay(tmp_path: Path) -> None:
    """Such as the problems of the search themselves."""
    (tmp_path / "in.jsonl").write_text(SCORED.format("[1]"))
    (tmp_path / "problems.jsonl").write_text("mine")
    given = ["--input", str(tmp_path / "in.jsonl"), "--n=[1]", "--methods=[best_of_n]"]
    with pytest.raises(ConfigError, match=r"problems.jsonl', which goes with it, exists"):
        main_of(given, tmp_path)
    assert (tmp_path / "problems.jsonl").read_text() == "mine"


def test_a_row_may_have_fields_of_others(tmp_path: Path) -> None:
    """`tokens` that is a number, a `method` that is none of a search."""
    row = json.loads(SCORED.format("[1]")) | {"tokens": 3, "method": "cot", "rewarded_tokens": "few"}
    (tmp_path / "in.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    main_of(["--input", str(tmp_path / "in.jsonl"), "--n=[2]", "--methods=[best_of_n]"], tmp_path / "out")
    assert table(tmp_path / "out" / "curves.csv")["best_of_n", 2]["generated_tokens"] == ""


def test_a_server_that_does_not_answer_is_told_in_two_lines(settings: dict[str, Any], tmp_path: Path) -> None:
    server = {"class_path": "repirl.rollout.vllm.VLLM", "init_args": {"server": "http://127.0.0.1:9", "timeout_s": 0.5}}
    with pytest.raises(ConfigError, match=r"127.0.0.1:9: no answer to 'start'") as raised:
        main_of(written(tmp_path / "s.yaml", settings | {"rollout": server, "temperature": 1.0}), tmp_path / "out")
    assert len(str(raised.value).splitlines()) == 2


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_configuration_of_a_search_builds(path: Path) -> None:
    asked, _ = parsed(_parser(), ["-c", str(path), "--checkpoint", "run.ckpt"])
    asked.check()
    assert asked.problems is not None
    assert asked.problems.load()


def test_classes_may_be_named_on_the_command_line() -> None:
    words = ["--output", "out", "--policy=folder", "--problems=repirl.data.sources.Sample", "--problems.limit=3"]
    asked, given = parsed(
        _parser(), [*words, "--verifier=repirl.verifiers.exact.ExactVerifier", "--text.instruction=Think."]
    )
    assert asked.problems is not None
    assert len(asked.problems.load()) == 3
    assert isinstance(asked.verifier, ExactVerifier)
    assert asked.text == Text(instruction="Think.")
    assert given["problems"] == {"class_path": "repirl.data.sources.Sample", "init_args": {"limit": 3}}


def test_words_that_are_no_options_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unexpected argument 'run.ckpt'"):
        parsed(_parser(), ["run.ckpt"])
