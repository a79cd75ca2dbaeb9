"""What an evaluation found: of each problem, as a JSONL or Parquet file; in all, as JSON."""

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from repirl import __version__


class EvaluationRecords(Callback):
    """Writes one record a problem after each validation or test loop, in the order of the data.

    A record has `dataset`, `id`, `problem`, `gold`, `greedy` and `samples`: one response and a list of them, each with
    `response`, `answer`, `correct`, `status`, `tokens`, `finished`, `readable` and `prm_mean_reward`. `repirl compare` reads
    two such files.
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


class EvaluationFigures(Callback):
    """Writes the figures of `validate` and `test` as one JSON object, with what they are figures of.

    `figures` has the logged names and values, null where one is not finite; `checkpoint` is the file whose weights answered,
    null for those of the configuration; `version` is that of repirl. The command line adds this callback where the run has
    an `output`; a validation within `fit` is in the log instead.

    Args:
        path: a .json file; its folder is made.
    """

    def __init__(self, path: str) -> None:
        if Path(path).suffix != ".json":
            raise ValueError(f"EvaluationFigures: path {path!r} must end in .json")
        self.path = path

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes them, where the validation is a run of its own."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._write(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes them."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        values = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        found = {
            "version": __version__,
            "checkpoint": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
            "figures": {name: value if math.isfinite(value) else None for name, value in values.items()},
        }
        path = Path(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
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
            ("problem", pyarrow.string()),
            ("gold", pyarrow.string()),
            ("greedy", answer),
            ("samples", pyarrow.list_(answer)),
        ]
    )
    parquet.write_table(pyarrow.Table.from_pylist(records, schema=schema), path)
