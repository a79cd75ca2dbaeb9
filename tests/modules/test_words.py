"""What a run says of itself when it starts."""

import logging

import pytest

from repirl.learning.schedule import Schedule
from tests.modules.tiny import EvenDigits, make_module, run


def said(caplog: pytest.LogCaptureFixture, **options: object) -> str:
    with caplog.at_level(logging.INFO, logger="repirl"):
        run(make_module(verifier=EvenDigits(), **options))
    return caplog.text


def test_rollouts_and_steps_of_an_iteration(caplog: pytest.LogCaptureFixture) -> None:
    text = said(caplog, schedule=Schedule(prm_updates=3, policy_updates=2, policy_mini_batches=2))
    assert "an iteration: 4 prompts x 3 rollouts = 12 responses on 1 process, then 4 policy steps, 3 PRM steps" in text
    assert "prompts: problem and instruction as '{problem}{instruction}\\n', no chat template" in text


def test_without_a_prm(caplog: pytest.LogCaptureFixture) -> None:
    assert "= 12 responses on 1 process, then 1 policy step\n" in said(caplog, prm=None)
