"""What the study measures of a run: the trained policy's accuracy, and how PRMs judge held-out rollouts.

The policy is a PRM too: the reward log q - log b of a token, with q the trained policy and b the policy at the start, costs
nothing beside the policy. For a policy trained by SFT it is SFT's log-ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from repirl.data.collate import collate_rows
from repirl.data.preparation import encode_problems
from repirl.data.written_sums import WrittenSums, judge_any_order, judge_running_sums
from repirl.learning.learner import over_micro_batches
from repirl.metrics import (
    auroc,
    best_of_n,
    correlation,
    first_error_accuracy,
    majority_vote,
    pass_at_k,
    wrong_step_accuracy,
    wrong_step_auroc,
)
from repirl.models.micro_batches import micro_batches
from repirl.models.policy import Policy
from repirl.objectives.reduce import response_means
from repirl.objectives.steps import step_ends, sum_to_step_ends
from repirl.structs import Prompt, Response, Rows
from repirl.verifiers.answers import extract_box

MICRO_BATCH_TOKENS = 16384


class StudyMeasures(Callback):
    """Logs `study/...` when training ends.

    Held-out rollouts are the *start* policy's, drawn before training: the same for every arm of a seed. A step is a line,
    its reward the sum of its tokens'; it is wrong by the task's own rules, given the lines before it. Figures of the
    learned PRM have plain names, those of the policy's own log q - log b the prefix `policy_log_ratio/`.

    Args:
        task, min_steps, max_steps, base: of the problems.
        problems: of which `samples` rollouts each are scored.
        accuracy_problems: answered by the trained policy.
    """

    def __init__(
        self,
        task: Literal["paraphrased", "any_order"],
        min_steps: int,
        max_steps: int,
        base: int = 10,
        problems: int = 64,
        samples: int = 16,
        accuracy_problems: int = 400,
    ) -> None:
        self.judge = partial(judge_running_sums if task == "paraphrased" else judge_any_order, base=base)
        sizes = {"min_steps": min_steps, "max_steps": max_steps, "base": base, "solutions": 0}
        self.scored = WrittenSums(task, problems, seed=7, split="val", **sizes)  # type: ignore[arg-type]
        self.answered = WrittenSums(task, accuracy_problems, seed=8, split="test", **sizes)  # type: ignore[arg-type]
        self.samples = samples
        self.held_out: HeldOut | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws and judges the held-out rollouts, and measures the start policy."""
        module: Any = pl_module
        prompts = self._prompts(module, self.scored)
        rollouts = module.actor.sample(prompts, range(len(prompts)), samples=self.samples, key=(11,), temperature=1.0)
        flat = [(p, r) for p, row in zip(prompts, rollouts, strict=True) for r in row]
        self.held_out = self._judged(module, flat)
        self._log(trainer, {f"start_{name}": value for name, value in self._accuracies(module).items()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the trained policy, and how its log-ratio and, where there is one, the PRM judge the held-out rollouts."""
        module: Any = pl_module
        held_out = self.held_out
        assert held_out is not None
        figures = self._accuracies(module) | held_out.figures()
        log_ratio = log_probs(module.policy, held_out.rows) - held_out.start_log_probs
        figures |= {f"policy_log_ratio/{name}": value for name, value in held_out.judged_by(log_ratio).items()}
        if getattr(module, "prm", None) is not None:
            figures |= held_out.judged_by(module.score(held_out.rows))
        self._log(trainer, figures)

    def _log(self, trainer: Trainer, values: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({f"study/{name}": value for name, value in values.items()}, step=trainer.global_step)

    def _prompts(self, module: Any, source: WrittenSums) -> list[Prompt]:
        return encode_problems(
            source.load(),
            module.codec,
            max_prompt_tokens=module.max_prompt_tokens,
            max_response_tokens=module.max_response_tokens,
            max_experts=0,
            experts="optional",
        )[0]

    def _accuracies(self, module: Any) -> dict[str, float]:
        """Greedy and sampled accuracy, the mean length, and the share of samples whose every line is right."""
        prompts = self._prompts(module, self.answered)
        found: dict[str, float] = {}
        for kind, temperature in (("greedy", 0.0), ("sampled", 1.0)):
            rows = module.actor.sample(prompts, range(len(prompts)), samples=1, key=(12,), temperature=temperature)
            texts = [row[0].text for row in rows]
            right = [extract_box(t) == p.problem.answer for t, p in zip(texts, prompts, strict=True)]
            found[kind] = sum(right) / len(right)
            if kind == "sampled":
                clean = [all(self.judge(p.problem.text, t)) for t, p in zip(texts, prompts, strict=True)]
                found["clean"] = sum(clean) / len(clean)
                found["tokens"] = sum(len(row[0].token_ids) for row in rows) / len(rows)
        return found

    def _judged(self, module: Any, flat: list[tuple[Prompt, Response]]) -> HeldOut:
        """The rollouts with their lines: where they end, which of them are wrong; and with the start's log-probabilities."""
        rows = collate_rows([p.token_ids for p, _ in flat], [r.token_ids for _, r in flat], module.codec.pad_id)
        newline = module.policy.tokenizer.convert_tokens_to_ids("\n")
        ends = step_ends(is_separator=rows.response_ids == newline, response_mask=rows.response_mask)
        wrong = torch.zeros_like(ends)
        for i, (prompt, response) in enumerate(flat):
            at = ends[i].nonzero()[:, 0]
            verdicts = self.judge(prompt.problem.text, response.text)
            for where, verdict in zip(at.tolist(), verdicts, strict=False):  # an empty line at the end has no token
                wrong[i, where] = not verdict
        answers = [extract_box(response.text) for _, response in flat]
        right = torch.tensor([a == p.problem.answer for a, (p, _) in zip(answers, flat, strict=True)])
        return HeldOut(rows, ends, wrong, right, answers, self.samples, log_probs(module.policy, rows))


@dataclass(frozen=True)
class HeldOut:
    """Rollouts of the start policy, `samples` a problem.

    ends: the last token of each line; is_wrong: of those, the ends of wrong lines. right: rows whose answer is right.
    start_log_probs: log b of each token.
    """

    rows: Rows
    ends: Bool[Tensor, "rows time"]
    is_wrong: Bool[Tensor, "rows time"]
    right: Bool[Tensor, " rows"]
    answers: list[str | None]
    samples: int
    start_log_probs: Float[Tensor, "rows time"]

    def figures(self) -> dict[str, float]:
        """What needs no PRM: how often a random rollout of a problem is right, the majority's answer, any."""
        n = self.samples
        counts = self.right.view(-1, n).sum(-1)
        chosen = [majority_vote(self.answers[i * n : (i + 1) * n]) for i in range(len(counts))]
        votes = [float(self.right[i * n + c]) if c is not None else 0.0 for i, c in enumerate(chosen)]
        return {
            "majority": sum(votes) / len(votes),
            "random": float(self.right.double().mean()),
            "pass_at_16": float(pass_at_k(correct=counts, samples=torch.full_like(counts, n), k=n).mean()),
        }

    def judged_by(self, rewards: Float[Tensor, "rows time"]) -> dict[str, float]:
        """What token rewards are worth as a PRM's: they tell wrong lines, and wrong responses by their mean."""
        mask = self.rows.response_mask
        means = response_means(rewards, mask)
        of_lines = sum_to_step_ends(rewards=rewards, ends=self.ends, response_mask=mask)
        lines = {"step_rewards": of_lines, "step_mask": self.ends, "is_wrong": self.is_wrong}
        by_problem = (-1, self.samples)
        scores, right = means.view(by_problem), self.right.view(by_problem).float()
        return {
            "wrong_step_auroc": float(wrong_step_auroc(of_lines[self.ends], self.is_wrong[self.ends])),
            "wrong_step_accuracy": float(wrong_step_accuracy(**lines)),
            "first_error_accuracy": float(first_error_accuracy(**lines)),
            "auroc_correct_failed": float(auroc(means, self.right)),
            "best_of_16": float(best_of_n(scores=scores, correct=right).mean()),
            "length_correlation": float(correlation(means, mask.sum(-1).float())),
        }


def log_probs(policy: Policy, rows: Rows) -> Float[Tensor, "rows time"]:
    """Log-probability of every response token, without gradient, 0 outside the responses."""
    indices = micro_batches(rows, MICRO_BATCH_TOKENS, packs=policy.packs)
    return over_micro_batches(rows, indices, lambda part: policy(part)[0])
