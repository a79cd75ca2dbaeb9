"""What a PRM is trained on. An objective reads the global batch and gives coefficients of its token rewards."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from repirl.learning.batch import GlobalBatch
from repirl.objectives.discriminator import Form, discriminator_coefficients, gail_coefficients
from repirl.objectives.irl import Corrected, Rhat, Scope, Weighting, contrast_sets, irl_coefficients
from repirl.objectives.prm import (
    Coefficients,
    penalty_coefficients,
    prime_coefficients,
    step_cross_entropy_coefficients,
)

BaseMeasure = Literal["uniform", "reference"]
WrongExperts = Literal["drop", "background"]


class PRMObjective(ABC):
    """One way to train a PRM.

    needs_log_probs, needs_reference, needs_verifier: what the module has to provide. drops_wrong_experts: experts that
    the verifier rejects are left out before anything is computed. maxent_coef: that of `advantage` where it is not
    given; 1 where the rewards are a density b exp(R) / Z that the policy should follow. compares_tokens: rewards of single
    tokens are compared, not their sums.
    """

    needs_log_probs = True
    needs_reference = False
    needs_verifier = False
    drops_wrong_experts = True
    maxent_coef = 0.0
    compares_tokens = False

    @abstractmethod
    def coefficients(self, batch: GlobalBatch, rewards: Float[Tensor, "rows time"]) -> Coefficients:
        """dL/dr of every token of every rank, L's value, and what to log."""


class IRL(PRMObjective):
    """Maximum-entropy inverse reinforcement learning (objectives/irl.py): experts up, weighted rollouts down.

    Args:
        weighting: weights of the rollouts. `irl_coefficients` explains it, and `scope`, `experts_in_z`, `rhat`,
            `temperature` and `truncate`.
        base_measure: b = the policy at the start (`reference`) or b = 1 (`uniform`).
        corrected: rollouts with a right answer are pseudo-experts and stay in Z (`copy`), leave Z (`move`, the paper), or
            are ordinary rollouts (`ignore`). Without a verifier all three are the same.
        expert_weight: weight of a real expert against a pseudo-expert.
        wrong_experts: experts that the verifier rejects are dropped, or join the background.
        reward_penalty: weight of the mean square of all token rewards in the loss. What the contrast leaves open, such as
            a constant at each position, then stays near 0 instead of drifting.
    """

    maxent_coef = 1.0

    def __init__(
        self,
        weighting: Weighting = "sequence",
        scope: Scope = "prompt",
        experts_in_z: bool = False,
        rhat: Rhat = "R",
        temperature: float = 1.0,
        truncate: float | None = None,
        base_measure: BaseMeasure = "reference",
        corrected: Corrected = "copy",
        expert_weight: float = 1.0,
        wrong_experts: WrongExperts = "drop",
        reward_penalty: float = 0.0,
    ) -> None:
        if corrected == "move" and experts_in_z:
            raise ValueError(
                "IRL: corrected 'move' with experts_in_z leaves a corrected rollout no counter-force; "
                "use corrected 'copy', or experts_in_z false"
            )
        if weighting == "per_position" and scope == "batch":
            raise ValueError("IRL: weighting 'per_position' is defined per prompt; set scope to 'prompt'")
        if temperature <= 0 or (truncate is not None and not 0 < truncate <= 1):
            raise ValueError(f"IRL: temperature must be > 0 and truncate in (0, 1], not {temperature}, {truncate}")
        if expert_weight <= 0:
            raise ValueError(f"IRL: expert_weight must be > 0, not {expert_weight}")
        if reward_penalty < 0:
            raise ValueError(f"IRL: reward_penalty must not be negative, not {reward_penalty}")
        self.reward_penalty = reward_penalty
        self.weighting, self.scope, self.experts_in_z, self.rhat = weighting, scope, experts_in_z, rhat
        self.temperature, self.truncate = temperature, truncate
        self.compares_tokens = weighting == "per_position"
        self.corrected, self.expert_weight = corrected, expert_weight
        self.needs_reference = base_measure == "reference"
        self.drops_wrong_experts = wrong_experts == "drop"

    def coefficients(self, batch: GlobalBatch, rewards: Float[Tensor, "rows time"]) -> Coefficients:
        """As `irl_coefficients`. `loss` is the linear surrogate, which is not bounded; `ranking_loss` tells more."""
        weight, background = contrast_sets(
            is_expert=batch.is_expert, outcome=batch.outcome, corrected=self.corrected, expert_weight=self.expert_weight
        )
        terms = irl_coefficients(
            rewards=rewards,
            log_ratio=log_ratio(batch, of_reference=self.needs_reference),
            response_mask=batch.response_mask,
            group=batch.group,
            positive_weight=weight,
            background=background,
            weighting=self.weighting,
            scope=self.scope,
            experts_in_z=self.experts_in_z,
            rhat=self.rhat,
            temperature=self.temperature,
            truncate=self.truncate,
        )
        figures: dict[str, Tensor | float] = {
            "ranking_loss": terms.ranking_loss,
            "prompts_used": terms.cells,
            "prompts_skipped": terms.skipped,
            "ess": terms.ess,
            "ess_share": terms.ess_share,
            "largest_weight": terms.largest_weight,
            "chi_square": terms.chi_square,
            "expert_share": weight[batch.is_expert].sum() / weight.sum().clamp(min=1e-8),
        }
        penalty = penalty_coefficients(rewards, batch.response_mask, self.reward_penalty)
        loss = (terms.token * rewards).sum() + (penalty * rewards).sum() / 2
        return Coefficients(terms.token + penalty, loss, terms.cells, figures)


class Discriminator(PRMObjective):
    """Experts against the policy by binary cross-entropy (objectives/discriminator.py): GAN-GCL, AIRL, GAIL.

    Args:
        logit: `airl` corrects by the policy's log-probability, so that the reward is the experts' own at the optimum (with
            form `sequence`: GAN-GCL); `gail` does not.
        form: one logit a response, or one a token.
        base_measure, corrected, expert_weight, wrong_experts: as in `IRL`; `gail` has no base measure.
    """

    def __init__(
        self,
        logit: Literal["airl", "gail"] = "airl",
        form: Form = "sequence",
        base_measure: BaseMeasure = "uniform",
        corrected: Corrected = "copy",
        expert_weight: float = 1.0,
        wrong_experts: WrongExperts = "drop",
    ) -> None:
        if expert_weight <= 0:
            raise ValueError(f"Discriminator: expert_weight must be > 0, not {expert_weight}")
        self.logit, self.form, self.corrected, self.expert_weight = logit, form, corrected, expert_weight
        self.compares_tokens = form == "token"
        self.needs_log_probs = logit == "airl"
        self.needs_reference = logit == "airl" and base_measure == "reference"
        self.drops_wrong_experts = wrong_experts == "drop"

    def coefficients(self, batch: GlobalBatch, rewards: Float[Tensor, "rows time"]) -> Coefficients:
        """As `discriminator_coefficients` or `gail_coefficients`; experts have label 1."""
        weight, background = contrast_sets(
            is_expert=batch.is_expert, outcome=batch.outcome, corrected=self.corrected, expert_weight=self.expert_weight
        )
        sets = {"group": batch.group, "positive_weight": weight, "background": background}
        if self.logit == "gail":
            return gail_coefficients(form=self.form, rewards=rewards, response_mask=batch.response_mask, **sets)
        return discriminator_coefficients(
            form=self.form,
            rewards=rewards,
            log_ratio=log_ratio(batch, of_reference=self.needs_reference),
            response_mask=batch.response_mask,
            **sets,
        )


class Prime(PRMObjective):
    """Cross-entropy of sigma(R) against the outcome of each rollout (PRIME); experts take no part."""

    needs_log_probs = False
    needs_verifier = True

    def coefficients(self, batch: GlobalBatch, rewards: Float[Tensor, "rows time"]) -> Coefficients:
        """As `prime_coefficients`."""
        outcome = batch.outcome.masked_fill(batch.is_expert, float("nan"))
        return prime_coefficients(rewards=rewards, outcome=outcome, response_mask=batch.response_mask)


class StepCrossEntropy(PRMObjective):
    """Cross-entropy of sigma(step reward), the outcome being the label of every step of its response.

    Experts' steps are right unless the verifier rejects the expert, which then counts as a failed response.
    """

    needs_log_probs = False
    needs_verifier = True
    drops_wrong_experts = False

    def coefficients(self, batch: GlobalBatch, rewards: Float[Tensor, "rows time"]) -> Coefficients:
        """As `step_cross_entropy_coefficients`."""
        right = torch.where(batch.is_expert & batch.outcome.isnan(), 1.0, batch.outcome)
        labels = torch.where(batch.step_ends, right[:, None], float("nan"))
        return step_cross_entropy_coefficients(
            rewards=rewards, labels=labels, ends=batch.step_ends, response_mask=batch.response_mask
        )


def log_ratio(batch: GlobalBatch, *, of_reference: bool) -> Float[Tensor, "rows time"]:
    """Log b - log q of every response token; b = the policy at the start, or 1."""
    assert batch.behaviour_log_probs is not None
    if not of_reference:
        return -batch.behaviour_log_probs
    assert batch.reference_log_probs is not None
    return batch.reference_log_probs - batch.behaviour_log_probs
