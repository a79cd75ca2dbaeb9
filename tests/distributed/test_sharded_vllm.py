"""Weights of a sharded policy reach a server for each process; the run is that of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repirl.rollout import vllm_client
from tests.distributed.launch import saved_by
from tests.distributed.sharded_vllm import KINDS, STEPS, train
from tests.modules.tiny import distance
from tests.rollout.test_vllm import Loop, address, serving


class Counting(Loop):
    """Keeps all engines that were made, in order."""

    made: list[Loop]

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.made.append(self)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], list[list[Loop]]]]:
    """What two processes found, and the engines of each one's server."""
    kinds = [type("Engine", (Counting,), {"made": []}) for _ in range(2)]
    servers = [serving(kind) for kind in kinds]
    out: Path = tmp_path_factory.mktemp("sharded_vllm") / "out.pt"
    yield saved_by("tests.distributed.sharded_vllm", out, *map(address, servers)), [kind.made for kind in kinds]
    for server in servers:
        server.shutdown()


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_is_that_of_one_process(
    kind: str, of_two: tuple[dict[str, Any], list[list[Loop]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_client, "BUCKET_BYTES", 5000)  # many pieces here, one there
    server = serving(Loop)
    one, two = train(kind, [address(server)]), of_two[0][kind]
    server.shutdown()
    assert distance(one["weights"], two["weights"]) < 1e-5
    for ours, theirs in zip(one["figures"], two["figures"], strict=True):
        assert ours.get("rollout/accuracy") == pytest.approx(theirs.get("rollout/accuracy"), abs=1e-6)


def test_each_server_got_all_weights_or_the_adapters_in_each_iteration(
    of_two: tuple[dict[str, Any], list[list[Loop]]],
) -> None:
    """An engine is used again where only its weights differ: with the next kind's."""
    for engines in of_two[1]:
        plain, adapted, ahead = engines
        assert (plain.loads, plain.adaptations) == (STEPS, 0)
        assert (adapted.loads, adapted.adaptations) == (1, STEPS)
        assert ahead.loads >= 2
