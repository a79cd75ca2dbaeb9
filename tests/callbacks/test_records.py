import json

import pytest
from lightning.pytorch import LightningModule
from pyarrow import parquet

from repirl.callbacks.records import EvaluationFigures, EvaluationRecords
from repirl.data.evaluation import EvalData
from repirl.data.sources import Table
from repirl.models.prm import PRM
from tests.callbacks.conftest import make_module, make_trainer


@pytest.fixture
def sets(write_rows) -> EvalData:
    rows = [{"problem": f"1+{n}=", "answer": str(1 + n), "id": f"p{n}"} for n in range(5)]
    first, second = write_rows("first.jsonl", rows), write_rows("second.jsonl", rows[:2])
    return EvalData(val={"first": Table(first), "second": Table(second)}, test=Table(first), eval_batch_prompts=3)


def read(path):
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def test_every_problem_is_a_record_in_the_order_of_the_data(tmp_path, sets):
    module = make_module(PRM())
    module.eval_samples = 2
    trainer = make_trainer(tmp_path, [EvaluationRecords(str(tmp_path / "new" / "r.jsonl"))], limit_val_batches=1.0)
    (found,) = trainer.validate(module, sets, verbose=False)
    records = read(tmp_path / "new" / "r.jsonl")
    expected = [("first", f"p{n}") for n in range(5)] + [("second", f"p{n}") for n in range(2)]
    assert [(r["dataset"], r["id"]) for r in records] == expected
    assert records[0].keys() == {"dataset", "id", "problem", "gold", "greedy", "samples"}
    assert [(r["problem"], r["gold"]) for r in records[:2]] == [("1+0=", "1"), ("1+1=", "2")]
    assert [len(r["samples"]) for r in records] == [2] * 7
    answers = [a for r in records for a in (r["greedy"], *r["samples"])]
    assert all(a["correct"] is (a["status"] == "equal") for a in answers)
    assert all(a["prm_mean_reward"] == 0 for r in records for a in r["samples"])  # a fresh q_head
    shares = [1 - sum(a["finished"] for a in r["samples"]) / 2 for r in records[5:]]
    assert found["val/second/sampled_truncated"] == pytest.approx(sum(shares) / 2)
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["r.jsonl"]


def test_parquet_holds_the_same(tmp_path, sets):
    module = make_module()
    callbacks = [EvaluationRecords(str(tmp_path / f"r.{kind}")) for kind in ("jsonl", "parquet")]
    make_trainer(tmp_path, callbacks, limit_test_batches=1.0).test(module, sets, verbose=False)
    assert parquet.read_table(tmp_path / "r.parquet").to_pylist() == read(tmp_path / "r.jsonl")
    assert len(read(tmp_path / "r.jsonl")) == 5


def test_figures_are_one_json_object(tmp_path, sets):
    path = tmp_path / "new" / "validate.json"
    trainer = make_trainer(tmp_path, [EvaluationFigures(str(path))], limit_val_batches=1.0)
    (found,) = trainer.validate(make_module(), sets, verbose=False)
    written = json.loads(path.read_text())
    assert written.keys() == {"version", "checkpoint", "figures"}
    assert written["figures"]["val/first/greedy_accuracy"] == found["val/first/greedy_accuracy"]
    assert written["figures"].keys() == found.keys()
    assert written["checkpoint"] is None
    with pytest.raises(ValueError, match=r"must end in \.json"):
        EvaluationFigures("figures.txt")


def test_validations_of_a_training_run_have_their_own_files(tmp_path, data):
    callback = EvaluationRecords(str(tmp_path / "step-{step}.jsonl"))
    options = {"limit_val_batches": 1.0, "val_check_interval": 1, "num_sanity_val_steps": 1, "max_steps": 2}
    make_trainer(tmp_path, [callback], **options).fit(make_module(), data)
    assert sorted(path.name for path in tmp_path.glob("*.jsonl") if "step" in path.name) == [
        "step-1.jsonl",
        "step-2.jsonl",
    ]


def test_a_module_without_evaluation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="LightningModule has no `evaluation`"):
        EvaluationRecords(str(tmp_path / "r.jsonl")).on_test_end(make_trainer(tmp_path, []), LightningModule())


def test_another_kind_of_file_is_refused():
    with pytest.raises(ValueError, match=r"'r\.csv' must end in \.jsonl or \.parquet"):
        EvaluationRecords("r.csv")
