"""Metric classes: worked numbers over batches, unknown values, and two processes that agree with one."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchmetrics import MeanMetric, Metric

from repirl.metrics import bootstrap_interval, brier_score
from repirl.metrics.accumulate import (
    AUROC,
    Accumulator,
    BestOfN,
    CalibrationError,
    MajorityVote,
    PassAtK,
    Rate,
    WeightedVote,
)

ROOT = Path(__file__).parents[2]
NAN = float("nan")

# Each with batches of arguments and the value of all: worked below.
CASES: dict[str, tuple[Callable[[], Metric], list[tuple[Any, ...]], float]] = {
    # 1, 0, 1 of those known
    "rate": (Rate, [(torch.tensor([1.0, NAN]),), (torch.tensor([0.0, 1.0]),)], 2 / 3),
    # of 4 samples 2 right: 1 - C(2, 2) / C(4, 2) = 5/6; of 4 none: 0; one verdict alone is too few
    "pass@2": (
        lambda: PassAtK(2),
        [(torch.tensor([2, 1]), torch.tensor([4, 1])), (torch.tensor([0]), torch.tensor([4]))],
        5 / 12,
    ),
    # "1" twice: right. "2" first of a tie: wrong. No answer at all: wrong. Nothing known: left out.
    "majority": (
        MajorityVote,
        [
            ([["2", "1", "1"], ["2", "1", None]], [[False, True, True], [False, True, False]]),
            ([[None, None], ["1", "1"]], [[False, False], [None, None]]),
        ],
        1 / 3,
    ),
    # e^0 + e^0 = 2 for "1" against e^1 for "2": right is "2"; then e^.5 against 2: right is "1"
    "weighted": (
        WeightedVote,
        [
            ([["1", "1", "2"]], [[0.0, 0.0, 1.0]], [[False, False, True]]),
            ([["1", "1", "2"]], [[0.0, 0.0, 0.5]], [[True, True, False]]),
        ],
        1.0,
    ),
    # the best is right; two tie, one of them right: a half
    "best": (
        BestOfN,
        [
            (torch.tensor([[0.1, 0.9]]), torch.tensor([[0.0, 1.0]])),
            (torch.tensor([[2.0, 2.0]]), torch.tensor([[0.0, 1.0]])),
        ],
        0.75,
    ),
    # pairs over batches: 3 > 1, 3 > 2, 2 = 2, 2 > 1: 3.5 of 4
    "auroc": (
        AUROC,
        [
            (torch.tensor([3.0, 1.0]), torch.tensor([True, False])),
            (torch.tensor([2.0, 2.0]), torch.tensor([True, False])),
        ],
        3.5 / 4,
    ),
    # two bins: .2 and .4, one right: |1 - .6| = .4; .9, right: .1; (.4 + .1) / 3
    "calibration": (
        lambda: CalibrationError(bins=2),
        [(torch.tensor([0.2, 0.9]), torch.tensor([1.0, 1.0])), (torch.tensor([0.4]), torch.tensor([0.0]))],
        0.5 / 3,
    ),
    "mean": (MeanMetric, [(torch.tensor([1.0, 2.0]),), (torch.tensor([6.0]),)], 3.0),
}


def accumulated(name: str, batches: slice) -> Metric:
    make, arguments, _ = CASES[name]
    metric = make().to("cpu")  # as Lightning does: a metric that was moved must not forget its dtype
    for batch in arguments[batches]:
        metric.update(*batch)
    return metric


@pytest.mark.parametrize("name", CASES)
def test_batches_add_up(name: str) -> None:
    metric = accumulated(name, slice(None))
    expected = CASES[name][2]
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-6)
    again = pickle.loads(pickle.dumps(metric))
    assert float(again.compute()) == pytest.approx(expected, abs=1e-6)
    metric.reset()
    metric.update(*CASES[name][1][0])
    assert float(metric.compute()) == pytest.approx(float(accumulated(name, slice(1)).compute()), abs=1e-9, nan_ok=True)


OURS = [name for name, (make, _, _) in CASES.items() if isinstance(make(), Accumulator)]


@pytest.mark.parametrize("name", OURS)
def test_nothing_gives_no_number_and_no_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(CASES[name][0]().compute())


@pytest.mark.parametrize("name", OURS)
def test_states_keep_their_dtype_and_follow_their_module(name: str) -> None:
    make, (first, *others), expected = CASES[name]
    module = nn.Module()
    module.metric = make()
    module.to(torch.bfloat16)
    module.metric.update(*first)
    module.half().to(torch.bfloat16)
    for batch in others:
        module.metric.update(*batch)
    assert float(module.metric.compute()) == pytest.approx(expected, abs=1e-6)
    assert module.metric.compute().dtype == torch.float64
    assert module.state_dict() == {}
    states = module.to("meta").metric.metric_state.values()
    tensors = [tensor for state in states for tensor in (state if isinstance(state, list) else [state])]
    assert {(tensor.device.type, tensor.dtype) for tensor in tensors} == {("meta", torch.float64)}


def test_an_interval_does_not_depend_on_the_order() -> None:
    values = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    one, other = Rate(), Rate()
    one.update(values)
    other.update(values.flip(0)[:2])
    other.update(values.flip(0)[2:])
    assert one.interval() == other.interval() == bootstrap_interval(values.sort().values)
    assert one.interval()[0] < 0.6 < one.interval()[1]
    assert all(map(math.isnan, Rate().interval()))


def test_scores_that_are_no_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        CalibrationError().update(torch.tensor([1.5]), torch.tensor([1.0]))
    # (.2 - 1)^2 = .64, (.9 - 1)^2 = .01
    assert brier_score(probabilities=torch.tensor([0.2, 0.9]), labels=torch.tensor([1.0, 1.0])).item() == pytest.approx(
        0.325
    )


def of_two() -> dict[str, list[float]]:
    """Values on this rank, with a batch on each rank, and with all on the second one."""
    number = dist.get_rank()
    values: dict[str, list[float]] = {}
    for name in CASES:
        halves = accumulated(name, slice(number, number + 1))
        uneven = accumulated(name, slice(None) if number else slice(0))
        values[name] = [float(halves.compute()), float(uneven.compute())]
        if isinstance(halves, Rate):
            values[name] += [*halves.interval(), *uneven.interval()]
    return values


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    code = (
        "import json, sys; import torch.distributed as dist; "
        "dist.init_process_group('gloo', init_method='file://' + sys.argv[1], rank=int(sys.argv[2]), world_size=2); "
        "from tests.metrics.test_accumulate import of_two; print(json.dumps(of_two()))"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "store"), str(number)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    printed = [process.communicate(timeout=120)[0] for process in started]
    first, second = (json.loads(text.strip().splitlines()[-1]) for text in printed)
    assert first == second
    for name, (halves, uneven, *intervals) in first.items():
        alone = accumulated(name, slice(None))
        assert halves == pytest.approx(CASES[name][2], abs=1e-6), name
        assert uneven == pytest.approx(CASES[name][2], abs=1e-6), name
        if isinstance(alone, Rate):
            assert intervals == [*alone.interval(), *alone.interval()]


def test_the_documented_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    (code,) = [part for part in text.split("```python\n")[1:] if "PassAtK" in part]
    exec(code.split("```")[0], {})
    mean, *_, vote = capsys.readouterr().out.split()
    # 1 - C(2, 2) / C(4, 2) = 5/6 and 0; e^.1 for "7" against e^.9 for "8", which is wrong
    assert float(mean) == pytest.approx(5 / 12)
    assert float(vote) == 0
