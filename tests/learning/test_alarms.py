"""When a figure is spoken of, and that the docs say the same as the terminal."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path

import pytest

from repirl.learning.alarms import PATIENCE, Watch, alarms
from repirl.learning.prompt_filter import PromptFilter
from tests.modules.tiny import WRONG, make_module, run

DOCS = Path(__file__).parents[2] / "docs" / "diagnostics.md"


def test_a_figure_is_spoken_of_once_after_so_many_iterations_in_a_row() -> None:
    watch = Watch(samples=4)
    assert [watch.see({"policy/entropy": 0.001}) for _ in range(PATIENCE - 1)] == [[]] * (PATIENCE - 1)
    assert watch.see({"policy/entropy": 0.5}) == []  # the row ends
    seen = [watch.see({"policy/entropy": 0.001}) for _ in range(2 * PATIENCE)]
    (message,) = seen.pop(PATIENCE - 1)
    assert seen == [[]] * (2 * PATIENCE - 1)
    assert message.startswith(
        "policy/entropy has been below 0.01 for 10 iterations (now 0.001): the policy has nearly one response"
    )
    assert "Try: lower policy_optimizer's rate" in message


def test_an_iteration_without_the_figure_leaves_the_row_as_it_is() -> None:
    watch = Watch(samples=4)
    told = []
    for iteration in range(2 * PATIENCE):
        told += watch.see({"prm/auroc_expert_correct": 0.99} if iteration % 2 else {"prm/ess_share": 0.9})
    assert len(told) == 1


def test_limits_depend_on_the_number_of_rollouts() -> None:
    by_name = {alarm.figure: alarm for alarm in alarms(samples=8)}
    ranking, share = by_name["prm/ranking_loss"], by_name["prm/ess_share"]
    assert ranking.limit == pytest.approx(3 * math.log(9))
    assert share.limit == pytest.approx(0.15)  # 1.2 of 8
    assert ranking.rings({"prm/ranking_loss": 6.6})
    assert not ranking.rings({"prm/ranking_loss": 6.5})
    assert share.rings({"prm/ess_share": 0.14})
    assert not share.rings({"prm/ess_share": 0.16})
    assert not any(alarm.rings({alarm.figure: math.nan}) for alarm in alarms(8))


def test_a_run_that_trains_nothing_says_so() -> None:
    module = make_module(verifier=WRONG, prompt_filter=PromptFilter(kind="strict"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(module, steps=PATIENCE + 2)
    told = [str(w.message) for w in caught if "prompts/kept" in str(w.message)]
    assert len(told) == 1
    assert told[0].startswith(
        "iteration 10: prompts/kept has been below 1 for 10 iterations (now 0): the prompt filter"
    )


def test_the_docs_have_every_alarm_with_its_limit() -> None:
    rows = dict(re.findall(r"^\| `([a-z_/]+)` (?:\|[^|\n]*){3}\| ([^|\n]+) \|", DOCS.read_text(), re.MULTILINE))
    limits = {"prm/ranking_loss": "3 ln(samples + 1)", "prm/ess_share": "1.2 / samples"}
    for alarm in alarms(4):
        said = f"{alarm.side} {limits.get(alarm.figure, f'{alarm.limit:g}')}"
        assert said in rows[alarm.figure], alarm.figure
