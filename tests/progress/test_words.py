"""What a line of progress says, in numbers worked by hand."""

from __future__ import annotations

import pytest

from repirl.progress.words import cut, duration, figure, last_brief, number, progress_line

FIGURES = {"prm/ranking_loss": 0.5321, "rollout/accuracy": 0.4062}
LINE = "fit 37/120  policy_update  41 % right  ranking_loss 0.532  1,240 tokens/s  3:12 left"


def line(width: int | None = None) -> str:
    return progress_line(
        "fit", done=37, total=120, phase="policy_update", figures=FIGURES, rate=1240.4, left=192.0, width=width
    )


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (192, "3:12"), (3599.7, "1:00:00"), (3723, "1:02:03"), (-4, "0:00")],
)
def test_durations(seconds: float, wanted: str) -> None:
    assert duration(seconds) == wanted


def test_a_long_duration_is_in_hours() -> None:
    assert duration(51 * 3600 + 4 * 60 + 5) == "51:04:05"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(0.53217, "0.532"), (12.345, "12.3"), (999.4, "999"), (999.5, "1,000"), (1240.4, "1,240"), (-2000, "-2,000")],
)
def test_numbers(value: float, wanted: str) -> None:
    assert number(value) == wanted


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("rollout/accuracy", 0.4062, "41 % right"),
        ("val/greedy_accuracy", 0.5, "greedy 50 % right"),
        ("val/gsm8k/sampled_accuracy", 1.0, "gsm8k/sampled 100 % right"),
        ("sft/loss", 0.12, "loss 0.12"),
        ("loss", 3.0, "loss 3"),
    ],
)
def test_figures(name: str, value: float, wanted: str) -> None:
    assert figure(name, value) == wanted


def test_the_line_has_all_that_is_known_and_nothing_else() -> None:
    assert line() == LINE
    assert progress_line("fit", done=3, total=None) == "fit 3"
    assert progress_line("validate", done=500, total=500, took=61.0) == "validate 500/500  took 1:01"


def test_figures_leave_a_narrow_terminal_first_and_the_share_of_right_answers_last() -> None:
    assert line(width=len(LINE)) == LINE
    assert line(width=len(LINE) - 1) == "fit 37/120  policy_update  41 % right  1,240 tokens/s  3:12 left"
    assert line(width=10) == "fit 37/120  policy_update  1,240 tokens/s  3:12 left"  # the rest is cut when it is drawn
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdef", 4) == "abc…"


def test_a_log_is_read_from_its_end() -> None:
    log = f"train: kept 64 problems\nfit 0/120  rollout\n{LINE}\nUserWarning: fit 3/4 is no line of progress\n"
    assert last_brief(log) == "37/120 3:12 left"
    assert last_brief("fit 0/120  rollout\n") == "0/120"
    assert last_brief("fit 7\n") == "7"
    assert last_brief("fit 120/120  41 % right  took 3:25\n") == "120/120"
    assert last_brief("fit stopped: no answer\nfit 3 times\n") is None
    assert last_brief("") is None
