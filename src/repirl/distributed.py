"""What crosses ranks: one gather for rows, one sum for gradients, one vote for trouble.

Every rank may hold another number of rows and columns. With one process all of this is the identity.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

_LOST = re.compile(
    r"(?P<late>timed out|timeout)|connection (?:closed|reset|refused)|broken pipe|peer|remote process exited", re.I
)


def lost_process(error: RuntimeError) -> str | None:
    """What an error of a collective says of another process, in plain words; None for any other error."""
    text = str(error)
    # "Application timeout caused pair closure" is gloo's second error after a time-out, and does not name it.
    collective = isinstance(error, dist.DistError) or re.search(
        r"gloo|nccl|c10d|ProcessGroup|TCPStore|pair closure", text
    )
    if not collective or (told := _LOST.search(text)) is None:
        return None
    if told["late"]:
        return (
            "another process kept this one waiting in vain: it is stopped, hangs or is far slower; look at its output, "
            "trainer.strategy.timeout_s is how long a process waits"
        )
    return "another process was lost: it ended or was killed; its own output says why"


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if dist.is_initialized() else 0


def warn_once(message: str) -> None:
    """Warns on the first process alone: all have found the same."""
    if rank() == 0:
        warnings.warn(message, stacklevel=3)


def gather_rows(tensor: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """The rows of all ranks, [sum of N_r, ...], in rank order; other dimensions are right-padded with 0 to the largest.

    counts: each rank's number of rows, where all know it and other dimensions are equal everywhere: one collective then,
    not two.
    """
    if world_size() == 1:
        return tensor
    kind = tensor.dtype
    tensor = tensor.detach().byte() if kind == torch.bool else tensor.detach()
    if counts is None:
        shape = torch.tensor(tensor.shape, device=tensor.device)
        shapes = [torch.empty_like(shape) for _ in range(world_size())]
        dist.all_gather(shapes, shape)
        sizes = torch.stack(shapes)
        counts, largest = sizes[:, 0].tolist(), sizes.amax(0).tolist()
    else:
        largest = [max(counts), *tensor.shape[1:]]
    padded = tensor.new_zeros(largest)
    padded[tuple(slice(0, n) for n in tensor.shape)] = tensor
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)]).to(kind)


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor over ranks."""
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def any_rank(flag: bool, device: torch.device) -> bool:
    """True if the flag is set on any rank: all ranks then take the same way."""
    return bool(sum_over_ranks(torch.tensor(float(flag), device=device)) > 0)


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """A block that all ranks run, and in which all fail where one does: with its error, or a RuntimeError."""
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    if any_rank(error is not None, device):
        raise error or RuntimeError("another process failed, and said why; nothing was written")


def largest_over_ranks(count: int, device: torch.device) -> int:
    """The largest of the counts of all ranks."""
    if world_size() == 1:
        return count
    value = torch.tensor(count, device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return int(value)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Adds the gradients of all ranks, in one flat buffer per dtype; a parameter without a gradient here counts as 0.

    Those of sharded weights are left: their backward pass has added them.
    """
    if world_size() == 1:
        return
    trained = [p for p in parameters if p.requires_grad and not isinstance(p, DTensor)]
    for dtype in sorted({p.dtype for p in trained}, key=str):  # a set's own order may differ by process
        same = [p for p in trained if p.dtype == dtype]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in same])
        dist.all_reduce(flat)
        for p, g in zip(same, flat.split([p.numel() for p in same]), strict=True):
            p.grad = g.view_as(p)


def sum_and_clip(parameters: Sequence[nn.Parameter], max_norm: float, what: str, *, scaled: bool) -> Tensor:
    """Sums gradients over ranks and clips their global norm, which is returned.

    scaled: fp16's scaler skips steps with infinite gradients itself; elsewhere they raise FloatingPointError.
    """
    sum_gradients(parameters)
    norm = clip_gradients(parameters, max_norm)
    if not scaled and not bool(norm.isfinite()):
        raise FloatingPointError(
            f"{what}: the gradient norm is {float(norm)}; nothing was updated by it. "
            "Lower the learning rate, or look at the rewards in the log"
        )
    return norm


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scales gradients down to a global norm, over the parts of all ranks where weights are sharded; the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [g.to_local() for g in gradients if isinstance(g, DTensor)]
    if not parts:
        return nn.utils.clip_grad_norm_(parameters, max_norm)
    replicated = [g for g in gradients if not isinstance(g, DTensor)]
    norm = sum_over_ranks(nn.utils.get_total_norm(parts).square()).sqrt()
    if replicated:
        norm = torch.hypot(norm, nn.utils.get_total_norm(replicated))
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as PyTorch does
    for gradient in [*parts, *replicated]:
        gradient.mul_(scale)
    return norm


def full_values(tree: Any, *, keep: bool) -> Any:
    """Dicts and lists of tensors with the sharded ones whole, on the CPU; {} without `keep`. All ranks must call it."""
    if isinstance(tree, DTensor):
        value = tree.full_tensor().detach()
        return value.cpu() if keep else {}
    if isinstance(tree, Mapping):
        values = {key: full_values(value, keep=keep) for key, value in tree.items()}
        return values if keep else {}
    if isinstance(tree, list | tuple):
        made = [full_values(value, keep=keep) for value in tree]
        return type(tree)(made) if keep else {}
    return tree


def placed_like(value: Any, other: Any) -> Any:
    """A whole tensor as this rank's part, spread as a sharded tensor of the same shape is; anything else as it is."""
    if not isinstance(value, Tensor) or not isinstance(other, DTensor) or value.shape != other.shape:
        return value
    value = value.to(other.device_mesh.device_type)
    return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)


def gather_objects(values: list[Any]) -> list[Any]:
    """The Python objects of all ranks, in rank order."""
    if world_size() == 1:
        return values
    parts: list[list[Any]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]
