"""`repirl compare` on files as the callback writes them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from repirl.__main__ import main


def row(dataset: str, identifier: str, greedy: bool | None, *samples: bool | None) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "id": identifier,
        "greedy": {"correct": greedy},
        "samples": [{"correct": outcome} for outcome in samples],
    }


def written(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    first = [row("a", f"p{n}", False, False, True) for n in range(4)] + [row("b", "p0", True), row("b", "p1", True)]
    second = [row("a", f"p{n}", n < 3, True, True) for n in range(4)] + [row("b", "p0", False), row("b", "p1", None)]
    return written(tmp_path / "first.jsonl", *first), written(tmp_path / "second.jsonl", *second)


def test_the_comparison_in_numbers(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", *files, "--json"])
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert list(found) == ["a", "b", "all problems"]
    assert (found["a"]["first"], found["a"]["second"], found["a"]["better"], found["a"]["worse"]) == (0, 0.75, 3, 0)
    assert found["a"]["p_value"] == 2 / 8  # three of three one way
    assert (found["b"]["problems"], found["b"]["difference"]) == (1, -1)
    assert found["all problems"]["difference"] == pytest.approx(2 / 5)
    assert [found[name]["p_holm"] for name in found] == [2 * 2 / 8, 1, None]  # of two sets
    assert found["a"]["low"] == pytest.approx(0.75 - 3.1824463 * 0.25, abs=1e-6)  # t with 3 degrees, error .5 / 2
    assert found["b"]["low"] is None  # one problem has no interval
    assert "1 problems have a verdict in one file only" in shown.err  # b/p1, unknown in the second


def test_samples_are_compared_by_their_mean(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", *files, "--kind", "sampled", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["a"]
    assert (found["a"]["first"], found["a"]["second"]) == (0.5, 1)


def test_the_table(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", *files])
    shown = capsys.readouterr().out
    assert re.search(r"first:  \S+first\.jsonl\nsecond: \S+second\.jsonl\ndifference: second - first\n", shown)
    assert "+0.750" in shown
    assert "(Holm)" in shown


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "p0", "greedy": None}], "line 1: not a record of an evaluation (no 'dataset')"),
        ([row("a", "p0", True), row("a", "p0", True)], "line 2: problem 'p0' of set 'a' is there twice"),
        ([row("z", "p0", True)], "no problem has a verdict in both files"),
    ],
)
def test_unusable_files_end_in_two_lines(
    tmp_path: Path, files: tuple[str, str], rows: list[Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["compare", written(tmp_path / "bad.jsonl", *rows), files[1]])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().split("\n")) == 2
