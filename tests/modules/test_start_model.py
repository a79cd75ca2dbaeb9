"""The policy of the start, which PRM and objective may both need, exists once: in memory, in files, after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from repirl import checkpoints
from repirl.models.prm import PRM
from repirl.modules.repirl import RePIRL
from tests.modules.tiny import distance, make_module, make_policy, run

SHARING: dict[str, dict[str, Any]] = {
    "implicit": {"kind": "implicit"},
    "logit_difference": {"kind": "logit_difference"},
    "frozen q_head": {"kind": "q_head", "freeze_backbone": True},
}


def configured(**prm: Any) -> RePIRL:
    module = make_module(prm=PRM(**prm))
    module.configure_model()
    return module


def size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("name", "copies"), [("implicit", 3), ("logit_difference", 3), ("frozen q_head", 2)])
def test_the_start_is_held_once(name: str, copies: int) -> None:
    """Policy, start, and the PRM's backbone where it is trained."""
    module = configured(**SHARING[name])
    assert module.prm is not None
    assert module.reference is module.prm.policy_at_start
    assert module.reference is not None
    assert not any(p.requires_grad for p in module.reference.parameters())
    assert size(module) == copies * size(module.policy) + size(module.prm.head)
    moved = module.to(torch.float64)  # the memory is still one after a move
    assert size(moved) == copies * size(module.policy) + size(module.prm.head)
    weight = next(p for p in module.reference.parameters())
    assert weight.dtype == torch.float64
    assert weight is next(module.prm.policy_at_start.parameters())


@pytest.mark.parametrize("name", SHARING)
def test_the_start_is_stored_once_and_stays_after_a_resume(name: str, tmp_path: Path) -> None:
    start = {n: v.clone() for n, v in configured(**SHARING[name]).reference.state_dict().items()}  # type: ignore[union-attr]
    whole = run(make_module(prm=PRM(**SHARING[name])), steps=3)
    first = run(make_module(prm=PRM(**SHARING[name])), steps=2)
    first.trainer.save_checkpoint(tmp_path / "two.ckpt", weights_only=True)
    stored = checkpoints.read(tmp_path / "two.ckpt")["state_dict"]
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in stored.values()}
    assert sum(storages.values()) == 4 * size(first.module)  # float32
    assert sum(storages.values()) < (tmp_path / "two.ckpt").stat().st_size < 1.5 * sum(storages.values()) + 50_000
    first.trainer.save_checkpoint(tmp_path / "all.ckpt")
    resumed = run(make_module(prm=PRM(**SHARING[name])), steps=3, ckpt_path=tmp_path / "all.ckpt")
    assert distance(resumed.weights, whole.weights) == 0
    assert distance(resumed.module.reference.state_dict(), start) == 0
    assert resumed.module.reference is resumed.module.prm.policy_at_start
    assert distance(resumed.module.policy.state_dict(), start) > 1e-3


@pytest.mark.parametrize("trained", [{"kind": "q_head"}, {"kind": "linear"}, {"kind": "implicit", "backbone": True}])
def test_where_the_prm_does_not_hold_it_the_module_does(trained: dict[str, Any]) -> None:
    backbone = {"backbone": make_policy(init_seed=3)} if trained.get("backbone") else {}
    module = configured(**trained | backbone)
    assert module.prm is not None
    assert module.prm.policy_at_start is None
    assert distance(module.reference.state_dict(), module.policy.state_dict()) == 0  # type: ignore[union-attr]
    assert module.reference is not module.prm.reference


def test_loaded_prm_weights_keep_their_start_apart_from_the_policy_s(tmp_path: Path) -> None:
    run(make_module(prm=PRM("implicit"))).trainer.save_checkpoint(tmp_path / "first.ckpt")
    other = make_module(policy=make_policy(init_seed=9), prm=PRM("implicit", weights=str(tmp_path / "first.ckpt")))
    other.configure_model()
    assert other.prm is not None
    assert other.reference is not None
    assert other.prm.reference is not None
    assert distance(other.reference.state_dict(), other.policy.state_dict()) == 0
    assert distance(other.prm.reference.state_dict(), other.policy.state_dict()) > 0.1
