"""Time and memory of scoring solutions, beside a plain padded Hugging Face loop: SmolLM2-135M, 16 solutions a prompt.

    python benchmarks/score.py                                            # 8 problems, minutes on two cores
    python benchmarks/score.py --problems 1 --solutions 4 --repeats 1     # does it run

Problems and solutions are those of GSM8K in the package: each problem with solutions of itself and of others, so that lengths
differ as they do. The PRM is one linear layer, drawn at random, over SmolLM2's states. The plain loop reads problem and
solution of a row together, in batches of `--solutions` rows in the order given, padded to the longest. Both begin with texts
and end with the rewards of steps, which must agree. Timings alternate. Memory is how far the resident set of a process of its
own rises above what it was with the model loaded.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from log_probs_memory import status
from machine import described, seconds, sentence, table, written
from torch.nn.utils.rnn import pad_sequence
from workloads import SMOLLM2

from repirl.applications.scoring import TokenScorer
from repirl.data.codec import ChatCodec
from repirl.data.sources import Sample
from repirl.data.steps import split_steps, step_of_tokens
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.structs import WrittenSolution

GOAL, AGREE = 0.5, 1e-3
FORMS = ("plain", "repirl")


def work(problems: int, solutions: int) -> list[WrittenSolution]:
    """So many solutions of each problem, its own first."""
    sample = Sample().load()
    texts = [text for problem in sample for text in problem.solutions]
    draw = random.Random(0)
    return [
        WrittenSolution(problem.text, split_steps(text))
        for problem in sample[:problems]
        for text in [problem.solutions[0], *draw.sample(texts, solutions - 1)]
    ]


class Plain:
    """What one would write first over the same weights: padded rows of problem and solution."""

    def __init__(self, scorer: TokenScorer, prm: PRM, rows: int) -> None:
        assert prm.backbone is not None
        self.codec, self.model, self.head, self.rows = scorer.codec, prm.backbone.model, prm.head.score, rows

    @torch.no_grad()
    def step_rewards(self, solutions: Sequence[WrittenSolution]) -> list[tuple[float, ...]]:
        """As a `StepScorer`."""
        found = []
        for first in range(0, len(solutions), self.rows):
            part = solutions[first : first + self.rows]
            prompts = self.codec.encode_prompts([one.problem for one in part])
            responses = self.codec.encode_responses([one.text for one in part])
            ids = [torch.tensor(p + r) for p, r in zip(prompts, responses, strict=True)]
            mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
            given = {"input_ids": pad_sequence(ids, batch_first=True), "attention_mask": mask, "use_cache": False}
            rewards = self.head(self.model.base_model(**given).last_hidden_state)[..., 0]
            for one, prompt, row, values in zip(part, prompts, ids, rewards, strict=True):
                length = len(one.text)
                places = step_of_tokens([*self.codec.spans(one.text), (length, length)], one.steps)
                sums = torch.zeros(len(one.steps)).index_add(0, torch.tensor(places), values[len(prompt) : len(row)])
                found.append(tuple(sums.tolist()))
        return found


def made(form: str, rows: int, batch_tokens: int) -> TokenScorer | Plain:
    """The scorer of a form. The plain one has transformers' own attention."""
    policy = Policy(path=SMOLLM2).load()
    torch.manual_seed(0)
    prm = PRM("linear", backbone=policy).build(policy).eval()
    scorer = TokenScorer.of(prm, ChatCodec(policy.tokenizer), batch_tokens)
    if form == "repirl":
        return scorer
    policy.model.set_attn_implementation("sdpa")
    return Plain(scorer, prm, rows)


def peak(form: str, given: argparse.Namespace) -> int:
    """Bytes above the loaded model, in this process."""
    scorer = made(form, given.solutions, given.batch_tokens)
    scorer.step_rewards(work(1, 1))  # libraries and threads are loaded now
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the highest starts anew
    before = status("VmRSS")
    scorer.step_rewards(work(given.problems, given.solutions))
    return status("VmHWM") - before


def tokens(scorer: TokenScorer, solutions: Sequence[WrittenSolution], rows: int) -> dict[str, int]:
    """Tokens that go through the model: padded rows, and each prompt once with its solutions."""
    lengths = scorer.lengths(solutions)
    batches = [lengths[first : first + rows] for first in range(0, len(lengths), rows)]
    prompts = [len(ids) for ids in scorer.codec.encode_prompts([one.problem for one in solutions])]
    packed = sum(lengths) - sum(prompts) + sum(prompts[::rows])
    return {"plain": sum(len(batch) * max(batch) for batch in batches), "repirl": packed}


def main() -> None:
    """Both forms, or the memory of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=8)
    parser.add_argument("--solutions", type=int, default=16, help="of each problem")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="the report (.md); printed alone without it")
    parser.add_argument("--peak", choices=FORMS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.peak:
        print(json.dumps(peak(given.peak, given)))
        return
    solutions, cpu = work(given.problems, given.solutions), torch.device("cpu")
    scorers = {form: made(form, given.solutions, given.batch_tokens) for form in FORMS}
    ours = scorers["repirl"]
    assert isinstance(ours, TokenScorer)
    rewards = {form: scorer.step_rewards(solutions) for form, scorer in scorers.items()}
    gap = max(abs(a - b) for one, other in zip(*rewards.values(), strict=True) for a, b in zip(one, other, strict=True))
    assert gap < AGREE, f"rewards of steps differ by {gap}"
    taken: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(given.repeats):
        for form, scorer in scorers.items():
            taken[form] += seconds(lambda scorer=scorer: scorer.step_rewards(solutions), cpu, 1, warm_up=0)
    read = tokens(ours, solutions, given.solutions)
    memory = {form: _peak_apart(form) for form in FORMS}
    median = {form: statistics.median(values) for form, values in taken.items()}
    rows = [
        [form, f"{median[form]:.2f}", f"{min(taken[form]):.2f}-{max(taken[form]):.2f}", read[form],
         f"{memory[form] / 2**20:.0f}"]
        for form in FORMS
    ]  # fmt: skip
    machine = described(cpu)
    ratio = median["repirl"] / median["plain"]
    text = (
        f"# Scoring {given.solutions} solutions of each of {given.problems} problems, SmolLM2-135M\n\n"
        + table(["form", "seconds, median", "range", "tokens read", "MiB above the model"], rows)
        + f"\nrepirl over plain: {ratio:.2f} of the time (goal {GOAL}), {read['repirl'] / read['plain']:.2f} of the tokens, "
        f"{memory['repirl'] / memory['plain']:.2f} of the memory. Rewards of steps differ by {gap:.1e} at most.\n\n"
        + sentence(machine)
    )
    if given.output is None:
        print(text)
    else:
        written(given.output, text, {"machine": machine, "seconds": taken, "tokens": read, "bytes": memory, "gap": gap})


def _peak_apart(form: str) -> int:
    done = subprocess.run([sys.executable, *sys.argv, "--peak", form], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
