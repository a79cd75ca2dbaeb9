"""Reading problems: real files, and every way in which a file can be wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from repirl.data.sources import Sample, Table

ROWS = [
    {"id": "a", "problem": "1+1?", "solution": "It is 2.", "answer": "2"},
    {"id": "b", "problem": "2+2?", "solution": "It is 4.", "answer": "4"},
    {"id": "c", "problem": "3+3?", "solution": "It is 6.", "answer": "6"},
]


def written(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="\n")
    return str(path)


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.parquet"])
def test_all_kinds_of_file_give_the_same_problems(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(Path(written(tmp_path / "q.jsonl", *ROWS)).read_bytes()))
    elif name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        written(path, *ROWS)
    problems = Table(str(path)).load()
    assert [(p.id, p.text, p.answer, p.solutions) for p in problems] == [
        ("a", "1+1?", "2", ("It is 2.",)),
        ("b", "2+2?", "4", ("It is 4.",)),
        ("c", "3+3?", "6", ("It is 6.",)),
    ]


def test_other_line_separators_stay_inside_a_text(tmp_path: Path) -> None:
    text = "one\u2028two\x85three\x0cfour\r\nfive"
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"problem": text}, ensure_ascii=False).encode() + b"\r\n\r\n")
    (problem,) = Table(str(path)).load()
    assert problem.text == text
    assert problem.id == "p/1"


def test_fields(tmp_path: Path) -> None:
    path = written(
        tmp_path / "p.jsonl",
        {"problem": "p1", "steps": ["s1", "s2"], "answer": 72.0, "id": 7, "extra": [1]},
        {"problem": "p2", "solutions": ["x", "y", "x"], "answer": 0.25},
        {"problem": "p3", "solution": None, "answer": None},
    )
    one, two, three = Table(path).load()
    assert (one.id, one.answer, one.solutions) == ("7", "72", ("s1\ns2",))
    assert (two.id, two.answer, two.solutions) == ("p/2", "0.25", ("x", "y"))
    assert (three.id, three.answer, three.solutions) == ("p/3", None, ())


def test_columns_limit_and_skip(tmp_path: Path) -> None:
    rows = [{"q": f"q{i}", "problem": "other", "solution": "bad", "good": f"s{i}", "answer": i} for i in range(5)]
    source = Table(written(tmp_path / "p.jsonl", *rows), columns={"problem": "q", "solution": "good"}, skip=1, limit=2)
    assert [(p.id, p.text, p.answer, p.solutions) for p in source.load()] == [
        ("p/2", "q1", "1", ("s1",)),
        ("p/3", "q2", "2", ("s2",)),
    ]


def test_rows_of_one_problem_are_merged(tmp_path: Path) -> None:
    path = written(
        tmp_path / "p.jsonl",
        {"id": "first", "problem": "p", "solution": "s1"},
        {"id": "other", "problem": "q", "solution": "s2"},
        {"id": "second", "problem": " p\n", "solutions": ["s3", "s1"], "answer": 5},
        {"id": "first", "problem": "p", "solution": "s4", "answer": "5"},
    )
    merged, other = Table(path).load()
    assert (merged.id, merged.text, merged.answer, merged.solutions) == ("first", "p", "5", ("s1", "s3", "s4"))
    assert other.solutions == ("s2",)


def test_conflicting_answers_name_both_lines(tmp_path: Path) -> None:
    rows = ({"problem": "p"}, {"problem": "p", "answer": 1}, {"problem": "q"}, {"problem": "p", "answer": 2})
    path = written(tmp_path / "p.jsonl", *rows)
    with pytest.raises(
        ValueError, match=r"line 2 and line 4 hold the same problem with different answers, '1' and '2'"
    ):
        Table(path).load()


def test_one_id_for_two_problems_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", {"id": "i", "problem": "p"}, {"id": "i", "problem": "q"})
    with pytest.raises(ValueError, match="line 1 and line 2 have the same id 'i'"):
        Table(path).load()


GOOD = b'{"problem": "p0", "solution": "s"}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"problem": "p"', r"p\.jsonl, line 2: not JSON, .* at character \d+"),
        (b'["p"]', r"line 2: found list \['p'\], expected one JSON object"),
        (b'{"problem": 3}', r"line 2: field 'problem': found int 3, expected a text"),
        (b'{"problem": " "}', r"line 2: field 'problem': found an empty text"),
        (b'{"problem": null}', r"line 2: field 'problem': found null"),
        (b'{"question": "p"}', r"line 2: no field 'problem'; there is 'question'\. .*columns=\{'problem'"),
        (b'{"problem": "p", "solution": ["s"]}', r"line 2: field 'solution': found list \['s'\], expected a text"),
        (b'{"problem": "p", "solutions": "s"}', r"line 2: field 'solutions': found str 's', expected a non-empty list"),
        (b'{"problem": "p", "solutions": ["s", 4]}', r"line 2: field 'solutions\[1\]': found int 4"),
        (b'{"problem": "p", "steps": []}', r"line 2: field 'steps': found list \[\]"),
        (b'{"problem": "p", "solution": "s", "steps": ["s"]}', r"line 2: fields solution and steps are all present"),
        (b'{"problem": "p", "answer": true}', r"line 2: field 'answer': found bool True"),
        (b'{"problem": "p", "answer": [1]}', r"line 2: field 'answer': found list \[1\]"),
        (b'{"problem": "p", "answer": NaN}', r"line 2: NaN is not JSON"),
        (b'{"problem": "p", "answer": 1e999}', r"line 2: field 'answer': found inf, expected a finite number"),
        (b'{"problem": "p", "id": {}}', r"line 2: field 'id': found dict"),
        (b'{"problem": "caf\xe9"}', r"line 2: byte 17 is not UTF-8"),
        (b'{"problem": "\\ud800"}', r"line 2: field 'problem': character 1 is half a surrogate pair"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(GOOD + line + b"\n")
    with pytest.raises(ValueError, match=message):
        Table(str(path)).load()


def test_a_bad_row_of_a_parquet_file_is_named(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"problem": ["p", "q"], "answer": [1.0, float("nan")]}), tmp_path / "p.parquet")
    with pytest.raises(ValueError, match="row 2: field 'answer': found nan"):
        Table(str(tmp_path / "p.parquet")).load()


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    written(tmp_path / "gsm8k_train.jsonl", *ROWS)
    with pytest.raises(ValueError, match=r"no such file; nearest names there: gsm8k_train\.jsonl"):
        Table(str(tmp_path / "gsm8k_trian.jsonl")).load()
    with pytest.raises(ValueError, match=r"no such file; the folder .*nowhere does not exist"):
        Table(str(tmp_path / "nowhere" / "x.jsonl")).load()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("problem\np\n")
    with pytest.raises(ValueError, match=r"unknown kind of file; it must end in one of \.jsonl"):
        Table(str(tmp_path / "p.csv")).load()
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match="no rows, it is empty"):
        Table(str(tmp_path / "empty.jsonl")).load()
    with pytest.raises(ValueError, match="no rows, skip=3 leaves none of 3"):
        Table(written(tmp_path / "short.jsonl", *ROWS), skip=3).load()
    whole = gzip.compress(b"".join(b'{"problem": "p%d"}\n' % i for i in range(500)))
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "not.jsonl.gz").write_bytes(GOOD)
    for name in ("cut.jsonl.gz", "not.jsonl.gz"):
        with pytest.raises(ValueError, match="damaged gzip file"):
            Table(str(tmp_path / name)).load()
    (tmp_path / "p.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="not a readable parquet file"):
        Table(str(tmp_path / "p.parquet")).load()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": {"problm": "q"}}, "unknown field 'problm'"),
        ({"columns": {"solution": "a", "steps": "b"}}, "solution and steps exclude one another"),
        ({"columns": {"solution": "a"}, "format": "gsm8k"}, "unknown field 'solution'; format 'gsm8k'"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"skip": -1}, "skip must not be negative"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Table("p.jsonl", **arguments)


def test_arguments_that_do_not_fit_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", *ROWS)
    with pytest.raises(ValueError, match=r"no field 'rationale', which `columns` names; there is 'id', 'problem'"):
        Table(path, columns={"solution": "rationale"}).load()
    with pytest.raises(ValueError, match="`name` and `revision` are for hub data sets"):
        Table(path, revision="main").load()


HUB_ROW = {
    "question": "How many?",
    "answer": "48/2 = <<48/2=24>>24 clips.\nThen 1000 x 24 = $<<1000*24=24000>>24,000.\n#### 24,000",
}


def test_gsm8k_format(tmp_path: Path) -> None:
    (problem,) = Table(written(tmp_path / "train.jsonl", HUB_ROW), format="gsm8k").load()
    assert problem.text == "How many?"
    assert problem.answer == "24000"
    assert problem.solutions == ("48/2 = 24 clips.\nThen 1000 x 24 = $24,000.",)
    bad = written(tmp_path / "bad.jsonl", {"question": "q", "answer": "just 4"})
    with pytest.raises(ValueError, match=r'line 1: field \'answer\': expected "<solution> #### <answer>"'):
        Table(bad, format="gsm8k").load()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("own_cache")
def test_a_folder_of_a_hub_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist([HUB_ROW] * 2), folder / "train-00000.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([{**HUB_ROW, "question": "And?"}]), folder / "test-00000.parquet")
    assert [(p.id, p.text) for p in Table(str(folder), format="gsm8k").load()] == [("gsm8k/1", "How many?")]
    assert [p.text for p in Table(str(folder), split="test", format="gsm8k").load()] == ["And?"]
    with pytest.raises(ValueError, match="cannot load split 'dev' of this folder"):
        Table(str(folder), split="dev").load()


@pytest.mark.usefixtures("own_cache")
def test_a_folder_written_by_save_to_disk(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "saved"))
    assert [p.id for p in Table(str(tmp_path / "saved")).load()] == ["a", "b", "c"]


@pytest.mark.usefixtures("own_cache")
def test_hub_without_network_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"no such file or folder here, and not loadable .* give the path"):
        Table("nobody-here/no-such-set").load()


def test_sample_is_in_the_package() -> None:
    problems = Sample().load()
    assert len(problems) == 64
    assert problems[0].id == "gsm8k/train/0"
    assert problems[0].answer == "72"
    assert all(len(p.solutions) == 1 and p.answer is not None for p in problems)
    assert Sample(limit=16, skip=48).load() == problems[48:]
