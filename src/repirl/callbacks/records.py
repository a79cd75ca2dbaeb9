"""What an evaluation found of each problem, as a JSONL or Parquet file."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class EvaluationRecords(Callback):
    """Writes one record a problem after each validation or test loop, in the order of the data.

    A record has `dataset`, `id`, `greedy` and `samples`: one response and a list of them, each with `response`, `answer`,
    `correct`, `status`, `tokens`, `finished`, `readable` and `prm_mean_reward`. `repirl compare` reads two such files.
    The file appears whole; with a training run's validations the last one stays, unless the path has {step} in it.

    Args:
        path: a .jsonl or .parquet file; its folder is made. {step} becomes the iteration.
    """

    def __init__(self, path: str) -> None:
        if Path(path).suffix not in (".jsonl", ".parquet"):
            raise ValueError(f"EvaluationRecords: path {path!r} must end in .jsonl or .parquet")
        self.path = path

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the loop's records."""
        if not trainer.sanity_checking:
            self._write(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the loop's records."""
        self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        evaluation: Any = getattr(pl_module, "evaluation", None)
        if evaluation is None:
            raise ValueError(f"EvaluationRecords: {type(pl_module).__name__} has no `evaluation` to write")
        records = [asdict(record) for record in evaluation.records()]  # of all ranks, on each
        if not trainer.is_global_zero:
            return
        for record in records:
            del record["place"], record["votes"]
        path = Path(self.path.replace("{step}", str(trainer.global_step)))
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        if path.suffix == ".parquet":
            _write_parquet(records, part)
        else:
            _write_jsonl(records, part)
        part.replace(path)


def _write_jsonl(records: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _write_parquet(records: list[dict[str, Any]], path: Path) -> None:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    answer = pyarrow.struct(
        [
            ("response", pyarrow.string()),
            ("answer", pyarrow.string()),
            ("correct", pyarrow.bool_()),
            ("status", pyarrow.string()),
            ("tokens", pyarrow.int64()),
            ("finished", pyarrow.bool_()),
            ("readable", pyarrow.bool_()),
            ("prm_mean_reward", pyarrow.float64()),
        ]
    )
    schema = pyarrow.schema(
        [
            ("dataset", pyarrow.string()),
            ("id", pyarrow.string()),
            ("greedy", answer),
            ("samples", pyarrow.list_(answer)),
        ]
    )
    parquet.write_table(pyarrow.Table.from_pylist(records, schema=schema), path)
