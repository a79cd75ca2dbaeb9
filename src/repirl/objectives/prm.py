r"""PRM objectives from labels: an outcome per response, or a label per step.

As in objectives/irl.py, an objective is a function of the token rewards of the whole scope that gives the detached
coefficients c = dL/dr. The gradient pass minimises sum_{j,t} c_jt r_jt in any micro-batches, on any ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from repirl.objectives.reduce import masked_mean
from repirl.objectives.steps import sum_to_step_ends


@dataclass(frozen=True, slots=True)
class Coefficients:
    """What a PRM objective says about the rewards.

    token: [N, T], detached, dL/dr of each response token, 0 outside the response.
    loss: L itself, the value to report; for IRL the linear surrogate, of either sign.
    cells: how many terms L is the mean of (prompts, rows or steps); 0 = nothing to update.
    figures: what else to report, scalars by name.
    """

    token: Float[Tensor, "rows time"]
    loss: Float[Tensor, ""]
    cells: int
    figures: Mapping[str, Tensor | float | int] = field(default_factory=dict)

    @property
    def to_report(self) -> dict[str, Tensor | float | int]:
        """Loss and figures; where there was nothing to learn from, counts of prompts alone: a loss of 0 would mislead."""
        if self.cells:
            return {"loss": self.loss, **self.figures}
        return {name: value for name, value in self.figures.items() if name.startswith("prompts_")}


@torch.no_grad()
def prime_coefficients(
    *,
    rewards: Float[Tensor, "rows time"],
    outcome: Float[Tensor, " rows"],
    response_mask: Bool[Tensor, "rows time"],
) -> Coefficients:
    r"""Cross-entropy of sigma(R_j), R_j = sum_t r_jt, against the outcome o_j (PRIME, arXiv 2502.01456).

    L = -(1/n) sum_j [ o_j log sigma(R_j) + (1 - o_j) log sigma(-R_j) ] over the n rows with a known outcome, hence
    c_jt = (sigma(R_j) - o_j) / n. PRIME's beta is part of the implicit PRM's reward. All rows of the scope must be given.

    Args:
        rewards: r_phi of each response token.
        outcome: in [0, 1], 1 = right; NaN = unknown, the row is left out.
        response_mask: True = counts.

    Raises:
        ValueError: for an outcome outside [0, 1].
    """
    _require_shares(outcome, "outcome")
    known = ~outcome.isnan() & response_mask.any(-1)
    logits = rewards.masked_fill(~response_mask, 0).sum(-1)
    slope, losses = _cross_entropy(logits, outcome.nan_to_num().to(logits.dtype))
    count = known.sum().clamp(min=1)
    return Coefficients(
        token=(slope * known / count)[:, None] * response_mask,
        loss=masked_mean(losses, known),
        cells=int(known.sum()),
        figures={"accuracy": _agreement(logits, outcome, known)},
    )


@torch.no_grad()
def step_cross_entropy_coefficients(
    *,
    rewards: Float[Tensor, "rows time"],
    labels: Float[Tensor, "rows time"],
    ends: Bool[Tensor, "rows time"],
    response_mask: Bool[Tensor, "rows time"],
) -> Coefficients:
    r"""Cross-entropy of sigma(step reward) against step labels (Math-Shepherd, arXiv 2312.08935, eq. 2).

    A step's reward is the sum of its tokens' rewards, as `sum_to_step_ends` has it: the same whether they stand at every
    token or at the step's end alone. With y the label, L = mean over the n labelled steps of
    -[ y log sigma(s) + (1 - y) log sigma(-s) ], and every token of a labelled step has c = (sigma(s) - y) / n.

    Args:
        rewards: r_phi of each response token.
        labels: at step ends, in [0, 1], hard or soft, 1 = right; NaN elsewhere and where unknown.
        ends: True at the last token of each step (`objectives/steps.py`).
        response_mask: True = counts.

    Raises:
        ValueError: for a label outside [0, 1], or at a token that ends no step.
    """
    _require_shares(labels, "labels")
    labelled = ~labels.isnan()
    if (stray := labelled & ~(ends & response_mask)).any():
        row, token = stray.nonzero()[0].tolist()
        raise ValueError(f"labels: row {row}, token {token} has a label but ends no step; put labels at step ends")
    logits = sum_to_step_ends(rewards=rewards, ends=ends, response_mask=response_mask)
    slope, losses = _cross_entropy(logits, labels.nan_to_num().to(logits.dtype))
    count = labelled.sum().clamp(min=1)
    at_ends = (slope * labelled / count).masked_fill(~labelled, 0)
    return Coefficients(
        token=_over_steps(at_ends, ends, response_mask),
        loss=masked_mean(losses, labelled),
        cells=int(labelled.sum()),
        figures={"accuracy": _agreement(logits, labels, labelled)},
    )


def _cross_entropy(
    logits: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"]
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Derivative in the logit, and value, of -[ y log sigma(s) + (1 - y) log sigma(-s) ]; finite for any logit."""
    # sigma(s) - y, written so that a nearly right answer keeps its small slope: no 1 - (1 - tiny)
    slope = (1 - target) * logits.sigmoid() - target * (-logits).sigmoid()
    return slope, -target * logsigmoid(logits) - (1 - target) * logsigmoid(-logits)


def _over_steps(
    at_ends: Float[Tensor, "rows time"], ends: Bool[Tensor, "rows time"], response_mask: Bool[Tensor, "rows time"]
) -> Float[Tensor, "rows time"]:
    """Each token gets the value at the end of its step; 0 after the last end. The transpose of `sum_to_step_ends`."""
    step = ends.long().cumsum(-1) - ends.long()
    by_step = torch.zeros_like(at_ends).scatter_add(1, step.clamp(max=at_ends.shape[1] - 1), at_ends)
    closed = ends.flip(-1).long().cumsum(-1).flip(-1) > 0
    return by_step.gather(1, step.clamp(max=at_ends.shape[1] - 1)) * (response_mask & closed)


def _agreement(logits: Float[Tensor, "*shape"], target: Tensor, known: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Share of the known whose logit lies on the label's side of 0."""
    return masked_mean(((logits > 0) == (target > 0.5)).to(logits.dtype), known)


def _require_shares(values: Tensor, name: str) -> None:
    if (outside := (values < 0) | (values > 1)).any():
        where = outside.nonzero()[0].tolist()
        raise ValueError(
            f"{name}: {float(values[tuple(where)]):g} at {where} is outside [0, 1]; NaN marks an unknown one"
        )


def penalty_coefficients(
    rewards: Float[Tensor, "rows time"], response_mask: Bool[Tensor, "rows time"], penalty: float
) -> Float[Tensor, "rows time"]:
    """dL/dr of L = penalty x mean of r^2 over all response tokens of the scope: 2 penalty r_jt / tokens."""
    return 2 * penalty * rewards.masked_fill(~response_mask, 0) / response_mask.sum().clamp(min=1)
