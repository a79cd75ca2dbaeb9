"""The line itself, in a process whose output is a terminal and in one whose output is a pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from repirl.progress.line import Line
from tests.progress.screen import in_terminal, on_screen

SCRIPT = """
import logging, sys, time
log = logging.getLogger("some.log")
log.addHandler(logging.StreamHandler())
log.setLevel(logging.INFO)
from repirl.progress.line import Line
line = Line(every_s=100.0)
print("before")
with line:
    line.show("first, which is longer")
    print("printed")
    line.show("second")
    log.info("logged")
    sys.stderr.write("half a ")
    line.show("third")
    print("line")
    line.show("fourth " + 100 * "x")
    line.close(FINAL)
print("after")
log.info("after too")
"""


def run(tmp_path: Path, final: str) -> str:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.replace("FINAL", final))
    return str(path)


@pytest.mark.parametrize(("final", "last"), [("'done'", ["done"]), ("None", [])])
def test_other_output_stands_above_the_line_and_nothing_is_left_over(
    tmp_path: Path, final: str, last: list[str]
) -> None:
    status, written = in_terminal([sys.executable, run(tmp_path, final)], cwd=tmp_path, env=os.environ, columns=40)
    assert status == 0, written
    assert on_screen(written) == ["before", "printed", "logged", "half a line", *last, "after", "after too", ""]
    assert "\r\x1b[Ksecond" in written
    assert "half a line\r\n\r\x1b[Kthird\r" in written  # which had waited for the end of that line
    assert "fourth " + 31 * "x" + "…\r" in written  # 39 columns


def test_elsewhere_lines_stand_by_themselves(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, run(tmp_path, "'done'")], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["before", "printed", "line", "after"]
    assert done.stderr.splitlines() == [
        "first, which is longer",
        "second",
        "logged",
        "half a third",
        "fourth " + 100 * "x",
        "done",
        "after too",
    ]


def test_a_line_is_due_at_once_and_then_after_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    line = Line(every_s=1000.0)
    assert not line.due()  # it is not open
    line.open()
    assert line.due()
    line.show("one")
    assert not line.due()
    assert not line.due(rarely=True)  # in a log, seconds are often
    line.every_s = 0.0
    assert line.due()
    line.close()
    line.close("two")  # it is closed already
    line.show("three")
    assert capsys.readouterr().err == "one\n"


def test_a_reader_that_has_gone_does_not_end_the_program(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    script = (
        "import os\nfrom repirl.progress.line import Line\n"
        "with Line(0.0) as line:\n  line.show('x')\nprint('ended')\nos._exit(0)"
    )
    done = subprocess.run(
        [sys.executable, "-u", "-c", script], stdout=subprocess.PIPE, stderr=writing, text=True, timeout=60
    )
    os.close(writing)
    assert (done.returncode, done.stdout) == (0, "ended\n")
