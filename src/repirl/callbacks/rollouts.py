"""What the policy writes while it trains: some rollouts with their rewards, to be read."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from repirl.learning.batch import GlobalBatch


class RolloutTexts(Callback):
    """Writes some rollouts of the first process every so many iterations, from the first on.

    A line of the file is one rollout: `iteration` counted from 1, `id`, `problem`, `gold`, `response`, `correct` (null
    where unknown), `prm_mean_reward` (null without a PRM) and `mean_advantage`, both means over the response's tokens, as
    the policy has just learned from them. TensorBoard shows the same under `rollouts`. A run that goes on from a checkpoint
    adds to the file; another one begins it anew.

    Args:
        path: a .jsonl file; its folder is made.
        every_n_iterations: iterations between two writes.
        count: rollouts in each write, of different prompts where there are enough.
    """

    def __init__(self, path: str, every_n_iterations: int = 10, count: int = 2) -> None:
        if Path(path).suffix != ".jsonl":
            raise ValueError(f"RolloutTexts: path {path!r} must end in .jsonl")
        if every_n_iterations < 1 or count < 1:
            raise ValueError(
                f"RolloutTexts: every_n_iterations and count must be at least 1, not {every_n_iterations} and {count}"
            )
        self.path, self.every_n_iterations, self.count = Path(path), every_n_iterations, count

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not trainer.ckpt_path:
            self.path.unlink(missing_ok=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes those of this iteration, where it is one of the chosen."""
        newest: GlobalBatch | None = getattr(pl_module, "newest_rollouts", None)
        due = (trainer.global_step - 1) % self.every_n_iterations == 0
        if not due or newest is None or not trainer.is_global_zero:
            return
        rows = shown(newest, self.count, pl_module.codec.decode)  # type: ignore[union-attr]
        rows = [{"iteration": trainer.global_step} | row for row in rows]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        text = "\n\n---\n\n".join("\n\n".join(f"**{name}** {value}" for name, value in row.items()) for row in rows)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("rollouts", text, trainer.global_step)


def shown(batch: GlobalBatch, count: int, decode: Any) -> list[dict[str, Any]]:
    """The first rollout of each of this process's prompts, at most `count`; of fewer prompts further ones."""
    assert batch.shard is not None
    assert batch.advantages is not None
    mine = batch.select(batch.owner == 0)
    prompts = dict(zip(batch.shard.positions, batch.shard.prompts, strict=True))
    groups = mine.group.tolist()
    first = {group: row for row, group in reversed(list(enumerate(groups)))}
    others = [row for row in range(len(groups)) if row not in first.values()]
    rows = []
    for row in [*sorted(first.values()), *others][:count]:
        problem, mask = prompts[groups[row]].problem, batch.rows.response_mask[row]
        rewards, outcome = mine.prm_rewards, float(mine.gold_outcome[row])
        rows.append(
            {
                "id": problem.id,
                "problem": problem.text,
                "gold": problem.answer,
                "response": decode(batch.rows.response_ids[row][mask].tolist()),
                "correct": None if outcome != outcome else outcome == 1,
                "prm_mean_reward": None if rewards is None else _mean(rewards[row], mine.response_mask[row]),
                "mean_advantage": _mean(batch.advantages[batch.owner == 0][row], mine.response_mask[row]),
            }
        )
    return rows


def _mean(values: torch.Tensor, mask: torch.Tensor) -> float:
    return round(float(values[mask].mean()), 4)
