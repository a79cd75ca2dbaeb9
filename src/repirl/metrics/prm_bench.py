"""PRMBench (arXiv 2501.03124): every step of a modified solution is held for right or wrong.

A right step is the positive class. The score is the mean of the F1 of right and of wrong steps over all steps pooled; the
unmodified solutions that come with the set have no part in it. `multi_solutions` has no wrong step: its score is the F1 of
right steps alone, as in the benchmark's published results.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from repirl.metrics.accumulate import Accumulator

GROUPS: dict[str, tuple[str, ...]] = {
    "simplicity": ("redundency", "circular"),
    "soundness": ("counterfactual", "step_contradiction", "domain_inconsistency", "confidence"),
    "sensitivity": ("missing_condition", "deception", "multi_solutions"),
}
"""The benchmark's categories, spelled as in its files, by what they ask."""
CATEGORIES = tuple(category for group in GROUPS.values() for category in group)
UNMODIFIED = "correct"
"""Category of the solutions before their modification, which are left out of all figures."""


def step_confusion(
    *, predicted_right: Bool[Tensor, "*shape"], is_wrong: Bool[Tensor, "*shape"], step_mask: Bool[Tensor, "*shape"]
) -> Float[Tensor, " 4"]:
    """How many steps are right and held for right, wrong and held for right, right and held for wrong, wrong and held so."""
    kinds = (predicted_right & ~is_wrong, predicted_right & is_wrong, ~predicted_right & ~is_wrong)
    counts = [(kind & step_mask).sum() for kind in (*kinds, ~predicted_right & is_wrong)]
    return torch.stack(counts).double()


def f1_of_counts(*, hits: Float[Tensor, ""], false: Float[Tensor, ""], missed: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """2 hits / (2 hits + false + missed): 0 where the class is never named rightly; NaN where there is nothing of it."""
    return 2 * hits / (2 * hits + false + missed)


def prm_bench_figures(confusion: Float[Tensor, " 4"], *, has_wrong_steps: bool = True) -> dict[str, Tensor]:
    """`f1` of right steps, `negative_f1` of wrong steps, and `score`, half of each or, without wrong steps, f1 alone.

    confusion: of `step_confusion`.
    """
    right, wrong_as_right, right_as_wrong, wrong = confusion
    f1 = f1_of_counts(hits=right, false=wrong_as_right, missed=right_as_wrong)
    negative = f1_of_counts(hits=wrong, false=right_as_wrong, missed=wrong_as_right)
    return {"f1": f1, "negative_f1": negative, "score": 0.5 * f1 + 0.5 * negative if has_wrong_steps else f1}


class PRMBench(Accumulator):
    """PRMBench's score, whole, by category and by group, by a fixed threshold.

    Args:
        threshold: a step whose reward is below it is held for wrong.
    """

    confusion: Tensor

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        zeros = torch.zeros(len(CATEGORIES), 4, dtype=torch.float64)
        self.add_state("confusion", zeros, dist_reduce_fx="sum")

    def update(
        self,
        category: str,
        *,
        step_rewards: Float[Tensor, "solutions steps"],
        step_mask: Bool[Tensor, "solutions steps"],
        is_wrong: Bool[Tensor, "solutions steps"],
    ) -> None:
        """Adds solutions of a category; unmodified ones are passed over. Raises ValueError for an unknown category."""
        if category == UNMODIFIED:
            return
        if category not in CATEGORIES:
            raise ValueError(f"PRMBench: unknown category {category!r}; give one of {', '.join(CATEGORIES)}")
        counts = step_confusion(predicted_right=step_rewards >= self.threshold, is_wrong=is_wrong, step_mask=step_mask)
        self.confusion[CATEGORIES.index(category)] += counts.to(self.confusion)

    def compute(self) -> dict[str, Tensor]:
        """`score`, `f1`, `negative_f1`; `<category>/score`; `<group>/score`, the mean of its categories that have steps."""
        figures = prm_bench_figures(self.confusion.sum(0))
        for category, counts in zip(CATEGORIES, self.confusion, strict=True):
            if counts.sum() > 0:
                of_category = prm_bench_figures(counts, has_wrong_steps=category != "multi_solutions")
                figures[f"{category}/score"] = of_category["score"]
        for group, members in GROUPS.items():
            scores = [figures[f"{member}/score"] for member in members if f"{member}/score" in figures]
            if scores:
                figures[f"{group}/score"] = torch.stack(scores).mean()
        return figures
