"""What the policy read in the place of the problem is read again by whatever comes after a search."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import repirl
from repirl.__main__ import main
from repirl.applications import label_steps
from repirl.applications.labelling import task_of
from repirl.data.arithmetic import RunningSums
from repirl.data.solutions import read_solutions
from repirl.data.sources import Source, Table
from repirl.data.step_labelled import read_labelled_steps
from repirl.models.prm import PRM
from repirl.structs import Problem, WrittenSolution
from tests.applications.test_label_steps import words
from tests.applications.test_scoring import trained

AROUND = "dd"


class Around(Source):
    """Sums with a prompt around each, as benchmarks have one."""

    def load(self) -> Sequence[Problem]:
        sums = RunningSums(3, seed=1, min_steps=1, max_steps=2, split="test").load()
        return [replace(one, prompt=one.text + AROUND) for one in sums]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run.ckpt"
    trained(path, prm=PRM("q_head"))
    return path


@pytest.fixture(scope="module")
def samples(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    settings: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "problems": {"class_path": f"{__name__}.Around"},
        "verifier": {"class_path": "repirl.verifiers.exact.ExactVerifier"},
        "step_pattern": "[0-9]",
        "methods": ["best_of_n", "beam_search"],
        "n": [4],
        "beams": [4],
        "children": 2,
        "temperature": 4.0,
    }
    (folder / "s.yaml").write_text(yaml.safe_dump(settings))
    main(["search", "-c", str(folder / "s.yaml"), "--output", str(folder / "out")])
    return folder / "out" / "samples.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def written(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def as_words(rows: Sequence[dict[str, Any]], checkpoint: Path) -> list[dict[str, Any]]:
    """Those whose tokens are their words: others hold special tokens, which no text has."""
    codec = repirl.load(checkpoint).codec
    counts = [len(codec.encode_response("".join(row["steps"]))) - (not row["finished"]) for row in rows]
    return [row for row, count in zip(rows, counts, strict=True) if row["steps"] and row["generated_tokens"] == count]


def test_samples_are_scored_after_the_prompt_that_they_were_sampled_after(
    samples: Path, checkpoint: Path, tmp_path: Path
) -> None:
    rows = as_words(read(samples), checkpoint)
    assert {row["method"] for row in rows} == {"sampled", "beam_search"}
    assert {row["finished"] for row in rows} == {True, False}
    assert all(row["prompt_text"] == row["problem"] + AROUND for row in rows)
    bare = [{name: value for name, value in row.items() if name != "prompt_text"} for row in rows]
    found = {}
    for name, content in (("with", rows), ("without", bare)):
        kept = [row | {"step_rewards": None} for row in content]
        source = written(tmp_path / f"{name}.jsonl", kept)
        placed = read_solutions(str(source))
        found[name] = repirl.load(checkpoint).scorer().step_rewards([one.solution for one in placed])
    for row, given, other in zip(rows, found["with"], found["without"], strict=True):
        assert given == pytest.approx(row["step_rewards"], abs=1e-4)
        assert other != pytest.approx(row["step_rewards"], abs=1e-4)


def test_stored_samples_have_the_rewards_that_they_had(samples: Path, checkpoint: Path, tmp_path: Path) -> None:
    settings = {
        "input": str(samples),
        "prm": str(checkpoint),
        "verifier": {"class_path": "repirl.verifiers.exact.ExactVerifier"},
        "methods": ["best_of_n"],
        "n": [4],
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(settings))
    main(["search", "-c", str(tmp_path / "s.yaml"), "--output", str(tmp_path / "out")])
    before = as_words([row for row in read(samples) if row["method"] == "sampled"], checkpoint)
    again = {(row["id"], row["sample"]): row for row in read(tmp_path / "out" / "samples.jsonl")}
    assert len(before) > 3
    for row in before:
        new = again[row["id"], row["sample"]]
        assert new["prompt_text"] == row["prompt_text"]
        assert new["step_rewards"] == pytest.approx(row["step_rewards"], abs=1e-4)


def test_hard_problems_are_trained_on_with_the_prompt_that_was_failed(tmp_path: Path) -> None:
    row = {"id": "p", "problem": "a1", "gold": "a1", "right": False, "method": "sampled", "prompt_text": "a1d"}
    source = written(tmp_path / "samples.jsonl", [row, row])
    main(["hard", "--samples", str(source), "--output", str(tmp_path / "hard.jsonl")])
    (problem,) = Table(str(tmp_path / "hard.jsonl")).load()
    assert (problem.text, problem.prompt, problem.asked) == ("a1", "a1d", "a1d")
    own = written(tmp_path / "own.jsonl", [{"id": "p", "problem": "a1", "solution": "b"}])
    main(["hard", "--samples", str(source), "--rows", str(own), "--output", str(tmp_path / "rows.jsonl")])
    (problem,) = Table(str(tmp_path / "rows.jsonl")).load()
    assert (problem.asked, problem.solutions) == ("a1d", ("b",))


def test_one_problem_has_one_prompt(tmp_path: Path) -> None:
    rows = [{"problem": "a1", "solution": "b"}, {"problem": "a1", "solution": "c", "prompt_text": "a1d"}]
    (problem,) = Table(str(written(tmp_path / "one.jsonl", rows))).load()
    assert (problem.asked, problem.solutions) == ("a1d", ("b", "c"))
    other = written(tmp_path / "two.jsonl", [*rows, {"problem": "a1", "prompt_text": "a1e"}])
    with pytest.raises(ValueError, match="line 3 holds the problem of an earlier row with another prompt_text"):
        Table(str(other)).load()


def test_steps_are_completed_and_learned_after_the_prompt(checkpoint: Path, tmp_path: Path) -> None:
    codec = repirl.load(checkpoint).codec
    problem = Problem("p", "a4b4", "b8", prompt="a4b4d")
    solution = WrittenSolution(problem.text, ("b8",), prompt=problem.prompt)
    assert task_of(problem, solution, (1, 0), codec).prompt_ids == tuple(codec.encode_prompt("a4b4d"))
    row = {"problem": "a4b4", "answer": "b8", "solution": "b8\nb8", "prompt_text": "a4b4d"}
    label_steps.main(words(tmp_path, checkpoint, "out.jsonl", rows=[row]))
    (labelled,) = read_labelled_steps(str(tmp_path / "out.jsonl"))
    assert (labelled.solution.problem, labelled.solution.asked) == ("a4b4", "a4b4d")
