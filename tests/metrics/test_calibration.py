"""Scores mapped to probabilities, by hand, and what a reliability diagram is drawn from."""

import math

import pytest
import torch

from repirl.applications.calibration import calibration, draw_reliability, platt_of
from repirl.applications.prm_report import scored
from repirl.data.step_labelled import LabelledSolution
from repirl.metrics.accumulate import CalibrationError
from repirl.metrics.calibration import fit_platt
from repirl.structs import WrittenSolution

SCORES = torch.tensor([0.0] * 4 + [2.0] * 6)
RIGHT = torch.tensor([True, False, False, False, True, True, True, True, True, False])


def test_two_scores_get_the_mean_target_of_each() -> None:
    """6 right: 7/8; 4 wrong: 1/6. At 0 (1 right of 4) the mean target is 11/32, at 2 (5 of 6) 109/144."""
    platt = fit_platt(SCORES, RIGHT)
    low, high = platt.probabilities(torch.tensor([0.0, 2.0], dtype=torch.float64)).tolist()
    assert low == pytest.approx((7 / 8 + 3 / 6) / 4, abs=1e-7)
    assert high == pytest.approx((5 * 7 / 8 + 1 / 6) / 6, abs=1e-7)
    assert platt.offset == pytest.approx(math.log((11 / 32) / (21 / 32)), abs=1e-6)


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (-3.0, 5.0), (1e4, -1e5)])
def test_the_scale_of_scores_does_not_matter(scale: float, shift: float) -> None:
    wanted = fit_platt(SCORES, RIGHT).probabilities(SCORES.double())
    scores = SCORES.double() * scale + shift
    assert fit_platt(scores, RIGHT).probabilities(scores).tolist() == pytest.approx(wanted.tolist(), abs=1e-6)


def test_separated_scores_stay_finite_and_one_class_is_refused() -> None:
    platt = fit_platt(torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([False, False, True, True]))
    assert 0 < platt.slope < 100
    values = platt.probabilities(torch.tensor([0.0, 3.0])).tolist()
    assert 0.05 < values[0] < 0.3  # targets are 1/4 and 3/4
    assert values[1] == pytest.approx(1 - values[0], abs=1e-6)
    with pytest.raises(ValueError, match="these are 4 and 0"):
        fit_platt(torch.arange(4.0), torch.ones(4, dtype=torch.bool))


def test_reliability_leaves_empty_bins_out() -> None:
    error = CalibrationError(bins=4)
    error.update(torch.tensor([0.1, 0.2, 0.9]), torch.tensor([0.0, 1.0, 1.0]))
    rows = error.reliability()
    assert [row["count"] for row in rows] == [2, 1]
    assert [row["probability"] for row in rows] == pytest.approx([0.15, 0.9])
    assert [row["right"] for row in rows] == [0.5, 1.0]


def labelled(name: str, wrong: tuple[int, ...]) -> LabelledSolution:
    return LabelledSolution(name, WrittenSolution("?", ("a\n", "b")), wrong)


def test_figures_over_labelled_steps(tmp_path) -> None:
    """Rewards .8 .2 .8 .8, the second wrong alone: as they are the gaps are 3 x .2 and .2, over four steps."""
    given = scored([labelled("one", (1,)), labelled("two", ())], [(0.8, 0.2), (0.8, 0.8)])
    found = calibration(given, platt_of(given))
    assert (found["steps"], found["right_steps"]) == (4, 0.75)
    assert found["as_they_are"]["ece"] == pytest.approx((3 * 0.2 + 0.2) / 4)
    assert found["as_they_are"]["brier"] == pytest.approx(0.04)
    assert found["as_they_are"]["brier_of_share"] == pytest.approx(0.75 * 0.25)
    # Targets 4/5 and 1/3, one score each: right ones are given 4/5, the wrong one 1/3.
    assert [row["probability"] for row in found["mapped"]["reliability"]] == pytest.approx([1 / 3, 4 / 5], abs=1e-6)
    assert draw_reliability({"mine": found}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
    above = scored([labelled("one", (1,))], [(1.5, 0.2)])
    assert "as_they_are" not in calibration(above, None)
    assert not draw_reliability({"mine": calibration(above, None)}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    assert platt_of(scored([labelled("two", ())], [(0.8, 0.8)])) is None
