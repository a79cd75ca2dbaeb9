"""Canaries for the private names behind sharded weights (docs/private-names.md)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.private_names.table import ROOT, canary


@canary("ModelParallelStrategy._data_parallel_size", "FSDPModule._get_fsdp_state", "FSDPState._lazy_init")
def test_a_strategy_is_told_its_size_and_a_model_that_it_is_the_root(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.private_names.sharded_rank", str(tmp_path / "said.json")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads((tmp_path / "said.json").read_text())
    assert said == {"mesh": 1, "unprepared": False, "prepared": True}
