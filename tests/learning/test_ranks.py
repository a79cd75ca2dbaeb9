"""Two ranks with other rows, by the parts of learning/ alone: sums, shares, equal work, and the run of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.learning import ranks
from tests.modules.tiny import distance

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes computed."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, "-m", "tests.mutants", "tests.learning.ranks", str(folder), "2"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode:  # no assertion: a planted fault is to be caught by what a test asserts
        raise RuntimeError(done.stderr[-4000:])
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_gradients_are_summed(of_two: list[dict[str, Any]]) -> None:
    # 1 x (1, 10) + 2 x (1, 10); a parameter without a gradient on rank 0 counts as 0 there
    assert [results["gradients"] for results in of_two] == [[[3.0, 30.0], [5.0]]] * 2


def test_a_rank_gets_its_own_rows_back(of_two: list[dict[str, Any]]) -> None:
    (first, of_all, first_back), (second, again, second_back) = (results["there_and_back"] for results in of_two)
    assert [list(values.shape) for values in (first, second, of_all)] == [[4, 5], [2, 3], [6, 5]]
    assert torch.equal(of_all, again)
    # rank 1's rows stand after rank 0's four, and are padded from 3 columns to 5
    assert of_all[4:].tolist() == [[100, 101, 102, 0, 0], [110, 111, 112, 0, 0]]
    assert torch.equal(first_back, first)
    assert torch.equal(second_back, second)


def test_every_rank_makes_as_many_passes_as_the_one_with_most_rows(of_two: list[dict[str, Any]]) -> None:
    # Micro-batches of one row. PRM: 4 rows of rank 0 for the rewards and again for the gradient. Policy: log-probabilities
    # of 4 rows, then the gradient of rank 0's 2 rollouts.
    assert [results["learned"]["passes"] for results in of_two] == [{"prm": 8, "policy": 6}] * 2


def test_two_ranks_learn_what_one_process_does(of_two: list[dict[str, Any]]) -> None:
    alone = ranks.learned()
    whole = ranks.learned(micro_batch_tokens=10**6)
    start = ranks.start().state_dict()
    assert distance(alone["weights"], start, "policy.") > 1e-3
    assert distance(alone["weights"], start, "prm.") > 1e-3
    for other in (*(results["learned"] for results in of_two), whole):
        assert distance(other["weights"], alone["weights"]) < 1e-6
        assert other["figures"] == pytest.approx(alone["figures"], rel=1e-4, abs=1e-6)
