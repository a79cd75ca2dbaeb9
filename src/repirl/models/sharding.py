"""Weights spread over processes (FSDP2): each holds a part of every weight, its gradient and its optimiser state.

Policies and PRM heads are roots of their own, with one group of weights a transformer layer. A forward pass gathers a layer's
weights, and frees them: it is a collective, in which all ranks must take part. `whole` gathers all of them for a while.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from transformers.modeling_layers import GradientCheckpointingLayer

from repirl.models.heads import Head
from repirl.models.policy import Policy

_GATHERED = "repirl_gathered"  # the attribute by which a part knows that its weights stay gathered


def shard(module: nn.Module, mesh: DeviceMesh | None) -> None:
    """Spreads the weights of all policies and heads in a module over the ranks; all ranks get rank 0's.

    Adapters stay whole on every rank: they are small, and may have another type than their base. Weights in half precision
    that are trained become float32: passes get them rounded, optimiser and checkpoints as they are.

    Args:
        module: whatever has policies and heads among its parts.
        mesh: of one dimension, the ranks; None = nothing is spread.
    """
    parts = [p for p in module.modules() if isinstance(p, Policy | Head) and any(True for _ in p.parameters())]
    if mesh is None or any(isinstance(part, FSDPModule) for part in parts):
        return
    _take_first_ranks_values(module, mesh)
    for part in parts:
        if isinstance(part, Policy):
            _shard_policy(part, mesh)
        else:
            _summing(fully_shard(part, mesh=mesh, reshard_after_forward=False))


def _shard_policy(policy: Policy, mesh: DeviceMesh) -> None:
    kept = {p for p in policy.parameters() if p.requires_grad} if policy.lora is not None else set()
    rounding = MixedPrecisionPolicy()
    if policy.dtype != "float32" and not kept:
        rounding = MixedPrecisionPolicy(getattr(torch, policy.dtype), torch.float32, cast_forward_inputs=False)
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": rounding, "ignored_params": kept}
    for layer in [layer for layer in policy.modules() if isinstance(layer, GradientCheckpointingLayer)]:
        _summing(fully_shard(layer, reshard_after_forward=True, **options))
    # A head reads the output layer after the states: the root's weights stay until the backward pass.
    _summing(fully_shard(policy, reshard_after_forward=False, **options))
    register_fsdp_forward_method(policy, "action_states")


def _summing(part: FSDPModule) -> None:
    """Has the gradients of all ranks summed, not averaged: losses are divided by global counts."""
    part.set_force_sum_reduction_for_comms(True)  # gloo cannot scale while it sums
    part.set_gradient_divide_factor(1.0)


@torch.no_grad()
def _take_first_ranks_values(module: nn.Module, mesh: DeviceMesh) -> None:
    for tensor in [*module.parameters(), *module.buffers()]:
        value = tensor.detach().to(mesh.device_type, copy=True)  # one at a time: all together need not fit
        dist.broadcast(value, src=0)
        tensor.copy_(value)


def _sharded_parts(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def _is_root(part: FSDPModule) -> bool:
    return isinstance(part, Policy | Head)


def gather(module: nn.Module) -> list[FSDPModule]:
    """Gathers what is sharded below a module until `release`; what is gathered so already is not in the list."""
    parts = [part for part in _sharded_parts(module) if not getattr(part, _GATHERED, False)]
    for part in parts:
        setattr(part, _GATHERED, True)
        if _is_root(part):  # layers that run before their root would take themselves for roots
            part._get_fsdp_state()._lazy_init()
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    return parts


def release(parts: list[FSDPModule]) -> None:
    """Frees what `gather` has gathered, all but each rank's part."""
    for part in parts:
        setattr(part, _GATHERED, False)
        part.set_reshard_after_forward(not _is_root(part), recurse=False)
        part.reshard()


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Every rank has all weights in this block, and may read them and run as many forward passes as it likes.

    All ranks must enter it. The weights are not to be changed in it.
    """
    parts = gather(module)
    try:
        yield
    finally:
        release(parts)


def free(*modules: object) -> None:
    """Frees what passes without gradient have left gathered: the roots' weights, which stay for a backward pass."""
    for module in modules:
        for part in _sharded_parts(module) if isinstance(module, nn.Module) else ():
            if not getattr(part, _GATHERED, False):
                part.reshard()


def sum_at_next_backward(module: nn.Module, now: bool) -> None:
    """Whether the next backward pass sums the gradients of sharded weights over ranks, or keeps them for a later one."""
    for part in _sharded_parts(module):
        part.set_requires_gradient_sync(now, recurse=False)
