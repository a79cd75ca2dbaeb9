"""What the quick start's options come to. The runs themselves are in tests/test_end_to_end.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from repirl.applications.quickstart import arm_overlay, iterations_of, main
from repirl.config import ConfigError


@pytest.mark.parametrize(("start", "given", "wanted"), [("easy", None, 200), ("easy", 7, 7), ("hard", None, None)])
def test_runs_from_the_easy_start_take_200_iterations(
    tmp_path: Path, start: str, given: int | None, wanted: int | None
) -> None:
    path = arm_overlay(tmp_path, 1, "rePIRL, PRM only", iterations_of(start, given))
    assert yaml.safe_load(path.read_text())["trainer"].get("max_steps") == wanted


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder without configurations, where nothing can run."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("option", "value"), [("--iterations", "0"), ("--start-iterations", "-3")])
def test_wrong_numbers_of_iterations_are_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([option, value])
    assert f"argument {option}: {value!r} is no number from 1" in capsys.readouterr().err


@pytest.mark.usefixtures("elsewhere")
def test_seeds_are_those_of_a_sweep() -> None:
    with pytest.raises(ConfigError, match=r"--seeds: '1x' is not understood"):
        main(["--seeds", "1x"])


@pytest.mark.usefixtures("elsewhere")
def test_it_says_where_it_has_to_run() -> None:
    with pytest.raises(ConfigError, match="in the root of the repository"):
        main([])
