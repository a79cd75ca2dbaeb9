"""Peak memory of token log-probabilities and entropies with their gradients, beside the plain form; and do they agree?

    python benchmarks/log_probs_memory.py                  # 2,048 tokens, vocabulary 152,000, hidden 896
    python benchmarks/log_probs_memory.py --tokens 4096    # the plain form then needs 11 GB

The plain form is `log_softmax` of all logits, its gather, and the entropy from it, with autograd. Each form runs in a
process of its own; the figure is how far its resident memory rose above what it was with the inputs in place. The
weight's own gradient, [vocabulary, hidden], is part of both; a second share leaves it out of both. Gradients are
compared on fewer tokens, relative to the largest, with each other and with the plain form in float64.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from machine import described, sentence, table, written
from torch import Tensor

from repirl.models.log_probs import token_log_probs

GOAL, AGREE = 0.15, 1e-6
FORMS = ("plain", "repirl", "plain without gradient", "repirl without gradient")


def plain(hidden: Tensor, weight: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What one would write first."""
    log_p = torch.nn.functional.linear(hidden, weight).log_softmax(-1)
    return log_p.gather(-1, tokens[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def inputs(tokens: int, vocabulary: int, hidden: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states and weight that want gradients, tokens, and the gradient that arrives at each."""
    torch.manual_seed(0)
    states, weight = torch.randn(tokens, hidden), torch.randn(vocabulary, hidden) / hidden**0.5
    return states.requires_grad_(), weight.requires_grad_(), torch.randint(vocabulary, (tokens,)), torch.randn(tokens)


def loss_of(form: str, given: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """A weighted sum of log-probabilities and a little entropy, as a policy loss has them."""
    states, weight, tokens, wanted = given
    function = plain if form.startswith("plain") else token_log_probs
    with torch.set_grad_enabled("without" not in form):
        log_probs, entropies = function(states, weight, tokens)
        return (wanted * log_probs).mean() + 0.001 * entropies.mean()


def status(name: str) -> int:
    """Bytes of a line of this process's status: VmRSS now, VmHWM at its highest."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def peak(form: str, sizes: tuple[int, int, int]) -> int:
    """Bytes above the inputs, in this process."""
    small = loss_of(form, inputs(8, 16, 8))
    if small.requires_grad:
        small.backward()  # libraries and threads are loaded now
    given = inputs(*sizes)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the highest starts anew
    before = status("VmRSS")
    loss = loss_of(form, given)
    if loss.requires_grad:
        loss.backward()
    return status("VmHWM") - before


def agreement(sizes: tuple[int, int, int]) -> dict[str, dict[str, float]]:
    """The largest difference of loss and gradients over the largest value: of the forms, and of each to float64."""
    found = {}
    for name, form, dtype in (
        ("plain", "plain", torch.float32),
        ("repirl", "repirl", torch.float32),
        ("exact", "plain", torch.float64),
    ):
        states, weight, tokens, wanted = inputs(*sizes)
        states, weight = (value.detach().to(dtype).requires_grad_() for value in (states, weight))
        loss = loss_of(form, (states, weight, tokens, wanted.to(dtype)))
        loss.backward()
        found[name] = {"loss": loss.detach(), "d hidden": states.grad, "d weight": weight.grad}
    return {
        f"{one} to {other}": {
            name: float((found[one][name] - value).abs().max() / value.abs().max())
            for name, value in found[other].items()
        }
        for one, other in (("repirl", "plain"), ("repirl", "exact"), ("plain", "exact"))
    }


def report(raw: dict[str, Any]) -> str:
    """As Markdown."""
    mib = {form: value / 2**20 for form, value in raw["peak"].items()}
    weight = raw["vocabulary"] * raw["hidden"] * 4 / 2**20
    rows = []
    for kind, goal in (("", True), (" without gradient", False)):
        ours, theirs = mib[f"repirl{kind}"], mib[f"plain{kind}"]
        judged = f"<= {GOAL:.0%} {'met' if ours / theirs <= GOAL else 'missed'}" if goal else ""
        less = f"{(ours - weight) / (theirs - weight):.1%}" if goal else ""
        name = "forward and backward" if goal else "forward only"
        rows.append([name, f"{theirs:,.0f}", f"{ours:,.0f}", f"**{ours / theirs:.1%}**", less, judged])
    differences = [[pair, *(f"{value:.1e}" for value in found.values())] for pair, found in raw["agreement"].items()]
    worst = max(raw["agreement"]["repirl to plain"].values())
    lines = [
        "# Memory of log-probabilities\n",
        "    python benchmarks/log_probs_memory.py\n",
        sentence(raw["machine"]),
        f"{raw['tokens']:,} tokens, vocabulary {raw['vocabulary']:,}, hidden {raw['hidden']}, float32; "
        f"the weight's gradient alone is {weight:,.0f} MiB.\n",
        table(["", "plain, peak MiB", "repirl, peak MiB", "share", "without the weight's gradient", "goal"], rows),
        f"Largest difference over largest value, on {raw['compared']} tokens (`exact` is the plain form in float64; "
        f"goal {AGREE:g} between the forms: {'met' if worst <= AGREE else 'missed'}):\n",
        table(["", "loss", "d hidden", "d weight"], differences),
    ]
    return "\n".join(lines)


def main() -> None:
    """Measures each form in its own process, compares, writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=152_000)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--compared", type=int, default=64, help="tokens on which gradients are compared")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("outputs/log_probs_memory.md"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sizes = (args.tokens, args.vocabulary, args.hidden)
    if args.form:
        print(peak(args.form, sizes))
        return

    peaks = {}
    for form in FORMS:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--form", form], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{form} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
        peaks[form] = int(done.stdout)
    raw = {
        "machine": described(torch.device("cpu")),
        **{name: getattr(args, name) for name in ("tokens", "vocabulary", "hidden", "compared")},
        "peak": peaks,
        "agreement": agreement((args.compared, args.vocabulary, args.hidden)),
    }
    written(args.out, report(raw), raw)


if __name__ == "__main__":
    main()
