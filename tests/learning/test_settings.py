"""Settings that are refused when they are made, with the reason."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest

from repirl.learning.prm_objectives import IRL, Discriminator
from repirl.learning.prompt_filter import PromptFilter
from repirl.learning.settings import Advantage, Surrogate
from repirl.models.prm import PRM
from repirl.objectives.irl import irl_coefficients
from tests.modules.tiny import EvenDigits, make_module, run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"corrected": "move", "experts_in_z": True},
            "IRL: corrected 'move' with experts_in_z leaves a corrected rollout no",
        ),
        ({"expert_weight": 0.0}, "IRL: expert_weight must be > 0, not 0.0"),
        ({"expert_weight": -1.0}, "IRL: expert_weight must be > 0, not -1.0"),
        ({"reward_penalty": -0.1}, r"IRL: reward_penalty must not be negative, not -0\.1"),
    ],
)
def test_irl_settings_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IRL(**arguments)


@pytest.mark.parametrize("discount", [-0.1, 1.5, float("nan")])
def test_discounts_outside_the_unit_interval_are_refused(discount: float) -> None:
    with pytest.raises(ValueError, match="advantage: prm_discount must be between 0 and 1"):
        Advantage(prm_discount=discount)


@pytest.mark.parametrize("coefficient", [-0.5, float("nan")])
def test_a_negative_maxent_coefficient_is_refused(coefficient: float) -> None:
    with pytest.raises(ValueError, match=f"advantage: maxent_coef must not be negative, not {coefficient}"):
        Advantage(maxent_coef=coefficient)


@pytest.mark.parametrize("epsilon", [-1e-6, float("nan"), float("inf")])
def test_an_epsilon_that_is_no_small_number_is_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match=f"advantage: std_eps must be a number from 0, not {epsilon}"):
        Advantage(std_eps=epsilon)


@pytest.mark.parametrize("length", [0, -1.0, float("nan"), float("inf")])
def test_a_loss_length_must_be_positive(length: float) -> None:
    with pytest.raises(ValueError, match="surrogate: loss_length must be a number of tokens above 0"):
        Surrogate(loss_aggregation="constant", loss_length=length)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum"])
def test_a_loss_length_that_nothing_reads_is_refused(aggregation: Any) -> None:
    with pytest.raises(ValueError, match=f"belongs to loss_aggregation 'constant', not to '{aggregation}'"):
        Surrogate(loss_aggregation=aggregation, loss_length=100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dual_clip": 0.5}, "dual_clip must be above 1, not 0.5"),
        ({"dual_clip": float("nan")}, "dual_clip must be above 1, not nan"),
        ({"kl_coef": -0.1}, "kl_coef must be a number from 0, not -0.1"),
        ({"clip_low": -0.2}, r"clip_low must be in \[0, 1\] and clip_high not negative, not -0.2 and 0.2"),
        ({"clip_high": -0.2}, r"clip_low must be in \[0, 1\] and clip_high not negative, not 0.2 and -0.2"),
    ],
)
def test_surrogates_that_would_reward_what_they_should_punish_are_refused(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"surrogate: {message}"):
        Surrogate(**arguments)


@pytest.mark.parametrize(("low", "high"), [(0.8, 0.2), (-0.1, 0.5), (0.5, 1.5), (float("nan"), 0.5)])
def test_a_prompt_filter_that_keeps_nothing_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="prompt_filter: expected 0 <= low <= high <= 1"):
        PromptFilter("strict", low, high)


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan")])
def test_gradient_norms_that_stop_or_turn_training_are_refused(norm: float) -> None:
    with pytest.raises(ValueError, match=f"policy_clip_norm must be above 0, not {norm}: .* `.inf` clips nothing"):
        make_module(policy_clip_norm=norm)
    with pytest.raises(ValueError, match="prm_clip_norm must be above 0"):
        make_module(prm_clip_norm=norm)
    make_module(prm_clip_norm=float("inf"))


@pytest.mark.parametrize(
    "options",
    [
        {"objective": IRL(weighting="per_position")},
        {"objective": Discriminator(form="token")},
        {"advantage": Advantage(prm_estimator="position")},
    ],
)
def test_what_compares_tokens_takes_no_step_rewards(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"prm\.granularity 'step' rewards the last token of each step alone"):
        make_module(prm=PRM(granularity="step"), **options)
    make_module(prm=PRM(), **options)


def test_experts_outside_z_may_be_moved() -> None:
    assert IRL(corrected="move").corrected == "move"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prm": None}, "without prm and without verifier there is nothing to learn from"),
        ({"prompt_filter": PromptFilter(kind="strict")}, "prompt_filter 'strict' needs a verifier"),
        ({"prompt_filter": PromptFilter(kind="reorder_half")}, "prompt_filter 'reorder_half' needs a verifier"),
        ({"eval_temperature": -0.5}, "eval_temperature must not be negative"),
        ({"eval_temperature": float("nan")}, "eval_temperature must not be negative"),
        ({"samples": 0}, "samples must be at least 1, not 0"),
    ],
)
def test_modules_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_module(**options)


def test_a_prm_or_a_verifier_is_enough() -> None:
    assert make_module(prm=PRM()).actor.verifier is None
    assert make_module(prm=None, verifier=EvenDigits()).prm is None
    make_module(verifier=EvenDigits(), prompt_filter=PromptFilter(kind="strict"))


def test_a_softmax_per_position_over_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="'per_position' is defined per prompt"):
        run(make_module(objective=IRL(weighting="per_position", scope="batch")))


def test_the_irl_objective_and_its_function_have_the_same_defaults() -> None:
    of_class, of_function = (signature(each).parameters for each in (IRL.__init__, irl_coefficients))
    shared = {
        name for name, parameter in of_function.items() if name in of_class and parameter.default is not parameter.empty
    }
    assert shared == {"weighting", "scope", "experts_in_z", "rhat", "temperature", "truncate"}
    assert {name: of_class[name].default for name in shared} == {name: of_function[name].default for name in shared}
