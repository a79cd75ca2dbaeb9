"""Advantages by the name of their estimator."""

from typing import Any

from torch import Tensor

from repirl.objectives.estimators import Estimator, estimator


def estimate(name: Estimator, *, alone: Any = "zero_baseline", std_eps: float = 1e-6, **rows: Any) -> Tensor:
    """As the estimator of this name says."""
    return estimator(name, alone=alone, std_eps=std_eps)(**rows)
