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
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import BinaryAUROC, BinaryCalibrationError

from repirl.metrics import bootstrap_interval, brier_score
from repirl.metrics.accumulate import (
    AUROC,
    Accumulator,
    BestOfN,
    BrierScore,
    CalibrationError,
    FirstErrorAccuracy,
    MajorityVote,
    MeanOfKnown,
    PassAtK,
    ProbeFigures,
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
    # (1 + 0 + 4 + 1) / 4
    "mean of known": (
        MeanOfKnown,
        [(torch.tensor([[1.0, NAN], [0.0, 4.0]]),), (torch.tensor([NAN, 1.0]),)],
        6 / 4,
    ),
    # (2 x .5 + 1 x 2) / 3
    "weighted mean": (
        MeanOfKnown,
        [(torch.tensor(0.5), torch.tensor(2)), (torch.tensor([2.0, NAN]), torch.tensor([1.0, 9.0]))],
        1.0,
    ),
    # .8^2, .1^2 and .5^2 over 3
    "brier": (
        BrierScore,
        [(torch.tensor([0.2, 0.9]), torch.tensor([1.0, 1.0])), (torch.tensor([0.5, 0.5]), torch.tensor([0.0, NAN]))],
        (0.64 + 0.01 + 0.25) / 3,
    ),
    # two bins: .2 and .4, one right: |1 - .6| = .4; .9, right: .1; (.4 + .1) / 3
    "calibration": (
        lambda: CalibrationError(bins=2),
        [
            (torch.tensor([0.2, 0.9]), torch.tensor([1.0, 1.0])),
            (torch.tensor([0.4, 0.7]), torch.tensor([0.0, NAN])),
        ],
        0.5 / 3,
    ),
    # of the first batch one solution has a wrong step (where there is a step), and it is the lowest; of the second one, and
    # its second wrong step is the lowest
    "first error": (
        FirstErrorAccuracy,
        [
            (
                torch.tensor([[1.0, -1.0, 0.0], [2.0, 1.0, -9.0]]),
                torch.tensor([[True, True, True], [True, True, False]]),
                torch.tensor([[False, True, False], [False, False, True]]),
            ),
            (torch.tensor([[0.0, -1.0]]), torch.tensor([[True, True]]), torch.tensor([[True, True]])),
        ],
        1 / 2,
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
    for metric in (CalibrationError(), BrierScore()):
        with pytest.raises(
            ValueError, match=r"outside \[0, 1\] is no probability, and one here is 1.5; take a sigmoid"
        ):
            metric.update(torch.tensor([0.5, 1.5]), torch.tensor([1.0, 1.0]))
    # (.2 - 1)^2 = .64, (.9 - 1)^2 = .01
    assert brier_score(probabilities=torch.tensor([0.2, 0.9]), labels=torch.tensor([1.0, 1.0])).item() == pytest.approx(
        0.325
    )


PROBES = [  # of two prompts: the real response, then a hollow one
    {"means": torch.tensor([[0.5, 0.25]]), "totals": torch.tensor([[1.0, 1.0]]), "lengths": torch.tensor([[2.0, 4.0]])},
    {"means": torch.tensor([[0.0, 1.0]]), "totals": torch.tensor([[0.0, 3.0]]), "lengths": torch.tensor([[6.0, 3.0]])},
]


def probed(*batches: dict[str, Tensor]) -> dict[str, float]:
    metric = ProbeFigures(["x"]).to("cpu")
    for batch in batches:
        metric.update(**batch)
    return {name: float(value) for name, value in metric.compute().items()}


def test_probes_in_numbers() -> None:
    # Rbar: x below in one prompt, above in the other; R: a tie, and above
    assert probed(*PROBES) == {
        "real": 0.25,
        "real_total": 0.5,
        "x": 0.625,
        "x_total": 2.0,
        "x_wins": 0.5,
        "x_wins_total": 0.75,
        "length_correlation": pytest.approx(-1.0),
    }
    assert math.isnan(probed()["x_wins"])


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
    values["probes"] = [*probed(PROBES[number]).values(), *probed(*(PROBES if number else [])).values()]
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
    assert first.pop("probes") == [*probed(*PROBES).values()] * 2
    for name, (halves, uneven, *intervals) in first.items():
        alone = accumulated(name, slice(None))
        assert halves == pytest.approx(CASES[name][2], abs=1e-6), name
        assert uneven == pytest.approx(CASES[name][2], abs=1e-6), name
        if isinstance(alone, Rate):
            assert intervals == [*alone.interval(), *alone.interval()]


# --- where torchmetrics' own differ


def after(metric: Metric, *batches: tuple[Tensor, ...]) -> float:
    for batch in batches:
        metric.update(*batch)
    return float(metric.compute())


def test_a_count_goes_on_beyond_24_bits() -> None:
    batches = [(torch.ones(()), torch.tensor(2.0**24)), *[(torch.zeros(()), torch.ones(()))] * 3]
    assert after(MeanOfKnown(), *batches) == 2**24 / (2**24 + 3)
    assert after(MeanMetric(), *batches) == 1


def test_auroc_keeps_large_rewards_apart() -> None:
    scores = torch.tensor([30.0, 40.0])
    assert after(AUROC(), (scores, torch.tensor([False, True]))) == 1
    assert after(BinaryAUROC(), (scores, torch.tensor([0, 1]))) == 0.5  # both have the sigmoid 1
    scores, labels = torch.tensor([-3.0, 0.2, 2.0, 1.0, -0.1]), torch.tensor([0, 1, 0, 1, 0])
    # 1 and .2 beat -3 and -.1, and not 2
    assert after(AUROC(), (scores, labels == 1)) == pytest.approx(after(BinaryAUROC(), (scores, labels))) == 4 / 6


def test_the_calibration_error_agrees_on_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(500, generator=generator)
    right = torch.rand(500, generator=generator) < probabilities.square()
    for bins in (1, 10, 15):
        theirs = after(BinaryCalibrationError(bins), (probabilities, right.int()))
        assert after(CalibrationError(bins), (probabilities, right.float())) == pytest.approx(theirs, abs=1e-6)
    # .9 is right, 1 wrong: here one bin, |1.9 - 1| / 2; there 1 has a bin of its own, (.1 + 1) / 2
    ends = torch.tensor([0.9, 1.0])
    assert after(CalibrationError(2), (ends, torch.tensor([1.0, 0.0]))) == pytest.approx(0.45)
    assert after(BinaryCalibrationError(2), (ends, torch.tensor([1, 0]))) == pytest.approx(0.55)


def test_metrics_are_composed() -> None:
    class Solved(Rate):
        """Share of problems with a right response."""

        def update(self, correct: Tensor, samples: Tensor) -> None:  # type: ignore[override]
            super().update((correct > 0).double())

    gain = PassAtK(2) - PassAtK(1)
    gain.update(torch.tensor([2]), torch.tensor([4]))
    assert float(gain.compute()) == pytest.approx(5 / 6 - 1 / 2)
    several = MetricCollection({"solved": Solved(), "pass@2": PassAtK(2)})
    several.update(correct=torch.tensor([2, 0]), samples=torch.tensor([4, 4]))
    assert {name: float(value) for name, value in several.compute().items()} == pytest.approx(
        {"solved": 1 / 2, "pass@2": 5 / 12}
    )


def test_the_pure_functions_load_no_torchmetrics() -> None:
    code = "import sys, repirl.metrics; sys.exit(any(name in sys.modules for name in ('torchmetrics', 'lightning')))"
    assert (
        subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT / "src")}).returncode == 0
    )
