"""Default optimisers, and schedules stepped once an iteration, saved and resumed."""

from __future__ import annotations

import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LambdaLR, LinearLR, ReduceLROnPlateau, StepLR
from transformers import get_cosine_schedule_with_warmup

from repirl.cli import RepirlCLI
from repirl.learning.learning_rate import FineTuningAdamW, WarmupDecay
from repirl.learning.schedule import Schedule
from repirl.modules.repirl import RePIRL
from repirl.modules.sft import SFT
from tests.modules.tiny import TEXT, WRONG, EvenDigits, distance, make_data, make_module, make_policy, run, with_experts


def scheduled(policy: Any = None, prm: Any = None, rates: dict[str, float] | None = None, **options: Any) -> RePIRL:
    rates = {"policy": 1e-2, "prm": 4e-2} | (rates or {})
    return make_module(
        **{
            "verifier": EvenDigits(),
            "policy_optimizer": partial(torch.optim.AdamW, lr=rates["policy"]),
            "prm_optimizer": partial(torch.optim.AdamW, lr=rates["prm"]),
            "policy_scheduler": policy,
            "prm_scheduler": prm,
            **options,
        }
    )


def sft(policy: Any = None, rate: float = 1e-2) -> SFT:
    optimizer = partial(torch.optim.AdamW, lr=rate)
    return SFT(policy=make_policy(), policy_optimizer=optimizer, policy_scheduler=policy, text=TEXT)


def rates(figures: list[dict[str, float]], name: str = "policy/lr") -> list[float]:
    return [row[name] for row in figures]


def factors(iterations: int, **settings: Any) -> list[float]:
    """By the scheduler itself, of a rate of 1, over 8 iterations."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = WarmupDecay(optimizer, iterations=iterations, **settings)
    found = []
    for _ in range(8):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_warmup_and_decay() -> None:
    assert factors(4) == [1, 0.75, 0.5, 0.25, 0, 0, 0, 0]
    # up in 2 iterations, then from 1 to 0 in 4
    assert factors(6, warmup=2) == [0.5, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    assert factors(6, warmup=2, floor=0.2) == pytest.approx([0.5, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2])
    assert factors(3, warmup=4, decay="constant") == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    # (1 + cos(pi p)) / 2 at p = 0, 1/4, 1/2, 3/4, 1
    half = math.sqrt(0.5)
    assert factors(4, decay="cosine") == pytest.approx([1, (1 + half) / 2, 0.5, (1 - half) / 2, 0, 0, 0, 0], abs=1e-15)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup": -1}, "warmup must not be negative and floor between 0 and 1, not -1"),
        ({"floor": 1.5}, "not 0, 1.5"),
        ({"floor": float("nan")}, "not 0, nan"),
        ({"warmup": 4, "iterations": 4}, "4 iterations leave none for a linear decay after a warm-up of 4"),
        ({"iterations": 0, "decay": "cosine"}, "0 iterations leave none for a cosine decay"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WarmupDecay(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), **settings)


def test_schedules_step_once_an_iteration_whatever_the_optimiser_steps() -> None:
    module = scheduled(WarmupDecay, partial(WarmupDecay, warmup=2), schedule=Schedule(2, 2, 1, 2))
    figures = run(module, make_data(with_experts()), steps=4).figures
    assert rates(figures) == pytest.approx([1e-2, 0.75e-2, 0.5e-2, 0.25e-2])  # to 0 at max_steps
    assert rates(figures, "prm/lr") == pytest.approx([2e-2, 4e-2, 4e-2, 2e-2])


def test_rates_are_constant_without_a_schedule() -> None:
    figures = run(scheduled(prm=WarmupDecay), make_data(with_experts()), steps=3).figures
    assert rates(figures) == pytest.approx([1e-2] * 3)
    assert rates(figures, "prm/lr") == pytest.approx([4e-2, 4e-2 * 2 / 3, 4e-2 / 3])


def test_iterations_that_update_nothing_count_and_nobody_warns() -> None:
    module = scheduled(WarmupDecay, WarmupDecay, schedule=Schedule(prm_updates=0, policy_starts=2))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lr_scheduler.step.*")
        figures = run(module, steps=4).figures
    assert rates(figures)[2] == pytest.approx(0.5e-2)


def test_a_decay_without_an_end_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"policy_scheduler: its decay needs trainer\.max_steps, or iterations of its own"
    ):
        run(scheduled(WarmupDecay), max_steps=-1, max_epochs=1)
    figures = run(scheduled(partial(WarmupDecay, iterations=4)), max_steps=-1, max_epochs=1).figures
    assert rates(figures) == pytest.approx([1e-2, 0.75e-2])
    run(sft(partial(WarmupDecay, decay="constant", warmup=2)), max_steps=-1, max_epochs=1)


@pytest.mark.parametrize("module", [scheduled, sft])
def test_a_schedule_that_follows_a_metric_is_refused(module: Any) -> None:
    with pytest.raises(ValueError, match="policy_scheduler: ReduceLROnPlateau follows a metric"):
        run(module(ReduceLROnPlateau))


SCHEDULERS = {
    "ours": partial(WarmupDecay, decay="cosine", warmup=2, iterations=6),
    "StepLR": partial(StepLR, step_size=2, gamma=0.3),
    "ExponentialLR": partial(ExponentialLR, gamma=0.7),
    "CosineAnnealingLR": partial(CosineAnnealingLR, T_max=5),
    "LinearLR": partial(LinearLR, start_factor=0.2, total_iters=3),
    "LambdaLR": partial(LambdaLR, lr_lambda=lambda i: 1 / (1 + i)),
    "transformers": partial(get_cosine_schedule_with_warmup, num_warmup_steps=2, num_training_steps=6),
}


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_resumed_schedule_goes_on_exactly(name: str, stop: int, tmp_path: Path) -> None:
    def make() -> SFT:
        return sft(SCHEDULERS[name])

    whole = run(make(), steps=5)
    assert len(set(rates(whole.figures, "sft/lr"))) > 2
    first = run(make(), steps=stop)
    first.trainer.save_checkpoint(tmp_path / "some.ckpt")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*_scheduler: .* in the checkpoint")
        second = run(make(), steps=5, ckpt_path=tmp_path / "some.ckpt")
    assert first.figures + second.figures == whole.figures
    assert distance(second.weights, whole.weights) == 0


def test_policy_and_prm_resume_each_its_own_schedule(tmp_path: Path) -> None:
    def make() -> RePIRL:
        return scheduled(SCHEDULERS["StepLR"], SCHEDULERS["ours"])

    whole = run(make(), make_data(with_experts()), steps=4)
    first = run(make(), make_data(with_experts()), steps=2)
    first.trainer.save_checkpoint(tmp_path / "some.ckpt")
    second = run(make(), make_data(with_experts()), steps=4, ckpt_path=tmp_path / "some.ckpt")
    assert first.figures + second.figures == whole.figures
    assert distance(second.weights, whole.weights) == 0


def test_another_max_steps_on_resume_is_said_and_holds(tmp_path: Path) -> None:
    first = run(sft(WarmupDecay), steps=4)
    assert rates(first.figures, "sft/lr") == pytest.approx([1e-2, 0.75e-2, 0.5e-2, 0.25e-2])
    first.trainer.save_checkpoint(tmp_path / "some.ckpt")
    with pytest.warns(UserWarning, match="policy_scheduler: iterations is 8 now and was 4 in the checkpoint"):
        second = run(sft(WarmupDecay), steps=8, ckpt_path=tmp_path / "some.ckpt")
    assert rates(second.figures, "sft/lr") == pytest.approx([0.5e-2, 0.375e-2, 0.25e-2, 0.125e-2])


def test_a_schedule_that_the_checkpoint_lacks(tmp_path: Path) -> None:
    run(sft(), steps=2).trainer.save_checkpoint(tmp_path / "some.ckpt")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*_scheduler: ")
        ours = run(sft(WarmupDecay), steps=4, ckpt_path=tmp_path / "some.ckpt")
    assert rates(ours.figures, "sft/lr") == pytest.approx([0.5e-2, 0.25e-2])  # as if it had been there
    with pytest.warns(
        UserWarning, match="checkpoint of iteration 2 has no such schedule; StepLR starts at its iteration 0"
    ):
        other = run(sft(partial(StepLR, step_size=1, gamma=0.1)), steps=4, ckpt_path=tmp_path / "some.ckpt")
    assert rates(other.figures, "sft/lr") == pytest.approx([1e-2, 1e-3])


@pytest.mark.parametrize("before", ["StepLR", "ours", "CosineAnnealingLR"])
def test_another_class_of_schedule_goes_on_from_the_iteration(before: str, tmp_path: Path) -> None:
    run(sft(SCHEDULERS[before]), steps=2).trainer.save_checkpoint(tmp_path / "some.ckpt")
    after = run(sft(WarmupDecay), steps=4, ckpt_path=tmp_path / "some.ckpt")
    assert rates(after.figures, "sft/lr") == pytest.approx([0.5e-2, 0.25e-2])


def test_other_settings_on_resume_are_said_and_hold(tmp_path: Path) -> None:
    first = run(sft(partial(StepLR, step_size=1, gamma=0.5)), steps=2)
    first.trainer.save_checkpoint(tmp_path / "some.ckpt")
    with pytest.warns(UserWarning, match="policy_scheduler: gamma is 0.1 now and was 0.5 in the checkpoint"):
        second = run(sft(partial(StepLR, step_size=1, gamma=0.1)), steps=4, ckpt_path=tmp_path / "some.ckpt")
    assert rates(second.figures, "sft/lr") == pytest.approx([0.25e-2, 0.025e-2])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_another_rate_on_resume_holds_under_the_schedule(name: str, tmp_path: Path) -> None:
    whole = run(sft(SCHEDULERS[name]), steps=4)
    first = run(sft(SCHEDULERS[name]), steps=2)
    first.trainer.save_checkpoint(tmp_path / "some.ckpt")
    second = run(sft(SCHEDULERS[name], rate=2e-2), steps=4, ckpt_path=tmp_path / "some.ckpt")
    wanted = [2 * rate for rate in rates(whole.figures, "sft/lr")[2:]]
    assert rates(second.figures, "sft/lr") == pytest.approx(wanted, abs=1e-9)


# ---- what a configuration that names no optimiser gets


class Parse(RepirlCLI):
    """Stops after parsing."""

    def instantiate_classes(self) -> None:
        """Builds nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs nothing."""


POLICY = ["--model.policy=repirl.Policy", "--model.policy.path=nowhere"]
DATA = [
    "--data=repirl.data.expert.ExpertData",
    "--data.train=repirl.data.arithmetic.RunningSums",
    "--data.train.count=4",
    "--data.train.seed=1",
]


@pytest.mark.parametrize(
    ("module", "key"),
    [
        ("repirl.RePIRL", "policy_optimizer"),
        ("repirl.RePIRL", "prm_optimizer"),
        ("repirl.modules.sft.SFT", "policy_optimizer"),
    ],
)
def test_no_default_rate_is_far_too_high_for_a_pretrained_model(module: str, key: str) -> None:
    def parsed(*words: str) -> Any:
        return Parse(["fit", f"--model={module}", *POLICY, *DATA, *words]).config.fit.model.init_args[key]

    default = parsed()
    assert default.class_path == "repirl.learning.learning_rate.FineTuningAdamW"
    assert (default.init_args.lr, default.init_args.weight_decay) == (1e-6, 0.0)
    assert parsed(f"--model.{key}.lr=3e-6").init_args.lr == 3e-6
    other = parsed(f"--model.{key}=torch.optim.AdamW", f"--model.{key}.lr=2e-5", f"--model.{key}.weight_decay=0.1")
    assert (other.class_path, other.init_args.lr, other.init_args.weight_decay) == ("torch.optim.AdamW", 2e-5, 0.1)
    assert parsed(f"--model.{key}=torch.optim.AdamW").init_args.lr == 1e-6  # not PyTorch's 1e-3


def test_schedulers_are_named_like_optimisers() -> None:
    found = Parse(
        [
            "fit",
            "--model=repirl.RePIRL",
            *POLICY,
            *DATA,
            "--model.policy_scheduler=repirl.learning.learning_rate.WarmupDecay",
            "--model.policy_scheduler.warmup=10",
            "--model.prm_scheduler=torch.optim.lr_scheduler.CosineAnnealingLR",
            "--model.prm_scheduler.T_max=50",
        ]
    ).config.fit.model.init_args
    assert (found.policy_scheduler.init_args.warmup, found.policy_scheduler.init_args.decay) == (10, "linear")
    assert found.prm_scheduler.init_args.T_max == 50


def test_the_default_optimiser_is_pytorch_s_with_another_rate_and_no_decay() -> None:
    weight = nn.Parameter(torch.ones(3))
    ours, theirs = FineTuningAdamW([weight]), torch.optim.AdamW([weight], lr=1e-6, weight_decay=0.0)
    assert ours.defaults == theirs.defaults
    assert RePIRL(make_policy(), verifier=WRONG).optimizer_constructors["policy"] is FineTuningAdamW
