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
from tests.models.tiny import tiny_policy
from tests.modules.tiny import distance

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, "-m", "tests.mutants", "tests.learning.ranks", str(folder)]
    with (folder / "log").open("w") as log:
        started = [
            subprocess.Popen([*command, str(rank), "2"], cwd=ROOT, env=environment, stdout=log, stderr=log)
            for rank in range(2)
        ]
        try:
            codes = [process.wait(timeout=300) for process in started]
        finally:
            for process in started:
                process.kill()
    if codes != [0, 0]:  # no assertion: a planted fault is to be caught by what a test asserts
        raise RuntimeError((folder / "log").read_text()[-4000:])
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_gradients_are_summed(of_two: list[dict[str, Any]]) -> None:
    # 1 x (1, 10) + 2 x (1, 10); a parameter without a gradient on rank 0 counts as 0 there
    assert [found["gradients"] for found in of_two] == [[[3.0, 30.0], [5.0]]] * 2


def test_a_rank_gets_its_own_rows_back(of_two: list[dict[str, Any]]) -> None:
    (first, of_all, first_back), (second, again, second_back) = (found["there_and_back"] for found in of_two)
    assert [list(values.shape) for values in (first, second, of_all)] == [[4, 5], [2, 3], [6, 5]]
    assert torch.equal(of_all, again)
    # rank 1's rows stand after rank 0's four, and are padded from 3 columns to 5
    assert of_all[4:].tolist() == [[100, 101, 102, 0, 0], [110, 111, 112, 0, 0]]
    assert torch.equal(first_back, first)
    assert torch.equal(second_back, second)


def test_every_rank_makes_as_many_passes_as_the_one_with_most_rows(of_two: list[dict[str, Any]]) -> None:
    # Micro-batches of one row. PRM: 4 rows of rank 0 for the rewards and again for the gradient. Policy: log-probabilities
    # of 4 rows, then the gradient of rank 0's 2 rollouts.
    assert [found["learned"]["passes"] for found in of_two] == [{"prm": 8, "policy": 6}] * 2


def test_two_ranks_learn_what_one_process_does(of_two: list[dict[str, Any]]) -> None:
    alone = ranks.learned()
    whole = ranks.learned(micro_batch_tokens=10**6)
    start = {f"policy.{name}": value for name, value in tiny_policy().state_dict().items()}
    after = {name: value for name, value in alone["weights"].items() if name.startswith("policy.")}
    assert distance(after, start) > 1e-3
    assert float(alone["weights"]["prm.action.weight"].abs().max()) > 1e-3  # zero at the start
    for other in (*(found["learned"] for found in of_two), whole):
        assert distance(other["weights"], alone["weights"]) < 1e-6
        assert other["figures"] == pytest.approx(alone["figures"], rel=1e-4, abs=1e-6)
