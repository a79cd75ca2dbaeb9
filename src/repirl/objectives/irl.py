r"""The max-ent IRL objective: one function from (log-weights, sets, scope) to coefficients.

A trajectory's energy is R = sum_t r_t; p_phi(tau|x) = b(tau|x) exp(R) / Z(x). The gradient of the expert log-likelihood,
E_D[grad R] - E_p[grad R], is estimated from rollouts of q with weights w ~ exp(R) b / q. Every switch of the method only
changes the detached coefficients c of the loss L = sum_{j,t} c_jt r_jt (docs/algorithms.md).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Weighting = Literal["sequence", "length_normalized", "per_position", "uniform"]
Scope = Literal["prompt", "batch"]
Rhat = Literal["R", "Rbar"]
Corrected = Literal["copy", "move", "ignore"]


@dataclass(frozen=True, slots=True)
class IRLCoefficients:
    """Coefficients of the IRL loss and what they say about the weights.

    token: [N, T], detached; the loss is (token * rewards).sum(). They sum to zero at every position (per_position) or over
        rows, each row's share counted once (the other weightings).
    ranking_loss: mean over positives of logsumexp_{N u i} l - l_i, >= 0; with `experts_in_z`, `sequence` and R the loss
        whose gradient the coefficients give. Report this, not the unbounded linear surrogate.
    cells, skipped: softmax cells (prompts, or 1 for the batch) used, and skipped because one set was empty.
    ess, ess_share, largest_weight, chi_square: of the background weights, mean over cells (and positions):
        1 / sum w^2; the same as a share of |N|; max w; |N| sum w^2 - 1.
    """

    token: Float[Tensor, "rows time"]
    ranking_loss: Float[Tensor, ""]
    cells: int
    skipped: int
    ess: Float[Tensor, ""]
    ess_share: Float[Tensor, ""]
    largest_weight: Float[Tensor, ""]
    chi_square: Float[Tensor, ""]


def contrast_sets(
    *,
    is_expert: Bool[Tensor, " rows"],
    outcome: Float[Tensor, " rows"],
    corrected: Corrected = "copy",
    expert_weight: float = 1.0,
) -> tuple[Float[Tensor, " rows"], Bool[Tensor, " rows"]]:
    """The sets of a contrast: each row's weight among its prompt's positives P (0 = not one), and the background N.

    outcome: 1, 0, or NaN where unknown. Experts found wrong are no positives and join N. Right rollouts are
    pseudo-experts (the paper's corrected trajectories) unless `corrected` ignores them; they leave N only under `move`.
    """
    wrong_expert = is_expert & (outcome == 0)
    pseudo_expert = ~is_expert & (outcome == 1) & (corrected != "ignore")
    weight = (is_expert & ~wrong_expert) * expert_weight + pseudo_expert.float()
    left = pseudo_expert & (corrected == "move")
    return weight, (~is_expert & ~left) | wrong_expert


@torch.no_grad()
def irl_coefficients(
    *,
    rewards: Float[Tensor, "rows time"],
    log_ratio: Float[Tensor, "rows time"],
    response_mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, " rows"],
    positive_weight: Float[Tensor, " rows"],
    background: Bool[Tensor, " rows"],
    weighting: Weighting = "sequence",
    scope: Scope = "prompt",
    experts_in_z: bool = False,
    rhat: Rhat = "R",
    temperature: float = 1.0,
    truncate: float | None = None,
) -> IRLCoefficients:
    r"""Coefficients of L = (1/B') sum_x [ sum_{j in N_x} w_xj Rhat_j - sum_{i in P_x} a_i Rhat_i ].

    All rows of the scope must be given: every micro-batch, every rank. Splitting the call changes the objective.

    Args:
        rewards: r_phi of each response token.
        log_ratio: log b - log q of each response token, q the policy that sampled (evaluated on experts too).
        response_mask: True = counts.
        group: the prompt of each row, any integers.
        positive_weight: > 0 for rows in P_x; a_i is this, normalised over the prompt's positives.
        background: True for rows in N_x. A row may be in both sets (corrected trajectories that are kept in Z).
        weighting: `sequence`: w = softmax of l_j = R_j + log b - log q, the exact gradient in the limit of many rollouts.
            `length_normalized`: softmax of l_j / len_j. `uniform`: equal weights. `per_position`: a softmax at each
            position over the rollouts still active there, of r_jt + log b_jt - log q_jt; averaged over positions.
        scope: one softmax a prompt, or one over the batch (the paper's; z is then taken as equal for all prompts).
        experts_in_z: each positive i has its own softmax over N_x u {i} (ranking noise-contrastive estimation).
        rhat: `R`, or `Rbar` = R / len (the paper's; another moment condition). No effect on `per_position`.
        temperature: divides the log-weights.
        truncate: caps each weight, then renormalises.

    Raises:
        ValueError: for `per_position` with scope `batch`, a temperature <= 0 or a cap outside (0, 1].
    """
    if weighting == "per_position" and scope == "batch":
        raise ValueError("weighting 'per_position' is defined per prompt: set scope to 'prompt'")
    if temperature <= 0 or (truncate is not None and not 0 < truncate <= 1):
        raise ValueError(f"temperature must be > 0 and truncate in (0, 1], not {temperature} and {truncate}")

    lengths = response_mask.sum(-1).clamp(min=1).to(rewards.dtype)
    token_scores = (rewards + log_ratio).masked_fill(~response_mask, 0)
    if weighting == "per_position":
        scores, active = token_scores, response_mask
    else:
        scores, active = token_scores.sum(-1, keepdim=True), response_mask.any(-1, keepdim=True)
        if weighting == "length_normalized":
            scores = scores / lengths[:, None]
        elif weighting == "uniform":
            scores = torch.zeros_like(scores)
    scores = scores / temperature

    cell_of_row = group if scope == "prompt" else torch.zeros_like(group)
    coefficients = torch.zeros_like(scores)
    losses, stats, skipped = [], [], 0
    for cell in cell_of_row.unique():
        rows = (cell_of_row == cell).nonzero()[:, 0]
        positive = active[rows] & (positive_weight[rows] > 0)[:, None]
        negative = active[rows] & background[rows][:, None]
        usable = (positive.any(0) & negative.any(0)).nonzero()[:, 0]
        if not len(usable):
            skipped += 1
            continue
        shares = positive_weight[rows, None] * positive[:, usable]
        in_background = negative[:, usable]
        values, loss, weights = _contrast(
            scores[rows][:, usable], shares / shares.sum(0), in_background, experts_in_z, truncate
        )
        coefficients[rows[:, None], usable] = values / len(usable)
        losses.append(loss.mean())
        count, second = in_background.sum(0), weights.square().sum(0)
        of_weights = torch.stack([1 / second, 1 / (second * count), weights.amax(0), count * second - 1])
        stats.append(of_weights.to(rewards.dtype).mean(1))
    cells = len(losses)
    coefficients = coefficients / max(cells, 1)
    if rhat == "Rbar" and weighting != "per_position":
        coefficients = coefficients / lengths[:, None]
    zero = rewards.new_zeros(())
    ess, ess_share, largest, chi_square = torch.stack(stats).mean(0) if cells else zero.expand(4)
    return IRLCoefficients(
        token=coefficients.expand_as(rewards) * response_mask,
        ranking_loss=torch.stack(losses).mean() if cells else zero,
        cells=cells,
        skipped=skipped,
        ess=ess,
        ess_share=ess_share,
        largest_weight=largest,
        chi_square=chi_square,
    )


def _contrast(
    scores: Float[Tensor, "n t"],
    shares: Float[Tensor, "n t"],
    negative: Bool[Tensor, "n t"],
    experts_in_z: bool,
    truncate: float | None,
) -> tuple[Float[Tensor, "n t"], Float[Tensor, " t"], Float[Tensor, "n t"]]:
    """One cell: sum_i a_i (W_i - e_i), the ranking loss, and the background weights; each column on its own.

    W_i is the softmax over N u {i} (or N) of positive i, a_i its share.
    """
    rows = torch.arange(len(scores), device=scores.device)
    positives = rows[(shares > 0).any(1)]
    itself = rows == positives[:, None]  # [p, n]
    with_itself = negative[None] | itself[..., None]  # [p, n, t]
    ranking = scores.masked_fill(~with_itself, -torch.inf).logsumexp(1) - scores[positives]
    background = _capped_softmax(scores, negative, truncate, dim=0)
    weights = _capped_softmax(scores, with_itself, truncate, dim=1) if experts_in_z else background[None]
    mixed = (shares[positives][:, None] * weights).sum(0)
    loss = (shares[positives] * torch.where(shares[positives] > 0, ranking, 0)).sum(0)
    return mixed - shares, loss, background


def _capped_softmax(scores: Tensor, where: Bool[Tensor, "..."], cap: float | None, dim: int) -> Tensor:
    weights = torch.where(where, scores, -torch.inf).softmax(dim)
    if cap is None:
        return weights
    weights = weights.clamp(max=cap)
    return weights / weights.sum(dim, keepdim=True)
