"""What an iteration has to report: figures and seconds, collected under names."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

TIME = "time/"


class Recorder:
    """Collects values under "group/name" until they are taken; a phase's seconds under "time/<phase>_s"."""

    def __init__(self) -> None:
        self._values: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def timed(self, phase: str, device: torch.device) -> Iterator[None]:
        """Adds the seconds that the block took; on a GPU, until its kernels ended."""
        start = time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self._values[f"{TIME}{phase}_s"].append(time.perf_counter() - start)

    def add(self, group: str, values: Mapping[str, Tensor | float]) -> None:
        """Adds one value a name."""
        for name, value in values.items():
            self._values[f"{group}/{name}"].append(float(value))

    def take(self) -> dict[str, float]:
        """Means of what was added, sums of times; the collection starts anew."""
        taken = {k: sum(v) if k.startswith(TIME) else sum(v) / len(v) for k, v in self._values.items()}
        self._values.clear()
        return taken


def over_micro_batches(
    size: tuple[int, int], micro_batches: list[Tensor], forward: Callable[[Tensor], Tensor], device: torch.device
) -> Tensor:
    """`forward(index)` of each micro-batch, [n, t], put together to [N, T] of `size`, without gradient."""
    out = torch.zeros(size, device=device)
    with torch.no_grad():
        for index in micro_batches:
            values = forward(index)
            out[index, : values.shape[1]] = values
    return out
