"""A control of what a PRM's AUROC means: with experts at other problems nothing is left of it."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from repirl.data.collate import collate_rows
from repirl.learning.prm_objectives import IRL
from repirl.learning.schedule import Schedule
from repirl.learning.settings import Advantage, Text
from repirl.metrics import auroc
from repirl.structs import Problem
from tests.modules.tiny import make_data, make_module, make_policy, run

DIGITS = "0123456789"


def digit_to_copy(number: int, *, swapped: bool) -> Problem:
    """The problem is a digit, the solution the same one; swapped, those of ten problems in turn, its own among them.

    So the experts of a problem write each digit equally often, and the best PRM knows nothing of which is right.
    """
    text, other = DIGITS[number % 10], DIGITS[number // 10 % 10]
    return Problem(id=str(number), text=text, answer=None, solutions=(other if swapped else text,))


@pytest.mark.parametrize(("swapped", "low", "high"), [(False, 0.85, 1.0), (True, 0.35, 0.65)])
def test_the_auroc_of_right_answers_is_gone_with_swapped_experts(swapped: bool, low: float, high: float) -> None:
    """The writer and the form are the same; what R learns of them is the same for right and wrong digits."""
    module = make_module(
        policy=make_policy(),
        objective=IRL(),
        prm_optimizer=partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.0),
        samples=8,
        text=Text(max_prompt_tokens=4, max_response_tokens=4),
        advantage=Advantage(outcome_coef=0.0, prm_coef=1.0),
        schedule=Schedule(prm_updates=2, policy_updates=0),
    )
    data = make_data([digit_to_copy(number, swapped=swapped) for number in range(200)], batch_prompts=10)
    trained = run(module, data, 100).module
    pairs = [(problem, answer) for problem in DIGITS for answer in DIGITS]
    prompts = [trained.codec.encode_prompt(problem) for problem, _ in pairs]
    rows = collate_rows(prompts, [trained.codec.encode_response(answer) for _, answer in pairs], 0)
    right = torch.tensor([problem == answer for problem, answer in pairs])
    found = float(auroc(trained.score(rows).sum(-1), right))
    assert low <= found <= high  # .933 and .488
