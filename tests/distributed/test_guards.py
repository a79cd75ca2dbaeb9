"""A guard that speaks on one process ends all, at one iteration."""

from __future__ import annotations

from pathlib import Path

from repirl import checkpoints
from tests.distributed.launch import saved_by


def test_both_end_where_one_is_out_of_bounds(tmp_path: Path) -> None:
    first, second = saved_by("tests.distributed.guarded", tmp_path / "out.pt")
    assert first == (3, "another process found a figure out of bounds")  # the third in a row
    assert second[0] == 3
    assert second[1].startswith("policy/entropy is ")
    assert checkpoints.read(tmp_path / "last.ckpt")["global_step"] == 3
