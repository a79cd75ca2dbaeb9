"""The package's PRM objectives as estimators of a gradient on the tiny MDP: by sampling, by enumeration, in the limit."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from repirl.objectives.discriminator import discriminator_coefficients, gail_coefficients
from repirl.objectives.irl import Corrected, contrast_sets, irl_coefficients
from tests.theory.tiny_mdp import STATES, VOCAB, Enumerated, enumerate_all, random_table, soft_values

Objective = Callable[..., Any]  # keyword tensors, as irl_coefficients has them -> an object with `token`


@dataclass(frozen=True)
class World:
    """One prompt: all trajectories, the reward table, the sampling policy q (a table of logits), p_D ([M]).

    base: logits of the reference policy as base measure; b = 1 if None.
    """

    rows: Enumerated
    reward: Tensor
    policy: Tensor
    expert: Tensor
    base: Tensor | None = None

    @property
    def q(self) -> Tensor:
        return self.rows.log_prob(self.policy).exp()

    @property
    def log_base(self) -> Tensor:
        """The log b of each token, [M, T]."""
        if self.base is None:
            return torch.zeros(self.rows.mask.shape, dtype=torch.float64)
        return self.rows.values(self.base.log_softmax(-1))

    @property
    def log_ratio(self) -> Tensor:
        """The log b - log q of each token, [M, T]."""
        return self.log_base - self.rows.values(self.policy.log_softmax(-1))

    @property
    def log_model(self) -> Tensor:
        """The trajectory distribution p_phi as logarithms, [M]."""
        return (self.rows.returns(self.reward) + self.log_base.sum(-1)).log_softmax(0)

    @property
    def model(self) -> Tensor:
        """The trajectory distribution p_phi, [M]."""
        return self.log_model.exp()


def world(seed: int = 1, horizon: int = 4, spread: float = 0.5) -> World:
    """A random reward and p_D; q is the best policy of the reward, disturbed: weights are of order 1, not equal."""
    rows = enumerate_all(horizon)
    reward = random_table(seed)
    q = soft_values(reward, horizon=horizon)[0] + random_table(seed + 1, spread)
    return World(rows, reward, q, rows.log_prob(random_table(seed + 2)).exp())


def mismatched() -> World:
    """A proposal that hardly makes what experts write most: the first response has p_D = .7 and q = .05."""
    rows = enumerate_all(2)
    q = torch.tensor([0.05, 0.15, 0.2, 0.2, 0.1, 0.15, 0.15], dtype=torch.float64)
    expert = torch.tensor([0.7, *[0.05] * 6], dtype=torch.float64)
    return World(rows, torch.zeros(len(STATES), VOCAB, dtype=torch.float64), rows.policy_of(q), expert)


def ascents(
    world: World,
    rollouts: Tensor,
    objective: Objective,
    *,
    experts: Tensor | None = None,
    correct: Tensor | None = None,
    corrected: Corrected = "copy",
    expert_mass: float = 1.0,
) -> Tensor:
    """-dL/dr of each of G independent prompts, [G, states, VOCAB]; each has its own M rollouts, [G, M].

    experts: [G, E] or None = every trajectory, weighted by p_D (the exact expectation, for L is linear in the shares).
    correct: trajectories [M] that a verifier accepts; as rollouts they are pseudo-experts, each of weight 1 against an
        expert weight of `expert_mass` times the number of rollouts. None: no verifier.
    """
    count, samples = rollouts.shape
    if experts is None:
        experts, weight = torch.arange(len(world.rows)).expand(count, -1), world.expert.expand(count, -1)
    else:
        weight = torch.full(experts.shape, 1 / experts.shape[1], dtype=torch.float64)
    index = torch.cat([rollouts, experts], 1)
    is_expert = torch.arange(index.shape[1]).expand(index.shape) >= samples
    share = torch.cat([torch.ones(rollouts.shape, dtype=torch.float64), weight], 1)
    outcome = torch.full(index.shape, torch.nan) if correct is None else correct[index].float()
    positive, background = contrast_sets(
        is_expert=is_expert.flatten(),
        outcome=outcome.masked_fill(is_expert, torch.nan).flatten(),
        corrected=corrected,
        expert_weight=expert_mass * samples,
    )
    rows, group = world.rows.rows(index.flatten()), torch.arange(count).repeat_interleave(index.shape[1])
    found = objective(
        rewards=rows.values(world.reward),
        log_ratio=world.log_ratio[index.flatten()],
        response_mask=rows.mask,
        group=group,
        positive_weight=positive * share.flatten(),
        background=background,
    )
    return -rows.tables(found.token * max(found.cells, 1), group, count)


def irl(**switches: Any) -> Objective:
    """`irl_coefficients` with these switches; experts_in_z is off unless said."""
    return partial(irl_coefficients, **{"experts_in_z": False, **switches})


def discriminator(form: str) -> Objective:
    return partial(discriminator_coefficients, form=form)


def gail(form: str) -> Objective:
    def plain(*, log_ratio: Tensor, **arguments: Any) -> Any:
        return gail_coefficients(form=form, **arguments)

    return plain


def pooled(*, positive_weight: Tensor, background: Tensor, **arguments: Any) -> Any:
    """One softmax over the rollouts and all experts of a prompt."""
    everyone = background | (positive_weight > 0)
    return irl_coefficients(positive_weight=positive_weight, background=everyone, experts_in_z=False, **arguments)


# --- by sampling


def draw(world: World, count: int, samples: int, generator: torch.Generator) -> Tensor:
    """Rollouts of q, [count, samples]."""
    drawn = torch.multinomial(world.q, count * samples, replacement=True, generator=generator)
    return drawn.view(count, samples)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Root mean square over replicates [G, ...] of |found - expected|, as a share of |expected|."""
    squared = (found - expected).square().flatten(1).sum(1).mean()
    return float((squared / expected.square().sum()).sqrt())


def errors(
    world: World,
    objective: Objective,
    expected: Tensor,
    sizes: list[int],
    replicates: int,
    seed: int = 0,
    **options: Any,
) -> list[float]:
    """The relative error for each number of rollouts, over independent replicates."""
    generator = torch.Generator().manual_seed(seed)
    return [
        relative_error(ascents(world, draw(world, replicates, m, generator), objective, **options), expected)
        for m in sizes
    ]


def slope(sizes: list[int], values: list[float]) -> float:
    """Of log value against log size, by least squares."""
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (sizes, values))
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


# --- by enumeration


def every_draw(world: World, samples: int) -> tuple[Tensor, Tensor]:
    """All multisets of rollouts, [G, M], and the probability of each under q."""
    sets = list(itertools.combinations_with_replacement(range(len(world.rows)), samples))
    index = torch.tensor(sets)
    ways = [
        math.factorial(samples) / math.prod(math.factorial(len(list(same))) for _, same in itertools.groupby(s))
        for s in sets
    ]
    return index, torch.tensor(ways, dtype=torch.float64) * world.q[index].prod(1)


def expected_ascent(world: World, objective: Objective, samples: int, **options: Any) -> Tensor:
    """The exact expectation of the estimate with this many rollouts, [states, VOCAB]."""
    index, probability = every_draw(world, samples)
    return torch.einsum("g,gsa->sa", probability, ascents(world, index, objective, **options))


# --- in the limit


def contrast(world: World, positive: Tensor, negative: Tensor, rhat: str = "R") -> Tensor:
    """The table gradient of E_positive[Rhat] - E_negative[Rhat], distributions [M]."""
    weight = positive - negative
    return world.rows.occupancy(weight / world.rows.lengths if rhat == "Rbar" else weight)


def target(world: World, weighting: str = "sequence", temperature: float = 1.0) -> Tensor:
    """What the weights of infinitely many rollouts converge to, [M]: q^(1 - kappa) (b exp(R))^kappa, normalised."""
    kappa = {"sequence": 1.0, "uniform": 0.0, "length_normalized": 1 / world.rows.lengths.double()}[
        weighting
    ] / temperature
    return (world.q.log() * (1 - kappa) + world.log_model * kappa + log_z(world) * kappa).softmax(0)


def log_z(world: World) -> Tensor:
    """The log-partition function log sum b exp(R)."""
    return (world.rows.returns(world.reward) + world.log_base.sum(-1)).logsumexp(0)


def per_position_limit(world: World) -> Tensor:
    """Mean over t of E_experts[r_t] - E_t[r_t], E_t under weights q(tau) exp(r_t + log b_t - log q_t) of rows active at t."""
    rows, total = world.rows, torch.zeros_like(world.reward)
    tilted = world.q[:, None] * (rows.values(world.reward) + world.log_ratio).exp()
    for t in range(rows.mask.shape[1]):
        active = rows.mask[:, t]
        share = torch.zeros(rows.mask.shape, dtype=torch.float64)
        share[active, t] = (
            world.expert[active] / world.expert[active].sum() - tilted[active, t] / tilted[active, t].sum()
        )
        total = total + rows.table(share)
    return total / rows.mask.shape[1]


def discriminator_limit(world: World, form: str, plain: bool = False) -> Tensor:
    """E over experts of (1 - D) dlogit minus E over q of D dlogit, with every trajectory known; plain: GAIL's logit."""
    rows, ratio = world.rows, torch.zeros_like(world.log_ratio) if plain else world.log_ratio
    if form == "token":
        logits = rows.values(world.reward) + ratio
        shares = [(p / (p * rows.lengths).sum())[:, None] for p in (world.expert, world.q)]
        return rows.table(shares[0] * (-logits).sigmoid() - shares[1] * logits.sigmoid())
    scores = rows.returns(world.reward) + ratio.sum(-1)
    logits = scores if plain else scores - discriminator_log_z(world)
    return rows.occupancy(world.expert * (-logits).sigmoid() - world.q * logits.sigmoid())


def discriminator_log_z(world: World) -> Tensor:
    """The u with E_D[sigma(l - u)] + E_q[sigma(l - u)] = 1, l = R + log b - log q, by Newton's method."""
    scores, both = world.rows.returns(world.reward) + world.log_ratio.sum(-1), world.expert + world.q
    u = (scores * both).sum() / 2
    for _ in range(50):
        d = (scores - u).sigmoid()
        u = u + ((both * d).sum() - 1) / (both * d * (1 - d)).sum()
    return u


def limit(world: World, weighting: str, rhat: str = "R", temperature: float = 1.0) -> Tensor:
    """The gradient that `irl_coefficients` tends to as the number of rollouts grows (scope `prompt`, any experts_in_z)."""
    if weighting == "per_position":
        return per_position_limit(world)
    return contrast(world, world.expert, target(world, weighting, temperature), rhat)


def positives(world: World, correct: Tensor, expert_mass: float) -> Tensor:
    """Experts and right rollouts together, [M]; expert_mass: weight of the experts per rollout."""
    pseudo = world.q * correct
    return (expert_mass * world.expert + pseudo) / (expert_mass + pseudo.sum())


def corrected_limit(world: World, correct: Tensor, corrected: str, expert_mass: float) -> Tensor:
    """The limit of `sequence` weights with right rollouts as pseudo-experts: `copy` or `move`."""
    left = world.model * ~correct if corrected == "move" else world.model
    return contrast(world, positives(world, correct, expert_mass), left / left.sum())


def cases(world: World) -> dict[str, tuple[Objective, Tensor]]:
    """Every kind of estimator, and the limit of each."""
    inside, normalised = {"experts_in_z": True}, {"weighting": "length_normalized"}
    return {
        "sequence": (irl(), limit(world, "sequence")),
        "sequence, experts in Z": (irl(**inside), limit(world, "sequence")),
        "sequence, truncated": (irl(truncate=0.1), limit(world, "sequence")),  # weights fall below any cap
        "sequence, Rbar": (irl(rhat="Rbar"), limit(world, "sequence", "Rbar")),
        "sequence, tempered": (irl(temperature=3.0), limit(world, "sequence", temperature=3.0)),
        "sequence, tempered, experts in Z": (
            irl(temperature=3.0, **inside),
            limit(world, "sequence", temperature=3.0),
        ),
        "length_normalized": (irl(**normalised), limit(world, "length_normalized")),
        "length_normalized, Rbar, experts in Z": (
            irl(rhat="Rbar", **normalised, **inside),
            limit(world, "length_normalized", "Rbar"),
        ),
        "uniform": (irl(weighting="uniform"), limit(world, "uniform")),
        "uniform, experts in Z": (irl(weighting="uniform", **inside), limit(world, "uniform")),
        "per_position": (irl(weighting="per_position"), limit(world, "per_position")),
        "per_position, experts in Z": (irl(weighting="per_position", **inside), limit(world, "per_position")),
        "discriminator": (discriminator("sequence"), discriminator_limit(world, "sequence")),
        "discriminator, token": (discriminator("token"), discriminator_limit(world, "token")),
        "GAIL": (gail("sequence"), discriminator_limit(world, "sequence", plain=True)),
        "GAIL, token": (gail("token"), discriminator_limit(world, "token", plain=True)),
    }


# --- following it


@dataclass(frozen=True)
class Course:
    """What a run of gradient ascent went through: |R| at most, KL(p_D || p_phi) and |gradient| before each step."""

    size: list[float]
    kl: list[float]
    gradient: list[float]
    end: World


def follow(
    start: World, gradient: Callable[[World], Tensor], steps: int, rate: float, *, tracks: bool = False
) -> Course:
    """Ascends from reward 0 with a fixed step size; tracks: q is at each step the policy of the model itself."""
    here = replace(start, reward=torch.zeros_like(start.reward))
    course = Course([], [], [], here)
    for _ in range(steps):
        if tracks:
            here = replace(here, policy=here.rows.policy_of(here.model))
        step = gradient(here)
        course.size.append(float(here.rows.returns(here.reward).abs().max()))
        course.kl.append(float((here.expert * (here.expert.log() - here.log_model)).sum()))
        course.gradient.append(float(step.norm()))
        here = replace(here, reward=here.reward + rate * step)
    return replace(course, end=here)
