"""`repirl hard`: which problems are hard, rows that data modules read, and what a search of the same policy says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from repirl.__main__ import main
from repirl.applications.hard import Sampled, hard_of
from repirl.applications.hard import main as command
from repirl.config import ConfigError
from repirl.data.sources import Table
from repirl.models.prm import PRM
from tests.applications.test_scoring import trained


def test_one_right_sample_of_the_first_n_makes_a_problem_easy() -> None:
    given = {"a": (False, True, False), "b": (False, False, True), "c": (False, None, False), "d": (None, True, False)}
    problems = [Sampled(name, name, "1", right) for name, right in given.items()]
    assert [[one.id for one in some] for some in hard_of(problems, 1)] == [["a", "b", "c"], ["d"]]
    assert [[one.id for one in some] for some in hard_of(problems, 2)] == [["b"], ["c"]]
    assert [[one.id for one in some] for some in hard_of(problems, 3)] == [[], ["c"]]
    with pytest.raises(ValueError, match="n is 4, and problem 'a' has 3 samples"):
        hard_of(problems, 4)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_samples_of_a_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "run.ckpt", prm=PRM("q_head"))
    settings = {
        "checkpoint": str(tmp_path / "run.ckpt"),
        "output": str(tmp_path / "out"),
        "problems": {
            "class_path": "repirl.data.arithmetic.RunningSums",
            "init_args": {"count": 6, "seed": 1, "min_steps": 1, "max_steps": 2, "split": "test"},
        },
        "verifier": {"class_path": "tests.modules.tiny.EvenDigits"},
        "methods": ["pass_at_n"],
        "n": [1, 2],
        "temperature": 2.0,
    }
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(settings))
    main(["search", "-c", str(tmp_path / "search.yaml")])
    samples, output = tmp_path / "out" / "samples.jsonl", tmp_path / "hard.jsonl"
    sampled = rows(samples)
    wanted = {row["id"] for row in sampled if row["sample"] == 0 and not row["right"]}
    assert 0 < len(wanted) < 6
    main(["hard", "--samples", str(samples), "--output", str(output), "--n", "1"])
    written, summary = rows(output), json.loads((tmp_path / "hard.json").read_text())
    assert {row["id"] for row in written} == wanted
    about = written[0]["provenance"]
    assert (about["n"], about["temperature"], about["checkpoint"]) == (1, 2.0, settings["checkpoint"])
    assert summary["hard"] == len(wanted)
    assert summary["pass_at_n"] == pytest.approx(1 - len(wanted) / 6)
    assert f"{len(wanted)} of 6 problems without a right answer in 1 samples" in capsys.readouterr().out
    read = Table(str(output)).load()
    golds = {row["id"]: row["gold"] for row in sampled}
    assert {one.id: one.answer for one in read} == {name: golds[name] for name in wanted}


def test_own_rows_are_written_as_they_are(tmp_path: Path) -> None:
    samples, own = tmp_path / "samples.jsonl", tmp_path / "own.jsonl"
    lines = [{"id": name, "problem": "p", "gold": None, "method": "sampled", "right": name == "a"} for name in "aabb"]
    lines.append(lines[2] | {"method": "dvts", "right": True})  # a beam is no sample
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    own.write_text("".join(json.dumps({"id": name, "problem": "p", "entry_point": name}) + "\n" for name in "ba"))
    words = ["hard", "--samples", str(samples), "--output", str(tmp_path / "hard.jsonl")]
    with pytest.raises(SystemExit):
        main(words)
    main([*words, "--rows", str(own)])
    (row,) = rows(tmp_path / "hard.jsonl")
    assert (row["id"], row["entry_point"]) == ("b", "b")
    own.write_text(json.dumps({"id": "a"}) + "\n")
    with pytest.raises(ConfigError, match="has no row with the id 'b'"):
        command([*words[1:], "--rows", str(own)])
    samples.write_text(json.dumps({"id": "a", "problem": "p"}) + "\n")
    with pytest.raises(ConfigError, match="line 1: no `right` as a search writes it"):
        command(words[1:])


def test_nothing_is_written_over(tmp_path: Path) -> None:
    """Neither the samples nor the summary of the search beside them."""
    samples, report = tmp_path / "samples.jsonl", tmp_path / "search.json"
    samples.write_text(json.dumps({"id": "a", "problem": "p", "gold": "1", "right": False}) + "\n")
    report.write_text("{}")
    before = samples.read_bytes()
    for name, message in [
        ("samples.jsonl", "exists"),
        ("search.jsonl", "search.json' exists"),
        ("search.json/hard.jsonl", "cannot be written"),
    ]:
        with pytest.raises(ConfigError, match=message):
            command(["--samples", str(samples), "--output", str(tmp_path / name)])
    assert (samples.read_bytes(), report.read_text()) == (before, "{}")
    with pytest.raises(ConfigError, match="n is 0, and problem 'a' has 1 samples"):
        command(["--samples", str(samples), "--output", str(tmp_path / "hard.jsonl"), "--n", "0"])
    report.write_text("{")
    with pytest.raises(ConfigError, match=r"search.json, beside the samples, is no JSON"):
        command(["--samples", str(samples), "--output", str(tmp_path / "hard.jsonl")])
