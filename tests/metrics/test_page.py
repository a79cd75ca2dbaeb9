"""The example of docs/benchmarks.md runs in a Trainer and logs what the batches together give."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

import repirl.metrics.accumulate as accumulate
from repirl.metrics.accumulate import Accumulator

PAGE = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
BATCHES = [
    ([["1", "1", "2", "3"]], [[True, True, False, False]]),  # pass@2: 1 - C(2, 2) / C(4, 2) = 5/6; the vote is right
    ([["1", "2", "2", None], ["4"] * 4], [[True, False, False, False], [False] * 4]),  # 1/2 and 0; the votes are wrong
]


def test_the_example_logs_objects(tmp_path: Path) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names: dict[str, Any] = {}
    exec(source, names)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    module = names["Study"]()
    for _ in range(2):  # Lightning starts the metrics anew
        batches: Any = DataLoader(BATCHES, batch_size=None, collate_fn=lambda batch: batch)
        (logged,) = trainer.validate(module, batches, verbose=False)
        assert logged["pass@2"] == pytest.approx((5 / 6 + 1 / 2) / 3)
        assert logged["maj"] == pytest.approx(1 / 3)
        assert logged["solved"] == pytest.approx(2 / 3)
        assert logged["gain"] == pytest.approx((5 / 6 + 1 / 2) / 3 - 1 / 3)
        assert logged["solved_low"] == 0 < logged["solved"] < 1 == logged["solved_high"]


def test_the_table_has_every_class() -> None:
    table = PAGE.split("| class | `update` takes")[1].split("\n\n")[0]
    listed = set(re.findall(r"`(\w+)(?:\(\w+\))?`", table))
    classes = {n for n, v in vars(accumulate).items() if isinstance(v, type) and issubclass(v, Accumulator)}
    assert classes - {"Accumulator"} == listed
