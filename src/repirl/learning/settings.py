"""Groups of switches, as the YAML has them. The defaults are those of docs/algorithms.md."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from repirl.objectives.advantages import STD_EPS, RewardScale
from repirl.objectives.estimators import Alone, Estimator, OutcomeEstimator
from repirl.objectives.policy import LossAggregation


@dataclass(frozen=True)
class Text:
    """How problems become prompts, and how long prompts and responses may be.

    Args:
        instruction: appended to every problem.
        template: `chat` uses the tokenizer's chat template, `plain` the prompt_format, `auto` chat where there is one.
        prompt_format: the prompt of `plain`, with places {problem} and {instruction}.
        template_options: variables of the chat template, such as {enable_thinking: false}.
        max_prompt_tokens: longer prompts are dropped and counted, never cut.
        max_response_tokens: rollouts end at this length; longer experts are dropped and counted.
    """

    instruction: str = ""
    template: Literal["auto", "chat", "plain"] = "auto"
    prompt_format: str = "{problem}{instruction}\n"
    template_options: dict[str, Any] | None = None
    max_prompt_tokens: int = 1024
    max_response_tokens: int = 1024


@dataclass(frozen=True)
class Advantage:
    """From rewards to advantages (learning/shaping.py): A is the sum of those of each reward, times its coefficient.

    Args:
        outcome_coef, prm_coef, format_coef: weights of outcome, PRM and format rewards.
        certainty_coef: weight of an intrinsic reward: the policy's own mean entropy over a response's tokens, negative, in
            nats. Its policy is driven to be sure, not to be right.
        outcome_estimator, prm_estimator: advantage estimators: `rloo`, `rloo_per_step`, `grpo`, `grpo_per_step`,
            `dr_grpo`; for the PRM also `prime`, `position`. docs/algorithms.md says which code means what by these names.
        prm_discount: discount of later PRM rewards in a token's return; 1 sums all, 0 leaves each token its own.
        maxent_coef: weight of log b - log q (b the objective's base measure) in each token's PRM reward. At 1 the policy's
            optimum is the PRM's own distribution b exp(R) / Z, at 0 the response of the largest reward alone. None: 1 for
            `IRL`, 0 for the others; AIRL's reward has no reference, and with the term the policy forgot its form.
        reward_scale: scale of the PRM rewards. With `none` and maxent_coef 1 the policy rests at
            b exp(R + (outcome_coef / prm_coef) o) for outcomes o, whatever constant R has. With a PRM alone, whitening
            takes any scale out again.
        whiten: shift and scale the advantages to mean 0 and standard deviation 1 over the batch's tokens.
        alone: the leave-one-out baseline where there is no other rollout (`..._per_step`: none that is still active).
        std_eps: added to the standard deviation that `grpo` divides by; 1e-6 in verl, 1e-4 in TRL, 1e-9 in OpenRLHF.
    """

    outcome_coef: float = 1.0
    prm_coef: float = 0.1
    format_coef: float = 0.0
    certainty_coef: float = 0.0
    outcome_estimator: OutcomeEstimator = "rloo"
    prm_estimator: Estimator = "rloo_per_step"
    prm_discount: float = 1.0
    maxent_coef: float | None = None
    reward_scale: RewardScale = "none"
    whiten: bool = True
    alone: Alone = "zero_baseline"
    std_eps: float = STD_EPS

    def __post_init__(self) -> None:
        if not 0 <= self.prm_discount <= 1:
            raise ValueError(f"advantage: prm_discount must be between 0 and 1, not {self.prm_discount}")
        if not 0 <= self.certainty_coef < math.inf:
            raise ValueError(f"advantage: certainty_coef must be a number from 0, not {self.certainty_coef}")
        if self.maxent_coef is not None and not self.maxent_coef >= 0:
            raise ValueError(f"advantage: maxent_coef must not be negative, not {self.maxent_coef}")
        if not 0 <= self.std_eps < math.inf:
            raise ValueError(f"advantage: std_eps must be a number from 0, not {self.std_eps}")


@dataclass(frozen=True)
class Surrogate:
    """The policy's objective (objectives/policy.py).

    Args:
        clip_low, clip_high: the ratio pi / pi_old counts within [1 - clip_low, 1 + clip_high].
        dual_clip: above 1; a token of advantage A < 0 counts at least dual_clip A. None = no such bound.
        kl_coef: weight of KL(pi || policy at the start), estimated by k3 in the loss.
        entropy_coef: weight of the entropy bonus.
        loss_aggregation: how the tokens of all ranks and micro-batches become one number. `token_mean`: their mean (DAPO).
            `sequence_mean`: the mean over responses of each one's token mean (GRPO). `sequence_sum`: of its sum.
            `constant`: of its sum divided by loss_length (Dr. GRPO).
        loss_length: tokens, for `constant`; None = text.max_response_tokens.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    entropy_coef: float = 0.0
    kl_coef: float = 0.0
    loss_aggregation: LossAggregation = "token_mean"
    loss_length: float | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.clip_low <= 1 and self.clip_high >= 0):
            raise ValueError(
                "surrogate: clip_low must be in [0, 1] and clip_high not negative, "
                f"not {self.clip_low} and {self.clip_high}"
            )
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ValueError(
                f"surrogate: dual_clip must be above 1, not {self.dual_clip}: it would take the gradient of tokens where "
                "the policy has not moved"
            )
        if not 0 <= self.kl_coef < math.inf:
            raise ValueError(f"surrogate: kl_coef must be a number from 0, not {self.kl_coef}")
        if self.loss_length is not None and not 0 < self.loss_length < math.inf:
            raise ValueError(f"surrogate: loss_length must be a number of tokens above 0, not {self.loss_length}")
        if self.loss_length is not None and self.loss_aggregation != "constant":
            raise ValueError(
                f"surrogate: loss_length belongs to loss_aggregation 'constant', not to {self.loss_aggregation!r}; "
                "set that, or remove loss_length"
            )

    @property
    def per_token(self) -> dict[str, Any]:
        """What `policy_objective` takes."""
        return {k: v for k, v in asdict(self).items() if not k.startswith("loss_")}
