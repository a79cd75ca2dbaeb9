"""How long the rest takes, worked by hand."""

from __future__ import annotations

import pytest

from repirl.progress.pace import Pace, time_left


def test_nothing_is_said_before_the_first_iteration() -> None:
    pace = Pace()
    assert (pace.seconds, pace.rate, pace.left(10)) == (None, None, None)


def test_the_median_is_not_moved_by_a_slow_iteration() -> None:
    pace = Pace()
    for seconds in (2.0, 100.0, 4.0):
        pace.add(seconds, tokens=530)
    assert pace.seconds == 4.0
    assert pace.rate == pytest.approx(15.0)  # 3 x 530 / 106
    assert pace.left(10) == 40.0


def test_only_the_last_iterations_count() -> None:
    pace = Pace(window=2)
    for seconds, tokens in ((50.0, 1), (1.0, 10), (3.0, 20)):
        pace.add(seconds, tokens)
    assert pace.left(5) == 10.0  # 5 x the median of 1 and 3
    assert pace.rate == pytest.approx(7.5)  # 30 / 4


def test_what_has_run_of_an_iteration_is_taken_off_and_never_more_than_it_was_to_take() -> None:
    pace = Pace()
    pace.add(4.0, 0)
    assert pace.left(3, elapsed=1.0) == 11.0
    assert pace.left(3, elapsed=9.0) == 8.0
    assert pace.left(0, elapsed=1.0) == 0.0
    assert pace.rate is None  # no token was counted


def test_validations_are_taken_to_come_as_often_as_they_did() -> None:
    pace = Pace()
    for _ in range(10):
        pace.add(2.0, 0)
    pace.add_validation(30.0)
    assert pace.left(20) == 100.0  # 20 x (2 + 30 / 10)
    for _ in range(5):
        pace.add(2.0, 0)
    assert pace.left(15) == 75.0  # as it was: the next comes after five more
    for _ in range(5):
        pace.add(2.0, 0)
    pace.add_validation(10.0)
    assert pace.left(10) == 40.0  # 10 x (2 + (30 + 10) / 20)


def test_the_rest_of_an_evaluation_goes_at_its_average_speed() -> None:
    assert time_left(done=0, total=10, elapsed=5.0) is None
    assert time_left(done=4, total=10, elapsed=8.0) == 12.0
    assert time_left(done=10, total=10, elapsed=8.0) == 0.0
