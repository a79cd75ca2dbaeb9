"""Numbers and dates are what the file says, whatever kind of file it is; what is wrong with a file fits into two lines."""

from __future__ import annotations

import gzip
import json
from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from repirl.data.fields import WrittenFloat, as_scalar, cut, shown, written
from repirl.data.sources import Table
from repirl.structs import Problem
from repirl.verifiers.math import MathVerifier


def answers(path: Path | str) -> list[str | None]:
    return [problem.answer for problem in Table(str(path)).load()]


def lines(path: Path, *texts: str) -> Path:
    """A JSONL file with the answers as they are given, in JSON."""
    rows = [f'{{"problem": "p{number}", "answer": {text}}}\n' for number, text in enumerate(texts)]
    path.write_text("".join(rows), encoding="utf-8")
    return path


JSON_NUMBERS = {
    "0.00001": "0.00001",
    "1e-5": "0.00001",
    "1e300": "1e300",
    "-2.5E+40": "-2.5e40",
    "1e-300": "1e-300",
    "72.0": "72",
    "-0.0": "0",
    "0.25": "0.25",
    "0.1": "0.1",
    "3.14159265358979323846": "3.14159265358979323846",
    "12345678901234567890123456789": "12345678901234567890123456789",
    "1e5": "100000",
    "24000.0": "24000",
    '"1e-05"': "1e-05",
    '"2024-05-01"': "2024-05-01",
}


def test_a_number_is_what_the_file_says(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", *JSON_NUMBERS)
    assert answers(path) == list(JSON_NUMBERS.values())
    for text, answer in JSON_NUMBERS.items():
        if not text.startswith('"'):
            assert Fraction(answer) == Fraction(text)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("own_cache")
def test_a_folder_of_files_means_what_its_files_mean(tmp_path: Path) -> None:
    single = lines(tmp_path / "p.jsonl", *JSON_NUMBERS)
    folder = tmp_path / "set"
    folder.mkdir()
    middle = len(JSON_NUMBERS) // 2
    lines(folder / "train-0.jsonl", *list(JSON_NUMBERS)[:middle])
    second = lines(folder / "train-1.jsonl", *list(JSON_NUMBERS)[middle:])
    second.write_text(second.read_text().replace(' "p', ' "q'))
    assert answers(folder) == answers(single)
    assert [problem.id for problem in Table(str(folder)).load()] == [f"set/{n + 1}" for n in range(len(JSON_NUMBERS))]
    lines(folder / "train-1.jsonl", "true")
    with pytest.raises(ValueError, match=rf"set, train-1\.jsonl, line 1, row {middle + 1}: field 'answer': found bool"):
        Table(str(folder)).load()


@pytest.mark.parametrize(
    "kind", [pyarrow.float64(), pyarrow.float32(), pyarrow.float16(), pyarrow.decimal128(12, 4)], ids=str
)
@pytest.mark.usefixtures("own_cache")
def test_parquet_numbers_of_every_width_are_those_of_the_json_file(tmp_path: Path, kind: pyarrow.DataType) -> None:
    numbers = ["0.1", "0.25", "72", "-3.5", "0"]
    values = [Decimal(text) if pyarrow.types.is_decimal(kind) else float(text) for text in numbers]
    if kind == pyarrow.float16():
        import numpy as np

        values = np.array(values, dtype=np.float16)
    table = pyarrow.table({"problem": [f"p{n}" for n in range(5)], "answer": pyarrow.array(values, type=kind)})
    folder = tmp_path / "set"
    folder.mkdir()
    parquet.write_table(table, folder / "train.parquet")
    expected = answers(lines(tmp_path / "p.jsonl", *numbers))
    assert expected == numbers
    assert answers(folder / "train.parquet") == expected
    assert answers(folder) == expected


@pytest.mark.usefixtures("own_cache")
def test_numbers_of_a_folder_that_the_datasets_library_wrote(tmp_path: Path) -> None:
    features = datasets.Features({"problem": datasets.Value("string"), "answer": datasets.Value("float32")})
    rows = [{"problem": "p", "answer": 0.1}, {"problem": "q", "answer": 1e-5}]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    assert answers(tmp_path / "saved") == ["0.1", "0.00001"]


def test_a_date_is_written_as_iso_says(tmp_path: Path) -> None:
    table = pyarrow.table({"problem": ["p"], "answer": pyarrow.array([date(2024, 5, 1)])})
    parquet.write_table(table, tmp_path / "p.parquet")
    assert answers(tmp_path / "p.parquet") == ["2024-05-01"]


def test_what_is_written_is_read_by_the_verifier(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", "0.00001", "1e300", "4.5e33")
    problems = Table(str(path)).load()
    responses = [r"\boxed{10^{-5}}", r"\boxed{10^{300}}", r"\boxed{4.5 \times 10^{33}}"]
    assert [verdict.status for verdict in MathVerifier().verify(problems, responses)] == ["equal"] * 3
    assert MathVerifier().verify([Problem("a", "?", answer="1e300")], [r"\boxed{10^{301}}"])[0].status == "not_equal"


def test_a_written_float_is_a_float() -> None:
    number = WrittenFloat("0.10")
    assert number == 0.1
    assert json.dumps(number) == "0.1"
    assert as_scalar(number, "answer") == "0.1"
    assert written(Decimal("100")) == "100"
    assert written(Decimal("1E+24")) == "1" + "0" * 24
    assert written(Decimal("1E+25")) == "1e25"


# Messages ----------------------------------------------------------------------------------------------------------


def refusal(path: Path | str) -> str:
    with pytest.raises(ValueError) as caught:
        Table(str(path)).load()
    message = str(caught.value)
    assert len(message) < 700
    assert message.count("\n") <= 1
    return message


@pytest.mark.parametrize("nest", ["[" * 100_000, '{"a":' * 100_000, "[" * 3_000 + "]" * 3_000])
def test_a_deep_nest_is_named_with_its_line(tmp_path: Path, nest: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"problem": "p"}}\n{{"problem": "q", "answer": {nest}\n')
    assert f"{path}, line 2: " in refusal(path)


def test_a_value_of_many_levels_is_named_with_its_field(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", "[" * 200 + "]" * 200)
    assert "line 1: field 'answer': found list" in refusal(path)
    nest: list[object] = []
    for _ in range(100_000):
        nest = [nest]
    assert shown(nest) == "list too deep or too long to show"


def test_parquet_text_that_is_not_utf_8_is_named_with_row_and_field(tmp_path: Path) -> None:
    texts = pyarrow.array([b"fine", b"caf\xe9"], type=pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"problem": texts, "answer": ["1", "2"]}), tmp_path / "p.parquet")
    assert "p.parquet, row 2: field 'problem': byte 4 is not UTF-8" in refusal(tmp_path / "p.parquet")


@pytest.mark.parametrize("length", [300, 5_000, 100_000])
def test_a_long_path_is_cut(length: int) -> None:
    assert "..." in refusal("/" + "x" * length + "/p.jsonl")


def test_long_names_and_texts_are_cut(tmp_path: Path) -> None:
    for rows, words in (
        (
            [{"id": "i" * 10_000, "problem": "p"}, {"id": "i" * 10_000, "problem": "q"}],
            "line 1 and line 2 have the same id",
        ),
        ([{"problem": "p", "answer": "1" * 10_000}, {"problem": "p", "answer": "2" * 10_000}], "different answers"),
        ([{"x" * 10_000: 1}], "line 1: no field 'problem'"),
        ([{str(n): 1 for n in range(2_000)}], "line 1: no field 'problem'"),
        ([{"problem": ["y" * 10_000]}], "line 1: field 'problem': found list"),
        ([{"problem": "p", "answer": 1, "id": ["z" * 10_000]}], "line 1: field 'id': found list"),
    ):
        path = tmp_path / "p.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        message = refusal(path)
        assert words in message
        assert "..." in message


@pytest.mark.parametrize("name", ["p.JSONL", "p.Jsonl.GZ", "p.PARQUET"])
def test_the_ending_may_be_in_capitals(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("PARQUET"):
        parquet.write_table(pyarrow.table({"problem": ["p0"], "answer": ["5"]}), path)
    else:
        text = lines(tmp_path / "q.jsonl", "5").read_bytes()
        path.write_bytes(gzip.compress(text) if name.endswith("GZ") else text)
    (problem,) = Table(str(path)).load()
    assert (problem.id, problem.answer) == ("p/1", "5")


def test_a_link_in_a_circle_or_into_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "b.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "gone.jsonl")
    for name in ("a.jsonl", "c.jsonl"):
        assert f"{name}: a symbolic link that leads to no file" in refusal(tmp_path / name)


def test_an_integer_too_long_for_python_is_named_with_its_line(tmp_path: Path) -> None:
    assert "p.jsonl, line 1: " in refusal(lines(tmp_path / "p.jsonl", "7" * 5_000))


def test_a_cut_text_keeps_both_ends_on_one_line() -> None:
    assert cut("a\nb") == "a\\nb"
    assert len(cut("x" * 1_000 + "end")) == 60
    assert cut("x" * 1_000 + "end").endswith("end")
