"""Several policies over one base: each has its adapters, the base exists once and stays as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.weights import plain_weights, stamp
from tests.models.tiny import LLAMA, PROMPTS, RESPONSES, TOKENS, rows_of, tiny_policy

LORA = {"r": 2, "target_modules": "all-linear"}
OTHER = {"r": 3, "target_modules": ["q_proj", "up_proj"]}
ROWS = rows_of(PROMPTS, RESPONSES)


def adapted(lora: dict[str, Any] | None = None, **options: Any) -> Policy:
    config = {**LLAMA, **options.pop("config", {})}
    return Policy(config=config, tokens=TOKENS, lora=LORA if lora is None else lora, **options).load()


def trained(policy: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for p in policy.parameters() if p.requires_grad]


def move(policy: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in trained(policy):
            p.add_(0.1 * torch.randn(p.shape, generator=generator).to(p))


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": True}])
def test_the_base_is_held_once_and_adapters_are_apart(config: dict[str, Any]) -> None:
    policy = adapted(config=config)
    view, base = policy.view(OTHER), policy.view(None)
    plain = tiny_policy(**config)
    shared = {id(p) for p in base.parameters()}
    assert sum(p.numel() for p in base.parameters()) == sum(p.numel() for p in plain.parameters())
    for one in (policy, view):
        assert {id(p) for p in one.parameters() if not p.requires_grad} == shared
        assert all("lora_" in name for name, p in one.named_parameters() if p.requires_grad)
    assert not {id(p) for p in trained(policy)} & {id(p) for p in view.parameters()}
    assert not {id(p) for p in trained(view)} & {id(p) for p in policy.parameters()}
    # r x (in + out) of q_proj (32 to 32) and up_proj (32 to 48), in both layers
    assert sum(p.numel() for p in trained(view)) == 2 * 3 * (32 + 32 + 32 + 48)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_base_is_the_model_without_adapters_to_the_bit(dtype: Any) -> None:
    policy = adapted(dtype=dtype)
    base, plain = policy.view(None), Policy(config=LLAMA, tokens=TOKENS, dtype=dtype).load()
    view = policy.view(OTHER)
    move(policy, 1)
    move(view, 2)
    for after in (False, True):
        assert torch.equal(base.action_states(ROWS, after=after), plain.action_states(ROWS, after=after))
    assert torch.equal(base(ROWS)[0], plain(ROWS)[0])
    assert (policy(ROWS)[0] - plain(ROWS)[0]).abs().max() > 0.01
    assert (view(ROWS)[0] - policy(ROWS)[0]).abs().max() > 0.01
    assert (policy.packs, base.packs, view.packs) == (True, True, True)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_separate_copies(checkpointing: bool) -> None:
    """Also where another view's forward, or the base's, comes between a forward and its backward."""
    policy = adapted(gradient_checkpointing=checkpointing).train()
    view, base = policy.view(OTHER).train(), policy.view(None)
    move(policy, 1)
    move(view, 2)
    apart = [copy.deepcopy(policy), copy.deepcopy(view)]
    losses = [one(ROWS)[0].sum() for one in (policy, view)]
    base(ROWS)
    losses[1].backward()
    assert all(p.grad is None for p in trained(policy))
    losses[0].backward()
    for one, alone in zip((policy, view), apart, strict=True):
        alone(ROWS)[0].sum().backward()
        for p, expected in zip(trained(one), trained(alone), strict=True):
            assert p.grad is not None
            assert expected.grad is not None
            assert torch.equal(p.grad, expected.grad)
            assert p.grad.abs().max() > 0
    assert all(p.grad is None for p in base.parameters())


def test_steps_move_one_view_alone() -> None:
    policy = adapted()
    view, start = policy.view(OTHER), policy.start()
    before = stamp(start.model)
    said: list[Tensor] = [one(ROWS)[0].detach() for one in (policy, view, start)]
    assert torch.equal(said[0], said[2])  # fresh adapters add nothing
    optimiser = torch.optim.AdamW(trained(view), lr=0.1)
    view(ROWS)[0].sum().backward()
    optimiser.step()
    assert torch.equal(policy(ROWS)[0], said[0])
    assert (view(ROWS)[0] - said[1]).abs().max() > 0.1
    assert stamp(start.model) == before
    assert torch.equal(start(ROWS)[0], said[2])


def test_exports_and_engines_get_the_policy_s_adapters_alone(tmp_path: Path) -> None:
    policy = adapted()
    view = policy.view(LORA)
    move(policy, 1)
    sent = {name: value.clone() for name, value in plain_weights(policy.model)}
    move(view, 2)
    assert all(torch.equal(value, sent[name]) for name, value in plain_weights(policy.model))
    for name, one in (("policy", policy), ("view", view)):
        one.save_pretrained(tmp_path / name)
        read = Policy(path=str(tmp_path / name)).load()
        torch.testing.assert_close(read(ROWS)[0], one(ROWS)[0].detach(), rtol=0, atol=1e-4)


def test_memory_stays_shared_by_moves_and_copies() -> None:
    policy = adapted()
    both = torch.nn.ModuleDict({"policy": policy, "view": policy.view(OTHER), "base": policy.view(None)})
    count = sum(p.numel() for p in both.parameters())
    for moved in (copy.deepcopy(both), both.to(torch.bfloat16)):
        assert sum(p.numel() for p in moved.parameters()) == count
        assert moved["view"].head_weight is moved["policy"].head_weight is moved["base"].head_weight
    rotary = both["view"].model.model.rotary_emb.inv_freq
    assert rotary.dtype == torch.float32  # computed, and never rounded


# ---- the policy at the start ----


@pytest.mark.parametrize(
    ("lora", "free"),
    [
        (LORA, True),
        ({**LORA, "use_rslora": True}, True),
        ({**LORA, "init_lora_weights": "gaussian"}, True),
        ({"target_modules": ["q_proj"], "target_parameters": ["mlp.up_proj.weight"]}, True),
        ({**LORA, "layer_replication": [[0, 2], [1, 2]]}, True),
        ({**LORA, "init_lora_weights": False}, False),  # its start has adapters that add something
        ({**LORA, "init_lora_weights": "pissa"}, False),  # the base is no longer what was loaded
        ({**LORA, "init_lora_weights": "olora"}, False),
        ({**LORA, "bias": "all", "config": {"attention_bias": True}}, False),  # the base is trained
    ],
)
def test_the_start_takes_no_memory_where_the_base_is_it(lora: dict[str, Any], free: bool) -> None:
    lora = dict(lora)
    policy = adapted(config=lora.pop("config", {}), lora=lora)
    at_start = policy(ROWS)[0].detach()
    start = policy.start()
    assert (start.head_weight is policy.head_weight) == free
    assert torch.equal(start(ROWS)[0], at_start)
    assert not trained(start)
    move(policy, 1)
    assert (policy(ROWS)[0] - at_start).abs().max() > 1e-3
    assert torch.equal(start(ROWS)[0], at_start)


def test_a_policy_that_trains_everything_has_a_copy() -> None:
    policy = tiny_policy()
    start, before = policy.start(), policy(ROWS)[0].detach()
    assert start.head_weight is not policy.head_weight
    move(policy, 1)
    assert torch.equal(start(ROWS)[0], before)


# ---- refusals ----


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (tiny_policy, "trains all its weights, and would move what it shares: give policy.lora"),
        (lambda: adapted({**LORA, "init_lora_weights": "pissa"}), "has adapters that train or change its own weights"),
        (
            lambda: adapted({**LORA, "bias": "all"}, config={"attention_bias": True}),
            "has adapters that train or change its own weights",
        ),
    ],
)
def test_a_base_that_moves_is_not_shared(policy: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^prm.lora: the policy {message}"):
        PRM(lora=OTHER).build(policy())


@pytest.mark.parametrize(
    ("lora", "config", "message"),
    [
        ({**LORA, "init_lora_weights": "pissa"}, {}, "prm.lora: these adapters train or change the base's own weights"),
        ({**LORA, "bias": "all"}, {"attention_bias": True}, "prm.lora: these adapters train or change the base's own"),
        ({"target_modules": ["query"]}, {}, "prm.lora: Target modules .*query.* not found"),
        ({"target_modules": ["lm_head"]}, {}, "prm.lora: target_modules holds the output layer"),
    ],
)
def test_adapters_that_would_move_the_base_are_refused(lora: Any, config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PRM(lora=lora).build(adapted(config=config))


def test_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prm.lora .* excludes freeze_backbone: leave one out"):
        PRM(lora=LORA, freeze_backbone=True)
    with pytest.raises(ValueError, match=r"prm.lora .* excludes backbone: give the backbone its lora"):
        PRM(lora=LORA, backbone=tiny_policy())
    with pytest.raises(ValueError, match=r"prm.lora: lora_dropout is not supported"):
        PRM(lora={**LORA, "lora_dropout": 0.1})
