"""A run whose policy and PRM are adapters on one base: what moves, what is stored, and how it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from repirl import checkpoints
from repirl.callbacks.export import ExportPolicy
from repirl.learning.prm_objectives import IRL
from repirl.models.heads import HEADS
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.modules.repirl import RePIRL
from tests.models.tiny import rows_of
from tests.modules.tiny import ADAM, distance, make_module, make_policy, run, start_weights

LORA = {"r": 2, "target_modules": "all-linear"}
ROWS = rows_of([[2, 3], [4, 5, 6]], [[3, 4, 1], [6, 7]])


def module(kind: Any = "q_head", dtype: Any = "float32", **options: Any) -> RePIRL:
    settings: dict[str, Any] = {"policy_optimizer": ADAM, "prm_optimizer": ADAM, "objective": IRL()}
    checkpointing = options.pop("gradient_checkpointing", False)
    policy = make_policy(lora=LORA, dtype=dtype, gradient_checkpointing=checkpointing)
    return make_module(policy=policy, prm=PRM(kind, lora={"r": 3, "target_modules": ["q_proj"]}), **settings | options)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_each_optimiser_moves_its_adapters_and_the_base_stays(kind: Any, checkpointing: bool) -> None:
    start = start_weights(module(kind))
    done = run(module(kind, gradient_checkpointing=checkpointing), steps=3)
    moved = {name for name, value in done.weights.items() if not torch.equal(value, start[name])}
    of_policy = {name for name in moved if name.startswith("policy.")}
    of_prm = moved - of_policy
    assert of_policy
    assert all("lora_" in name for name in of_policy)
    assert any("lora_" in name for name in of_prm)
    assert all(name.startswith(("prm.backbone.", "prm.head.")) for name in of_prm)
    assert all("lora_" in name for name in of_prm if name.startswith("prm.backbone."))
    assert any(name.startswith("prm.head.") for name in of_prm) == HEADS[kind].has_weights
    sets = [{id(p) for group in o.param_groups for p in group["params"]} for o in done.trainer.optimizers]
    assert not sets[0] & sets[1]
    assert sets[0] == {id(p) for p in done.module.policy.parameters() if p.requires_grad}
    assert sets[1] == {id(p) for p in done.module.prm.parameters() if p.requires_grad}
    base = sum(p.numel() for p in make_policy().load().parameters())
    trained = sum(p.numel() for p in done.module.parameters() if p.requires_grad)
    assert sum(p.numel() for p in done.module.parameters()) == base + trained  # the reference takes nothing


@pytest.mark.parametrize(("kind", "dtype"), [("q_head", "float32"), ("implicit", "float32"), ("implicit", "bfloat16")])
def test_a_run_goes_on_exactly_and_stores_the_base_once(kind: Any, dtype: Any, tmp_path: Path) -> None:
    whole, first = run(module(kind, dtype), steps=4), run(module(kind, dtype), steps=2)
    first.trainer.save_checkpoint(tmp_path / "two.ckpt")
    stored = checkpoints.read(tmp_path / "two.ckpt")["state_dict"]
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in stored.values()}
    assert sum(storages.values()) == sum(p.numel() * p.element_size() for p in first.module.parameters())
    resumed = run(module(kind, dtype), steps=4, ckpt_path=tmp_path / "two.ckpt")
    assert distance(resumed.weights, whole.weights) == 0
    assert resumed.figures == whole.figures[2:]
    assert distance(whole.weights, first.weights, "prm.backbone.") > 1e-4
    assert resumed.module.prm.backbone.head_weight is resumed.module.policy.head_weight


def test_the_run_is_that_of_separate_bases() -> None:
    """The same adapters on a copy of the base: every figure and weight to the digit."""
    apart = make_module(
        policy=make_policy(lora=LORA),
        prm=PRM("implicit", backbone=make_policy(lora={"r": 3, "target_modules": ["q_proj"]})),
        policy_optimizer=ADAM,
        prm_optimizer=ADAM,
    )
    one, other = run(module("implicit"), steps=3), run(apart, steps=3)
    assert one.figures == other.figures
    assert distance(one.weights, other.weights) == 0


def test_the_export_is_the_policy(tmp_path: Path) -> None:
    done = run(module("implicit"), steps=2, callbacks=[ExportPolicy(str(tmp_path))])
    exported: Tensor = Policy(path=str(tmp_path)).load()(ROWS)[0]
    torch.testing.assert_close(exported, done.module.policy(ROWS)[0].detach(), rtol=0, atol=1e-4)
    assert (exported - done.module.prm.backbone(ROWS)[0]).abs().max() > 1e-3


def test_stored_prm_weights_are_taken_over_the_same_base_alone(tmp_path: Path) -> None:
    done = run(module("implicit"), steps=2)
    done.trainer.save_checkpoint(tmp_path / "two.ckpt")

    def taken(seed: int) -> RePIRL:
        prm = PRM("implicit", lora={"r": 3, "target_modules": ["q_proj"]}, weights=str(tmp_path / "two.ckpt"))
        other = make_module(policy=make_policy(lora=LORA, init_seed=seed), prm=prm)
        other.configure_model()
        return other

    again = taken(0)
    assert again.prm is not None
    assert torch.equal(again.prm(ROWS), done.module.prm(ROWS))
    assert again.prm(ROWS).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"prm.weights: .* has a PRM over another base model than the policy's"):
        taken(1)
