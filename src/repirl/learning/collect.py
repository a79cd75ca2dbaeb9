"""From rollouts to the global batch: verdicts, experts, tensors, and what there is to report of them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from repirl.distributed import rank, world_size
from repirl.learning.actor import Actor, UsableExperts, outcome_of
from repirl.learning.batch import GlobalBatch, gathered_batch
from repirl.learning.outcomes import Outcomes, outcomes_of, verdicts_on
from repirl.learning.recorder import Recorder, majority_figures, rollout_figures
from repirl.structs import Prompt, Response, Rows
from repirl.verifiers.format import format_reward


def positions_of(prompts: Sequence[Prompt]) -> list[int]:
    """Places of this rank's prompts in the global batch, which is dealt to the ranks in turn."""
    return [index * world_size() + rank() for index in range(len(prompts))]


def collected(
    prompts: Sequence[Prompt],
    rollouts: Sequence[Sequence[Response]],
    *,
    actor: Actor,
    experts: UsableExperts | None,
    outcomes: Outcomes,
    step_ends: Callable[[Rows], Tensor] | None,
    recorder: Recorder,
    device: torch.device,
) -> GlobalBatch:
    """The batch of this rank's prompts, their rollouts and experts, and of those of the other ranks.

    experts: None where nothing reads them. outcomes: where those of the rollouts come from.
    """
    problems, texts = [p.problem for p in prompts], [[r.text for r in row] for row in rollouts]
    verdicts = verdicts_on(outcomes, actor, problems, texts)
    batch = gathered_batch(
        prompts=prompts,
        positions=positions_of(prompts),
        rollouts=rollouts,
        experts=[[] for _ in prompts] if experts is None else experts.of(prompts),
        outcomes=outcomes_of(outcomes, problems, texts, verdicts),
        gold_outcomes=[[outcome_of(v) for v in row] for row in verdicts],
        format_rewards=[[format_reward(r.text) for r in row] for row in rollouts],
        policy_version=recorder.iteration,
        step_ends=step_ends,
        with_sampler_log_probs=actor.gives_log_probs,
        pad_id=actor.codec.pad_id,
        device=device,
    )
    for name, figures in rollout_figures(batch, verdicts, uses_experts=experts is not None).items():
        recorder.add(name, figures)
    if outcomes == "majority":
        recorder.add("rollout", majority_figures(batch))
    return batch
