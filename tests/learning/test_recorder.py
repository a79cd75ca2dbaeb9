"""Figures and seconds of an iteration."""

from __future__ import annotations

import torch

from repirl.learning.recorder import Recorder

CPU = torch.device("cpu")


def test_figures_are_means_and_are_taken_once() -> None:
    recorder = Recorder()
    recorder.add("prm", {"loss": 1.0, "ess": torch.tensor(2.0)})
    recorder.add("prm", {"loss": 4.0})
    recorder.add("policy", {"loss": -3})
    assert recorder.take() == {"prm/loss": 2.5, "prm/ess": 2.0, "policy/loss": -3.0}  # (1 + 4) / 2
    assert recorder.take() == {}
    recorder.add("prm", {"loss": 7.0})
    assert recorder.take() == {"prm/loss": 7.0}


def test_seconds_add_up() -> None:
    recorder = Recorder()
    spent = []
    for _ in range(3):
        with recorder.timed("rollout", CPU):
            sum(range(10_000))
        spent.append(recorder.take()["time/rollout_s"])
    assert min(spent) > 0
    for _ in range(2):
        with recorder.timed("score", CPU):
            pass
    with recorder.timed("verify", CPU):
        pass
    recorder.add("time", {"score_s": 100.0})
    taken = recorder.take()
    assert taken.keys() == {"time/score_s", "time/verify_s"}
    assert taken["time/score_s"] > 100  # a sum; the mean of the three would be near 33
