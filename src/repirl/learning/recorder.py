"""What an iteration has to report: figures and seconds, collected under names."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from repirl.distributed import gather_rows, sum_over_ranks, warn_once
from repirl.learning.batch import Experience
from repirl.objectives.reduce import masked_mean
from repirl.structs import Verdict

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


def rollout_figures(
    experience: Experience, verdicts: Sequence[Sequence[Verdict | None]]
) -> dict[str, dict[str, Tensor | float]]:
    """What there is to say of an iteration's rollouts and experts, all ranks together, by group; warns of time-outs."""
    rollouts = experience.of_policy()
    outcome = gather_rows(rollouts.outcome)
    found: dict[str, Tensor | float] = {
        "response_tokens": gather_rows(rollouts.rows.response_mask.sum(-1).float()).mean(),
        "truncated": 1 - gather_rows(rollouts.finished).float().mean(),
        "has_answer": 1 + gather_rows(rollouts.format_reward).mean(),
    }
    flat = [v for row in verdicts for v in row if v is not None]
    timeouts = sum_over_ranks(outcome.new_tensor(sum(v.status == "answer_timeout" for v in flat)))
    if sum_over_ranks(outcome.new_tensor(len(flat))):
        known = ~outcome.isnan()
        found["unscorable"] = 1 - known.float().mean()
        if known.any():  # an accuracy of 0 would read as all wrong
            found["accuracy"] = masked_mean(outcome, known)
        found["answer_timeout"] = timeouts / len(outcome)
        if found["answer_timeout"] > 0.01:
            warn_once(f"{float(found['answer_timeout']):.0%} of the answers could not be judged in time, reward 0")
    written = sum(len(p.experts) for p in experience.prompts) - int(experience.is_expert.sum())
    return {"rollout": found, "prompts": {"experts_dropped": sum_over_ranks(outcome.new_tensor(written))}}
