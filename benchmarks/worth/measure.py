"""What the study measures when training ends: the policy's accuracy, and PRMs on rollouts of the policy it began with.

Three process rewards are scored on the same rollouts: the learned PRM's, the trained policy's own `log q - log b` with b the
weak start policy, which after SFT is SFT's log-ratio, and, but for SFT, the same with b the policy at the start of the run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.worth.judged import JudgedProblems
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from repirl.data.collate import collate_rows
from repirl.data.preparation import encode_problems
from repirl.data.sources import Source
from repirl.learning.learner import over_micro_batches
from repirl.metrics import auroc, best_of_n, first_error_accuracy, majority_vote, pass_at_k, wrong_step_auroc
from repirl.models.micro_batches import micro_batches
from repirl.models.policy import Policy
from repirl.objectives.reduce import response_means
from repirl.objectives.steps import step_ends, sum_to_step_ends
from repirl.structs import Problem, Prompt, Response, Rows
from repirl.verifiers.answers import extract_box

ACCURACY_KEY, ROLLOUT_KEY = (12,), (11,)  # seeds of sampling: every arm of a seed answers with the same random numbers
TOKENS_AT_ONCE = 16384


@dataclass
class Given(Source):
    """These problems."""

    problems: list[Problem]

    def load(self) -> list[Problem]:
        """They themselves."""
        return self.problems


class WorthMeasures(Callback):
    """Logs `worth/...` when training ends.

    Args:
        start: folder of the weak start policy.
        answered: problems that the trained policy answers, `samples` times each and once greedily.
        scored: problems of which `rollouts` rollouts each are scored as steps and as responses, beside an expert solution
            each in the style of the training experts.
        unseen: problems with expert solutions, for their log-likelihood.
        of_start: rollouts are those of the policy before training, for SFT too; otherwise SFT has its own.
    """

    def __init__(
        self,
        start: str,
        answered: JudgedProblems,
        scored: JudgedProblems,
        unseen: JudgedProblems,
        samples: int = 4,
        rollouts: int = 16,
        *,
        of_start: bool = False,
    ) -> None:
        self.of_start = of_start
        self.start, self.samples, self.rollouts = start, samples, rollouts
        self.answered, self.scored, self.unseen = answered, scored, unseen
        self.held_out: list[tuple[Prompt, Response]] = []
        self.experts: list[tuple[Prompt, Response]] = []
        self.log_probs: tuple[Tensor, Tensor] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the rollouts, and of a run that starts where SFT ended takes the log-probabilities there."""
        module: Any = pl_module
        alternates = getattr(module, "alternation", None) is not None
        if alternates or self.of_start:
            self.draw(trainer, module)
        if alternates:
            first, second = self.rows(module)
            self.log_probs = log_probs_of(module.policy, first), log_probs_of(module.policy, second)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the trained policy and every process reward there is."""
        module: Any = pl_module
        figures = self.accuracies(module) | {"expert_log_prob": self.expert_log_prob(module)}
        if not self.held_out:
            self.draw(trainer, module)
        rows, expert_rows = self.rows(module)
        start = Policy(path=self.start).load()
        before = self.log_probs or (None, None)
        of_rollouts = process_rewards(module, start, rows, before[0])
        of_experts = process_rewards(module, start, expert_rows, before[1])
        for name, rewards in of_rollouts.items():
            of_source = self.quality(module, rows, rewards) | self.style(rewards, of_experts[name])
            figures |= {f"{name}/{key}": value for key, value in of_source.items()}
        figures |= self._without_a_reward()
        for logger in trainer.loggers:
            logger.log_metrics({f"worth/{name}": value for name, value in figures.items()}, step=trainer.global_step)

    def draw(self, trainer: Trainer, module: Any) -> None:
        """Rollouts of the module's policy, on which process rewards are compared, and experts to the same problems."""
        prompts = encoded(module, self.scored)
        rollouts = module.actor.sample(
            prompts, range(len(prompts)), samples=self.rollouts, key=ROLLOUT_KEY, temperature=1.0
        )
        self.held_out = [(prompt, row) for prompt, rows in zip(prompts, rollouts, strict=True) for row in rows]
        training: Any = trainer.datamodule  # type: ignore[attr-defined]
        solved = encoded(module, self.scored.written_like(training.train), max_experts=1)
        self.experts = [(prompt, prompt.experts[0]) for prompt in solved]

    def rows(self, module: Any) -> tuple[Rows, Rows]:
        """Those rollouts, and those experts, as rows."""
        first, second = (
            collate_rows([p.token_ids for p, _ in pairs], [r.token_ids for _, r in pairs], module.codec.pad_id)
            for pairs in (self.held_out, self.experts)
        )
        return first, second

    def accuracies(self, module: Any) -> dict[str, float]:
        """Sampled and greedy accuracy, the share of samples whose every line is right, and their mean length."""
        prompts = encoded(module, self.answered)
        figures = {}
        for kind, temperature, samples in (("greedy", 0.0, 1), ("sampled", 1.0, self.samples)):
            drawn = module.actor.sample(
                prompts, range(len(prompts)), samples=samples, key=ACCURACY_KEY, temperature=temperature
            )
            pairs = [(p.problem, row) for p, rows in zip(prompts, drawn, strict=True) for row in rows]
            figures[kind] = _mean(extract_box(row.text) == problem.answer for problem, row in pairs)
            if kind == "sampled":
                figures["every_step"] = _mean(all(self.answered.judge(p.text, r.text)) for p, r in pairs)
                figures["tokens"] = _mean(len(row.token_ids) for _, row in pairs)
        return figures

    def expert_log_prob(self, module: Any) -> float:
        """Mean log-likelihood of a token of unseen experts: what SFT is tuned by."""
        prompts = encoded(module, self.unseen, max_experts=1)
        ids = [p.token_ids for p in prompts], [p.experts[0].token_ids for p in prompts]
        rows = collate_rows(*ids, module.codec.pad_id)
        return float(log_probs_of(module.policy, rows).sum() / rows.response_mask.sum())

    def quality(self, module: Any, rows: Rows, rewards: Tensor) -> dict[str, float]:
        """How a process reward ranks steps of a response, and responses of a problem."""
        mask = rows.response_mask
        newline = module.policy.tokenizer.encode("\n", add_special_tokens=False)[-1]
        ends = step_ends(is_separator=rows.response_ids == newline, response_mask=mask)
        wrong = torch.zeros_like(ends)
        for i, (prompt, response) in enumerate(self.held_out):
            places = ends[i].nonzero()[:, 0].tolist()
            # An empty line at the end of a response has no token of its own.
            for place, right in zip(places, self.scored.judge(prompt.problem.text, response.text), strict=False):
                wrong[i, place] = not right
        steps = sum_to_step_ends(rewards=rewards, ends=ends, response_mask=mask)
        right, by_problem = self._right(), (-1, self.rollouts)
        means, sums = response_means(rewards, mask), rewards.sum(-1)
        return {
            "wrong_step_auroc": float(wrong_step_auroc(steps[ends], wrong[ends])),
            "first_error_accuracy": float(first_error_accuracy(step_rewards=steps, step_mask=ends, is_wrong=wrong)),
            "correct_failed_auroc": float(auroc(means, right)),
            "correct_failed_auroc_sum": float(auroc(sums, right)),
            "best_of_n": float(best_of_n(scores=means.view(by_problem), correct=right.view(by_problem).float()).mean()),
        }

    def style(self, rewards: Tensor, of_experts: Tensor) -> dict[str, float]:
        """How a process reward tells experts from *right* rollouts: what is above .5 is not about being right."""
        of_right = rewards.sum(-1)[self._right()]
        scores = torch.cat([of_experts.sum(-1), of_right])
        return {"expert_correct_auroc_sum": float(auroc(scores, torch.arange(len(scores)) < len(of_experts)))}

    def _right(self) -> Tensor:
        return torch.tensor([extract_box(r.text) == p.problem.answer for p, r in self.held_out])

    def _without_a_reward(self) -> dict[str, float]:
        """Accuracy of one rollout at random, of the majority's answer, and of the best that there is."""
        right, n = self._right().view(-1, self.rollouts), self.rollouts
        votes = []
        for i, row in enumerate(right):
            chosen = majority_vote([extract_box(r.text) for _, r in self.held_out[i * n : (i + 1) * n]])
            votes.append(chosen is not None and bool(row[chosen]))
        counts = right.sum(-1)
        return {
            "random": float(right.double().mean()),
            "majority_of_n": _mean(votes),
            "pass_at_n": float(pass_at_k(correct=counts, samples=torch.full_like(counts, n), k=n).mean()),
        }


class TokenRewards(Callback):
    """Writes the PRM's reward of every token of one solution when training begins and ends: JSON, [token, reward] pairs.

    Args:
        problem: its text. solution: a response to it, right or wrong.
        path: of the file.
    """

    def __init__(self, problem: str, solution: str, path: str) -> None:
        self.problem, self.solution, self.path = problem, solution, Path(path)
        self.rewards: dict[str, list[tuple[str, float]]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores before the first update."""
        self._score("before", pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores after the last one, and writes both."""
        self._score("after", pl_module)
        self.path.write_text(json.dumps({"problem": self.problem, "rewards": self.rewards}))

    def _score(self, when: str, module: Any) -> None:
        if module.prm is None:
            return
        problem = Problem(id="shown", text=self.problem, answer="", solutions=(self.solution,))
        (prompt,) = encoded(module, Given([problem]), max_experts=1)
        ids = prompt.experts[0].token_ids
        rows = collate_rows([prompt.token_ids], [ids], module.codec.pad_id)
        names = [module.policy.tokenizer.decode([token]) for token in ids]
        self.rewards[when] = list(zip(names, module.score(rows)[0].tolist(), strict=True))


def encoded(module: Any, source: Source, max_experts: int = 0) -> list[Prompt]:
    """The source's problems as the module prompts them."""
    return encode_problems(
        source.load(),
        module.codec,
        max_prompt_tokens=module.max_prompt_tokens,
        max_response_tokens=module.max_response_tokens,
        max_experts=max_experts,
        experts="required" if max_experts else "optional",
    )[0]


def process_rewards(module: Any, start: Policy, rows: Rows, before: Tensor | None) -> dict[str, Tensor]:
    """Token rewards of every source there is. before: log-probabilities of the policy at the start of the run."""
    policy = log_probs_of(module.policy, rows)
    rewards = {"policy_over_start": policy - log_probs_of(start, rows)}
    if getattr(module, "prm", None) is not None:
        rewards["prm"] = module.score(rows)
    if before is not None:
        rewards["policy_over_own_start"] = policy - before
    return rewards


def log_probs_of(policy: Policy, rows: Rows) -> Tensor:
    """Log-probabilities of the response tokens."""
    return over_micro_batches(
        rows, micro_batches(rows, TOKENS_AT_ONCE, packs=policy.packs), lambda some: policy(some)[0]
    )


def _mean(values: Any) -> float:
    numbers = [float(value) for value in values]
    return sum(numbers) / len(numbers)
