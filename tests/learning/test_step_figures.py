"""Figures of a validation by labelled steps, by hand."""

from __future__ import annotations

import pytest
import torch

from repirl.data.step_rows import LabelledResponse, labelled_rows
from repirl.learning.step_figures import StepFigures


def response(*right: bool, whole: bool = True) -> LabelledResponse:
    """A solution with a token a step."""
    places = tuple(range(len(right)))
    return LabelledResponse("r", (1,), places, places, tuple(map(float, right)), right, whole)


def test_the_first_error_is_looked_for_among_steps_before_and_after_it() -> None:
    """Rewards fall from step to step. Where nothing after the first error is read, that alone would find it."""
    cut, whole = response(True, False, whole=False), response(True, False, True)
    rewards = torch.tensor([[1.0, -1.0, 0.0], [1.0, -1.0, -2.0]])
    figures = StepFigures()
    figures.update("both", labelled_rows([cut, whole], 0, "cpu"), rewards)
    figures.update("cut", labelled_rows([cut], 0, "cpu"), rewards[:1, :2])
    found = figures.results()
    assert found["both/first_error_accuracy"] == 0
    assert "cut/first_error_accuracy" not in found
    # The first step below 0 is the first wrong one in both, whatever follows.
    assert found["both/accuracy_erroneous"] == found["cut/accuracy_erroneous"] == 1
    # Rewards 1, 1 and -2 of right steps, twice -1 of wrong ones: 4 of 6 pairs in order.
    assert found["both/wrong_step_auroc"] == pytest.approx(4 / 6)
