"""What the study measures of a run: the trained policy's accuracy, and the PRM's judgement of held-out rollouts."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from repirl.data.collate import collate_rows
from repirl.data.preparation import encode_problems
from repirl.data.written_sums import WrittenSums, judge_any_order, judge_running_sums
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
from repirl.objectives.reduce import response_means
from repirl.objectives.steps import step_ends, sum_to_step_ends
from repirl.structs import Prompt, Response, Rows
from repirl.verifiers.answers import extract_box


class StudyMeasures(Callback):
    """Logs `study/...` when training ends.

    Held-out rollouts are the *start* policy's, drawn before training: the same for every arm of a seed. A step is a line,
    its reward the sum of its tokens'; it is wrong by the task's own rules, given the lines before it.

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
        self.held_out: tuple[list[Prompt], list[list[Response]]] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the held-out rollouts and measures the start policy."""
        module: Any = pl_module
        prompts = self._prompts(module, self.scored)
        rollouts = module.actor.sample(prompts, range(len(prompts)), samples=self.samples, key=(11,), temperature=1.0)
        self.held_out = prompts, rollouts
        self._log(trainer, {f"start_{name}": value for name, value in self._accuracies(module).items()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the trained policy and, where there is one, the PRM."""
        module: Any = pl_module
        found = self._accuracies(module)
        if getattr(module, "prm", None) is not None:
            found |= self._prm_quality(module)
        self._log(trainer, found)

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

    def _prm_quality(self, module: Any) -> dict[str, float]:
        assert self.held_out is not None
        prompts, rollouts = self.held_out
        flat = [(p, r) for p, row in zip(prompts, rollouts, strict=True) for r in row]
        rows = collate_rows([p.token_ids for p, _ in flat], [r.token_ids for _, r in flat], module.codec.pad_id)
        rewards: Tensor = module.score(rows)
        means = response_means(rewards, rows.response_mask)
        steps, wrong, per_step = self._steps(module, flat, rows, rewards)
        answers = [extract_box(r.text) for _, r in flat]
        right = torch.tensor([a == p.problem.answer for a, (p, _) in zip(answers, flat, strict=True)])
        n, by_problem = self.samples, (len(prompts), self.samples)
        chosen = [majority_vote(answers[i * n : (i + 1) * n]) for i in range(len(prompts))]
        votes = [right[i * n + c].double() if c is not None else torch.zeros((), dtype=torch.float64)
                 for i, c in enumerate(chosen)]  # fmt: skip
        counts = right.view(by_problem).sum(-1)
        return {
            "wrong_step_auroc": float(wrong_step_auroc(per_step[steps], wrong[steps])),
            "wrong_step_accuracy": float(wrong_step_accuracy(step_rewards=per_step, step_mask=steps, is_wrong=wrong)),
            "first_error_accuracy": float(first_error_accuracy(step_rewards=per_step, step_mask=steps, is_wrong=wrong)),
            "auroc_correct_failed": float(auroc(means, right)),
            "best_of_16": float(
                best_of_n(scores=means.view(by_problem), correct=right.view(by_problem).float()).mean()
            ),
            "majority": float(torch.stack(votes).mean()),
            "random": float(right.double().mean()),
            "pass_at_16": float(pass_at_k(correct=counts, samples=torch.full_like(counts, n), k=n).mean()),
            "length_correlation": float(correlation(means, rows.response_mask.sum(-1).float())),
        }

    def _steps(
        self, module: Any, flat: list[tuple[Prompt, Response]], rows: Rows, rewards: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Where lines end, which of them are wrong, and the reward of each at its end: [rows, time]."""
        mask = rows.response_mask
        ends = step_ends(is_separator=module.prm.ends_line[rows.response_ids], response_mask=mask)
        wrong = torch.zeros_like(ends)
        for i, (prompt, response) in enumerate(flat):
            at = ends[i].nonzero()[:, 0]
            verdicts = self.judge(prompt.problem.text, response.text)
            for where, verdict in zip(at.tolist(), verdicts, strict=False):  # an empty line at the end has no token
                wrong[i, where] = not verdict
        return ends, wrong, sum_to_step_ends(rewards=rewards, ends=ends, response_mask=mask)
