"""What an iteration has to report: figures and seconds, collected under names."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from repirl.distributed import rank, sum_over_ranks, warn_once
from repirl.learning.batch import GlobalBatch
from repirl.objectives.reduce import masked_mean
from repirl.structs import Verdict

TIME = "time/"


class Recorder:
    """Collects values under "group/name" until they are taken; a phase's seconds under "time/<phase>_s".

    iteration: the one that is under way, counted from 0. on_phase: is told each phase as it begins.
    """

    def __init__(self) -> None:
        self.iteration = 0
        self.on_phase: Callable[[str], None] | None = None
        self._values: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def timed(self, phase: str, device: torch.device) -> Iterator[None]:
        """Adds the seconds that the block took; on a GPU, until its own kernels ended, not those of rollouts ahead."""
        if self.on_phase is not None:
            self.on_phase(phase)
        start = time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
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


def rollout_figures(
    batch: GlobalBatch, verdicts: Sequence[Sequence[Verdict | None]], *, uses_experts: bool = True
) -> dict[str, dict[str, Tensor | float]]:
    """What there is to say of an iteration's rollouts and experts, all ranks together, by group; warns of time-outs.

    verdicts: on this rank's rollouts. uses_experts: whether the batch was given the experts of its prompts.
    """
    rollouts = batch.of_policy()
    outcome = rollouts.gold_outcome
    figures: dict[str, Tensor | float] = {
        "response_tokens": rollouts.response_mask.sum(-1).float().mean(),
        "truncated": 1 - rollouts.finished.float().mean(),
        "has_answer": 1 + rollouts.format_reward.mean(),
    }
    given = [v for row in verdicts for v in row if v is not None]
    timed_out = sum(v.status == "answer_timeout" for v in given)
    assert batch.shard is not None
    written = sum(len(p.experts) + len(p.flawed) for p in batch.shard.prompts)
    dropped = written - int(batch.is_expert[batch.owner == rank()].sum())
    judged, timeouts, experts_dropped = sum_over_ranks(outcome.new_tensor([len(given), timed_out, dropped]))
    if judged:
        known = ~outcome.isnan()
        figures["unscorable"] = 1 - known.sum() / judged  # of those that were judged: prompts may have no answer
        if known.any():  # an accuracy of 0 would read as all wrong
            figures["accuracy"] = masked_mean(outcome, known)
        figures["answer_timeout"] = timeouts / judged
        if figures["answer_timeout"] > 0.01:
            warn_once(
                f"{float(figures['answer_timeout']):.0%} of the answers could not be judged in time and have reward 0"
            )
    prompts = _prompts_by_source(batch)
    if uses_experts:
        prompts |= {"experts_dropped": experts_dropped} | _prompts_with_experts(batch)
    return {"rollout": figures | _by_source(rollouts), "prompts": prompts}


def majority_figures(batch: GlobalBatch) -> dict[str, Tensor | float]:
    """How often rollouts agree with their prompt's majority, and how often that is right, where it is known.

    `majority_share`: of the rollouts. `majority_accuracy`: of the prompts whose majority has a verdict.
    """
    rollouts = batch.of_policy()
    agrees = rollouts.outcome == 1
    figures: dict[str, Tensor | float] = {"majority_share": agrees.float().mean()}
    known = agrees & ~rollouts.gold_outcome.isnan()
    if known.any():  # one answer has one verdict: the mean over the rows that have it is that verdict
        prompts = rollouts.group[known].unique()
        of_prompts = [rollouts.gold_outcome[known & (rollouts.group == prompt)].mean() for prompt in prompts]
        figures["majority_accuracy"] = torch.stack(of_prompts).mean()
    return figures


def _by_source(rollouts: GlobalBatch) -> dict[str, Tensor | float]:
    """Accuracy and length of the rollouts of each part of the data, where it has several."""
    figures: dict[str, Tensor | float] = {}
    for index, name in enumerate(rollouts.sources if len(rollouts.sources) > 1 else ()):
        of_part = rollouts.source == index
        known = of_part & ~rollouts.gold_outcome.isnan()
        figures[f"response_tokens/{name}"] = rollouts.response_mask[of_part].sum(-1).float().mean()
        if known.any():
            figures[f"accuracy/{name}"] = rollouts.gold_outcome[known].mean()
    return figures


def _prompts_by_source(batch: GlobalBatch) -> dict[str, Tensor | float]:
    """Prompts of each part of the data, where it has several."""
    figures: dict[str, Tensor | float] = {}
    for index, name in enumerate(batch.sources if len(batch.sources) > 1 else ()):
        figures[f"of/{name}"] = len(batch.group[batch.source == index].unique())
    return figures


def _prompts_with_experts(batch: GlobalBatch) -> dict[str, Tensor | float]:
    """Prompts with experts, where some have none."""
    with_experts = len(batch.group[batch.is_expert].unique())
    return {"with_experts": with_experts} if with_experts < len(batch.group.unique()) else {}
