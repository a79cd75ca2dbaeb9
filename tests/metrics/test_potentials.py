"""What a potential moves: Phi(s_{t+1}) - Phi(s_t) added to every token reward, Phi = 0 at the start and at the end.

R of every response stays as it is. No loss of whole responses can tell the two PRMs apart; every figure of steps can.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import repirl.metrics
from repirl.applications.prm_report import Scored, figures
from repirl.metrics import (
    auroc,
    auroc_within,
    best_of_n,
    brier_score,
    calibration_error,
    first_error_accuracy,
    prm_diagnostics,
    probe_figures,
    saturated_share,
    weighted_vote,
    wrong_step_accuracy,
    wrong_step_auroc,
)
from repirl.metrics.prm_bench import prm_bench_figures, step_confusion
from repirl.metrics.process_bench import first_below, process_bench_figures
from repirl.metrics.selection import (
    AGGREGATIONS,
    aggregated,
    expected_best_of_n,
    expected_vote,
    exponential_weights,
    subsets_of,
)
from repirl.objectives.advantages import leave_one_out, returns_to_go, rloo_advantage
from repirl.objectives.discriminator import discriminator_coefficients, gail_coefficients
from repirl.objectives.irl import irl_coefficients
from repirl.objectives.prm import penalty_coefficients, prime_coefficients, step_cross_entropy_coefficients
from repirl.objectives.reduce import response_means

RANDOM = torch.Generator().manual_seed(0)
LENGTHS = torch.tensor([3, 5, 2, 4, 5, 3, 4, 2, 5, 4, 3, 5])
MASK = torch.arange(5) < LENGTHS[:, None]
REWARDS = torch.randn(MASK.shape, generator=RANDOM, dtype=torch.float64) * MASK
GROUP = torch.arange(12) // 6
IS_EXPERT = torch.arange(12) % 6 == 5
OUTCOME = (torch.arange(12) % 2).double().masked_fill(IS_EXPERT, torch.nan)
LOG_RATIO = torch.randn(MASK.shape, generator=RANDOM, dtype=torch.float64) * MASK


def with_potential(rewards: Tensor, response_mask: Tensor, potential: Tensor) -> Tensor:
    """r_t + Phi(s_{t+1}) - Phi(s_t); potential: Phi of the state before each token, the first's and the end's are 0."""
    inner = potential.masked_fill(~response_mask, 0)
    inner[:, 0] = 0
    after = torch.cat([inner[:, 1:], torch.zeros_like(inner[:, :1])], 1)
    return (rewards + after - inner) * response_mask


MOVED = with_potential(REWARDS, MASK, 3 * torch.randn(MASK.shape, generator=RANDOM, dtype=torch.float64))


def same(one: Any, other: Any) -> bool:
    """Whether all tensors of two results, or two numbers, are equal up to rounding."""
    if isinstance(one, dict):
        return all(same(one[name], other[name]) for name in one)
    return torch.allclose(torch.as_tensor(one).double(), torch.as_tensor(other).double(), rtol=0, atol=1e-10)


def test_the_return_stays_and_the_tokens_do_not() -> None:
    assert same(REWARDS.sum(-1), MOVED.sum(-1))
    assert (REWARDS - MOVED).abs().max() > 1


# --- losses

SETS = {"group": GROUP, "positive_weight": IS_EXPERT.double(), "background": ~IS_EXPERT, "response_mask": MASK}


def irl(rewards: Tensor, **switches: Any) -> dict[str, Tensor]:
    found = irl_coefficients(rewards=rewards, log_ratio=LOG_RATIO, **SETS, **switches)
    return {"token": found.token, "ranking_loss": found.ranking_loss, "ess": found.ess}


def classified(rewards: Tensor, objective: Callable[..., Any], **arguments: Any) -> dict[str, Tensor]:
    found = objective(rewards=rewards, **SETS, **arguments)
    return {"token": found.token, "loss": found.loss}


def prime(rewards: Tensor) -> Tensor:
    return prime_coefficients(rewards=rewards, outcome=OUTCOME, response_mask=MASK).token


def by_steps(rewards: Tensor) -> Tensor:
    labels = torch.where(MASK, OUTCOME[:, None], torch.nan)
    return step_cross_entropy_coefficients(rewards=rewards, labels=labels, ends=MASK, response_mask=MASK).token


WHOLE: dict[str, Callable[[Tensor], Any]] = {
    **{weighting: partial(irl, weighting=weighting) for weighting in ("sequence", "length_normalized", "uniform")},
    "experts in Z": partial(irl, experts_in_z=True),
    "tempered": partial(irl, temperature=3.0),
    "truncated": partial(irl, truncate=0.4),
    "Rbar": partial(irl, rhat="Rbar"),
    "batch": partial(irl, scope="batch"),
    "discriminator": partial(classified, objective=discriminator_coefficients, form="sequence", log_ratio=LOG_RATIO),
    "GAIL": partial(classified, objective=gail_coefficients, form="sequence"),
    "Prime": prime,
}
OF_TOKENS: dict[str, Callable[[Tensor], Any]] = {
    "per_position": partial(irl, weighting="per_position"),
    "discriminator, token": partial(
        classified, objective=discriminator_coefficients, form="token", log_ratio=LOG_RATIO
    ),
    "GAIL, token": partial(classified, objective=gail_coefficients, form="token"),
    "step cross-entropy": by_steps,
    "penalty": lambda rewards: penalty_coefficients(rewards, MASK, 1.0),
}


@pytest.mark.parametrize("name", WHOLE)
def test_losses_of_whole_responses_cannot_tell(name: str) -> None:
    assert same(WHOLE[name](REWARDS), WHOLE[name](MOVED))


@pytest.mark.parametrize("name", OF_TOKENS)
def test_losses_of_tokens_can(name: str) -> None:
    assert not same(OF_TOKENS[name](REWARDS), OF_TOKENS[name](MOVED))


# --- advantages


def test_advantages_of_whole_responses_stay_and_those_by_step_get_another_baseline() -> None:
    """G_t loses Phi(s_t), which the action at t does not change: another variance, the same expectation."""
    rows = {"response_mask": MASK, "group": GROUP, "scorable": ~IS_EXPERT}
    assert same(rloo_advantage(rewards=REWARDS, **rows), rloo_advantage(rewards=MOVED, **rows))
    one, other = (leave_one_out(returns=returns_to_go(r, MASK), **rows) for r in (REWARDS, MOVED))
    assert same(one[:, 0], other[:, 0])
    assert not same(one, other)


# --- figures


def probes(rewards: Tensor) -> dict[str, Tensor]:
    """Four prompts: a real response and two hollow ones each."""
    means, totals = response_means(rewards, MASK).view(4, 3), rewards.sum(-1).view(4, 3)
    return probe_figures(means=means, totals=totals, lengths=LENGTHS.view(4, 3).double(), kinds=("empty", "copied"))


def diagnostics(rewards: Tensor) -> dict[str, Tensor]:
    means = response_means(rewards, MASK)
    return prm_diagnostics(mean_rewards=means, lengths=LENGTHS.double(), is_expert=IS_EXPERT, outcome=OUTCOME)


STEPS = {"step_mask": MASK, "is_wrong": MASK & (torch.rand(MASK.shape, generator=RANDOM) < 0.3)}
WRONG_STEPS = STEPS["is_wrong"][MASK].double()


def of_bin(rewards: Tensor) -> dict[str, Tensor]:
    """Confidence and labels of the steps whose probability is above one half."""
    probability = rewards[MASK].sigmoid()
    high = probability > 0.5
    return {"confidence": probability[high].sum()[None], "right": (1 - WRONG_STEPS)[high].sum()[None]}


def process_bench(rewards: Tensor) -> dict[str, Tensor]:
    """ProcessBench's figures at threshold 0, and the step that each solution is blamed for."""
    blamed, wrong = first_below(rewards, MASK, 0.0), STEPS["is_wrong"]
    first = torch.where(wrong.any(-1), wrong.int().argmax(-1), -1)
    return {"blamed": blamed, **process_bench_figures(predicted=blamed, first_error=first)}


def prm_bench(rewards: Tensor) -> dict[str, Tensor]:
    return prm_bench_figures(step_confusion(predicted_right=rewards > 0, step_mask=MASK, is_wrong=STEPS["is_wrong"]))


def expected_choices(rewards: Tensor) -> list[float]:
    """What 4 of the 12 are expected to give, chosen by Rbar and by a vote that it weighs."""
    means, right = response_means(rewards, MASK), (torch.arange(12) % 2).double()
    best = expected_best_of_n(scores=means, right=right, n=4)
    subsets = subsets_of(12, 4, most=100, seed=0)
    return [best, expected_vote(answers=ANSWERS, weights=exponential_weights(means), right=right, subsets=subsets)]


def chosen_by(aggregation: str) -> Callable[[Tensor], list[float]]:
    return lambda rewards: [
        aggregated(row[mask].tolist(), aggregation, tokens=int(mask.sum()))
        for row, mask in zip(rewards.sigmoid() if aggregation == "product" else rewards, MASK, strict=True)
    ]


ANSWERS = [str(n % 3) for n in range(12)]
OF_RESPONSES: dict[str, Callable[[Tensor], Any]] = {
    "prm_diagnostics": diagnostics,
    "probe_figures": probes,
    "auroc": lambda rewards: auroc(rewards.sum(-1), torch.arange(12) % 2 == 1),
    "auroc_within": lambda rewards: auroc_within(rewards.sum(-1), torch.arange(12) % 2 == 1, GROUP, 2),
    **{f"aggregated, {name}": chosen_by(name) for name in ("sum", "mean", "token_mean")},
    "best_of_n": lambda r: best_of_n(scores=r.sum(-1).view(3, 4), correct=(torch.arange(12) % 2).view(3, 4).double()),
    "expected_best_of_n, expected_vote": expected_choices,
    "weighted_vote": lambda rewards: weighted_vote(ANSWERS, response_means(rewards, MASK).tolist()),
}
OF_STEPS: dict[str, Callable[[Tensor], Any]] = {
    "wrong_step_auroc": lambda rewards: wrong_step_auroc(rewards[MASK], STEPS["is_wrong"][MASK]),
    "first_error_accuracy": lambda rewards: first_error_accuracy(step_rewards=rewards, **STEPS),
    "wrong_step_accuracy": lambda rewards: wrong_step_accuracy(step_rewards=rewards, **STEPS),
    "saturated_share": lambda rewards: saturated_share(rewards, MASK, 2.0),
    "brier_score": lambda rewards: brier_score(probabilities=rewards[MASK].sigmoid(), labels=1 - WRONG_STEPS),
    "calibration_error": lambda rewards: calibration_error(**of_bin(rewards), count=torch.tensor([1.0])),
    "first_below, process_bench_figures": process_bench,
    "step_confusion, prm_bench_figures": prm_bench,
    **{f"aggregated, {name}": chosen_by(name) for name in ("min", "last", "product")},
}
OF_NO_PRM = {  # figures of answers alone, and tools for figures that were computed before
    "bootstrap_interval", "correlation", "equivalence", "exact_sign_flip", "holm", "interquartile_mean", "majority_vote",
    "mean_interval", "mean_of_last", "paired_comparison", "paired_t_interval", "paired_t_test", "pass_at_k",
    "stratified_interval",
}  # fmt: skip


def test_every_figure_of_a_prm_is_here() -> None:
    functions = {name for name in repirl.metrics.__all__ if name[0].islower()}
    named = {part for name in OF_RESPONSES | OF_STEPS for part in name.split(", ")}
    assert functions <= OF_NO_PRM | named
    assert not OF_NO_PRM & named
    assert set(AGGREGATIONS) <= named


@pytest.mark.parametrize("name", OF_RESPONSES)
def test_figures_of_responses_stay(name: str) -> None:
    assert same(OF_RESPONSES[name](REWARDS), OF_RESPONSES[name](MOVED))


@pytest.mark.parametrize("name", OF_STEPS)
def test_figures_of_steps_move(name: str) -> None:
    assert not same(OF_STEPS[name](REWARDS), OF_STEPS[name](MOVED))


def test_of_the_report_of_a_prm_only_what_reads_whole_solutions_stays() -> None:
    """`repirl evaluate-prm`: correlations are of mean rewards; all else moves."""
    wrong = STEPS["is_wrong"]
    first = torch.where(wrong.any(-1), wrong.int().argmax(-1), -1)
    characters = torch.arange(60).view(12, 5) * MASK.double()
    one, other = (
        figures(Scored(rewards, MASK, first, wrong, MASK, characters), threshold=-1.0) for rewards in (REWARDS, MOVED)
    )
    assert {name for name in one if same(one[name], other[name])} == {"length_correlation", "step_count_correlation"}


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_potential_makes_any_step_figure_perfect_or_as_bad_as_can_be(sign: float) -> None:
    """An AUROC of .85 goes to 1 or 0, R untouched: inner rewards become what one likes, the last step pays for it.

    Traces of five steps of which the second or third is wrong; a step's reward is 1.5 lower where it is.
    """
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(200, 5, dtype=torch.bool)
    wrong = torch.zeros_like(mask)
    wrong[torch.arange(200), 1 + torch.arange(200) % 2] = True
    rewards = torch.randn(mask.shape, generator=generator, dtype=torch.float64) - 1.5 * wrong
    assert float(wrong_step_auroc(rewards.flatten(), wrong.flatten())) == pytest.approx(0.85, abs=0.02)
    wanted = torch.where(wrong, -sign * 50.0, 0.0).double()
    wanted[:, -1] = sign * 50 + rewards.sum(-1)
    wanted[:, 0] = rewards.sum(-1) - wanted[:, 1:].sum(-1)
    potential = torch.cat([torch.zeros(200, 1, dtype=torch.float64), (wanted - rewards).cumsum(-1)[:, :-1]], 1)
    moved = with_potential(rewards, mask, potential)
    assert same(moved.sum(-1), rewards.sum(-1))
    assert float(wrong_step_auroc(moved.flatten(), wrong.flatten())) == (1 if sign > 0 else 0)
    found = first_error_accuracy(step_rewards=moved, step_mask=mask, is_wrong=wrong)
    assert found == (1 if sign > 0 else 0)


def test_a_gauge_is_fixed_by_reading_the_rewards_as_a_policy() -> None:
    """Two soft-Q tables that differ by a constant per state: r = Q - V(s') differ by a potential, log softmax Q does not."""
    table = torch.randn(6, 3, generator=RANDOM, dtype=torch.float64)  # a chain of 6 states, 3 actions, one next state
    moved = table + torch.randn(6, 1, generator=RANDOM, dtype=torch.float64)

    def of_chain(q: Tensor) -> Tensor:
        values = q.logsumexp(-1)
        return q - torch.cat([values[1:], torch.zeros(1, dtype=torch.float64)])[:, None]

    assert not same(of_chain(table), of_chain(moved))
    assert same(table.log_softmax(-1), moved.log_softmax(-1))
