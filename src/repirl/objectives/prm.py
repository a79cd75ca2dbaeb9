"""Objectives of a PRM other than max-ent IRL, and the form that they all share.

Every objective is a function L of the token rewards of the whole scope. It returns the detached coefficients c = dL/dr, so
that the gradient of sum_jt c_jt r_jt is that of L, in whatever micro-batches the rewards are computed again.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Coefficients:
    """What a PRM objective says of the token rewards.

    token: [N, T], dL/dr, detached. loss: L, the value to report. cells: terms that L averages over (prompts, rows, steps);
    0 = nothing to update. figures: what else is worth logging.
    """

    token: Float[Tensor, "rows time"]
    loss: Float[Tensor, ""]
    cells: int
    figures: dict[str, Tensor | float]
