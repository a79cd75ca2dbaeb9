"""Style leakage of a PRM: does it score experts above *correct* rollouts, both being right?

Samples the policy of a configuration on its training problems, the ones with the shortest expert solutions first (a small
model gets more of them right), until enough rollouts are correct; then compares Rbar of experts, correct and failed rollouts
of the same problems, before training (a fresh PRM) or with the weights of a checkpoint. Rollouts are always the start
policy's, so that before and after see the same ones. Small models hardly ever box an answer: here a rollout is correct if
its last number is the answer, and failed if it has numbers and the last one is another.

    python benchmarks/style_leakage.py --config configs/gsm8k_smollm2.yaml --config configs/scale/gsm8k_local.yaml \
        --ckpt_path outputs/gsm8k_smollm2/checkpoints/last.ckpt --correct 24 --problems 160
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch

from repirl.build import build, load_weights
from repirl.data.collate import collate_rows
from repirl.data.preparation import encode_problems
from repirl.metrics import auroc
from repirl.objectives.reduce import response_means
from repirl.structs import Response


def last_number(text: str) -> float | None:
    """The last number of a text; None where there is none."""
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return float(found[-1].replace(",", "")) if found else None


def main() -> None:
    """Samples, verifies, scores, prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", required=True)
    parser.add_argument("--ckpt_path", type=Path, help="whose PRM scores; none: the PRM before training")
    parser.add_argument("--correct", type=int, default=24, help="correct rollouts to stop at")
    parser.add_argument("--problems", type=int, default=160, help="problems at most")
    parser.add_argument("--samples", type=int, default=8, help="rollouts a problem")
    parser.add_argument("--batch", type=int, default=4, help="problems sampled at a time")
    args = parser.parse_args()

    built = build([word for path in args.config for word in ("--config", path)])
    module: Any = built.module
    data: Any = built.data
    prompts, _ = encode_problems(
        data.train.load(),
        module.codec,
        max_prompt_tokens=module.max_prompt_tokens,
        max_response_tokens=module.max_response_tokens,
        max_experts=1,
        experts="required",
    )
    prompts.sort(key=lambda prompt: (len(prompt.experts[0].token_ids), prompt.problem.id))
    found: list[tuple[tuple[int, ...], tuple[int, ...], str]] = []
    correct = tried = 0
    for start in range(0, args.problems, args.batch):
        some = prompts[start : start + args.batch]
        rollouts = module.actor.sample(
            some, range(start, start + len(some)), samples=args.samples, key=(0,), temperature=1.0
        )
        for prompt, row in zip(some, rollouts, strict=True):
            numbers = [(r, last_number(r.text)) for r in row if last_number(r.text) is not None]
            gold = float(prompt.problem.answer)
            right: list[Response] = [r for r, number in numbers if number == gold]
            wrong = [r for r, number in numbers if number != gold]
            tried, correct = tried + len(row), correct + len(right)
            if right:  # the expert and as many failed rollouts of the same problem
                found.append((prompt.token_ids, prompt.experts[0].token_ids, "expert"))
                found += [(prompt.token_ids, r.token_ids, "correct") for r in right]
                found += [(prompt.token_ids, r.token_ids, "failed") for r in wrong[: len(right)]]
        print(f"{start + len(some)} problems, {tried} rollouts, {correct} correct", flush=True)
        if correct >= args.correct:
            break
    if args.ckpt_path:
        load_weights(module, args.ckpt_path)
    means = torch.zeros(len(found))
    for start in range(0, len(found), 16):
        part = found[start : start + 16]
        rows = collate_rows([p for p, *_ in part], [r for _, r, _ in part], module.codec.pad_id)
        means[start : start + 16] = response_means(module.score(rows), rows.response_mask)
    kind = [k for *_, k in found]
    report: dict[str, Any] = {"rollouts": tried, "accuracy": correct / tried, "ckpt_path": args.ckpt_path}
    for high, low in (("expert", "correct"), ("correct", "failed"), ("expert", "failed")):
        where = torch.tensor([k in (high, low) for k in kind])
        is_high = torch.tensor([k == high for k in kind])
        if is_high.any() and (where & ~is_high).any():
            report[f"auroc_{high}_{low}"] = round(float(auroc(means[where], is_high[where])), 3)
    report["counts"] = {k: kind.count(k) for k in ("expert", "correct", "failed")}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
