"""The contrasts of the study: two arms, or two judges of the same rollouts, compared seed by seed."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch

from repirl.metrics import holm, paired_t_interval, paired_t_test

Rows = list[dict[str, str]]
SAMPLED = "study/sampled"
AUROC, BEST = "study/wrong_step_auroc", "study/best_of_16"
LOG_RATIO_AUROC, LOG_RATIO_BEST = "study/policy_log_ratio/wrong_step_auroc", "study/policy_log_ratio/best_of_16"

DEFAULT = "maxent_sequence_rloo"
TERM_ALONE, REFERENCE_ALONE, NEITHER = "maxent_sequence_uniform", "sequence_reference_rloo", "sequence_rloo"
OUTCOMES, SLOWER = "outcome_only", "outcome_only+policy_rate_3e-4"


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of figures of arms, (weight, arm, figure) each, of which each seed gives one value."""

    says: str
    terms: tuple[tuple[float, str, str], ...]

    def values(self, arms: dict[str, Rows]) -> torch.Tensor:
        """One value a seed that all its arms have."""
        by_arm = []
        for weight, arm, name in self.terms:
            rows = arms.get(arm, [])
            by_arm.append({row["seed"]: weight * float(row[name]) for row in rows if row.get(name)})
        seeds = sorted(set.intersection(*(set(of_arm) for of_arm in by_arm)))
        return torch.tensor([sum(of_arm[seed] for of_arm in by_arm) for seed in seeds], dtype=torch.float64)


def less(
    first: str, second: str, name: str = SAMPLED, second_name: str | None = None
) -> tuple[tuple[float, str, str], ...]:
    """The first arm's figure less the second's."""
    return (1.0, first, name), (-1.0, second, second_name or name)


INTERACTION = (*less(DEFAULT, TERM_ALONE), *less(NEITHER, REFERENCE_ALONE))
CONTRASTS = (
    Contrast("SFT less the default, sampled", less("sft", DEFAULT)),
    Contrast("SFT at a constant rate less the default, sampled", less("sft+constant_rate", DEFAULT)),
    Contrast("SFT less outcome-only RLOO at 3e-4, sampled", less("sft", SLOWER)),
    Contrast("SFT's log-ratio less the default's PRM, wrong-step AUROC", less("sft", DEFAULT, LOG_RATIO_AUROC, AUROC)),
    Contrast("SFT's log-ratio less the default's PRM, best of 16", less("sft", DEFAULT, LOG_RATIO_BEST, BEST)),
    Contrast(
        "the default's log q - log b less its PRM, wrong-step AUROC", less(DEFAULT, DEFAULT, LOG_RATIO_AUROC, AUROC)
    ),
    Contrast("the default's log q - log b less its PRM, best of 16", less(DEFAULT, DEFAULT, LOG_RATIO_BEST, BEST)),
    Contrast("term and reference less neither, sampled", less(DEFAULT, NEITHER)),
    Contrast("the term alone less neither, sampled", less(TERM_ALONE, NEITHER)),
    Contrast("the reference alone less neither, sampled", less(REFERENCE_ALONE, NEITHER)),
    Contrast("interaction of term and reference, sampled", INTERACTION),
    Contrast("outcome-only RLOO: rate 3e-4 less 1e-3, sampled", less(SLOWER, OUTCOMES)),
    Contrast("outcome-only RLOO at 3e-4 less the default, sampled", less(SLOWER, DEFAULT)),
    Contrast("`joint_unscaled` less outcome-only RLOO at 1e-3, sampled", less("joint_unscaled", OUTCOMES)),
    Contrast("`joint_unscaled` less outcome-only RLOO at 3e-4, sampled", less("joint_unscaled", SLOWER)),
    Contrast("`joint_unscaled` less SFT, sampled", less("joint_unscaled", "sft")),
    Contrast("`joint_unscaled` less SFT at a constant rate, sampled", less("joint_unscaled", "sft+constant_rate")),
    Contrast("`joint_unscaled` less `joint`, sampled", less("joint_unscaled", "joint")),
)


def table_of_contrasts(arms: dict[str, Rows]) -> list[str]:
    """A line for each contrast that has five seeds; nothing where there is none."""
    whole = [(contrast, values) for contrast in CONTRASTS if len(values := contrast.values(arms)) == 5]
    adjusted = holm([paired_t_test(values) for _, values in whole])
    lines = ["| contrast | mean (95 % t interval) | p, Holm | seed by seed |", "|---|---|---|---|"]
    for (contrast, values), p in zip(whole, adjusted, strict=True):
        low, high = paired_t_interval(values)
        seeds = ", ".join(f"{value:.3f}" for value in values.tolist())
        said = f"{statistics.mean(values.tolist()):.3f} ({low:.3f} to {high:.3f})"
        lines.append(f"| {contrast.says} | {said} | {p:.4f} | {seeds} |")
    return [*lines, ""] if whole else []
