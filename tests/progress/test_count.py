"""A line of progress of things that are counted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from repirl.progress import count as module
from repirl.progress.count import Count


def test_time_left_is_at_the_speed_of_this_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(module, "EVERY_S", 0.0)
    with Count("score", "solutions", total=10, done=4) as count:
        count.show()
        clock.now, count.done = 106.0, 7
        count.show("slow today")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "score 4/10 solutions"
    assert second == "score 7/10 solutions  0:06 left  slow today"  # three took 6 s, and three are left


def test_lines_are_far_apart_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Count("score", "solutions", total=2) as count:
        for count.done in (0, 1, 2):
            count.show()
    assert capsys.readouterr().err.splitlines() == ["score 0/2 solutions"]
