"""What docs/score.md shows runs as it stands, with files of the names that it has."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import get_args

import pytest

from repirl.applications import score as command
from repirl.applications.export import export
from repirl.applications.prms import ALL_KINDS
from repirl.applications.score import WRITTEN
from repirl.data.step_labels import Export
from repirl.data.step_sources import LabelledSteps
from repirl.data.steps import By
from repirl.models.prm import PRM
from tests.applications.test_scoring import trained
from tests.applications.test_served import pooling, posted

PAGE = (Path(__file__).parents[2] / "docs" / "score.md").read_text(encoding="utf-8")

EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_commands_and_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path / "RUN.ckpt", prm=PRM("linear"))
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text('{"problem": "1a2", "solution": "a3\\nb4"}\n', encoding="utf-8")
    shown = re.findall(r"^    \.venv/bin/repirl score (.*)$", PAGE, flags=re.MULTILINE)
    assert len(shown) == 4
    command.main(shlex.split(shown[0]))
    assert Path("out.jsonl").is_file()
    for line in shown[1:3]:  # the others' models are large: what they are given is understood
        given = command._parser().parse_args(shlex.split(line))
        assert given.prm.count("/") == 1
    export(Path("RUN.ckpt"), Path("FOLDER"), part="prm")
    Path("out.jsonl").unlink()
    with pooling() as (served, url):
        command.main(shlex.split(shown[3].replace("http://127.0.0.1:8000", url)))
        assert len(posted(served)) == 1
    example, _ = EXAMPLES
    names: dict[str, object] = {}
    exec(example.replace('"a3b5c9"', '"a3b5"'), names)
    assert names["score"].steps == ("\\boxed{b8\n", "c7}")  # type: ignore[attr-defined]


def test_the_example_writes_labels_in_the_forms_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("labels.jsonl").write_text('{"problem": "1a2", "steps": ["a3", "b5"], "first_error": 1}\n', encoding="utf-8")
    exec(EXAMPLES[1], {})
    for format in get_args(Export):
        (one,) = LabelledSteps(f"labels.{format}.jsonl", format).load()
        assert one.labels == (True, False)
        assert f"`{format}`" in PAGE


def test_every_field_kind_and_way_of_cutting_is_told() -> None:
    for name in (*WRITTEN, *ALL_KINDS, *By.__args__):  # type: ignore[attr-defined]
        assert f"`{name}`" in PAGE
