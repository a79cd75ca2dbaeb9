"""Steps of half-precision weights, and what a resume takes from the user."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from repirl.data.expert import ExpertData
from repirl.learning.learning_rate import WarmupDecay
from repirl.learning.optimizers import make_optimizer
from repirl.learning.settings import Surrogate
from repirl.models.heads import Kind
from repirl.models.prm import PRM
from repirl.modules.sft import SFT
from tests.modules.tiny import TEXT, EvenDigits, Run, distance, make_data, make_module, make_policy, run, with_experts

LR = 2e-6
ADAMW = partial(torch.optim.AdamW, lr=LR, weight_decay=0.0)
CONSTRUCTORS = {
    "adamw": ADAMW,
    "decay": partial(torch.optim.AdamW, lr=LR, weight_decay=0.1),
    "sgd": partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    "fused": partial(torch.optim.AdamW, lr=LR, weight_decay=0.0, fused=True),
    "foreach": partial(torch.optim.AdamW, lr=LR, weight_decay=0.0, foreach=True),
    "adafactor": partial(torch.optim.Adafactor, lr=1e-4),
}


def made(constructor: Any, *weights: nn.Parameter) -> torch.optim.Optimizer:
    return make_optimizer(constructor, weights, "policy_optimizer", lambda: "some.ckpt")


# --- master weights


def weights(dtype: torch.dtype) -> list[nn.Parameter]:
    """A matrix and a vector of the size of a language model's weights, equal in every type."""
    generator = torch.Generator().manual_seed(0)
    values = [0.02 * torch.randn(64, 48, generator=generator), 0.02 * torch.randn(48, generator=generator)]
    return [nn.Parameter(value.bfloat16().to(dtype)) for value in values]


def descend(optimizer: torch.optim.Optimizer, some: list[nn.Parameter], steps: int) -> None:
    """Steps against gradients of one direction, with noise."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for weight in some:
            gradient = 1e-3 * (1 + torch.randn(weight.shape, generator=generator)).bfloat16()
            (weight * gradient.to(weight.dtype)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_half_precision_weights_follow_the_float32_run(name: str, dtype: torch.dtype) -> None:
    whole, half = weights(torch.float32), weights(dtype)
    starts = [weight.detach().clone() for weight in whole]
    descend(made(CONSTRUCTORS[name], *whole), whole, 40)
    descend(made(CONSTRUCTORS[name], *half), half, 40)
    for weight, other, start in zip(whole, half, starts, strict=True):
        assert (weight - start).abs().max() > 1e-5
        # rounded once, not at every step: right to half a unit in the last place of a weight below 0.125
        torch.testing.assert_close(other.float(), weight.to(dtype).float(), rtol=2**-7, atol=1e-6)


def test_without_masters_bfloat16_loses_nearly_all_steps_and_with_them_none() -> None:
    plain, half, whole = weights(torch.bfloat16), weights(torch.bfloat16), weights(torch.float32)
    start = whole[0].detach().clone()
    descend(ADAMW(plain), plain, 1)  # the first step moves each weight by the rate
    descend(made(ADAMW, *half), half, 1)
    descend(made(ADAMW, *whole), whole, 1)
    assert (plain[0].float() == start).float().mean() > 0.9
    descend(ADAMW(plain), plain, 60)
    stepped, kept = made(ADAMW, *half), made(ADAMW, *whole)
    descend(stepped, half, 60)
    descend(kept, whole, 60)
    moved = {"plain": (plain[0].float() - start).mean(), "masters": (half[0].float() - start).mean()}
    expected = (whole[0] - start).mean()
    assert abs(float(moved["masters"] / expected) - 1) < 0.05
    assert abs(float(moved["plain"] / expected)) < 0.5


def test_gradients_of_several_backward_passes_add_up_in_float32() -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = made(partial(torch.optim.SGD, lr=1.0), weight)
    (master,) = optimizer.param_groups[0]["params"]
    for size in (256.0, 1.0, 1.0, 0.5):  # in bfloat16 256 + 1 = 256
        (weight * size).sum().backward()
        assert weight.grad is None
    assert master.grad.tolist() == [258.5] * 3
    optimizer.step()
    assert master.tolist() == [-257.5] * 3
    assert weight.tolist() == [-258.0] * 3  # rounded to eight bits
    optimizer.zero_grad()
    assert master.grad is None


def test_a_second_optimiser_of_the_same_weights_gets_the_gradients() -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    first, second = (made(partial(torch.optim.SGD, lr=0.5), weight) for _ in range(2))
    (weight * 2).sum().backward()
    first.step()
    assert weight.tolist() == [1.0] * 3
    second.step()
    assert weight.tolist() == [0.0] * 3


def test_frozen_and_float32_weights_have_no_master() -> None:
    frozen = nn.Parameter(torch.ones(3, dtype=torch.bfloat16), requires_grad=False)
    whole = nn.Parameter(torch.ones(2))
    optimizer = made(ADAMW, frozen, whole)
    assert [p is whole for p in optimizer.param_groups[0]["params"]] == [True]
    assert "repirl_weights" not in optimizer.state_dict()


# --- whole runs


def sft(**options: Any) -> SFT:
    return SFT(**({"policy": make_policy(), "policy_optimizer": ADAM, "text": TEXT} | options))


ADAM = partial(torch.optim.AdamW, lr=1e-2)


def full(**options: Any) -> Any:
    settings: dict[str, Any] = {"policy_optimizer": ADAM, "prm_optimizer": ADAM, "verifier": EvenDigits()}
    return make_module(**(settings | options))


@pytest.mark.parametrize("make", [full, sft])
def test_a_bfloat16_run_at_a_small_rate_moves_as_its_float32_twin(make: Callable[..., Any]) -> None:
    small = {"policy_optimizer": partial(torch.optim.SGD, lr=2e-3)}
    changes = {}
    for dtype in ("float32", "bfloat16"):
        module = make(policy=make_policy(dtype=dtype), **small)
        module.configure_model()
        before = torch.cat([p.detach().float().flatten() for p in module.policy.parameters()])
        trained = run(module, make_data(with_experts()), steps=6)
        masters = [p for group in trained.trainer.optimizers[0].param_groups for p in group["params"]]
        assert all(p.dtype == torch.float32 for p in masters)
        changes[dtype] = torch.cat([p.detach().flatten() for p in masters]) - before
        for p, master in zip(module.policy.parameters(), masters, strict=True):
            assert torch.equal(p, master.to(p.dtype))
    size = changes["float32"].norm()
    if make is sft:  # the same rows in both runs
        assert torch.cosine_similarity(changes["float32"], changes["bfloat16"], dim=0) > 0.99
        assert abs(float(changes["bfloat16"].norm() / size) - 1) < 0.05
    assert changes["bfloat16"].norm() > 0.3 * size


KINDS: list[Kind] = ["q_head", "logit_difference", "implicit", "head", "linear"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_prm_trains_over_a_bfloat16_backbone(kind: Kind, precision: str) -> None:
    module = full(policy=make_policy(dtype="bfloat16"), prm=PRM(kind=kind), surrogate=Surrogate(kl_coef=0.1))
    figures = run(module, steps=3, precision=precision).figures
    assert all(value == value for row in figures for value in row.values())
    assert figures[0]["prm/loss"] != figures[-1]["prm/loss"]


def test_a_low_rank_head_trains_over_a_bfloat16_backbone() -> None:
    figures = run(full(policy=make_policy(dtype="bfloat16"), prm=PRM(rank=4)), steps=3).figures
    assert figures[0]["prm/loss"] != figures[-1]["prm/loss"]


@pytest.mark.parametrize("make", [full, sft])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_float16_trains_with_a_scaled_loss(make: Callable[..., Any], dtype: str) -> None:
    # Lightning turns 16-mixed on a CPU into bf16-mixed; given as a plugin it stays.
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))
    module = make(policy=make_policy(dtype=dtype), policy_optimizer=partial(torch.optim.AdamW, lr=1e-3))
    module.configure_model()
    before = {name: p.detach().clone() for name, p in module.policy.named_parameters()}
    trained = run(module, make_data(with_experts()), steps=6, plugins=[scaled])
    assert all(bool(p.isfinite().all()) for p in module.parameters())
    moved = [float((p.detach() - before[name]).float().abs().max()) for name, p in module.policy.named_parameters()]
    assert 1e-4 < max(moved) < 0.05
    norms = [value for row in trained.figures for name, value in row.items() if name.endswith("gradient_norm")]
    assert all(0 < norm < 1e3 for norm in norms)  # unscaled


@pytest.mark.parametrize("make", [full, sft])
@pytest.mark.parametrize(
    ("dtype", "precision", "message"),
    [
        ("float32", "bf16-true", r"'bf16-true' would turn rewards.*policy\.dtype: bfloat16"),
        ("bfloat16", "bf16-true", r"'bf16-true' would turn rewards.*policy\.dtype: bfloat16"),
        ("float32", "16-true", r"'16-true' would turn rewards.*policy\.dtype: float16"),
        ("float32", "64-true", r"'64-true' would turn rewards.*policy\.dtype: float32"),
        ("float16", "32-true", r"float16 with trainer\.precision '32-true'.*set policy\.dtype to bfloat16"),
        ("float16", "bf16-mixed", r"float16 with trainer\.precision 'bf16-mixed'.*set policy\.dtype to bfloat16"),
        ("float16", "16-mixed", r"float16 with trainer\.precision 'bf16-mixed'.*16-mixed, which needs a GPU"),
    ],
)
def test_precisions_that_cannot_train_are_refused_at_the_start(
    make: Callable[..., Any], dtype: str, precision: str, message: str
) -> None:
    module = make(policy=make_policy(dtype=dtype))
    with pytest.raises(ValueError, match=message):
        run(module, precision=precision)
    assert "model" not in module.policy._modules  # before anything was loaded


def test_half_precision_of_two_types_is_refused() -> None:
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match="two types of half precision"):
        run(full(policy=make_policy(dtype="bfloat16")), plugins=[scaled])
    backbone = make_policy(dtype="float16")
    with pytest.raises(ValueError, match=r"prm\.backbone\.dtype float16"):
        run(full(prm=PRM(backbone=backbone)))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("make", [full, sft])
def test_other_precisions_run(make: Callable[..., Any], precision: str) -> None:
    figures = run(make(), make_data(with_experts()), steps=2, precision=precision).figures
    assert len(figures) == 2


# --- resume


def stopped(make: Callable[..., Any], folder: Path, steps: int = 3, **options: Any) -> Path:
    """A checkpoint after `steps` iterations."""
    trained = run(make(**options), data(), steps=steps)
    path = folder / "some.ckpt"
    trained.trainer.save_checkpoint(path)
    return path


def data() -> ExpertData:
    return make_data(with_experts())


def lora() -> Any:
    return make_policy(lora={"r": 2, "target_modules": "all-linear"}, dtype="bfloat16")


@pytest.mark.parametrize("make", [full, sft])
@pytest.mark.parametrize("policy", [make_policy, partial(make_policy, dtype="bfloat16"), lora])
def test_a_resumed_run_is_the_run(make: Callable[..., Any], policy: Callable[[], Any], tmp_path: Path) -> None:
    path = stopped(make, tmp_path, policy=policy())
    resumed = run(make(policy=policy()), data(), steps=6, ckpt_path=path)
    whole = run(make(policy=policy()), data(), steps=6)
    assert distance(resumed.weights, whole.weights) == 0
    for one, other in zip(resumed.trainer.optimizers, whole.trainer.optimizers, strict=True):
        for a, b in zip(one.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
            assert torch.equal(a, b)  # the masters too
            assert all(torch.equal(value, other.state[b][name]) for name, value in one.state[a].items())
        assert any(one.state.values())


CHANGES: dict[str, float | tuple[float, float]] = {
    "lr": 1e-5,
    "weight_decay": 0.3,
    "betas": (0.5, 0.6),
    "eps": 1e-3,
}


@pytest.mark.parametrize("make", [full, sft])
@pytest.mark.parametrize("name", CHANGES)
def test_settings_of_a_resume_are_the_user_s(make: Callable[..., Any], name: str, tmp_path: Path) -> None:
    path = stopped(make, tmp_path)
    changed = partial(torch.optim.AdamW, **{"lr": 1e-2, name: CHANGES[name]})
    resumed = run(make(policy_optimizer=changed), data(), steps=4, ckpt_path=path)
    optimizer = resumed.trainer.optimizers[0]
    assert optimizer.param_groups[0][name] == CHANGES[name]
    assert {int(state["step"]) for state in optimizer.state.values()} == {4}  # the state went on
    assert distance(resumed.weights, run(make(), data(), steps=4, ckpt_path=path).weights, "policy") > 0


def test_each_optimiser_has_its_own(tmp_path: Path) -> None:
    path = stopped(full, tmp_path)
    resumed = run(full(prm_optimizer=partial(ADAM, lr=3e-4)), data(), steps=4, ckpt_path=path)
    assert [o.param_groups[0]["lr"] for o in resumed.trainer.optimizers] == [1e-2, 3e-4]


def test_rate_zero_moves_nothing_after_a_resume(tmp_path: Path) -> None:
    path = stopped(full, tmp_path)
    saved = torch.load(path, weights_only=False)["state_dict"]
    still = partial(torch.optim.AdamW, lr=0.0)
    resumed = run(full(policy_optimizer=still, prm_optimizer=still), data(), steps=5, ckpt_path=path)
    assert distance(resumed.weights, saved) == 0


def test_a_linear_schedule_scales_the_new_rate(tmp_path: Path) -> None:
    path = tmp_path / "some.ckpt"
    falling = partial(WarmupDecay, iterations=8)
    first = run(full(policy_scheduler=falling), data(), steps=4)
    first.trainer.save_checkpoint(path)
    # at iteration 4 of 8 half of the rate is left, of the configured one and not of that of the checkpoint
    changed = full(policy_scheduler=falling, policy_optimizer=partial(torch.optim.AdamW, lr=1e-4))
    seen: list[float] = []
    before = changed.training_step

    def step(batch: Any, batch_idx: int) -> None:
        seen.append(changed.trainer.optimizers[0].param_groups[0]["lr"])
        before(batch, batch_idx)

    changed.training_step = step
    run(changed, data(), steps=8, ckpt_path=path)
    assert seen == pytest.approx([1e-4 * (1 - k / 8) for k in (4, 5, 6, 7)])


OTHERS = [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adafactor]


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("make", [full, sft])
def test_another_optimiser_class_is_refused(make: Callable[..., Any], other: Any, tmp_path: Path) -> None:
    path = stopped(make, tmp_path, steps=1)
    with pytest.raises(
        ValueError,
        match=rf"policy_optimizer: the checkpoint .*some\.ckpt has the state of torch.optim.adamw.AdamW, the "
        rf"configuration names torch\.optim\.(\w+\.)?{other.__name__}; name the same class",
    ):
        run(make(policy_optimizer=partial(other, lr=1e-3)), data(), steps=2, ckpt_path=path)


def test_the_prm_s_optimiser_is_named(tmp_path: Path) -> None:
    path = stopped(full, tmp_path, steps=1)
    with pytest.raises(ValueError, match="prm_optimizer: the checkpoint"):
        run(full(prm_optimizer=partial(torch.optim.SGD, lr=1e-3)), data(), steps=2, ckpt_path=path)


def stepped(constructor: Any, *shapes: tuple[int, ...]) -> torch.optim.Optimizer:
    some = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = made(constructor, *some)
    sum((weight.square().sum() for weight in some), Tensor([0.0])).backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("old", "new", "missing"),
    [
        (ADAM, partial(ADAM, amsgrad=True), "max_exp_avg_sq"),
        (partial(torch.optim.RMSprop), partial(torch.optim.RMSprop, centered=True), "grad_avg"),
        (partial(torch.optim.RMSprop), partial(torch.optim.RMSprop, momentum=0.9), "momentum_buffer"),
    ],
)
def test_settings_that_need_another_state_are_refused(old: Any, new: Any, missing: str) -> None:
    state = stepped(old, (3, 2), (3,)).state_dict()
    with pytest.raises(ValueError, match=f"some.ckpt lacks {missing}, which the configured settings"):
        made(new, *(nn.Parameter(torch.ones(shape)) for shape in ((3, 2), (3,)))).load_state_dict(state)
    made(old, *(nn.Parameter(torch.ones(shape)) for shape in ((3, 2), (3,)))).load_state_dict(state)


def test_a_state_without_a_class_is_told_by_what_it_keeps() -> None:
    state = stepped(partial(torch.optim.SGD, lr=0.1, momentum=0.9), (3, 2)).state_dict()
    del state["repirl_class"]
    with pytest.raises(ValueError, match="lacks exp_avg, exp_avg_sq, step"):
        made(ADAM, nn.Parameter(torch.ones(3, 2))).load_state_dict(state)


def test_other_weights_are_refused() -> None:
    state = stepped(ADAM, (3, 2), (3,)).state_dict()
    with pytest.raises(ValueError, match="state of 2 trained weights, the configuration trains 1"):
        made(ADAM, nn.Parameter(torch.ones(3, 2))).load_state_dict(state)


def test_weights_in_float32_go_on_from_masters_exactly() -> None:
    half = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = made(partial(torch.optim.SGD, lr=1e-3), half)
    (half * 1.0).sum().backward()
    optimizer.step()
    whole = nn.Parameter(half.detach().float())
    assert whole.tolist() == [1.0] * 3
    made(partial(torch.optim.SGD, lr=1e-3), whole).load_state_dict(optimizer.state_dict())
    torch.testing.assert_close(whole, torch.full((3,), 0.999))


def test_runs_say_what_they_kept(tmp_path: Path) -> None:
    path = stopped(sft, tmp_path, policy=make_policy(dtype="bfloat16"), steps=1)
    state = torch.load(path, weights_only=True)["optimizer_states"][0]
    assert state["repirl_class"] == "torch.optim.adamw.AdamW"
    assert {value.dtype for value in state["repirl_weights"]} == {torch.float32}


def kept(trained: Run) -> int:
    return sum(p.numel() for group in trained.trainer.optimizers[0].param_groups for p in group["params"])


def test_frozen_base_weights_have_no_masters() -> None:
    trained = run(sft(policy=lora()), data(), steps=1)
    policy = trained.module.policy
    assert kept(trained) == sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert kept(trained) < sum(p.numel() for p in policy.parameters()) / 2
