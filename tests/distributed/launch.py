"""Starts programs of several gloo processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """This one's, with one thread a process."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "GLOO_SOCKET_IFNAME": "lo"}


def saved_by(program: str, out: Path, *arguments: str, seconds: float = 300) -> Any:
    """What `python -m program out ...` has saved in the file `out` when it ended well."""
    command = [sys.executable, "-m", program, str(out), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(out, weights_only=False)
