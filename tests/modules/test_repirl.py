"""rePIRL through a real Trainer: counting, resuming, sets, filters, failures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from repirl.data.prompts import CurriculumSampler
from repirl.learning.batch import batch_of
from repirl.learning.prm_objectives import IRL, Discriminator, Prime, PRMObjective, StepCrossEntropy
from repirl.learning.prompt_filter import PromptFilter, keep_prompts
from repirl.learning.schedule import Schedule
from repirl.learning.settings import Advantage, Surrogate
from repirl.models.prm import PRM
from repirl.modules.repirl import RePIRL
from repirl.rollout.transformers import InProcess
from repirl.structs import Problem, Response, Verdict, Verifier
from tests.modules.tiny import (
    ADAM,
    BROKEN,
    RIGHT,
    TEXT,
    WRONG,
    Always,
    Containing,
    EvenDigits,
    Problems,
    Run,
    distance,
    make_data,
    make_module,
    make_policy,
    problems,
    run,
    start_weights,
    with_experts,
)

CONFIGS = Path(__file__).parents[2] / "configs"
PRM_ONLY = Advantage(outcome_coef=0.0, prm_coef=1.0, prm_estimator="prime")
OUTCOME_ONLY = Advantage(outcome_coef=1.0, prm_coef=0.0)
SEVERAL = Schedule(prm_updates=2, policy_mini_batches=2)


def adam_module(**options: Any) -> RePIRL:
    return make_module(**({"verifier": EvenDigits(), "policy_optimizer": ADAM, "prm_optimizer": ADAM} | options))


# ---- counting, resuming, repeating ----


class CountSteps(Callback):
    """Counts what the optimisers did, and where `global_step` stood at the end of each iteration."""

    def __init__(self) -> None:
        self.optimiser_steps, self.global_steps = 0, []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.optimiser_steps += 1

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.global_steps.append(trainer.global_step)


def test_global_step_counts_iterations() -> None:
    counted = CountSteps()
    done = run(adam_module(schedule=SEVERAL), steps=3, callbacks=[counted])
    assert counted.global_steps == [1, 2, 3]
    assert counted.optimiser_steps == 3 * (2 + 2)  # two PRM passes, two policy mini-batches
    assert done.trainer.global_step == 3
    assert [figures["step"] for figures in done.figures] == [0, 1, 2]


@pytest.mark.parametrize("stop", [2, 3])  # 2 is the end of an epoch of 8 prompts, 3 its middle
def test_a_resumed_run_equals_an_uninterrupted_one(stop: int, tmp_path: Path) -> None:
    def make() -> RePIRL:
        return adam_module(prm=PRM(kind="head"), schedule=SEVERAL, surrogate=Surrogate(kl_coef=0.01))

    whole = run(make(), make_data(with_experts()), steps=4)
    first = run(make(), make_data(with_experts()), steps=stop)
    first.trainer.save_checkpoint(tmp_path / "some.ckpt")
    assert distance(first.weights, whole.weights, "policy.") > 0
    counted = CountSteps()
    path = tmp_path / "some.ckpt"
    second = run(make(), make_data(with_experts()), steps=4, seed=99, ckpt_path=path, callbacks=[counted])
    assert counted.global_steps == list(range(stop + 1, 5))
    assert distance(second.weights, whole.weights) == 0
    assert first.figures + second.figures == whole.figures


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    whole = run(adam_module(), steps=2)
    whole.trainer.save_checkpoint(tmp_path / "some.ckpt")
    again = run(adam_module(), steps=2, ckpt_path=tmp_path / "some.ckpt")
    assert again.figures == []
    assert distance(again.weights, whole.weights) == 0


def test_one_seed_gives_one_run_and_another_seed_another() -> None:
    first, second = (run(adam_module(schedule=SEVERAL), steps=2) for _ in range(2))
    assert distance(first.weights, second.weights) == 0
    assert first.figures == second.figures
    other = run(adam_module(schedule=SEVERAL, seed=1), steps=2)
    assert distance(first.weights, other.weights, "policy.") > 1e-4
    assert distance(first.weights, other.weights, "prm.") > 1e-4


OBJECTIVES = [
    IRL(),
    IRL(weighting="per_position"),
    IRL(weighting="per_position", reward_penalty=0.5),
    Discriminator(),
    Discriminator(form="token"),
    Discriminator(logit="gail"),
    Prime(),
    StepCrossEntropy(),
]
every_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{type(o).__name__} {vars(o)}"[:60])


@every_objective
def test_micro_batches_do_not_change_the_gradient(objective: PRMObjective) -> None:
    def weights(budget: int) -> dict[str, torch.Tensor]:
        module = make_module(
            verifier=EvenDigits(),
            objective=objective,
            micro_batch_tokens=budget,
            schedule=SEVERAL,
            policy_clip_norm=1e9,
            prm_clip_norm=1e9,
        )
        return run(module, make_data(with_experts())).weights

    whole = weights(10**6)
    start = start_weights(make_module(objective=objective, verifier=EvenDigits()))
    assert distance(whole, start, "policy.") > 1e-3
    for budget in (1, 37):  # each row by itself; micro-batches of unequal size
        assert distance(weights(budget), whole) < 1e-6, budget


AGGREGATIONS = ["token_mean", "sequence_mean", "sequence_sum", "constant"]


def of_aggregation(aggregation: Any, **options: Any) -> Run:
    """One iteration on outcomes alone; A = r - mean of the other rows'."""
    advantage = replace(OUTCOME_ONLY, whiten=False)
    surrogate = replace(Surrogate(), loss_aggregation=aggregation, **options.pop("surrogate", {}))
    slow = partial(torch.optim.SGD, lr=0.1)  # sums have large gradients, and a large step makes rounding grow
    settings: dict[str, Any] = {
        "prm": None,
        "verifier": EvenDigits(),
        "policy_clip_norm": 1e9,
        "policy_optimizer": slow,
    }
    return run(make_module(advantage=advantage, surrogate=surrogate, **settings, **options))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_micro_batches_do_not_change_the_aggregated_gradient(aggregation: Any) -> None:
    # mini-batches: each has its own denominator, and the second step is off policy
    schedule, surrogate = Schedule(policy_mini_batches=2), {"kl_coef": 0.1, "entropy_coef": 0.01}
    whole, *others = (
        of_aggregation(aggregation, schedule=schedule, surrogate=dict(surrogate), micro_batch_tokens=budget)
        for budget in (10**6, 1, 37)
    )
    start = start_weights(make_module(prm=None, verifier=EvenDigits(), surrogate=Surrogate(kl_coef=0.1)))
    assert distance(whole.weights, start, "policy.") > 1e-4
    for other in others:
        assert distance(other.weights, whole.weights) < 1e-6
        assert other.figures[0] == pytest.approx(whole.figures[0], rel=1e-4, abs=1e-6)


def test_aggregations_differ_by_what_they_divide_by() -> None:
    runs = {name: of_aggregation(name) for name in AGGREGATIONS}
    figures = {name: done.figures[0] for name, done in runs.items()}
    # 12 rollouts: token_mean divides by 12 x their mean length, sequence_sum by 12, constant by 12 x 10 (TEXT's limit)
    mean_length = figures["token_mean"]["rollout/response_tokens"]
    assert 1 < mean_length < 10
    for name in ("policy/loss", "policy/gradient_norm"):
        whole = figures["sequence_sum"][name]
        assert abs(whole) > 1e-3
        assert figures["token_mean"][name] * mean_length == pytest.approx(whole, rel=1e-4)
        assert figures["constant"][name] * TEXT.max_response_tokens == pytest.approx(whole, rel=1e-4)
        given = of_aggregation("constant", surrogate={"loss_length": 2.5}).figures[0][name]
        assert given * 2.5 == pytest.approx(whole, rel=1e-4)
    # Each response's token mean is its advantage, and those of a prompt add up to 0; the gradient does not.
    assert figures["sequence_mean"]["policy/loss"] == pytest.approx(0, abs=1e-6)
    assert figures["sequence_mean"]["policy/gradient_norm"] > 1e-3
    assert {f["policy/entropy"] for f in figures.values()} == {figures["token_mean"]["policy/entropy"]}  # a token mean


# ---- no outcome label in PRM-only training ----


def test_prm_only_training_reads_no_outcome_label() -> None:
    quickstart = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())["model"]["init_args"]
    assert quickstart["verifier"] is None
    assert quickstart["advantage"]["outcome_coef"] == 0

    def trained(train: list[Problem]) -> Any:
        module = adam_module(
            verifier=quickstart["verifier"],
            objective=IRL(**quickstart["objective"]["init_args"]),
            advantage=Advantage(**quickstart["advantage"]),
            surrogate=Surrogate(**quickstart["surrogate"]),
            schedule=Schedule(**quickstart["schedule"]),
        )
        return run(module, make_data(train), steps=2)

    right = trained(problems())
    assert distance(right.weights, start_weights(adam_module()), "policy.") > 1e-3
    answers = [p.answer for p in problems()]
    scrambled = trained([replace(p, answer=a) for p, a in zip(problems(), answers[1:] + answers[:1], strict=True)])
    unknown = trained([replace(p, answer=None) for p in problems()])
    for other in (scrambled, unknown):
        assert distance(other.weights, right.weights) == 0
        assert other.figures == right.figures
    assert not [name for figures in right.figures for name in figures if "accuracy" in name or "correct" in name]


# ---- every switch trains ----


def check_one_iteration(module: RePIRL) -> dict[str, float]:
    done = run(module, make_data(with_experts()))
    figures = done.figures[0]
    assert all(math.isfinite(value) for value in figures.values()), figures
    assert figures["prm/gradient_norm"] > 0
    assert figures["prm/prompts_used"] >= 1
    assert all(value.isfinite().all() for value in done.weights.values())
    return figures


KINDS: list[dict[str, Any]] = [
    {"kind": "q_head"},
    {"kind": "q_head", "rank": 2},
    {"kind": "q_head", "freeze_backbone": True},
    {"kind": "q_head", "granularity": "step"},
    {"kind": "logit_difference"},
    {"kind": "implicit", "beta": 0.05},
    {"kind": "head"},
    {"kind": "linear"},
]


@pytest.mark.parametrize("arguments", KINDS, ids=str)
def test_every_kind_of_prm_trains(arguments: dict[str, Any]) -> None:
    figures = check_one_iteration(make_module(prm=PRM(**arguments), verifier=EvenDigits()))
    assert ("prm/saturated" in figures) == (arguments["kind"] == "head")


@pytest.mark.parametrize("kind", ["q_head", "logit_difference"])
def test_lora_moves_adapters_of_policy_and_prm_and_nothing_else(kind: Any) -> None:
    policy = make_policy(lora={"r": 2, "target_modules": "all-linear"})
    module = adam_module(policy=policy, prm=PRM(kind=kind))
    before = start_weights(module)
    done = run(module, make_data(with_experts()))
    moved = {name for name, value in done.weights.items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in moved} == {"policy", "prm"}
    assert {name for name in moved if "lora_" not in name} == (
        {"prm.head.action.weight"} if kind == "q_head" else set()
    )
    assert {"policy/gradient_norm", "prm/gradient_norm"} <= done.figures[0].keys()


IRLS: list[dict[str, Any]] = [
    {"weighting": "sequence"},
    {"weighting": "length_normalized"},
    {"weighting": "uniform"},
    {"weighting": "per_position"},
    {"weighting": "sequence", "scope": "batch"},
    {"experts_in_z": True},
    {"weighting": "length_normalized", "scope": "batch", "experts_in_z": False},
    {"weighting": "uniform", "scope": "batch", "rhat": "Rbar"},
    {"rhat": "Rbar", "temperature": 2.0, "truncate": 0.4},
    {"corrected": "copy", "expert_weight": 3.0, "experts_in_z": True},
    {"corrected": "move", "experts_in_z": False},
    {"corrected": "ignore"},
    {"base_measure": "uniform"},
    {"base_measure": "uniform", "weighting": "per_position"},
]


@pytest.mark.parametrize("arguments", IRLS, ids=str)
def test_every_irl_setting_trains(arguments: dict[str, Any]) -> None:
    check_one_iteration(make_module(objective=IRL(**arguments), verifier=EvenDigits()))


@pytest.mark.parametrize(
    "objective",
    [
        Discriminator(base_measure="reference"),
        Discriminator(form="token", corrected="move"),
        Discriminator(logit="gail", form="token", expert_weight=2.0),
        Prime(),
        StepCrossEntropy(),
    ],
    ids=lambda o: f"{type(o).__name__} {vars(o)}"[:60],
)
def test_every_other_objective_trains(objective: PRMObjective) -> None:
    # Right is what holds a 7: unlike the parity of digits, one token's reward can tell it.
    verifier = Containing("7")
    module = adam_module(objective=objective, verifier=verifier, schedule=Schedule(prm_updates=4, policy_starts=99))
    done = run(module, make_data(with_experts(), batch_prompts=8), steps=6)
    losses = [figures["prm/loss"] for figures in done.figures]
    assert all(math.isfinite(value) for figures in done.figures for value in figures.values())
    assert 0 <= losses[-1] < losses[0]  # cross-entropies all
    assert done.figures[0]["prm/gradient_norm"] > 0


def test_a_penalty_is_added_to_coefficients_and_loss() -> None:
    rewards = torch.tensor([[1.0, -2.0], [3.0, 9.0]])
    batch = batch_of(
        response_mask=torch.tensor([[True, True], [True, False]]),
        group=torch.zeros(2, dtype=torch.long),
        is_expert=torch.tensor([True, False]),
        behaviour_log_probs=torch.zeros(2, 2),
    )
    without, found = (IRL(base_measure="uniform", reward_penalty=p).coefficients(batch, rewards) for p in (0.0, 0.6))
    # one expert and one rollout: -1 and +1; 2 x 0.6 / 3 tokens = 0.4 times the reward; 0.6 x (1 + 4 + 9) / 3 in the loss
    torch.testing.assert_close(without.token, torch.tensor([[-1.0, -1.0], [1.0, 0.0]]))
    torch.testing.assert_close(found.token - without.token, torch.tensor([[0.4, -0.8], [1.2, 0.0]]))
    torch.testing.assert_close(found.loss - without.loss, torch.tensor(2.8))


def test_the_discount_reaches_the_policy() -> None:
    def weights(discount: float) -> dict[str, torch.Tensor]:
        advantage = replace(PRM_ONLY, prm_discount=discount)
        return run(adam_module(advantage=advantage), make_data(with_experts())).weights

    near, far = weights(0.0), weights(1.0)
    assert distance(near, far, "prm.") == 0  # it is updated before
    assert distance(near, far, "policy.") > 1e-4


def test_the_policy_follows_the_distribution_of_irl_and_the_reward_of_the_others() -> None:
    def weights(objective: PRMObjective, coefficient: float | None) -> dict[str, torch.Tensor]:
        advantage = replace(PRM_ONLY, prm_estimator="rloo_per_step", maxent_coef=coefficient)
        module = make_module(objective=objective, advantage=advantage, verifier=EvenDigits(), samples=4)
        return run(module, make_data(with_experts()), steps=2).weights

    objectives = [IRL(), Discriminator(), Discriminator(logit="gail"), Prime()]
    for objective, coefficient in zip(objectives, [1.0, 0.0, 0.0, 0.0], strict=True):
        meant = weights(objective, None)
        assert distance(meant, weights(objective, coefficient), "policy.") == 0
        assert distance(meant, weights(objective, 1 - coefficient), "policy.") > 1e-4


@pytest.mark.parametrize("base_measure", ["uniform", "reference"])
def test_where_the_prm_says_nothing_the_maxent_term_leads_to_the_base_measure(base_measure: Any) -> None:
    module = make_module(
        advantage=replace(PRM_ONLY, prm_estimator="rloo_per_step", maxent_coef=1.0),
        objective=IRL(base_measure=base_measure),
        surrogate=Surrogate(),
        schedule=Schedule(prm_updates=0),
        samples=8,
    )
    before = start_weights(module)
    done = run(module, make_data(with_experts()), steps=5)
    if base_measure == "reference":  # where it is already
        assert distance(done.weights, before, "policy.") == 0
    else:
        assert done.figures[-1]["policy/entropy"] > done.figures[0]["policy/entropy"] + 0.01


@pytest.mark.parametrize("estimator", ["position", "rloo", "rloo_per_step"])
def test_one_rollout_a_prompt_is_compared_with_its_experts_by_position(estimator: Any) -> None:
    """Without whitening, which would compare it with the rollouts of other prompts."""
    advantage = replace(PRM_ONLY, prm_estimator=estimator, alone="drop", whiten=False)
    module = adam_module(advantage=advantage, surrogate=Surrogate(), samples=1)
    before = start_weights(module)
    done = run(module, make_data(with_experts()))
    assert (distance(done.weights, before, "policy.") > 1e-3) == (estimator == "position")


@pytest.mark.parametrize("objective", [Prime(), StepCrossEntropy()])
def test_objectives_that_learn_from_outcomes_need_a_verifier(objective: PRMObjective) -> None:
    with pytest.raises(
        ValueError, match=f"objective {type(objective).__name__} learns from outcomes: it needs a verifier"
    ):
        make_module(objective=objective, advantage=PRM_ONLY)


def test_prime_reads_outcomes_and_no_expert() -> None:
    def weights(train: list[Problem]) -> dict[str, torch.Tensor]:
        module = make_module(objective=Prime(), verifier=EvenDigits())
        return run(module, make_data(train, require_experts=False), steps=2).weights

    without = weights([replace(p, solutions=()) for p in problems()])
    assert distance(weights(with_experts()), without, "prm.") < 1e-6
    assert distance(without, start_weights(make_module(objective=Prime(), verifier=EvenDigits())), "prm.") > 1e-3


@pytest.mark.parametrize("arguments", [{"kind": "q_head"}, {"kind": "implicit"}], ids=str)
def test_a_frozen_prm_from_a_checkpoint_scores_as_it_did(arguments: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "trained.ckpt"
    trained = run(make_module(prm=PRM(**arguments)), steps=3)
    trained.trainer.save_checkpoint(path)
    frozen = run(make_module(prm=PRM(**arguments, weights=str(path)), schedule=Schedule(prm_updates=0)), steps=2)
    assert distance(frozen.weights, trained.weights, "prm.") == 0
    assert distance(frozen.weights, trained.weights, "policy.") > 0  # the policy started anew, and moved
    assert "prm/gradient_norm" not in frozen.figures[0]
    assert frozen.figures[0]["prm/reward_policy"] != 0  # a fresh PRM would give 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file: .*none.ckpt; give the checkpoint"),
        ({"policy.x": torch.zeros(1)}, "does not fit kind 'q_head': it holds no PRM"),
        ({"prm.head.action.weight": torch.zeros(2, 2)}, "does not fit kind 'q_head': its PRM has another kind or size"),
    ],
)
def test_weights_that_do_not_fit_are_named(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "none.ckpt"
    if content is not None:
        torch.save({"state_dict": content}, path)
    with pytest.raises(ValueError, match=message):
        run(make_module(prm=PRM(weights=str(path))))


def test_kl_of_the_first_step_is_zero_and_then_positive() -> None:
    module = make_module(surrogate=Surrogate(kl_coef=0.1), verifier=EvenDigits())
    first, second = run(module, steps=2).figures
    assert first["policy/kl"] == pytest.approx(0, abs=1e-6)
    assert second["policy/kl"] > 1e-6


def test_kl_keeps_the_policy_near_its_start() -> None:
    figures = [
        run(make_module(surrogate=Surrogate(kl_coef=c), verifier=EvenDigits()), steps=8).figures for c in (1e-9, 0.3)
    ]
    free, held = (rows[-1]["policy/kl"] for rows in figures)
    assert held < free


@pytest.mark.parametrize("estimator", ["rloo", "rloo_per_step", "grpo", "grpo_per_step", "dr_grpo"])
def test_every_estimator_trains(estimator: Any) -> None:
    advantage = Advantage(outcome_estimator=estimator, prm_estimator=estimator, format_coef=0.5, alone="drop")
    check_one_iteration(make_module(advantage=advantage, verifier=EvenDigits()))


def test_corrected_rollouts_become_pseudo_experts() -> None:
    def share(corrected: Any, verifier: Verifier) -> float:
        irl = IRL(corrected=corrected, experts_in_z=False)
        return run(make_module(objective=irl, verifier=verifier)).figures[0]["prm/expert_share"]

    assert share("copy", RIGHT) == pytest.approx(1 / 4)  # one expert and three right rollouts a prompt
    assert share("ignore", RIGHT) == pytest.approx(1.0)
    # `move` takes every right rollout out of Z: no background is left, and no prompt is used.
    moved = run(make_module(objective=IRL(corrected="move", experts_in_z=False), verifier=RIGHT)).figures[0]
    assert (moved["prm/prompts_used"], moved["prm/prompts_skipped"]) == (0, 4)


# ---- groups without contrast, filters ----


@pytest.mark.parametrize("verifier", [RIGHT, WRONG], ids=["right", "wrong"])
@pytest.mark.parametrize("estimator", ["rloo", "rloo_per_step", "grpo", "grpo_per_step", "dr_grpo"])
def test_equal_outcomes_do_not_move_the_policy(verifier: Always, estimator: Any) -> None:
    # `drop`: else, per step, a rollout longer than all others has no baseline on its tail, see the next test.
    alone = "drop" if estimator.endswith("per_step") else "zero_baseline"
    advantage = replace(OUTCOME_ONLY, outcome_estimator=estimator, alone=alone)
    done = run(make_module(prm=None, verifier=verifier, advantage=advantage, surrogate=Surrogate()), steps=2)
    figures = done.figures[0]
    assert figures["rollout/accuracy"] == float(verifier is RIGHT)
    assert (figures["prompts/all_right"], figures["prompts/all_wrong"]) == ((4, 0) if verifier is RIGHT else (0, 4))
    assert figures["policy/gradient_norm"] == 0
    assert distance(done.weights, start_weights(make_module(prm=None, verifier=verifier))) == 0


def test_right_rollouts_move_the_policy_only_where_no_other_is_active() -> None:
    def gradient(samples: int, verifier: Always, estimator: Any = "rloo_per_step") -> float:
        advantage = replace(OUTCOME_ONLY, outcome_estimator=estimator, whiten=False)
        module = make_module(prm=None, verifier=verifier, advantage=advantage, surrogate=Surrogate(), samples=samples)
        return run(module).figures[0]["policy/gradient_norm"]

    assert gradient(3, RIGHT) > 0  # `zero_baseline` counts 1 on the tail of each prompt's longest rollout
    assert gradient(1, RIGHT) > 0  # a single rollout has no other
    assert gradient(3, RIGHT, "rloo") == 0  # the others count, however short they are
    assert gradient(1, RIGHT, "rloo") > 0
    assert gradient(3, WRONG) == gradient(1, WRONG) == 0


def test_keep_prompts() -> None:
    nan = float("nan")
    accuracy = torch.tensor([0.0, 0.5, nan, 1.0, 0.2, 0.8, 0.9])
    assert keep_prompts(accuracy, PromptFilter()).tolist() == [0, 1, 2, 3, 4, 5, 6]
    # the range is closed; what is unknown is outside
    strict = PromptFilter(kind="strict", low=0.25, high=0.9)
    assert keep_prompts(torch.tensor([0.25, 0.5, nan, 1.0, 0.875, 0.0]), strict).tolist() == [0, 1, 4]
    assert keep_prompts(torch.tensor([0.0, nan, 1.0]), strict).tolist() == []
    half = PromptFilter(kind="reorder_half", low=0.25, high=0.9)
    # those within first, in order: 1, 4; then the others in order; half of 5 prompts, rounded up
    assert keep_prompts(torch.tensor([0.0, 0.5, nan, 1.0, 0.75]), half).tolist() == [1, 4, 0]
    assert keep_prompts(torch.tensor([nan, 1.0, 0.5, 0.5]), half).tolist() == [2, 3]
    assert keep_prompts(torch.tensor([nan, 1.0, 0.0, nan]), half).tolist() == [0, 1]
    assert keep_prompts(torch.tensor([]), half).tolist() == []


@pytest.mark.parametrize("schedule", [Schedule(), Schedule(2, 2, 2, 2)], ids=["one", "several"])
def test_a_filter_that_keeps_no_prompt_updates_nothing(schedule: Schedule) -> None:
    module = make_module(verifier=WRONG, prompt_filter=PromptFilter(kind="strict"), schedule=schedule)
    done = run(module, steps=2)
    assert done.trainer.global_step == 2
    assert [figures["prompts/kept"] for figures in done.figures] == [0, 0]
    assert all(math.isfinite(value) for figures in done.figures for value in figures.values())
    assert distance(done.weights, start_weights(make_module(verifier=WRONG))) == 0


def test_the_filter_keeps_prompts_within_its_range() -> None:
    seed = 7  # two of its four prompts are all right
    everything = run(make_module(verifier=EvenDigits(), seed=seed)).figures[0]
    extreme = everything["prompts/all_right"] + everything["prompts/all_wrong"]
    assert 0 < extreme < 4
    kept = run(make_module(verifier=EvenDigits(), seed=seed, prompt_filter=PromptFilter(kind="strict"))).figures[0]
    assert kept["prompts/kept"] == 4 - extreme  # of three rollouts one or two are right: 1/3 or 2/3
    assert kept["prm/prompts_used"] == 4 - extreme
    assert kept["rollout/accuracy"] == everything["rollout/accuracy"]  # of all rollouts, also of filtered prompts
    half = run(make_module(verifier=EvenDigits(), seed=seed, prompt_filter=PromptFilter(kind="reorder_half"))).figures[
        0
    ]
    assert half["prompts/kept"] == 2


# ---- experts ----


def test_a_batch_without_experts_skips_the_prm() -> None:
    train = [replace(p, solutions=()) for p in problems()]
    done = run(make_module(advantage=PRM_ONLY), make_data(train, require_experts=False), steps=2)
    assert [(f["prm/prompts_used"], f["prm/prompts_skipped"]) for f in done.figures] == [(0, 4), (0, 4)]
    assert distance(done.weights, start_weights(make_module()), "prm.") == 0
    assert done.trainer.global_step == 2


def test_prompts_without_experts_are_skipped_one_by_one() -> None:
    train = [replace(p, solutions=p.solutions if n % 4 else ()) for n, p in enumerate(problems())]
    done = run(make_module(advantage=PRM_ONLY), make_data(train, batch_prompts=8, require_experts=False))
    assert (done.figures[0]["prm/prompts_used"], done.figures[0]["prm/prompts_skipped"]) == (6, 2)


def test_wrong_experts_are_dropped_or_join_the_background() -> None:
    dropped = run(make_module(verifier=WRONG)).figures[0]
    assert dropped["prompts/experts_dropped"] == 4  # the only one of each of 4 prompts
    assert "prm/reward_expert" not in dropped
    assert dropped["prm/prompts_skipped"] == 4
    kept = run(make_module(verifier=WRONG, objective=IRL(wrong_experts="background"))).figures[0]
    assert kept["prompts/experts_dropped"] == 0
    assert "prm/reward_expert" in kept
    assert kept["prm/prompts_skipped"] == 4  # in the background they are no positives
    assert "prm/expert_share" not in kept  # there is nothing to have a share of


class OnlyTheFirstSolution(Verifier):
    """Right is the first written solution."""

    asked: list[str]

    def __init__(self) -> None:
        self.asked = []

    def verify(self, given: Any, responses: Any) -> list[Verdict]:
        self.asked += [text for problem, text in zip(given, responses, strict=True) if text in problem.solutions]
        right = [text == problem.solutions[0] for problem, text in zip(given, responses, strict=True)]
        return [Verdict(r, "equal" if r else "not_equal") for r in right]

    def close(self) -> None:
        """Nothing to end."""


def test_a_wrong_expert_leaves_the_right_ones_and_experts_are_judged_once() -> None:
    verifier = OnlyTheFirstSolution()
    train = [replace(p, solutions=(*p.solutions, "\\boxed{b0c0d0}")) for p in problems(4)]
    first, second = run(make_module(verifier=verifier), make_data(train), steps=2).figures
    assert first["prompts/experts_dropped"] == second["prompts/experts_dropped"] == 4
    assert first["prm/prompts_used"] == 4
    assert len(verifier.asked) == 8  # four prompts, two experts each, in two iterations over the same prompts
    # Where the only difference is an expert in the background, the PRM learns something else.
    other = run(make_module(verifier=verifier, objective=IRL(wrong_experts="background")), make_data(train), steps=2)
    assert other.figures[1]["prm/ranking_loss"] != second["prm/ranking_loss"]


def test_a_failing_verifier_is_not_a_wrong_answer() -> None:
    done = run(make_module(verifier=BROKEN, advantage=OUTCOME_ONLY, surrogate=Surrogate()))
    figures = done.figures[0]
    assert figures["rollout/unscorable"] == 1.0
    assert "rollout/accuracy" not in figures
    assert figures["prompts/all_wrong"] == figures["prompts/all_right"] == figures["prompts/experts_dropped"] == 0
    assert figures["prm/prompts_used"] == 4  # the experts still count
    assert figures["policy/gradient_norm"] == 0
    assert all(value.isfinite().all() for value in done.weights.values())


# ---- failures ----


class Poison(Callback, InProcess):
    """Sets a weight to NaN in an iteration: after its rollouts, so that only the training forwards see it."""

    def __init__(self, part: str, iteration: int) -> None:
        super().__init__()
        InProcess.__init__(self)
        self.part, self.iteration, self.weight = part, iteration, None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self.iteration:
            module = getattr(pl_module, self.part)
            self.weight = module.head.action.weight if self.part == "prm" else module.head_weight

    def generate(self, *args: Any, **kwargs: Any) -> list[list[Response]]:
        responses = super().generate(*args, **kwargs)
        if self.weight is not None:
            with torch.no_grad():
                self.weight[:] = float("nan")
        return responses


@pytest.mark.parametrize(
    ("part", "options"),
    [
        ("prm", {}),
        ("prm", {"schedule": Schedule(prm_stops=0)}),
        ("policy", {}),
        ("policy", {"prm": None, "advantage": OUTCOME_ONLY}),
    ],
    ids=["prm", "frozen prm", "policy", "policy alone"],
)
def test_nan_stops_the_run_and_leaves_the_checkpoint(part: str, options: dict[str, Any], tmp_path: Path) -> None:
    saved = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    poison = Poison(part, iteration=2)
    module = make_module(verifier=EvenDigits(), rollout=poison, **options)
    with pytest.raises(FloatingPointError, match=r"^iteration 2: .*NaN.* for all prompts"):
        run(module, steps=4, callbacks=[saved, poison], enable_checkpointing=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=1.ckpt", "step=2.ckpt"]
    state = torch.load(tmp_path / "step=2.ckpt", weights_only=False)
    assert state["global_step"] == 2
    assert all(value.isfinite().all() for value in state["state_dict"].values())
    clean = run(make_module(verifier=EvenDigits(), **options), steps=2)
    assert distance(state["state_dict"], clean.weights) == 0


def test_the_prompts_of_single_rows_are_named() -> None:
    """The PRM knows no reward for one token: the rows that hold it are named, and they are not all."""

    class OneToken(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            token = pl_module.policy.tokenizer.convert_tokens_to_ids("d")
            with torch.no_grad():
                pl_module.prm.head.action.weight[token] = float("nan")

    module = make_module(verifier=EvenDigits(), samples=1, prompt_filter=PromptFilter())
    with pytest.raises(FloatingPointError, match=r"the PRM's reward is NaN or infinite for prompt 'running-sums/"):
        run(module, make_data(problems(64), batch_prompts=32), callbacks=[OneToken()])


class InfiniteGradient(Callback):
    """Makes a gradient infinite."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        first = optimizer.param_groups[0]["params"][0]
        if first.grad is not None:
            first.grad.fill_(float("inf"))


def test_an_infinite_gradient_stops_the_run() -> None:
    module = make_module(verifier=EvenDigits())
    with pytest.raises(FloatingPointError, match=r"iteration 0, prm: the gradient norm is (inf|nan)"):
        run(module, callbacks=[InfiniteGradient()])
    assert distance(module.state_dict(), start_weights(make_module(verifier=EvenDigits()))) == 0


# ---- curriculum, evaluation ----


class Listening(CurriculumSampler):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[list[str], list[float]]] = []

    def update(self, ids: Any, accuracies: Any) -> None:
        self.told.append((list(ids), list(accuracies)))
        super().update(ids, accuracies)


def test_the_curriculum_hears_of_accuracies() -> None:
    sampler = Listening()
    done = run(make_module(verifier=EvenDigits()), make_data(sampler=sampler), steps=2)
    assert len(sampler.told) == 2
    known = {p.id for p in problems()}
    for (ids, accuracies), figures in zip(sampler.told, done.figures, strict=True):
        assert len(set(ids)) == 4
        assert set(ids) <= known
        assert all(round(3 * a, 5) in (0, 1, 2, 3) for a in accuracies)  # of three rollouts
        assert sum(accuracies) / 4 == pytest.approx(figures["rollout/accuracy"])
    assert set(sampler.told[0][0]).isdisjoint(sampler.told[1][0])  # prompts never drawn come first


def test_the_curriculum_hears_nothing_where_nothing_is_known() -> None:
    for verifier, told in ((None, []), (BROKEN, [([], [])])):
        sampler = Listening()
        run(make_module(verifier=verifier, advantage=PRM_ONLY), make_data(sampler=sampler))
        assert sampler.told == told


def validated(module: RePIRL, **options: Any) -> dict[str, float]:
    data = make_data(val=Problems(problems(6, "val")), eval_batch_prompts=4, **options)
    trainer = run(module, data, limit_val_batches=1.0).trainer
    return dict(trainer.validate(module, data, verbose=False)[0])


def test_validation_without_a_verifier_has_no_accuracy() -> None:
    found = validated(make_module(advantage=PRM_ONLY))
    assert found.keys() == {
        f"val/{kind}_{name}" for kind in ("greedy", "sampled") for name in ("tokens", "truncated", "unparsable")
    }
    assert 1 <= found["val/greedy_tokens"] <= 10


def test_validation_with_a_verifier_has_greedy_and_sampled_accuracy() -> None:
    found = validated(make_module(verifier=EvenDigits(), eval_samples=4))
    assert 0 < found["val/sampled_accuracy"] < 1
    assert 0 <= found["val/greedy_accuracy"] <= 1
    assert round(6 * found["val/greedy_accuracy"], 5) % 1 == 0  # of six problems
    assert round(24 * found["val/sampled_accuracy"], 5) % 1 == 0  # of six problems, four samples each
    assert 0 <= found["val/auroc_correct_failed"] <= 1
    assert validated(make_module(verifier=RIGHT))["val/greedy_accuracy"] == 1
    assert "val/greedy_accuracy" not in validated(make_module(verifier=BROKEN))


@pytest.mark.parametrize("with_prm", [True, False])
def test_predict_gives_a_record_a_problem(with_prm: bool) -> None:
    wanted = [replace(p, answer=None if n == 0 else p.answer, solutions=()) for n, p in enumerate(problems(5, "test"))]
    module = make_module(verifier=EvenDigits(), prm=PRM() if with_prm else None)
    data = make_data(predict=Problems(wanted), eval_batch_prompts=2)
    done = run(module, data)
    records = [r for batch in done.trainer.predict(module, data) for r in batch]
    assert [(r["id"], r["problem"]) for r in records] == [(p.id, p.text) for p in wanted]
    assert records[0]["verdict"] is None  # no gold answer, nothing to verify
    for problem, record in zip(wanted, records, strict=True):
        rewards = record["prm_token_rewards"]
        if with_prm:
            assert len(rewards) == record["tokens"] >= 1
            assert record["prm_mean_reward"] == pytest.approx(sum(rewards) / len(rewards))
        else:
            assert rewards is None
            assert record["prm_mean_reward"] is None
        if problem.answer is not None:
            right = sum(c.isdigit() for c in record["response"]) % 2 == 0
            assert record["verdict"] == {"correct": right, "status": "equal" if right else "not_equal"}
    assert not with_prm or any(value for record in records for value in record["prm_token_rewards"])


class Counting(EvenDigits):
    """Keeps how many texts each call brought."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        self.calls.append(len(responses))
        return super().verify(problems, responses)


def test_experts_are_judged_at_once_and_only_where_a_prm_learns_from_them() -> None:
    without, beside = Counting(), Counting()
    figures = run(make_module(prm=None, verifier=without, surrogate=Surrogate(kl_coef=0.1))).figures[0]
    rollouts = without.calls[0]
    assert without.calls == [rollouts]
    run(make_module(verifier=beside))
    assert len(beside.calls) == 2
    assert beside.calls[0] == rollouts
    assert 0 < beside.calls[1] < rollouts
    assert figures["policy/kl"] >= 0
    assert not {"prompts/experts_dropped", "prompts/with_experts"} & set(figures)


def test_a_frozen_prm_that_nothing_trained_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="schedule freezes a PRM whose head is untrained"):
        run(make_module(schedule=Schedule(prm_updates=0)))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="schedule freezes")
        run(make_module(schedule=Schedule(prm_updates=0), prm=PRM(kind="implicit")))
        run(make_module())
