"""Set-up shared by all tests: one thread, no network, and shapes checked in the objectives and metrics."""

import itertools
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch  # after the environment that it reads
from jaxtyping import install_import_hook

torch.set_num_threads(1)
install_import_hook(["repirl.objectives", "repirl.metrics"], "beartype.beartype")

# Below the range from which systems give ports to anybody: no other program takes one between its choice and its use.
# Two workers of one run have ranges of their own.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 2
_PORTS = itertools.cycle(range(20_000 + 6_000 * _WORKER, 26_000 + 6_000 * _WORKER))
for _ in range(os.getpid() * 37 % 6_000):
    next(_PORTS)


# What Lightning leaves in the environment when it trains by a strategy of several processes in this one. A program that
# inherits LOCAL_RANK takes itself for one of a group, starts no other, and waits for them.
_OF_A_LAUNCHER = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """A port for the processes that this test and its fixtures start, and nothing of an earlier launch."""
    for name in _OF_A_LAUNCHER:
        os.environ.pop(name, None)
    os.environ["MASTER_PORT"] = str(next(_PORTS))
