"""Whose log-probabilities a batch holds: the present policy's, the sampling policy's, those at the start of training."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from repirl.learning.batch import GlobalBatch, Shard, batch_of
from repirl.learning.policy_learner import PolicyLearner
from repirl.learning.recorder import Recorder
from repirl.learning.settings import Surrogate
from repirl.models.policy import Policy
from tests.models.tiny import rows_of, tiny_policy

ROWS = rows_of([[2, 3], [2, 3], [4, 5, 6]], [[3, 4, 1], [6, 1], [7, 9, 2]])  # two rollouts and an expert
SAMPLER = torch.tensor([[-0.5, -0.25, -2.0], [-1.0, -3.0, 0.0], [0.0, 0.0, 0.0]])


def batch(versions: list[int]) -> GlobalBatch:
    made = batch_of(
        response_mask=ROWS.response_mask,
        group=torch.tensor([0, 0, 1]),
        is_expert=torch.tensor([False, False, True]),
        policy_version=torch.tensor(versions),
        sampler_log_probs=SAMPLER,
    )
    return replace(made, shard=Shard((), (), ROWS))


def learner(policy: Policy, iteration: int = 0) -> PolicyLearner:
    recorder = Recorder()
    recorder.iteration = iteration
    options = {"max_response_tokens": 8, "micro_batch_tokens": 6, "clip_norm": 1.0}
    return PolicyLearner(policy, Surrogate(), recorder=recorder, **options)  # type: ignore[arg-type]


def moved(policy: Policy) -> Policy:
    """The policy after an update."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.ones_like(parameter).cumsum(0).sin())
    return policy


@torch.no_grad()
def test_rows_of_an_earlier_policy_keep_their_samplers_log_probs() -> None:
    policy = tiny_policy()
    known = learner(policy, iteration=3).with_log_probs(batch([2, 3, 2]))  # an expert is never stale
    present = policy(ROWS)[0]
    assert known.old_log_probs is not None
    assert known.behaviour_log_probs is not None
    torch.testing.assert_close(known.old_log_probs, present)
    torch.testing.assert_close(known.behaviour_log_probs[0], SAMPLER[0])
    torch.testing.assert_close(known.behaviour_log_probs[1:], present[1:])
    assert (present[0] - SAMPLER[0]).abs().max() > 0.1
    fresh = learner(policy, iteration=3).with_log_probs(batch([3, 3, 3]))
    torch.testing.assert_close(fresh.behaviour_log_probs, present)


@torch.no_grad()
def test_the_reference_is_the_policy_at_the_start() -> None:
    start = tiny_policy()
    policy = moved(copy.deepcopy(start))
    of_policy = learner(policy)
    assert of_policy.with_log_probs(batch([0, 0, 0])).reference_log_probs is None
    of_policy.reference = start
    known = of_policy.with_log_probs(batch([0, 0, 0]))
    torch.testing.assert_close(known.reference_log_probs, start(ROWS)[0])
    torch.testing.assert_close(known.old_log_probs, policy(ROWS)[0])
    assert (start(ROWS)[0] - policy(ROWS)[0]).abs().max() > 0.1
