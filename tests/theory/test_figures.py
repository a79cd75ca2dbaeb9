"""The figures of docs/theory.md, drawn small: the command runs and its numbers say what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = "--replicates 4 --seeds 1 --largest 128 --draws 2 --steps 8 --rounds 60"


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("figures")
    command = [sys.executable, "-m", "benchmarks.theory.figures", "--out", str(out), *SMALL.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def numbers(text: str, row: str) -> list[float]:
    """The filled cells of a row of the printed tables; a row is found by its first cell."""
    (line,) = re.findall(rf"^\| {re.escape(row)} \|(.*)\|$", text, flags=re.MULTILINE)
    return [float(cell) for cell in line.split("|") if cell.strip()]


def test_every_figure_of_the_page_is_drawn(printed: tuple[Path, str]) -> None:
    out, _ = printed
    page = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\((theory_\w+\.png)\)", page))
    assert named == {path.name for path in out.iterdir()}
    assert len(named) == 4
    for name in named:
        assert (out / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert (out / name).stat().st_size > 10_000
        assert (ROOT / "docs" / name).exists()


def test_the_numbers_have_the_order_that_the_page_reports(printed: tuple[Path, str]) -> None:
    _, text = printed
    half, end, *_ = numbers(text, "corrected: move")
    assert end > 1.8 * half
    half, end, *_ = numbers(text, "corrected: copy")
    assert end < 1.1 * half
    assert max(numbers(text, "2 experts, a softmax each")) < 1e-12
    assert min(numbers(text, "2 experts, one softmax (M up to 4)")) > 0.05
    (start,) = numbers(text, "(at the start)")
    for name in ("sequence, tempered", "uniform", "discriminator, sequence"):
        (end,) = numbers(text, f"following: {name}")
        assert end < 0.1 * start
    (gail,) = numbers(text, "following: GAIL, sequence")
    assert 0.1 < gail < 0.2
