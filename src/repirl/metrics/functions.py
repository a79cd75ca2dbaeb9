"""Evaluation in numbers: pure functions of tensors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def auroc(scores: Float[Tensor, " n"], positive: Bool[Tensor, " n"]) -> Float[Tensor, ""]:
    """Probability that a positive scores higher than a negative, ties counted half; NaN if either class is empty.

    By ranks (Mann-Whitney), so that scores of any size keep their order; a sigmoid first would tie the large ones.
    """
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    upper = counts.cumsum(0).double()
    ranks = (upper - (counts - 1) / 2)[place]  # 1-based midranks
    p, n = positive.sum().double(), (~positive).sum().double()
    area: Tensor = (ranks[positive].sum() - p * (p + 1) / 2) / (p * n)
    return area.to(scores.dtype)


def prm_diagnostics(
    *,
    mean_rewards: Float[Tensor, " rows"],
    lengths: Float[Tensor, " rows"],
    is_expert: Bool[Tensor, " rows"],
    outcome: Float[Tensor, " rows"],
) -> dict[str, Tensor]:
    """How the PRM's mean token reward Rbar separates experts, correct and failed rollouts.

    outcome: 1, 0, or NaN where unknown. A figure whose rows are missing is left out.
    `auroc_expert_correct` compares experts with *correct* rollouts: what is above .5 there is style, not correctness.
    """
    rollout = ~is_expert
    kinds = {
        "expert": is_expert,
        "policy": rollout,
        "correct": rollout & (outcome == 1),
        "failed": rollout & (outcome == 0),
    }
    found = {f"reward_{name}": mean_rewards[where].mean() for name, where in kinds.items() if where.any()}
    if is_expert.any() and rollout.any():
        found["margin"] = found["reward_expert"] - found["reward_policy"]
    for high, low in (("expert", "policy"), ("correct", "failed"), ("expert", "correct")):
        if kinds[high].any() and kinds[low].any():
            both = kinds[high] | kinds[low]
            found[f"auroc_{high}_{low}"] = auroc(mean_rewards[both], kinds[high][both])
    if rollout.any():
        found["length_correlation"] = correlation(mean_rewards[rollout], lengths[rollout])
    return found


def saturated_share(
    rewards: Float[Tensor, "rows time"], response_mask: Bool[Tensor, "rows time"], bound: float
) -> Float[Tensor, ""]:
    """Share of token rewards beyond .95 of a bounded head's limit."""
    values = rewards[response_mask]
    return (values.abs() > 0.95 * bound).to(rewards.dtype).mean() if len(values) else torch.zeros(())


def probe_figures(
    *,
    means: Float[Tensor, "prompts kinds"],
    totals: Float[Tensor, "prompts kinds"],
    lengths: Float[Tensor, "prompts kinds"],
    kinds: Sequence[str],
) -> dict[str, Tensor]:
    """How a PRM scores hollow responses (columns 1 .., named `kinds`) against a real one of the same prompt (column 0).

    means: Rbar. totals: R. `<kind>_wins` and `<kind>_wins_total` are shares of prompts, ties counted half.
    """
    found = {"real": means[:, 0].mean(), "real_total": totals[:, 0].mean()}
    for column, kind in enumerate(kinds, start=1):
        found[kind], found[f"{kind}_total"] = means[:, column].mean(), totals[:, column].mean()
        for suffix, values in (("wins", means), ("wins_total", totals)):
            gap = (values[:, column] - values[:, 0]).sign()
            found[f"{kind}_{suffix}"] = (1 + gap).mean() / 2
    return found | {"length_correlation": correlation(means[:, 0], lengths[:, 0])}


def correlation(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Pearson correlation; 0 where either side is constant."""
    x, y = x - x.mean(), y - y.mean()
    scale = x.norm() * y.norm()
    return torch.where(scale > 0, (x * y).sum() / scale.clamp(min=torch.finfo(x.dtype).tiny), scale)


# ---- scores as probabilities ----


def brier_score(*, probabilities: Float[Tensor, " n"], labels: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Mean of (p - y)^2, 0 at best; .25 for p = 1/2 throughout. NaN without values."""
    return (probabilities - labels).square().mean()


def calibration_error(
    *, confidence: Float[Tensor, " bins"], right: Float[Tensor, " bins"], count: Float[Tensor, " bins"]
) -> Float[Tensor, ""]:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3): sum of |right - confidence| / all.

    confidence, right: sums of probabilities and of labels in each bin. count: how many fell into it. NaN without values.
    """
    assert (right <= count).all()
    return (right - confidence).abs().sum() / count.sum()


# ---- several responses to one problem ----


def pass_at_k(
    *, correct: Int[Tensor, " problems"], samples: Int[Tensor, " problems"], k: int
) -> Float[Tensor, " problems"]:
    """Unbiased estimate of the chance that one of k samples is right: 1 - C(n - c, k) / C(n, k), of each problem.

    From `samples` n of which `correct` c are right (Chen et al. 2021, arXiv 2107.03374, equation 1); NaN where n < k.
    1 - (1 - c / n)^k would be biased. Raises ValueError for k < 1 or c > n.
    """
    if k < 1 or bool((correct > samples).any()):
        raise ValueError(f"pass@k: k must be at least 1, not {k}, and no problem have more right answers than samples")
    counts = zip(samples.tolist(), correct.tolist(), strict=True)
    values = [1 - math.comb(n - c, k) / math.comb(n, k) if n >= k else math.nan for n, c in counts]
    return torch.tensor(values, dtype=torch.float64)


def weighted_vote(answers: Sequence[str | None], scores: Sequence[float]) -> int | None:
    """Index of the first response of the answer whose responses have the largest sum of exp(score).

    Equal answers are one group; None, no readable answer, is never chosen. A tie goes to the earlier answer. None where
    no response has an answer. With Rbar, the mean token reward, as score: the paper's weighted vote.
    """
    groups: dict[str, list[int]] = {}
    for index, (answer, _) in enumerate(zip(answers, scores, strict=True)):
        if answer is not None:
            groups.setdefault(answer, []).append(index)
    values = torch.as_tensor(scores, dtype=torch.float64)
    weights = {answer: float(values[members].logsumexp(0)) for answer, members in groups.items()}
    return groups[max(weights, key=weights.__getitem__)][0] if groups else None


def majority_vote(answers: Sequence[str | None]) -> int | None:
    """Index of the first response of the most frequent answer; ties and None as in `weighted_vote`."""
    return weighted_vote(answers, [0.0] * len(answers))


def best_of_n(
    *, scores: Float[Tensor, "problems n"], correct: Float[Tensor, "problems n"]
) -> Float[Tensor, " problems"]:
    """`correct` of each problem's highest-scoring response; tied responses count by their mean, as if drawn by lot."""
    highest = scores == scores.amax(-1, keepdim=True)
    return torch.where(highest, correct, 0).sum(-1) / highest.sum(-1)


# ---- steps ----


def wrong_step_auroc(step_rewards: Float[Tensor, " steps"], is_wrong: Bool[Tensor, " steps"]) -> Float[Tensor, ""]:
    """Probability that a wrong step has a lower reward than a right one, over all traces pooled; NaN without either."""
    return auroc(-step_rewards, is_wrong)


def first_error_accuracy(
    *,
    step_rewards: Float[Tensor, "traces steps"],
    step_mask: Bool[Tensor, "traces steps"],
    is_wrong: Bool[Tensor, "traces steps"],
) -> Float[Tensor, ""]:
    """Share of the traces with a wrong step whose lowest-reward step is the first wrong one; NaN without such traces.

    step_mask: True at steps; other places are ignored, so that token positions with a mask of step ends serve as well.
    Of steps equally low the earliest counts.
    """
    wrong = is_wrong & step_mask
    flawed = wrong.any(-1)
    hit = _lowest(step_rewards, step_mask) == wrong.int().argmax(-1)
    return hit[flawed].double().mean()


def wrong_step_accuracy(
    *,
    step_rewards: Float[Tensor, "traces steps"],
    step_mask: Bool[Tensor, "traces steps"],
    is_wrong: Bool[Tensor, "traces steps"],
) -> Float[Tensor, ""]:
    """Share of the traces with a wrong step whose lowest-reward step is a wrong one, the first or a later."""
    wrong = is_wrong & step_mask
    hit = wrong.gather(-1, _lowest(step_rewards, step_mask)[:, None])[:, 0]
    return hit[wrong.any(-1)].double().mean()


def _lowest(step_rewards: Tensor, step_mask: Tensor) -> Tensor:
    return step_rewards.masked_fill(~step_mask, math.inf).argmin(-1)


# ---- uncertainty ----

Statistic = Callable[[Tensor], Tensor]


def mean_of_last(values: Float[Tensor, "... n"]) -> Float[Tensor, "..."]:
    """The mean over the last dimension."""
    return values.mean(-1)


def interquartile_mean(values: Float[Tensor, "... n"]) -> Float[Tensor, "..."]:
    """Mean over the last dimension without its lowest and highest quarter (Agarwal et al. 2021, arXiv 2108.13264).

    A quarter is rounded down: of 5 values one is left out at each end.
    """
    cut = values.shape[-1] // 4
    return values.sort(-1).values[..., cut : values.shape[-1] - cut].mean(-1)


def bootstrap_interval(
    values: Float[Tensor, " n"],
    *,
    statistic: Statistic = mean_of_last,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic over the last dimension, values resampled with replacement.

    Give one value a unit that was drawn at random: the mean over its samples for a problem, not every sample.
    """
    return stratified_interval(values[:, None], statistic=statistic, level=level, resamples=resamples, seed=seed)


def stratified_interval(
    scores: Float[Tensor, "runs tasks"],
    *,
    statistic: Statistic = interquartile_mean,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of all scores, runs resampled within each task (Agarwal et al. 2021).

    Raises ValueError for no scores, or a level outside (0, 1).
    """
    if not scores.numel() or not 0 < level < 1:
        raise ValueError(f"an interval needs scores, and a level in (0, 1): got {scores.numel()} scores, level {level}")
    generator = torch.Generator().manual_seed(seed)
    runs, tasks = scores.shape
    found = []
    block = max(1, 2**22 // scores.numel())  # resamples at a time, in bounded memory
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        index = torch.randint(runs, (size, runs, tasks), generator=generator)
        found.append(statistic(scores.double().expand(size, runs, tasks).gather(1, index).flatten(1)))
    tail = (1 - level) / 2
    low, high = torch.cat(found).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs over the same problems.

    difference: mean of second - first; low, high: its bootstrap interval over problems. better, worse: problems where
    the second scores higher, lower. p_value: two-sided, of no difference.
    """

    problems: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    better: int
    worse: int
    p_value: float


def paired_comparison(
    first: Float[Tensor, " problems"],
    second: Float[Tensor, " problems"],
    *,
    level: float = 0.95,
    resamples: int = 10000,
    seed: int = 0,
) -> Comparison:
    """Compares two runs problem by problem; the order of problems must be the same in both.

    p_value: by sign flips of the differences, all of them where they are no more than `resamples`, else as many at
    random (then at least 1 / (resamples + 1)). For outcomes of 0 and 1 that is the sign test (exact McNemar).
    """
    differences = second.double() - first.double()
    low, high = bootstrap_interval(differences, level=level, resamples=resamples, seed=seed)
    return Comparison(
        problems=len(differences),
        first=float(first.double().mean()),
        second=float(second.double().mean()),
        difference=float(differences.mean()),
        low=low,
        high=high,
        better=int((differences > 0).sum()),
        worse=int((differences < 0).sum()),
        p_value=_sign_flip_p(differences[differences != 0], resamples, seed),
    )


def _sign_flip_p(differences: Tensor, resamples: int, seed: int) -> float:
    """Two-sided p-value of the sum of differences, none of them 0, under independent random signs."""
    count = len(differences)
    observed = differences.sum().abs() * (1 - 1e-12)  # equal sums must not fall apart by rounding
    if 2**count <= resamples:
        bits = torch.arange(2**count)[:, None] >> torch.arange(count) & 1
        return float((((1 - 2.0 * bits).double() @ differences).abs() >= observed).double().mean())
    generator = torch.Generator().manual_seed(seed)
    extreme, block = 0, max(1, 2**22 // count)
    for start in range(0, resamples, block):
        bits = torch.randint(2, (min(block, resamples - start), count), generator=generator)
        extreme += int((((1 - 2.0 * bits).double() @ differences).abs() >= observed).sum())
    return (extreme + 1) / (resamples + 1)
