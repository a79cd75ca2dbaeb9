"""Which update comes when, and how rows and prompts are cut into parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from repirl.learning.schedule import Schedule, parts, policy_passes, prm_passes

ROOT = Path(__file__).parents[2]


def test_passes_by_iteration() -> None:
    schedule = Schedule(prm_updates=3, policy_updates=2, policy_starts=2, prm_stops=4)
    assert [prm_passes(schedule, i) for i in range(6)] == [3, 3, 3, 3, 0, 0]
    assert [policy_passes(schedule, i) for i in range(6)] == [0, 0, 2, 2, 2, 2]
    assert [(prm_passes(Schedule(), i), policy_passes(Schedule(), i)) for i in (0, 1, 10**6)] == [(2, 1)] * 3
    frozen = Schedule(prm_stops=0, policy_updates=0)
    assert (prm_passes(frozen, 0), policy_passes(frozen, 0)) == (0, 0)


def test_policy_steps_of_an_iteration() -> None:
    assert Schedule(policy_updates=2, policy_mini_batches=3).policy_steps == 6
    assert Schedule().policy_steps == 1
    assert Schedule(policy_updates=0, policy_mini_batches=3).policy_steps == 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("prm_mini_batches", 0, "prm_mini_batches must be at least 1, not 0"),
        ("policy_mini_batches", -1, "policy_mini_batches must be at least 1, not -1"),
        ("prm_updates", -1, "prm_updates must not be negative, not -1"),
        ("policy_updates", -2, "policy_updates must not be negative, not -2"),
        ("policy_starts", -1, "policy_starts must not be negative, not -1"),
        ("prm_stops", -1, "prm_stops must not be negative, not -1"),
    ],
)
def test_schedules_are_checked(name: str, value: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**{name: value})


def test_parts() -> None:
    # edges 0, 10/3, 20/3, 10 rounded down
    assert parts(10, 3) == [range(0, 3), range(3, 6), range(6, 10)]
    assert parts(2, 4) == [range(0, 0), range(0, 1), range(1, 1), range(1, 2)]
    for count in range(12):
        for mini_batches in range(1, 9):
            found = parts(count, mini_batches)
            assert [i for part in found for i in part] == list(range(count))
            assert len(found) == mini_batches
            assert max(map(len, found)) - min(map(len, found)) <= 1


def test_the_default_is_the_study_s_rhythm() -> None:
    base = yaml.safe_load((ROOT / "benchmarks" / "defaults" / "base.yaml").read_text())["model"]["init_args"]
    assert Schedule().prm_updates == base["schedule"]["prm_updates"] == 2
