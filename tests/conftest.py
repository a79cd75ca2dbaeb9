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
_PORTS = itertools.cycle(range(20_000, 32_000))
for _ in range(os.getpid() * 37 % 12_000):
    next(_PORTS)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """A port for the processes that this test and its fixtures start."""
    os.environ["MASTER_PORT"] = str(next(_PORTS))
