"""What one rank of several computes with the parts of learning/, without Lightning.

`python -m tests.mutants tests.learning.ranks FOLDER RANK RANKS` writes FOLDER/RANK.pt.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from repirl.distributed import rank, sum_gradients, world_size
from repirl.learning.batch import GlobalBatch, gathered_batch
from repirl.learning.learner import Learner, TorchEngine
from repirl.learning.policy_learner import PolicyLearner
from repirl.learning.prm_learner import PRMLearner
from repirl.learning.prm_objectives import IRL
from repirl.learning.recorder import Recorder
from repirl.learning.settings import Surrogate
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.structs import Expert, Problem, Prompt, Response
from tests.models.tiny import PAD, tiny_policy

# Of each prompt: its tokens, those of its rollouts and of its experts. Rank 0 of two has 4 rows, rank 1 has 2.
RECORDS = [
    ([2, 3], [[3, 4, 1], [6, 5]], [[7, 9, 2, 9, 1], [5, 1]]),
    ([4, 5, 6, 7, 8], [[8, 9, 1]], [[2, 1]]),
]
ADVANTAGES = [1.0, -0.5, 2.0]  # of the rollouts, in the order of prompts


def batch() -> GlobalBatch:
    """All rows; rank r has those of prompts r, r + ranks and so on."""
    positions = range(rank(), len(RECORDS), world_size())
    of_rank = [RECORDS[position] for position in positions]
    rollouts = [[Response(tuple(ids), "", True) for ids in sampled] for _, sampled, _ in of_rank]
    return gathered_batch(
        prompts=[Prompt(Problem(f"p{at}", "x"), tuple(ids)) for at, (ids, *_) in zip(positions, of_rank, strict=True)],
        positions=list(positions),
        rollouts=rollouts,
        experts=[[Expert("", tuple(ids)) for ids in written] for *_, written in of_rank],
        outcomes=[[1.0] * len(row) for row in rollouts],
        format_rewards=[[0.0] * len(row) for row in rollouts],
        policy_version=0,
        step_ends=None,
        with_sampler_log_probs=False,
        pad_id=PAD,
        device=torch.device("cpu"),
    )


def gradients() -> list[list[float]]:
    """Of two parameters, after the sum: rank r has (r + 1) (1, 10) of the first; the last rank alone 5 of the second."""
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    first.grad = (rank() + 1) * torch.tensor([1.0, 10.0])
    if rank() == world_size() - 1:
        second.grad = torch.tensor([5.0])
    sum_gradients([first, second])
    return [[] if p.grad is None else p.grad.tolist() for p in (first, second)]


def there_and_back() -> tuple[Tensor, Tensor, Tensor]:
    """A value of each of this rank's tokens, 100 rank + 10 row + column; that of all ranks; and this rank's share of it."""
    of_all = batch()
    rows, columns = of_all.rows.response_mask.shape
    values = 100.0 * rank() + 10 * torch.arange(rows)[:, None] + torch.arange(columns)
    gathered = of_all.gather(values)
    return values, gathered, of_all.local(gathered)


def ready(learner: Learner) -> Learner:
    """With plain SGD."""
    learner.engine = TorchEngine(learner, torch.optim.SGD(learner.model.parameters(), lr=0.1))
    return learner


def learned(micro_batch_tokens: int = 1) -> dict[str, Any]:
    """One update of PRM and policy by micro-batches of one row each: passes of each model, figures, weights after it."""
    policy: Policy = tiny_policy()
    prm = PRM(kind="q_head").build(policy)
    shared: dict[str, Any] = {"micro_batch_tokens": micro_batch_tokens, "clip_norm": 1e9, "recorder": Recorder()}
    prm_learner = PRMLearner(prm, IRL(base_measure="uniform"), **shared)
    policy_learner = PolicyLearner(policy, Surrogate(), max_response_tokens=8, **shared)
    passes = {"prm": 0, "policy": 0}

    def count(name: str, model: nn.Module) -> None:
        def one(*_: Any) -> None:
            passes[name] += 1

        model.register_forward_hook(one)

    count("prm", prm)
    count("policy", policy)
    of_all = policy_learner.with_log_probs(batch())
    ready(prm_learner)
    ready(policy_learner)
    prm_learner.update(of_all)
    rollouts = of_all.of_policy()
    advantages = torch.tensor(ADVANTAGES)[:, None] * rollouts.response_mask
    policy_learner.update(replace(rollouts, advantages=advantages))
    models = nn.ModuleDict({"prm": prm, "policy": policy})
    return {"passes": passes, "figures": shared["recorder"].take(), "weights": models.state_dict()}


def found() -> dict[str, Any]:
    return {"gradients": gradients(), "there_and_back": there_and_back(), "learned": learned()}


def main(folder: Path, number: int, count: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=count)
    torch.save(found(), folder / f"{number}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
