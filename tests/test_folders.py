"""One run a folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from repirl.folders import FolderInUse, claimed
from tests.processes import limited

ROOT = Path(__file__).parents[1]
HOLDING = """
import sys, time
from pathlib import Path
from repirl.folders import claimed
with claimed([Path(sys.argv[1])]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_one_process_own_until_that_ends(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    holder = subprocess.Popen([sys.executable, "-c", HOLDING, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with limited(holder):
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(
                FolderInUse, match=rf"another run \(process {holder.pid}\) is writing into '.*one'; wait until"
            ),
            claimed([tmp_path / "other", folder]),
        ):
            pytest.fail("two held it")
        with claimed([tmp_path / "runs" / "two"]):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(60)
        with claimed([folder]):
            pass


def test_a_folder_can_be_named_twice_and_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with claimed([tmp_path / "a", tmp_path / "a", tmp_path / "x" / ".." / "b"]):
            pass
    assert not (tmp_path / "a").exists()  # only the lock beside it is made


def test_what_was_held_is_let_go_where_another_folder_is_in_use(tmp_path: Path) -> None:
    with claimed([tmp_path / "b"]):
        with pytest.raises(FolderInUse), claimed([tmp_path / "a", tmp_path / "b"]):
            pytest.fail("two held it")
        with claimed([tmp_path / "a"]):
            pass
