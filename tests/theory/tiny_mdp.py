"""A token MDP small enough to enumerate: vocabulary {a, b, EOS}, variable lengths, horizon up to 4, float64."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

EOS, VOCAB, HORIZON = 2, 3, 4


def trajectories(horizon: int = HORIZON) -> list[tuple[int, ...]]:
    """Every response: ends at its first EOS, or is cut at the horizon."""
    found = []
    for length in range(1, horizon + 1):
        for body in itertools.product((0, 1), repeat=length - 1):
            found.append((*body, EOS))
    found.extend(itertools.product((0, 1), repeat=horizon))
    return found


STATES = {prefix: i for i, prefix in enumerate(sorted({t[:k] for t in trajectories() for k in range(len(t))}))}


# The state after (state, action); len(STATES), one past the last, after EOS and at the horizon.
NEXT = torch.full((len(STATES), VOCAB), len(STATES))
for _prefix, _state in STATES.items():
    for _action in range(VOCAB):
        NEXT[_state, _action] = STATES.get((*_prefix, _action), len(STATES))


@dataclass(frozen=True)
class Enumerated:
    """All M trajectories as rows: state [M, T], action [M, T] and mask [M, T] index tables of shape [states, VOCAB]."""

    state: Tensor
    action: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def lengths(self) -> Tensor:
        return self.mask.sum(-1)

    def values(self, table: Tensor) -> Tensor:
        """Token values [M, T] of a table [states, VOCAB]; 0 outside the response."""
        return table[self.state, self.action] * self.mask

    def returns(self, table: Tensor) -> Tensor:
        """R of each trajectory, [M]."""
        return self.values(table).sum(-1)

    def log_prob(self, logits: Tensor) -> Tensor:
        """Log-probability [M] of each trajectory under the softmax policy of `logits` [states, VOCAB]."""
        return self.returns(logits.log_softmax(-1))

    def tables(self, tokens: Tensor, groups: Tensor, count: int) -> Tensor:
        """Token values [M, T] added up in one table for each group, [count, states, VOCAB]: the transpose of `values`."""
        width = len(STATES) * VOCAB
        place = groups[:, None] * width + self.state * VOCAB + self.action
        flat = torch.zeros(count * width, dtype=torch.float64)
        return flat.index_add(0, place[self.mask], tokens[self.mask]).view(count, len(STATES), VOCAB)

    def table(self, tokens: Tensor) -> Tensor:
        """Token values [M, T] added up in one table [states, VOCAB]."""
        return self.tables(tokens, torch.zeros(len(self), dtype=torch.long), 1)[0]

    def occupancy(self, probabilities: Tensor) -> Tensor:
        """Expected visits of each (state, action), [states, VOCAB], under a distribution [M] over trajectories."""
        return self.table(probabilities[:, None].expand(self.mask.shape))

    def policy_of(self, probabilities: Tensor) -> Tensor:
        """Log-probabilities [states, VOCAB] of the policy with this trajectory distribution; 0 where never visited."""
        visits = self.occupancy(probabilities)
        return (visits / visits.sum(-1, keepdim=True)).log().nan_to_num(nan=0, neginf=-100)

    def rows(self, index: Tensor) -> "Enumerated":
        return Enumerated(self.state[index], self.action[index], self.mask[index])


def enumerate_all(horizon: int = HORIZON) -> Enumerated:
    """All trajectories of the MDP with this horizon; tables are those of the largest horizon."""
    found = trajectories(horizon)
    shape = len(found), horizon
    state, action = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.bool)
    for m, trajectory in enumerate(found):
        for t, token in enumerate(trajectory):
            state[m, t], action[m, t], mask[m, t] = STATES[trajectory[:t]], token, True
    return Enumerated(state, action, mask)


def random_table(seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(len(STATES), VOCAB, generator=generator, dtype=torch.float64)


def soft_values(reward: Tensor, beta: float = 1.0, horizon: int = HORIZON) -> tuple[Tensor, Tensor]:
    """Soft value iteration: Q = r + V(s'), V = beta logsumexp(Q / beta), V = 0 after EOS and at the horizon.

    Returns Q [states, VOCAB] and V [states].
    """
    q, v = torch.zeros_like(reward), torch.zeros(len(STATES), dtype=torch.float64)
    for prefix in sorted((s for s in STATES if len(s) < horizon), key=len, reverse=True):
        state = STATES[prefix]
        for action in range(VOCAB):
            following = (*prefix, action)
            ends = action == EOS or len(following) == horizon
            q[state, action] = reward[state, action] + (0 if ends else v[STATES[following]])
        v[state] = beta * (q[state] / beta).logsumexp(-1)
    return q, v


def next_values(values: Tensor) -> Tensor:
    """V(s') of each (s, a), [states, VOCAB], 0 after the end; from V [states]."""
    return torch.cat([values, torch.zeros(1, dtype=values.dtype)])[NEXT]


def exact_gradient(all_rows: Enumerated, reward: Tensor, expert: Tensor, log_base: Tensor | None = None) -> Tensor:
    """Gradient of E_expert[log p_phi] in the reward table [states, VOCAB], by autograd over the full enumeration.

    log_base: log b of each trajectory, [M]; b = 1 if None.
    """
    table = reward.clone().requires_grad_()
    energy = all_rows.returns(table)
    log_z = (energy if log_base is None else energy + log_base).logsumexp(0)
    (gradient,) = torch.autograd.grad((expert * energy).sum() - log_z, table)
    return gradient
