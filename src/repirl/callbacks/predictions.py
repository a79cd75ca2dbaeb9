"""What `predict_step` returns, as a JSONL file."""

import json
import os
from collections.abc import Iterator
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer


class PredictionWriter(Callback):
    """Writes the records (dicts) of every predict batch, one a line, in the order of the data.

    The file appears whole, at the end: until then every rank writes a part of its own beside it, and rank zero merges
    the parts and renames the result. An earlier file of that name stays as it is if the run fails.

    Args:
        path: the file to write; its folder is made.
    """

    def __init__(self, path: str) -> None:
        if Path(path).suffix != ".jsonl":
            raise ValueError(f"PredictionWriter: path {path!r} must end in .jsonl")
        self.path = Path(path)
        self._file: TextIO | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens this rank's part."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._part(trainer.global_rank).open("w", encoding="utf-8")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the batch's records as one line of the part."""
        assert self._file is not None
        if not isinstance(outputs, list) or not all(isinstance(record, dict) for record in outputs):
            raise ValueError(f"{type(pl_module).__name__}.predict_step must return a list of dicts to be written")
        self._file.write(json.dumps(outputs, ensure_ascii=False) + "\n")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merges all parts into the file."""
        assert self._file is not None
        self._file.close()
        self._file = None
        trainer.strategy.barrier("predictions written")
        if trainer.is_global_zero:
            self._merge(trainer.world_size)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves no part behind."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._part(trainer.global_rank).unlink(missing_ok=True)

    def _merge(self, ranks: int) -> None:
        parts = [self._part(rank) for rank in range(ranks)]
        whole = self.path.with_name(f".{self.path.name}.whole")
        with whole.open("w", encoding="utf-8") as file:
            # Prompt i of a batch is with rank i mod ranks, so taking turns gives the order of the data.
            for batches in zip(*(_lines(part) for part in parts), strict=True):
                by_prompt = [[list(group) for _, group in groupby(b, lambda r: r.get("id"))] for b in batches]
                for turn in zip_longest(*by_prompt, fillvalue=[]):
                    for record in (record for records in turn for record in records):
                        file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        whole.replace(self.path)
        for part in parts:
            part.unlink()

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f".{self.path.name}.rank{rank}")


def _lines(path: Path) -> Iterator[list[dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
