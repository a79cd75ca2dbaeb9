"""Student's t distribution with a whole number of degrees of freedom, by its finite sums."""

import math
from functools import cache


def central_probability(t: float, freedom: int) -> float:
    """P(|T| <= t) (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    if freedom < 1:
        raise ValueError(f"Student's t needs at least 1 degree of freedom, not {freedom}")
    if math.isinf(t):
        return 1.0
    angle = math.atan(abs(t) / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(1, freedom // 2 + 1):
        total += term
        term *= cosine * cosine * (2 * k / (2 * k + 1) if odd else (2 * k - 1) / (2 * k))
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def cumulative_probability(t: float, freedom: int) -> float:
    """P(T <= t)."""
    return (1 + math.copysign(central_probability(t, freedom), t)) / 2


@cache
def quantile(level: float, freedom: int) -> float:
    """The t with P(|T| <= t) = level, level in (0, 1), by halving."""
    high = 1.0
    while central_probability(high, freedom) < level:
        high *= 2
    low = 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if central_probability(middle, freedom) < level else (low, middle)
    return high
