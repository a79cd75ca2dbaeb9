"""What the order of prompts is told of an iteration."""

from lightning.pytorch import Trainer
from torch import Tensor

from repirl.distributed import gather_objects
from repirl.learning.batch import GlobalBatch


def tell_sampler(trainer: Trainer, batch: GlobalBatch, groups: Tensor, accuracy: Tensor) -> None:
    """Tells the data module's sampler each prompt's rollout accuracy; every rank tells its own the same.

    groups, accuracy: [prompts]; NaN, unknown, is not told.
    """
    sampler = getattr(getattr(trainer, "datamodule", None), "sampler", None)
    if sampler is None:
        return
    assert batch.shard is not None
    names = [p.problem.id for p in batch.shard.prompts]
    name_of = dict(gather_objects(list(zip(batch.shard.positions, names, strict=True))))
    known = [(name_of[int(g)], float(a)) for g, a in zip(groups, accuracy, strict=True) if not a.isnan()]
    sampler.update([name for name, _ in known], [a for _, a in known])
