"""`repirl score`: every row once and in order, through a kill too; mistakes are named before a model is loaded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from transformers import AutoModelForTokenClassification

import repirl
from repirl.__main__ import main
from repirl.applications import score as command
from repirl.applications.export import export
from repirl.applications.scoring import Score, Scorer
from repirl.config import ConfigError
from repirl.folders import claimed
from repirl.models.prm import PRM
from repirl.structs import WrittenSolution
from tests.applications.test_scoring import trained
from tests.data.tokenizers_of_kinds import byte_level
from tests.models.hub.test_hub import config_of, implicit_pair, made
from tests.processes import wait_for

ROWS: list[dict[str, Any]] = [
    {"problem": "1a2", "solution": "a3\nb4c\n", "id": "one"},
    {"problem": "3c2b1", "solutions": ["c5\n\nb6", "a9"], "id": "two", "label": 0.25},
    {"problem": "1a2", "steps": ["a3", "b4"], "id": "three"},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run.ckpt"
    trained(path, prm=PRM("q_head"))
    return path


def table(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_solution_is_a_line(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "out.jsonl"
    given = ["--checkpoint", str(checkpoint), "--input", table(tmp_path / "in.jsonl", ROWS), "--output", str(output)]
    command.main([*given, "--tokens", "--batch-tokens", "20"])
    records = read(output)
    assert [(record["row"], record["sample"], record["id"]) for record in records] == [
        (1, 0, "one"), (2, 0, "two"), (2, 1, "two"), (3, 0, "three")]  # fmt: skip
    assert [record["steps"] for record in records] == [["a3\n", "b4c\n"], ["c5\n\n", "b6"], ["a9"], ["a3\n", "b4"]]
    assert [record.get("label") for record in records] == [None, 0.25, 0.25, None]
    scorer = repirl.load_prm(checkpoint)
    for record in records:
        score = scorer.score(record["problem"], record["steps"])
        assert record["step_rewards"] == pytest.approx(score.step_rewards, abs=1e-5)
        assert record["tokens"] == list(score.tokens)
        assert record["token_rewards"] == pytest.approx(score.token_rewards, abs=1e-5)
        for by in ("mean", "sum", "min", "last"):
            assert record[by] == pytest.approx(score.reward(by), abs=1e-5)  # type: ignore[arg-type]
        assert record["token_mean"] == pytest.approx(score.token_mean, abs=1e-5)
    assert {one.name for one in output.parent.iterdir()} == {"out.jsonl", ".out.jsonl.lock"}  # no journal is left


def test_parquet_in_and_out_by_an_exported_folder(checkpoint: Path, tmp_path: Path) -> None:
    import pyarrow

    export(checkpoint, tmp_path / "folder", part="prm")
    rows = [{"question": "1a2", "answer": text, "n": n} for n, text in enumerate(["a3. b4", "c5"])]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in.parquet")
    with pytest.raises(ConfigError, match=r"row 1: no field 'problem'.*'question'"):
        command.main([
            "--prm", str(tmp_path / "folder"), "--input", str(tmp_path / "in.parquet"), "--output", str(tmp_path / "o.jsonl")
        ])  # fmt: skip
    table(tmp_path / "in.jsonl", [{"question": "1a2", "reply": "a3b4", "n": 0}, {"question": "1a2", "reply": "c5"}])
    options = ["--columns", "problem=question", "solution=reply", "--step-pattern", "(?=b)"]
    for name in ("out.parquet", "out.jsonl"):
        given = [
            "--prm",
            str(tmp_path / "folder"),
            "--input",
            str(tmp_path / "in.jsonl"),
            "--output",
            str(tmp_path / name),
        ]
        command.main([*given, *options])
    records = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [record["steps"] for record in records] == [["a3", "b4"], ["c5"]]
    assert [record["n"] for record in records] == [0, None]
    assert [{k: v for k, v in record.items() if v is not None} for record in records] == read(tmp_path / "out.jsonl")
    given = [
        "--prm",
        str(checkpoint),
        "--input",
        str(tmp_path / "out.parquet"),
        "--output",
        str(tmp_path / "again.jsonl"),
    ]
    with pytest.raises(ConfigError, match="row 1 has a field 'row', which the output has of its own"):
        command.main(given)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 3: not JSON"),
        ('{"problem": "1a2"}', "line 3: no solution, solutions or steps field"),
        ('{"solution": "a3"}', "line 3: no field 'problem'"),
        ('{"problem": "1a2", "solution": " "}', "line 3: field 'solution': found an empty text"),
        ('{"problem": "1a2", "steps": ["a", ""]}', r"line 3: field 'steps\[1\]': found an empty text"),
        ('{"problem": "1a2", "solutions": "a"}', "line 3: field 'solutions': found str"),
        ('{"problem": "1a2", "solution": "a", "steps": ["a"]}', "line 3: fields solution and steps are all present"),
    ],
)
def test_a_malformed_row_is_named_before_a_model_is_loaded(row: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\n\n{row}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        command.main(["--prm", "there/is/none", "--input", str(path), "--output", str(tmp_path / "out.jsonl")])
    assert list(tmp_path.iterdir()) == [path]


def test_mistakes_of_the_command(checkpoint: Path, tmp_path: Path) -> None:
    rows = table(tmp_path / "in.jsonl", ROWS)
    (tmp_path / "there.jsonl").touch()
    given = ["--prm", str(checkpoint), "--input", rows, "--output"]
    for options, message in [
        ([str(tmp_path / "there.jsonl")], "exists"),
        ([str(tmp_path / "out.txt")], r"is no .jsonl or .parquet file"),
        ([str(tmp_path / "in.jsonl" / "out.jsonl")], "cannot be written"),
        ([str(tmp_path / "a.jsonl"), "--columns", "problem"], "'problem' is not FIELD=NAME"),
        ([str(tmp_path / "a.jsonl"), "--columns", "answer=b"], "unknown field 'answer'"),
        ([str(tmp_path / "a.jsonl"), "--step-pattern", "("], "not a regular expression"),
        ([str(tmp_path / "a.jsonl"), "--device", "abacus"], "device 'abacus' is not to be had here"),
        ([str(tmp_path / "a.jsonl"), "--batch-tokens", "0"], "batch_tokens must be at least 1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            command.main([*given, *options])


def test_rows_that_the_prm_cannot_read_are_named(checkpoint: Path, tmp_path: Path) -> None:
    rows = [*ROWS, {"problem": "1a2", "solution": "a" * 60}]  # with its problem and the end token one too many
    given = [
        "--prm",
        str(checkpoint),
        "--input",
        table(tmp_path / "in.jsonl", rows),
        "--output",
        str(tmp_path / "o.jsonl"),
    ]
    with pytest.raises(ConfigError, match="line 4: 65 tokens with the problem, and the PRM reads 64; so have 1 of 5"):
        command.main(given)
    table(tmp_path / "in.jsonl", [*ROWS, {"problem": "zz", "solution": "a"}])
    with pytest.raises(ConfigError, match="line 4: no token for 'z'"):
        command.main(given)
    table(tmp_path / "in.jsonl", rows)
    command.main([*given, "--too-long", "skip"])
    records = read(tmp_path / "o.jsonl")
    assert [record["mean"] is None for record in records] == [False] * 4 + [True]
    assert records[4]["step_rewards"] is None


def test_a_killed_run_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    texts = [f"a{n % 10}b{n // 10 % 10}\nc{n // 100}" for n in range(600)]
    rows = table(tmp_path / "in.jsonl", [{"problem": "1a2", "solution": text, "id": n} for n, text in enumerate(texts)])
    output, part = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.part"
    given = ["--prm", str(checkpoint), "--input", rows, "--batch-tokens", "1"]
    killed = subprocess.Popen([sys.executable, "-m", "repirl", "score", *given, "--output", str(output)])
    assert wait_for(lambda: part.exists() and part.read_bytes().count(b"\n") > 3)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    done = part.read_bytes().count(b"\n") - 1
    assert 0 < done < 600
    assert not output.exists()
    with part.open("ab") as file:
        file.write(b'{"row": 1, "sam')  # what a kill leaves of a line
    with pytest.raises(ConfigError, match="was begun with another input, or steps: its solution 1 is"):
        command.main([*given, "--output", str(output), "--steps", "blank_line"])
    main(["score", *given, "--output", str(output)])
    command.main([*given, "--output", str(tmp_path / "whole.jsonl")])
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert [record["id"] for record in read(output)] == list(range(600))
    assert not part.exists()


def test_what_is_repaired_after_what_was_scored_is_scored_alone(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, seen = ["a1", "a2\nb3", "a4"], []
    scores = Scorer.scores

    def ended(scorer: Scorer, solutions: Sequence[WrittenSolution]) -> list[Score]:
        if "a4" in solutions[0].text:
            raise ValueError("nobody can read this")
        seen.append(solutions[0].text)
        return scores(scorer, solutions)

    monkeypatch.setattr(Scorer, "scores", ended)
    rows = [{"problem": "1a2", "solution": text, "about": {"weight": 1e-5}} for text in texts]
    given = ["--prm", str(checkpoint), "--input", table(tmp_path / "in.jsonl", rows), "--batch-tokens", "1", "--output"]
    given.append(str(tmp_path / "out.jsonl"))
    with pytest.raises(ConfigError, match="line 3 and after: nobody can read this"):
        command.main(given)
    table(tmp_path / "in.jsonl", [rows[0] | {"solution": "a9"}, *rows[1:]])
    with pytest.raises(ConfigError, match="another input, or steps: its solution 1 is not that of"):
        command.main(given)
    table(tmp_path / "in.jsonl", rows[:1])
    with pytest.raises(ConfigError, match="its solution 2 is not that of"):
        command.main(given)
    table(tmp_path / "in.jsonl", [*rows[:2], rows[2] | {"solution": "a5"}])
    command.main(given)
    assert seen == ["a1", "a2\nb3", "a5"]
    assert [record["steps"] for record in read(tmp_path / "out.jsonl")] == [["a1"], ["a2\n", "b3"], ["a5"]]


@pytest.mark.parametrize("values", [[1, "a"], [{}, {}], [10**30, 1], [[1], "a"]])
def test_a_field_that_parquet_does_not_take_is_named_before_a_model_is_loaded(
    values: list[Any], tmp_path: Path
) -> None:
    rows = [{"problem": "1a2", "solution": "a3", "fine": 1, "mine": value} for value in values]
    given = ["--prm", "there/is/none", "--input", table(tmp_path / "in.jsonl", rows)]
    with pytest.raises(ConfigError, match="the field 'mine' has values that Parquet does not take"):
        command.main([*given, "--output", str(tmp_path / "out.parquet")])
    assert not Path(os.devnull).is_file()  # pyarrow removes the path at which it fails


def test_a_text_that_cannot_be_written_is_named_before_a_model_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"problem": "1a2", "solution": "a3", "note": "\\ud800"}\n')
    with pytest.raises(ConfigError, match="line 1: a text of it has half a surrogate pair"):
        command.main(["--prm", "there/is/none", "--input", str(path), "--output", str(tmp_path / "out.jsonl")])


def test_an_output_in_the_prm_s_folder_goes_on_too(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal there is no other PRM."""
    export(checkpoint, tmp_path / "folder", part="prm")
    output = tmp_path / "folder" / "out.jsonl"
    given = ["--prm", str(tmp_path / "folder"), "--input", table(tmp_path / "in.jsonl", ROWS), "--output", str(output)]
    with monkeypatch.context() as patch:
        patch.setattr(command.Journal, "finish", lambda journal: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command.main(given)
    command.main(given)
    assert len(read(output)) == 4


def test_two_programs_do_not_write_the_same_output(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with claimed([output]), pytest.raises(ConfigError, match="is writing into"):
        command.main([
            "--prm", str(checkpoint), "--input", table(tmp_path / "in.jsonl", ROWS), "--output", str(output)
        ])  # fmt: skip


def test_another_s_prm_gives_rewards_of_steps_alone(tmp_path: Path) -> None:
    tokenizer = byte_level()
    model = made(AutoModelForTokenClassification, config_of("qwen2", tokenizer, num_labels=2))
    model.save_pretrained(tmp_path / "prm")
    tokenizer.save_pretrained(tmp_path / "prm")
    rows = table(tmp_path / "in.jsonl", [{"problem": "2 + 3?", "solution": "2 + 3 = 5\nThe answer is 5."}])
    given = ["--prm", str(tmp_path / "prm"), "--input", rows, "--tokens", "--output"]
    command.main([*given, str(tmp_path / "trl.jsonl")])
    command.main([*given, str(tmp_path / "pure.jsonl"), "--kind", "pure"])
    (trl,), (pure,) = read(tmp_path / "trl.jsonl"), read(tmp_path / "pure.jsonl")
    assert (trl["steps"], trl["tokens"], trl["token_mean"]) == (["2 + 3 = 5\n", "The answer is 5."], [], None)
    # p1 - p0 = 2 p1 - 1
    assert pure["step_rewards"] == pytest.approx([2 * value - 1 for value in trl["step_rewards"]], abs=1e-5)
    assert trl["min"] == min(trl["step_rewards"])


def test_the_second_model_of_implicit_is_the_same_throughout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned, start = implicit_pair(tmp_path)
    rows = table(tmp_path / "in.jsonl", [{"problem": "2 + 3?", "solution": "2 + 3 = 5\nThe answer is 5."}])
    given = ["--prm", tuned, "--kind", "implicit", "--reference", start, "--input", rows, "--output"]
    command.main([*given, str(tmp_path / "one.jsonl")])
    command.main([*given, str(tmp_path / "half.jsonl"), "--beta", "0.5"])
    (one,), (half,) = read(tmp_path / "one.jsonl"), read(tmp_path / "half.jsonl")
    assert half["step_rewards"] == pytest.approx([value / 2 for value in one["step_rewards"]], abs=1e-5)
    with monkeypatch.context() as patch:
        patch.setattr(command.Journal, "finish", lambda journal: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command.main([*given, str(tmp_path / "again.jsonl")])
    weights = Path(start) / "model.safetensors"
    weights.write_bytes((Path(tuned) / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="was begun with another PRM"):
        command.main([*given, str(tmp_path / "again.jsonl")])


def test_beta_of_another_kind_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    given = ["--prm", str(checkpoint), "--input", table(tmp_path / "in.jsonl", ROWS), "--beta", "0.5"]
    with pytest.raises(ConfigError, match=r"beta 0\.5 is of a PRM of kind 'implicit'"):
        command.main([*given, "--output", str(tmp_path / "out.jsonl")])
