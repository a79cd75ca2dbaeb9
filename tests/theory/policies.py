"""The package's advantages on the tiny MDP: the expected step of a tabular policy, by enumeration of every draw."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from repirl.learning.batch import GlobalBatch, batch_of
from repirl.learning.settings import Advantage
from repirl.learning.shaping import shaped
from tests.theory.estimators import World, every_draw, world
from tests.theory.tiny_mdp import STATES, Enumerated, random_table

Policies = Sequence[World]


def batch_of_draws(
    prompts: Policies, draws: Sequence[Tensor], correct: Tensor
) -> tuple[GlobalBatch, Enumerated, Tensor]:
    """One batch of many groups of rollouts, [G, K] trajectories a prompt; its rows, and the PRM's reward of each token.

    correct: trajectories [M] that a verifier accepts.
    """
    counts, width = [len(one) for one in draws], draws[0].shape[1]
    index = torch.cat([one.flatten() for one in draws])
    rows = prompts[0].rows.rows(index)
    pieces = [one.flatten() for one in draws]
    policy = torch.cat([p.rows.values(p.policy.log_softmax(-1))[i] for p, i in zip(prompts, pieces, strict=True)])
    base = torch.cat([p.log_base[i] for p, i in zip(prompts, pieces, strict=True)])
    rewards = torch.cat([p.rows.values(p.reward)[i] for p, i in zip(prompts, pieces, strict=True)])
    batch = batch_of(
        response_mask=rows.mask,
        group=torch.arange(sum(counts)).repeat_interleave(width),
        is_expert=torch.zeros(len(index), dtype=torch.bool),
        outcome=correct[index].double(),
        behaviour_log_probs=policy,
        reference_log_probs=base,
    )
    return batch, rows, rewards


def policy_steps(
    prompts: Policies,
    settings: Advantage,
    *,
    correct: Tensor,
    samples: int = 2,
    maxent_coef: float = 1.0,
) -> list[Tensor]:
    """The expectation of (1/K) sum_k sum_t A grad log q in the logits of each prompt, over every draw of K rollouts.

    All draws of all prompts are one batch, so that what is of the batch (the largest return) has its limit of many
    rollouts; whitening would weigh every draw alike and has to be off. The reference is the base measure.
    """
    assert not settings.whiten, "every draw counts alike in it"
    draws, chances = zip(*(every_draw(p, samples) for p in prompts), strict=True)
    batch, rows, rewards = batch_of_draws(prompts, draws, correct)
    advantages = shaped(
        batch,
        settings=settings,
        judged=True,
        prm_rewards=rewards,
        maxent_coef=maxent_coef,
        of_reference=True,
        by_step=False,
    )
    found, start = [], 0
    for place, draw, chance in zip(prompts, draws, chances, strict=True):
        part = slice(start, start := start + draw.numel())
        weight = chance.repeat_interleave(samples)[:, None] / samples
        found.append(score(rows.rows(torch.arange(len(rows))[part]), advantages[part] * weight, place.policy))
    return found


def score(rows: Enumerated, advantages: Tensor, policy: Tensor) -> Tensor:
    """The sum of A grad log q over rows and tokens, in the logits [states, VOCAB]."""
    table = rows.table(advantages)
    return table - policy.softmax(-1) * table.sum(-1, keepdim=True)


def minus_kl_gradient(place: World, model: Tensor) -> Tensor:
    """The gradient of -KL(q || model) in the logits of q, by autograd; model: log-probabilities [M]."""
    logits = place.policy.clone().requires_grad_()
    q = place.rows.log_prob(logits)
    return torch.autograd.grad((q.exp() * (model - q)).sum(), logits)[0]


def ascend_policies(
    prompts: Policies, step: Callable[[Policies], Sequence[Tensor]], *, steps: int, rate: float
) -> list[World]:
    """The prompts after this many steps of their policies' logits; rewards stay as they are."""
    here = list(prompts)
    for _ in range(steps):
        moves = step(here)
        here = [replace(p, policy=p.policy + rate * move) for p, move in zip(here, moves, strict=True)]
    return here


def shifted(place: World, constant: float) -> World:
    """The same world with R of every response raised by a constant: on its first token."""
    reward = place.reward.clone()
    reward[STATES[()]] += constant
    return replace(place, reward=reward)


def following(place: World) -> World:
    """The same world with the reference as the policy: where training starts."""
    assert place.base is not None
    return replace(place, policy=place.base)


def untrained(horizon: int = 4) -> World:
    """R = 0, and the policy is the reference."""
    found = world(horizon=horizon)
    return following(replace(found, base=random_table(6, 0.5), reward=torch.zeros_like(found.reward)))


def kl(p: Tensor, q: Tensor) -> float:
    """KL(p || q) of two distributions over responses; p may have zeros."""
    return float((torch.xlogy(p, p) - p * q.log()).sum())


def together(place: World, gradient: Callable[[World], Tensor], *, steps: int, rate: float) -> World:
    """The world after so many steps of the PRM, each followed by two of the policy towards b exp(R) / Z."""
    for _ in range(steps):
        place = replace(place, reward=place.reward + rate * gradient(place))
        for _ in range(2):
            place = replace(place, policy=place.policy + 2 * minus_kl_gradient(place, place.log_model))
    return place
