import json

import pytest
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from repirl.callbacks.predictions import PredictionWriter
from tests.callbacks.conftest import make_trainer


class Echo(LightningModule):
    """Answers every prompt with two records; fails where it is told to."""

    def __init__(self, fails_at=None, kind=dict):
        super().__init__()
        self.fails_at, self.kind = fails_at, kind

    def predict_step(self, batch, batch_idx):
        if batch_idx == self.fails_at:
            raise RuntimeError("out of memory")
        return [self.kind({"id": prompt, "sample": k, "text": "né \u2028 ok"}) for prompt in batch for k in range(2)]


def prompts():
    return DataLoader(["a", "b", "c"], batch_size=2)


def test_every_record_is_a_line_in_the_order_of_the_data(tmp_path):
    path = tmp_path / "new" / "out.jsonl"
    make_trainer(tmp_path, [PredictionWriter(str(path))]).predict(Echo(), prompts())
    with path.open(encoding="utf-8", newline="\n") as file:
        records = [json.loads(line) for line in file]
    assert [(r["id"], r["sample"]) for r in records] == [(p, k) for p in "abc" for k in range(2)]
    assert records[0]["text"] == "né \u2028 ok"
    assert [entry.name for entry in path.parent.iterdir()] == ["out.jsonl"]


def test_a_failed_run_leaves_the_earlier_file_and_nothing_else(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "out.jsonl").write_text("earlier\n")
    with pytest.raises(RuntimeError, match="out of memory"):
        make_trainer(tmp_path, [PredictionWriter(str(folder / "out.jsonl"))]).predict(Echo(fails_at=1), prompts())
    assert [(entry.name, entry.read_text()) for entry in folder.iterdir()] == [("out.jsonl", "earlier\n")]


def test_parts_of_two_ranks_merge_into_the_order_of_the_data(tmp_path):
    writer = PredictionWriter(str(tmp_path / "out.jsonl"))
    # Batches of 3 and 1 prompts over two ranks: rank 0 holds prompts 0, 2 and 3, rank 1 prompt 1 and an empty batch.
    parts = [[[0, 0, 2, 2], [3, 3]], [[1, 1], []]]
    for rank, batches in enumerate(parts):
        lines = [json.dumps([{"id": number} for number in batch]) + "\n" for batch in batches]
        (tmp_path / f".out.jsonl.rank{rank}").write_text("".join(lines))
    writer._merge(ranks=2)
    merged = [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().split("\n") if line]
    assert merged == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]


def test_predictions_that_are_no_records_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Echo\.predict_step must return a list of dicts"):
        make_trainer(tmp_path, [PredictionWriter(str(tmp_path / "o.jsonl"))]).predict(Echo(kind=str), prompts())


def test_a_path_that_is_no_jsonl_is_refused():
    with pytest.raises(ValueError, match=r"'out\.csv' must end in \.jsonl"):
        PredictionWriter("out.csv")
