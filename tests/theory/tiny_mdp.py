"""A token MDP small enough to enumerate: vocabulary {a, b, EOS}, variable lengths, horizon 4, float64."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

EOS, VOCAB, HORIZON = 2, 3, 4


def _trajectories() -> list[tuple[int, ...]]:
    """Every response: ends at its first EOS, or is cut at the horizon."""
    found = []
    for length in range(1, HORIZON + 1):
        for body in itertools.product((0, 1), repeat=length - 1):
            found.append((*body, EOS))
    found.extend(itertools.product((0, 1), repeat=HORIZON))
    return found


TRAJECTORIES = _trajectories()
STATES = {prefix: i for i, prefix in enumerate(sorted({t[:k] for t in TRAJECTORIES for k in range(len(t))}))}


@dataclass(frozen=True)
class Enumerated:
    """All M trajectories as rows: state [M, T], action [M, T] and mask [M, T] index tables of shape [states, VOCAB]."""

    state: Tensor
    action: Tensor
    mask: Tensor

    def values(self, table: Tensor) -> Tensor:
        """Token values [M, T] of a table [states, VOCAB]; 0 outside the response."""
        return table[self.state, self.action] * self.mask

    def log_prob(self, logits: Tensor) -> Tensor:
        """Log-probability [M] of each trajectory under the softmax policy of `logits` [states, VOCAB]."""
        return self.values(logits.log_softmax(-1)).sum(-1)

    def rows(self, index: Tensor) -> "Enumerated":
        return Enumerated(self.state[index], self.action[index], self.mask[index])


def enumerate_all() -> Enumerated:
    count = len(TRAJECTORIES)
    state, action = torch.zeros(count, HORIZON, dtype=torch.long), torch.zeros(count, HORIZON, dtype=torch.long)
    mask = torch.zeros(count, HORIZON, dtype=torch.bool)
    for m, trajectory in enumerate(TRAJECTORIES):
        for t, token in enumerate(trajectory):
            state[m, t], action[m, t], mask[m, t] = STATES[trajectory[:t]], token, True
    return Enumerated(state, action, mask)


def random_table(seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(len(STATES), VOCAB, generator=generator, dtype=torch.float64)


def exact_gradient(all_rows: Enumerated, reward: Tensor, expert: Tensor) -> Tensor:
    """Gradient of E_expert[log p_phi] in the reward table [states, VOCAB], by autograd over the full enumeration."""
    table = reward.clone().requires_grad_()
    energy = all_rows.values(table).sum(-1)
    log_likelihood = (expert * energy).sum() - energy.logsumexp(0)
    (gradient,) = torch.autograd.grad(log_likelihood, table)
    return gradient
