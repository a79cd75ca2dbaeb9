"""Figures that tell of trouble: what is worth a warning, from where on, and what to try. docs/diagnostics.md has the same."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PATIENCE = 10
"""Iterations in a row after which a figure is spoken of; once in a run."""


@dataclass(frozen=True)
class Alarm:
    """A figure beyond a limit.

    figure: as it is logged. side: of the limit on which trouble is. limit: the bound itself is no trouble.
    what: what it means. todo: what to try.
    """

    figure: str
    side: Literal["above", "below"]
    limit: float
    what: str
    todo: str

    def rings(self, figures: Mapping[str, float]) -> bool:
        """Whether the figure is there and beyond the limit; a NaN is not."""
        value = figures.get(self.figure, math.nan)
        return value > self.limit if self.side == "above" else value < self.limit


def alarms(samples: int) -> tuple[Alarm, ...]:
    """All of them, for so many rollouts a prompt."""
    start = math.log(samples + 1)
    return (
        Alarm(
            "prm/ranking_loss",
            "above",
            3 * start,
            f"the PRM scores rollouts far above experts (it began at ln(samples + 1) = {start:.2f})",
            "lower prm_optimizer's rate: prm.kind=logit_difference bears a tenth of what q_head does",
        ),
        Alarm(
            "prm/ess_share",
            "below",
            1.2 / samples,
            "one rollout a prompt has all the weight in Z, so that the PRM's gradient is mostly noise",
            "more samples, shorter responses, or a lower rate of the PRM",
        ),
        Alarm(
            "prm/auroc_expert_correct",
            "above",
            0.95,
            "the PRM tells experts from right rollouts: it has learned how they write, not what is right",
            "start from SFT on some of the experts, or experts that write as the policy does",
        ),
        Alarm(
            "prm/saturated",
            "above",
            0.9,
            "nearly all rewards are at the bound of the PRM's head",
            "lower prm_optimizer's rate, or take prm.kind=q_head, which has no bound",
        ),
        Alarm(
            "policy/entropy",
            "below",
            0.01,
            "the policy has nearly one response a prompt, so that its rollouts are the same and teach nothing",
            "lower policy_optimizer's rate, or raise surrogate.entropy_coef",
        ),
        Alarm(
            "policy/clipped",
            "above",
            0.3,
            "the surrogate cuts off much of what the policy should learn: it moves too far within an iteration",
            "lower policy_optimizer's rate, or fewer policy_updates and policy_mini_batches",
        ),
        Alarm(
            "rollout/truncated",
            "above",
            0.3,
            "many rollouts are cut at text.max_response_tokens",
            "raise it; or, where lengths grow in training, take advantage.prm_estimator=prime, which has no length bias",
        ),
        Alarm(
            "rollout/has_answer",
            "below",
            0.5,
            "most rollouts have no boxed answer",
            "a start policy that boxes its answers (SFT on a few experts), an instruction, or advantage.format_coef=1",
        ),
        Alarm(
            "sampler/gap_mean",
            "above",
            0.1,
            "the sampler has other probabilities than the trained policy",
            "sampler_gap.max_ratio=2 and mask_above=0.5; or fewer steps an iteration if rollouts are ahead",
        ),
        Alarm(
            "prompts/kept",
            "below",
            1,
            "the prompt filter leaves no prompt: nothing is trained",
            "widen prompt_filter's range, or take easier problems",
        ),
    )


class Watch:
    """Counts in how many iterations in a row each alarm rings."""

    def __init__(self, samples: int) -> None:
        self.alarms = alarms(samples)
        self._in_a_row: Counter[str] = Counter()
        self._told: set[str] = set()

    def see(self, figures: Mapping[str, float]) -> list[str]:
        """What there is to say after this iteration: of each alarm when it has rung PATIENCE times in a row, once."""
        told = []
        for alarm in self.alarms:
            # An iteration without the figure, such as one without a right rollout, neither counts nor ends the row.
            if alarm.figure not in figures:
                continue
            self._in_a_row[alarm.figure] = self._in_a_row[alarm.figure] + 1 if alarm.rings(figures) else 0
            if self._in_a_row[alarm.figure] < PATIENCE or alarm.figure in self._told:
                continue
            self._told.add(alarm.figure)
            told.append(
                f"{alarm.figure} has been {alarm.side} {alarm.limit:.3g} for {PATIENCE} iterations (now "
                f"{figures[alarm.figure]:.3g}): {alarm.what}. Try: {alarm.todo}"
            )
        return told
