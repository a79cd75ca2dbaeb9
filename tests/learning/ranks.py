"""What each of several ranks computes with the parts of learning/, without Lightning.

`python -m tests.mutants tests.learning.ranks FOLDER RANKS` starts them and writes FOLDER/<rank>.pt of each.
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
        gold_outcomes=[[1.0] * len(row) for row in rollouts],
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


def start() -> nn.ModuleDict:
    """The PRM and the policy before anything is learned."""
    policy = tiny_policy()
    return nn.ModuleDict({"prm": PRM(kind="q_head").build(policy), "policy": policy})


def learned(micro_batch_tokens: int = 1) -> dict[str, Any]:
    """One update of PRM and policy by micro-batches of one row each: passes of each model, figures, weights after it."""
    models = start()
    shared: dict[str, Any] = {"micro_batch_tokens": micro_batch_tokens, "clip_norm": 1e9, "recorder": Recorder()}
    of_prm = PRMLearner(models["prm"], IRL(base_measure="uniform"), **shared)
    of_policy = PolicyLearner(models["policy"], Surrogate(), max_response_tokens=8, **shared)
    passes = {learner.name: counted(learner) for learner in (of_prm, of_policy)}
    whole = of_policy.with_log_probs(batch())
    of_prm.update(whole)
    rollouts = whole.of_policy()
    advantages = torch.tensor(ADVANTAGES)[:, None] * rollouts.response_mask
    of_policy.update(replace(rollouts, advantages=advantages))
    return {
        "passes": {name: len(shapes) for name, shapes in passes.items()},
        "figures": shared["recorder"].take(),
        "weights": models.state_dict(),
    }


def counted(learner: Learner) -> list[None]:
    """Gives a learner plain SGD, and a list that grows with each pass of its model."""
    learner.engine = TorchEngine(learner, torch.optim.SGD(learner.model.parameters(), lr=0.1))
    passes: list[None] = []
    learner.model.register_forward_hook(lambda *_: passes.append(None))
    return passes


def one_rank(folder: Path, number: int, count: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=count)
    results = {"gradients": gradients(), "there_and_back": there_and_back(), "learned": learned()}
    torch.save(results, folder / f"{number}.pt")
    dist.barrier()
    dist.destroy_process_group()


def main(folder: Path, count: int) -> None:
    """A fork for each rank: the imports take most of the time."""
    torch.set_num_threads(1)
    context = torch.multiprocessing.get_context("fork")
    started = [context.Process(target=one_rank, args=(folder, number, count)) for number in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    sys.exit(any(process.exitcode for process in started))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
