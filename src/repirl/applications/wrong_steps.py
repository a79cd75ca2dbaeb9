"""Which steps of running sums are wrong, and which process rewards find them: the second table of the quick start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from repirl.applications.accuracy import fitting
from repirl.applications.trained import Trained
from repirl.data.arithmetic import first_error
from repirl.data.collate import collate_rows
from repirl.learning.actor import Actor
from repirl.learning.learner import over_micro_batches
from repirl.metrics import wrong_step_auroc
from repirl.models.micro_batches import micro_batches
from repirl.rollout.transformers import InProcess
from repirl.structs import Problem, Rows

BATCH_TOKENS = 16384  # of a forward pass


@dataclass(frozen=True)
class JudgedSteps:
    """Rollouts of a start policy to running-sum problems, whose steps are right or wrong.

    log_probs: of their tokens under that policy, in nats.
    steps: of each row its steps up to the first wrong one: whether it is wrong.
    """

    rows: Rows
    log_probs: Float[Tensor, "rows time"]
    steps: list[list[bool]]

    def judged_by(self, trained: Trained) -> dict[str, float]:
        """AUROC of wrong steps by `log q - log b` of the trained policy and, where there is one, by its PRM.

        Nothing where no step is wrong, or none right.
        """
        if len({verdict for verdicts in self.steps for verdict in verdicts}) < 2:
            return {}
        policy, prm = trained.policy, trained.prm
        rewards = {"wrong_steps_log_ratio": token_values(self.rows, lambda rows: policy(rows)[0]) - self.log_probs}
        if prm is not None:
            rewards["wrong_steps_prm"] = token_values(self.rows, prm.token_rewards)
        return {name: found_wrong(values, self.steps) for name, values in rewards.items()}


def judged_rollouts(start: Trained, problems: Sequence[Problem], seed: int = 0) -> JudgedSteps:
    """One rollout of the start policy a problem, at temperature 1; every run from this start is asked about the same."""
    actor = Actor(start.policy, start.text, InProcess(max_batch_rows=512), verifier=None)
    actor.load()
    prompts = fitting(problems, actor)
    drawn = actor.sample(prompts, range(len(prompts)), samples=1, key=(seed,), temperature=1.0)
    responses = [row[0] for row in drawn]
    rows = collate_rows([p.token_ids for p in prompts], [r.token_ids for r in responses], actor.codec.pad_id)
    return JudgedSteps(
        rows,
        token_values(rows, lambda some: start.policy(some)[0]),
        [step_verdicts(p.problem.text, r.text) for p, r in zip(prompts, responses, strict=True)],
    )


def step_verdicts(problem: str, response: str) -> list[bool]:
    """Whether each step is wrong, up to the first that is: what follows an error has no verdict."""
    error = first_error(problem, response)
    return [False] * (len(problem) // 2 - 1) if error is None else [False] * error + [True]


def found_wrong(rewards: Float[Tensor, "rows time"], steps: Sequence[Sequence[bool]]) -> float:
    """AUROC of wrong steps. The reward of step i is that of its letter and its digit, tokens 1 + 2 i and 2 + 2 i.

    A missing step has that of the tokens in its place.
    """
    sums = [
        rewards[row, 1 + 2 * i : 3 + 2 * i].sum() for row, verdicts in enumerate(steps) for i in range(len(verdicts))
    ]
    wrong = [verdict for verdicts in steps for verdict in verdicts]
    return float(wrong_step_auroc(torch.stack(sums), torch.tensor(wrong)))


def token_values(rows: Rows, of: Callable[[Rows], Tensor]) -> Float[Tensor, "rows time"]:
    """A value of every response token, without gradient, 0 outside the responses."""
    return over_micro_batches(rows, micro_batches(rows, BATCH_TOKENS, packs=False), of)
