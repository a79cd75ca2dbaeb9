"""Prompts with experts beside those without, in training: what is learned from, what is skipped and counted."""

from __future__ import annotations

from typing import Any

import pytest

from repirl.data.expert import ExpertData
from repirl.data.prompts import CurriculumSampler
from repirl.learning.prm_objectives import IRL
from repirl.modules.sft import SFT
from tests.modules.tiny import (
    RIGHT,
    SGD,
    TEXT,
    WRONG,
    EvenDigits,
    Problems,
    distance,
    half_with_experts,
    make_data,
    make_module,
    make_policy,
    mixture,
    run,
    start_weights,
)


def counts(figures: dict[str, float]) -> tuple[float, float]:
    return figures["prm/prompts_used"], figures["prm/prompts_skipped"]


@pytest.mark.parametrize(("share", "expected"), [(0.25, (1, 3)), (0.5, (2, 2)), (0.75, (3, 1)), (1.0, (4, 0))])
def test_prompts_without_experts_are_skipped_and_counted(share: float, expected: tuple[int, int]) -> None:
    """Without a verifier nothing but an expert can be a positive."""
    data = make_data(half_with_experts(), expert_share=share)
    done = run(make_module(), data, steps=4)
    assert [counts(figures) for figures in done.figures] == [expected] * 4
    assert distance(start_weights(make_module()), done.weights, "prm.") > 1e-6
    assert distance(start_weights(make_module()), done.weights, "policy.") > 1e-6


@pytest.mark.parametrize(("verifier", "expected"), [(RIGHT, (4, 0)), (WRONG, (0, 4))])
def test_a_right_rollout_is_the_positive_of_a_prompt_without_experts(verifier: Any, expected: tuple[int, int]) -> None:
    """All rollouts are right: each prompt has positives. All are wrong, and the experts with them: none has."""
    data = make_data(half_with_experts(), expert_share=0.5)
    done = run(make_module(verifier=verifier), data, steps=2)
    assert [counts(figures) for figures in done.figures] == [expected] * 2


def test_an_iteration_without_any_expert_moves_the_policy_alone() -> None:
    data = make_data(half_with_experts(), expert_share=0)
    module = make_module(verifier=EvenDigits(), objective=IRL(corrected="ignore"))
    done = run(module, data, steps=2)
    assert [counts(figures) for figures in done.figures] == [(0, 4)] * 2
    assert all("prm/loss" not in figures for figures in done.figures)  # a loss of 0 would read as measured
    start = start_weights(make_module(objective=IRL(corrected="ignore")))
    assert distance(start, done.weights, "prm.") == 0
    assert distance(start, done.weights, "policy.") > 1e-6


def test_a_mixture_trains_by_rewards_of_both_kinds_and_under_a_curriculum() -> None:
    data = ExpertData(mixture(), batch_prompts=4, sampler=CurriculumSampler())
    module = make_module(verifier=EvenDigits(), objective=IRL(corrected="ignore"), micro_batch_tokens=24)
    done = run(module, data, steps=6)
    assert [counts(figures) for figures in done.figures] == [(1, 3)] * 6
    told = [state["accuracy"] for state in data.state_dict()["sampler"]["strata"]]
    # Three strata of four prompts each: 6 iterations drew 6, 12 and 6 prompts of them, each with a verdict.
    assert [len(accuracy) for accuracy in told] == [4, 4, 4]
    assert all(value is not None for accuracy in told for value in accuracy.values())


def test_imitation_wants_an_expert_in_each_batch() -> None:
    module = SFT(policy=make_policy(), policy_optimizer=SGD, text=TEXT)
    run(module, make_data(half_with_experts(), expert_share=0.5))
    module = SFT(policy=make_policy(), policy_optimizer=SGD, text=TEXT)
    with pytest.raises(ValueError, match=r"has no expert trajectory to imitate: set data\.expert_share to 1"):
        run(module, ExpertData(Problems(half_with_experts()), batch_prompts=4, expert_share=0))
