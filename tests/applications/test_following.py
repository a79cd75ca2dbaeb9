"""Where runs are, as read from their logs."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from repirl.applications.following import follow, short_names, state, states, status
from repirl.applications.processes import Processes


def test_the_line_in_words() -> None:
    running = ["sft 80/120 1:10 left", "prm_only 37/120 3:12 left"]
    assert status(2, 6, running) == "2 of 6 runs done; sft 80/120 1:10 left; prm_only 37/120 3:12 left"
    assert status(0, 6, []) == "0 of 6 runs done; starting"


def test_names_are_what_tells_runs_apart() -> None:
    folders = [Path("out/base/seed-3"), Path("out/fast/seed-3")]
    assert list(short_names(folders).values()) == ["base", "fast"]
    folders.append(Path("out/base/seed-4"))
    assert list(short_names(folders).values()) == ["base/seed-3", "fast/seed-3", "base/seed-4"]
    assert short_names([Path("out/seed-1/start")]) == {Path("out/seed-1/start"): "start"}
    assert short_names([]) == {}


def test_a_run_is_where_its_log_last_said(tmp_path: Path) -> None:
    folder = tmp_path / "sft"
    folder.mkdir()
    log = folder / "log.txt"
    assert state(log) == "starting"  # it has none yet
    log.write_text("train: kept 64 of 64 problems\n")
    assert state(log) == "starting"
    log.write_bytes(b"fit 1/120  9:59 left\n" + b"\xff" * 100_000 + b"\nfit 80/120  loss 1  1:10 left\nfit 81/120  lo")
    assert state(log) == "80/120 1:10 left"  # the next is being written
    log.write_text("fit 80/120  loss 1  1:10 left\nsaved\n")
    assert states([log, folder / "measured.log"], {}) == ["sft 80/120 1:10 left", "sft measuring"]
    assert states([log], {folder: "sft/seed-1"}) == ["sft/seed-1 80/120 1:10 left"]


def test_a_failed_run_is_told_while_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    failed: Future[Any] = Future()
    failed.set_exception(SystemExit("the run above failed"))
    with pytest.raises(SystemExit, match="the run above failed"):
        follow(Processes(), {Path("a"): Future(), Path("b"): failed})
    assert capsys.readouterr().err == ""
