r"""Discriminators of experts against the policy: GAN-GCL, AIRL and GAIL. Experts have label 1 (`expert_is_high`).

As in objectives/irl.py, each is a function of the token rewards of the whole scope that gives the detached coefficients
c = dL/dr of the loss, in all of them per prompt x

    L_x = -sum_{i in P_x} a_i log D_i - (1/|N_x|) sum_{j in N_x} log(1 - D_j),    D = sigma(logit).

At logit 0 everywhere L is 2 log 2. A row in both sets counts on both sides.
"""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from repirl.objectives.prm import Coefficients
from repirl.objectives.reduce import group_sum

Form = Literal["sequence", "token"]
HALVINGS = 60  # of an interval that holds log z: 1e4 / 2^60 is below 1e-14


@torch.no_grad()
def discriminator_coefficients(
    *,
    form: Form,
    rewards: Float[Tensor, "rows time"],
    log_ratio: Float[Tensor, "rows time"],
    response_mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, " rows"],
    positive_weight: Float[Tensor, " rows"],
    background: Bool[Tensor, " rows"],
) -> Coefficients:
    r"""The discriminator whose optimum contains the reward: sigma(r + log b - log pi - log z).

    `sequence` (GAN-GCL, arXiv 1611.03852): logit_j = R_j + log b - log pi - log z, all summed over the response, one z a
    prompt. z is such that the importance weights 2 D of p_phi against the half/half mixture of experts and policy have
    mean 1, sum_i a_i D_i + mean_j D_j = 1. That is also dL/d(log z) = 0: c, taken at constant z, is the whole gradient,
    and c sums to 0 over a prompt.
    `token` (AIRL, arXiv 1710.11248): logit_jt = r_jt + log b - log pi of that token, no z; every token of a set counts the
    same, with sum_i a_i len_i and sum_j len_j as denominators.

    All rows of the scope must be given: every micro-batch, every rank.

    Args:
        form: one logit a response, or one a token.
        rewards: r_phi of each response token.
        log_ratio: log b - log pi_theta of each response token (pi also of the experts' tokens); b = 1: -log pi_theta.
        response_mask: True = counts.
        group: the prompt of each row, any integers.
        positive_weight: > 0 for rows in P_x; a_i is this, normalised over the prompt's positives.
        background: True for rows in N_x, rollouts of pi_theta.

    Returns:
        `cells` = prompts with both sets; figures `skipped` (the other prompts), `accuracy` (balanced, of logit > 0) and
        `log_z` (mean over prompts; 0 for `token`).
    """
    scores = (rewards + log_ratio).masked_fill(~response_mask, 0)
    if form == "token":
        return _contrast(scores, response_mask, group, positive_weight, background, with_z=False)
    whole, present = scores.sum(-1, keepdim=True), response_mask.any(-1, keepdim=True)
    of_responses = _contrast(whole, present, group, positive_weight, background, with_z=True)
    return _per_token(of_responses, response_mask)


@torch.no_grad()
def gail_coefficients(
    *,
    form: Form,
    rewards: Float[Tensor, "rows time"],
    response_mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, " rows"],
    positive_weight: Float[Tensor, " rows"],
    background: Bool[Tensor, " rows"],
) -> Coefficients:
    r"""The plain discriminator (GAIL, arXiv 1606.03476): logit = R (`sequence`) or r_t (`token`), no correction by pi.

    At its optimum the logit, the reward log D - log(1 - D), is the log-density ratio of experts to policy, not the
    experts' own. Arguments and result as in `discriminator_coefficients`.
    """
    scores = rewards.masked_fill(~response_mask, 0)
    if form == "token":
        return _contrast(scores, response_mask, group, positive_weight, background, with_z=False)
    whole, present = scores.sum(-1, keepdim=True), response_mask.any(-1, keepdim=True)
    of_responses = _contrast(whole, present, group, positive_weight, background, with_z=False)
    return _per_token(of_responses, response_mask)


def _contrast(
    scores: Float[Tensor, "rows columns"],
    active: Bool[Tensor, "rows columns"],
    group: Int[Tensor, " rows"],
    positive_weight: Float[Tensor, " rows"],
    background: Bool[Tensor, " rows"],
    *,
    with_z: bool,
) -> Coefficients:
    """Coefficients [rows, columns] of the cross-entropy, mean over prompts with both sets."""
    prompts, cell = group.unique(return_inverse=True)
    count = len(prompts)
    raw = [positive_weight.to(scores.dtype)[:, None] * active, (background[:, None] & active).to(scores.dtype)]
    totals = [group_sum(weight.sum(-1), cell, count) for weight in raw]
    usable = (totals[0] > 0) & (totals[1] > 0)
    cells = int(usable.sum())
    shares = [
        torch.where(usable[cell][:, None], weight / total.where(usable, 1.0)[cell][:, None], 0.0)
        for weight, total in zip(raw, totals, strict=True)
    ]
    positive, negative = shares  # each sums to 1 over a usable prompt
    log_z = scores.new_zeros(count, dtype=torch.float64)
    if with_z:
        log_z = _log_z(scores[:, 0].double(), positive[:, 0], negative[:, 0], cell, usable)
    logits = (scores - log_z[cell][:, None]).to(scores.dtype)
    token = negative * logits.sigmoid() - positive * (-logits).sigmoid()
    loss = -(positive * logsigmoid(logits) + negative * logsigmoid(-logits)).sum()
    right = (positive * (logits > 0) + negative * (logits <= 0)).sum() / 2
    share = max(cells, 1)
    return Coefficients(
        token=token / share,
        loss=loss / share,
        cells=cells,
        figures={
            "prompts_used": cells,
            "prompts_skipped": count - cells,
            "accuracy": right / share,
            "log_z": (log_z.where(usable, 0.0).sum() / share).to(scores.dtype),
        },
    )


def _log_z(
    scores: Float[Tensor, " rows"],
    positive: Float[Tensor, " rows"],
    negative: Float[Tensor, " rows"],
    cell: Int[Tensor, " rows"],
    usable: Bool[Tensor, " prompts"],
) -> Float[Tensor, " prompts"]:
    """The u of each prompt with A + B = 1, A = sum_i a_i sigma(s_i - u), B = sum_j n_j sigma(s_j - u); by bisection.

    Both fall in u, and A + B passes 1 between the smallest and the largest score. Compared as logit A + logit B = 0: with
    experts 1e4 above or below the rollouts A and B round to 0 and 1, and u is still found. 0 where unusable.
    """
    count = len(usable)
    takes_part = (positive > 0) | (negative > 0)
    low = _group_extreme(scores, cell, count, takes_part, "amin").where(usable, 0.0)
    high = _group_extreme(scores, cell, count, takes_part, "amax").where(usable, 0.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above, below = logsigmoid(scores - middle[cell]), logsigmoid(middle[cell] - scores)
        logits = [
            _group_log_sum(above, shares, cell, count) - _group_log_sum(below, shares, cell, count)
            for shares in (positive, negative)
        ]
        too_low = logits[0] + logits[1] > 0
        low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
    return (low + high) / 2


def _group_log_sum(
    values: Float[Tensor, " rows"], weights: Float[Tensor, " rows"], cell: Int[Tensor, " rows"], count: int
) -> Float[Tensor, " prompts"]:
    """Logarithm of sum_j w_j exp(v_j), of each prompt, over rows with w > 0."""
    takes_part = weights > 0
    top = _group_extreme(values, cell, count, takes_part, "amax")
    terms = weights.double() * (values - top[cell]).exp()
    return group_sum(terms.masked_fill(~takes_part, 0), cell, count).log() + top


def _group_extreme(
    values: Float[Tensor, " rows"],
    cell: Int[Tensor, " rows"],
    count: int,
    takes_part: Bool[Tensor, " rows"],
    which: Literal["amin", "amax"],
) -> Float[Tensor, " prompts"]:
    """Smallest or largest value of each prompt's rows that take part; 0 where none does."""
    start = values.new_zeros(count)
    return start.scatter_reduce(0, cell[takes_part], values[takes_part], which, include_self=False)


def _per_token(of_responses: Coefficients, response_mask: Bool[Tensor, "rows time"]) -> Coefficients:
    """A response's coefficient on each of its tokens: R = sum_t r_t."""
    return replace(of_responses, token=of_responses.token * response_mask)
