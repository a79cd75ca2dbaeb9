"""The figures of docs/theory.md, by the code that tests/theory checks: errors, biases, divergence, the discriminator.

The tiny MDP of tests/theory, float64, no training of any network; the numbers of the figures are printed as tables.

    python -m benchmarks.theory.figures                    # from the repository's root: about six minutes on one core
    python -m benchmarks.theory.figures --out /tmp/figures --replicates 4 --largest 256 --draws 2 --steps 6
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from tests.theory.estimators import (
    Course,
    Objective,
    World,
    ascents,
    cases,
    discriminator,
    discriminator_limit,
    errors,
    every_draw,
    expected_ascent,
    follow,
    irl,
    limit,
    mismatched,
    per_position_limit,
    pooled,
    relative_error,
    slope,
    world,
)
from tests.theory.policies import kl, together, untrained
from tests.theory.tiny_mdp import exact_gradient, random_table

SHOWN = {  # of `cases`, and the colour of each
    "sequence": "tab:blue",
    "sequence, experts in Z": "tab:orange",
    "length_normalized": "tab:green",
    "uniform": "tab:red",
    "per_position": "tab:purple",
    "discriminator": "tab:brown",
}


def error_figure(out: Path, largest: int, replicates: int, seeds: int) -> None:
    """Root mean square error against the number of rollouts: to the exact gradient, and to each estimator's own limit."""
    place, sizes = world(), powers_of_two(16, largest)
    exact = exact_gradient(place.rows, place.reward, place.expert)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    rows = []
    for name, (objective, own) in cases(place).items():
        to_exact, to_own = (
            mean_over_seeds(
                lambda seed, e=expected, o=objective: errors(place, o, e, sizes, replicates, seed=seed), seeds
            )
            for expected in (exact, own)
        )
        distance = relative_error(own[None], exact)
        fit = [m for m in sizes if m >= 64] if largest > 128 else sizes
        found = slope(fit, to_own[-len(fit) :])
        rows.append([name, f"{distance:.3f}", f"{to_exact[-1]:.3f}", f"{to_own[-1]:.3f}", f"{found:.3f}"])
        if name in SHOWN:
            draw_line(left, sizes, to_exact, name)
            if distance > 1e-9:
                left.axhline(distance, color=SHOWN[name], linewidth=0.6, linestyle=":")
            draw_line(right, sizes, to_own, name, label=f"{name}: slope {found:.2f}")
    finish(left, "rollouts M", "relative error", "to the exact gradient (dotted: the limit's own distance)")
    finish(right, "rollouts M", "", "to the estimator's own limit")
    save(figure, out / "theory_error.png")
    table(["estimator", "limit to exact", f"error to exact, M={largest}", "to own limit", "slope from M=64"], rows)


def bias_figure(out: Path, draws: int) -> None:
    """Bias by enumeration of every draw: about the own limit, and at the true model."""
    place, sizes = world(horizon=2), list(range(1, draws + 1))
    true = replace(place, reward=place.rows.policy_of(place.expert))
    exact = exact_gradient(place.rows, place.reward, place.expert)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    kinds: dict[str, tuple[Objective, torch.Tensor]] = {
        "sequence": (irl(), exact),
        "sequence, experts in Z": (irl(experts_in_z=True), exact),
        "length_normalized": (irl(weighting="length_normalized"), limit(place, "length_normalized")),
        "discriminator": (discriminator("sequence"), discriminator_limit(place, "sequence")),
    }
    rows = []
    for name, (objective, own) in kinds.items():
        bias = [float((expected_ascent(place, objective, m) - own).norm() / exact.norm()) for m in sizes]
        draw_line(left, sizes, bias, name)
        at_true = [float(expected_ascent(true, objective, m).norm()) for m in sizes]
        if max(at_true) > 1e-9:
            draw_line(right, sizes, at_true, name)
        rows.append([name, f"{bias[0]:.3f}", f"{bias[-1]:.3f}", f"{at_true[0]:.2g}", f"{at_true[-1]:.2g}"])
    together = [several_experts(true, pooled, m) for m in sizes[: min(4, draws)]]
    right.plot(sizes[: len(together)], together, "k.--", label="2 experts in one softmax")
    apart = [several_experts(true, irl(experts_in_z=True), m) for m in sizes[: min(4, draws)]]
    rows.append(["2 experts, one softmax (M up to 4)", "", "", f"{together[0]:.2g}", f"{together[-1]:.2g}"])
    rows.append(["2 experts, a softmax each", "", "", f"{apart[0]:.2g}", f"{apart[-1]:.2g}"])
    left.plot(sizes, [0.5 / m for m in sizes], color="grey", linewidth=0.8, label="1 / M")
    finish(left, "rollouts M", "bias / |exact gradient|", "about the own limit")
    finish(right, "rollouts M", "|expected gradient|", "at the true model (experts in Z: 0, not drawn)")
    save(figure, out / "theory_bias.png")
    table(["estimator", "bias, M=1", f"M={draws}", "at the true model, M=1", f"M={draws}"], rows)


def several_experts(true: World, objective: Objective, samples: int) -> float:
    """|expected gradient| with two experts drawn from p_D, over every draw of experts and rollouts."""
    rollouts, of_rollouts = every_draw(true, samples)
    experts, of_experts = every_draw(replace(true, policy=true.reward), 2)
    pairs = torch.cartesian_prod(torch.arange(len(rollouts)), torch.arange(len(experts)))
    found = ascents(true, rollouts[pairs[:, 0]], objective, experts=experts[pairs[:, 1]])
    return float(torch.einsum("g,gsa->sa", of_rollouts[pairs[:, 0]] * of_experts[pairs[:, 1]], found).norm())


def divergence_figure(out: Path, steps: int) -> None:
    """Ascent on the expected gradient of two rollouts from a fixed proposal; corrected trajectories."""
    fixed, rate = mismatched(), 2.0
    kinds: dict[str, Objective] = {
        "sequence": irl(),
        "sequence, experts in Z": irl(experts_in_z=True),
        "length_normalized": irl(weighting="length_normalized"),
        "uniform": irl(weighting="uniform"),
        "discriminator": discriminator("sequence"),
    }
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.2))
    rows = []
    for name, objective in kinds.items():
        course = follow(fixed, partial(expected_ascent, objective=objective, samples=2), steps, rate)
        left.plot(course.size, color=SHOWN[name], label=name)
        middle.plot(course.kl, color=SHOWN[name], label=name)
        rows.append([name, *summary(course)])
    tracking = follow(fixed, partial(expected_ascent, objective=irl(), samples=2), steps, rate, tracks=True)
    left.plot(tracking.size, color="tab:blue", linestyle="--", label="sequence, proposal tracks")
    middle.plot(tracking.kl, color="tab:blue", linestyle="--", label="sequence, proposal tracks")
    rows.append(["sequence, proposal tracks", *summary(tracking)])
    counts = torch.tensor([3, 1, 2, 1, 2, 1, 2])  # q = counts / 12, every rollout listed: the limit of many
    listed = torch.arange(7).repeat_interleave(counts)[None]
    start = replace(fixed, policy=fixed.rows.policy_of(counts.double() / 12))
    correct = torch.tensor([True, False, True, False, False, False, True])
    for corrected, style in (("copy", "-"), ("move", "--"), ("ignore", ":")):

        def step(here: World, corrected: str = corrected) -> torch.Tensor:
            return ascents(here, listed, irl(), correct=correct, corrected=corrected)[0]

        course = follow(start, step, 4 * steps, rate)
        right.plot(course.size, color="black", linestyle=style, label=corrected)
        rows.append([f"corrected: {corrected}", *summary(course)])
    finish(left, "step", "largest |R|", "two rollouts from a fixed proposal", logarithmic=False)
    finish(middle, "step", "KL(experts || model)", "", logarithmic=False)
    middle.set_yscale("log")
    middle.set_ylim(bottom=1e-10)
    finish(right, "step", "largest |R|", "corrected trajectories, many rollouts", logarithmic=False)
    save(figure, out / "theory_divergence.png")
    table(["ascent", "largest |R| at half", "at the end", "KL at the end", "|gradient| at the end"], rows)


def summary(course: Course) -> list[str]:
    """The columns of a course."""
    half = course.size[len(course.size) // 2]
    return [f"{half:.1f}", f"{course.size[-1]:.1f}", f"{course.kl[-1]:.2g}", f"{course.gradient[-1]:.2g}"]


def discriminator_figure(out: Path) -> None:
    """The discriminator's gradient beside the likelihood's, along R = log p_D + s h."""
    place, direction = world(), random_table(4)
    true = place.rows.policy_of(place.expert)
    scales = torch.linspace(-2, 2, 80)  # without 0, where both vanish
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    rows = []
    for name, policy in (("pi = the experts", true), ("pi = another policy", place.policy)):
        found = []
        for s in scales.tolist():
            here = replace(place, reward=true + s * direction, policy=policy)
            exact = exact_gradient(here.rows, here.reward, here.expert).flatten()
            own = discriminator_limit(here, "sequence").flatten()
            found.append((float(own.norm() / exact.norm()), float(torch.cosine_similarity(own, exact, 0))))
        ratios, cosines = zip(*found, strict=True)
        left.plot(scales, ratios, label=name)
        right.plot(scales, cosines, label=name)
        rows += [[name, f"{scales[i]:.2f}", f"{ratios[i]:.3f}", f"{cosines[i]:.3f}"] for i in (0, 20, 39, 60, 79)]
    left.axhline(0.5, color="grey", linewidth=0.6)
    finish(left, "s", "|discriminator| / |likelihood|", "lengths of the gradients", logarithmic=False)
    finish(right, "s", "cosine", "their directions", logarithmic=False)
    save(figure, out / "theory_discriminator.png")
    table(["policy", "s", "ratio of lengths", "cosine"], rows)


def joint_table(rounds: int) -> None:
    """Where the PRM and a policy that follows it end: exact ascent of both in turn."""
    start = untrained()
    gradients: dict[str, Callable[[World], torch.Tensor]] = {
        "sequence": partial(limit, weighting="sequence"),
        "sequence, tempered": partial(limit, weighting="sequence", temperature=3.0),
        "uniform": partial(limit, weighting="uniform"),
        "sequence, Rbar": partial(limit, weighting="sequence", rhat="Rbar"),
        "discriminator, sequence": partial(discriminator_limit, form="sequence"),
        "discriminator, token": partial(discriminator_limit, form="token"),
        "length_normalized": partial(limit, weighting="length_normalized"),
        "per_position": per_position_limit,
        "GAIL, sequence": partial(discriminator_limit, form="sequence", plain=True),
    }
    rows = [["(at the start)", f"{kl(start.expert, start.q):.3f}"]]
    for name, gradient in gradients.items():
        end = together(start, gradient, steps=rounds, rate=3.0)
        rows.append([f"following: {name}", f"{kl(end.expert, end.q):.2g}"])
    table(["PRM's objective, policy following", f"KL(experts || policy) after {rounds} rounds"], rows)


# ---- small things


def powers_of_two(first: int, last: int) -> list[int]:
    """The powers from first to last."""
    return [2**k for k in range(first.bit_length() - 1, last.bit_length())]


def mean_over_seeds(measure: Callable[[int], list[float]], seeds: int) -> list[float]:
    """Root of the mean square over seeds 0 .. seeds - 1."""
    found = torch.tensor([measure(seed) for seed in range(seeds)], dtype=torch.float64)
    return found.square().mean(0).sqrt().tolist()


def draw_line(axes: Axes, sizes: Sequence[int], values: Sequence[float], name: str, label: str | None = None) -> None:
    """One estimator over the number of rollouts."""
    axes.plot(sizes, values, ".-", color=SHOWN[name], label=label or name)


def finish(axes: Axes, x: str, y: str, title: str, *, logarithmic: bool = True) -> None:
    """Scales, names and the legend."""
    if logarithmic:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)


def save(figure: plt.Figure, path: Path) -> None:
    """Writes a small PNG without a date, so that equal numbers give equal files."""
    figure.tight_layout()
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a markdown table."""
    print("\n| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws all four figures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="where the PNG files go")
    parser.add_argument("--replicates", type=int, default=32, help="independent estimates a point")
    parser.add_argument("--seeds", type=int, default=3, help="seeds that are averaged")
    parser.add_argument("--largest", type=int, default=4096, help="rollouts of the last point of the error figure")
    parser.add_argument("--draws", type=int, default=8, help="rollouts up to which every draw is enumerated")
    parser.add_argument("--steps", type=int, default=100, help="of gradient ascent")
    parser.add_argument("--rounds", type=int, default=1500, help="of a PRM and a policy in turn")
    options = parser.parse_args(arguments)
    mpl.use("Agg")
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    error_figure(options.out, options.largest, options.replicates, options.seeds)
    bias_figure(options.out, options.draws)
    divergence_figure(options.out, options.steps)
    discriminator_figure(options.out)
    joint_table(options.rounds)
    print(f"\n{time.perf_counter() - start:.0f} s, {torch.get_num_threads()} thread, torch {torch.__version__}")


if __name__ == "__main__":
    main()
