"""Evaluation in numbers: pure functions of tensors. Over batches and processes: `repirl.metrics.accumulate`."""

from repirl.metrics.answers import best_of_n, majority_vote, pass_at_k, weighted_vote
from repirl.metrics.calibration import brier_score, calibration_error
from repirl.metrics.comparison import (
    Comparison,
    bootstrap_interval,
    interquartile_mean,
    mean_interval,
    mean_of_last,
    paired_comparison,
    stratified_interval,
)
from repirl.metrics.paired import (
    Equivalence,
    equivalence,
    exact_sign_flip,
    holm,
    paired_t_interval,
    paired_t_test,
)
from repirl.metrics.prm import prm_diagnostics, probe_figures, saturated_share
from repirl.metrics.ranking import auroc, auroc_within, correlation
from repirl.metrics.steps import first_error_accuracy, wrong_step_accuracy, wrong_step_auroc

__all__ = [
    "Comparison",
    "Equivalence",
    "auroc",
    "auroc_within",
    "best_of_n",
    "bootstrap_interval",
    "brier_score",
    "calibration_error",
    "correlation",
    "equivalence",
    "exact_sign_flip",
    "first_error_accuracy",
    "holm",
    "interquartile_mean",
    "majority_vote",
    "mean_interval",
    "mean_of_last",
    "paired_comparison",
    "paired_t_interval",
    "paired_t_test",
    "pass_at_k",
    "prm_diagnostics",
    "probe_figures",
    "saturated_share",
    "stratified_interval",
    "weighted_vote",
    "wrong_step_accuracy",
    "wrong_step_auroc",
]
