"""benchmarks/worth/language_model/: what a setting of prm_steps.py changes, tables by hand, what curves.py collects."""

import csv
import math
from pathlib import Path

from benchmarks.worth.language_model.curves import collect, trailing_means
from benchmarks.worth.language_model.prm_steps import SETTINGS, losses, overlay, table


def test_settings_are_told_apart_by_name_and_change_what_they_name() -> None:
    assert len({setting.name for setting in SETTINGS}) == len(SETTINGS) == 9
    by_name = {setting.name: overlay(setting, 5) for setting in SETTINGS}
    adapters = by_name["logit_difference-adapters-0.0001-beta0.1"]["model"]["init_args"]
    assert adapters["prm_optimizer"] == {"init_args": {"lr": 1e-4}}
    assert adapters["prm"] == {"init_args": {"kind": "logit_difference", "beta": 0.1}}
    assert "policy" not in adapters
    whole = by_name["logit_difference-all-2e-05-warm4"]
    assert whole["model"]["init_args"]["prm_scheduler"]["init_args"]["warmup"] == 4
    assert whole["model"]["init_args"]["prm"]["init_args"]["beta"] == 1
    assert whole["model"]["init_args"]["policy"] == {"init_args": {"lora": None}}
    assert whole["model"]["init_args"]["schedule"] == {"policy_updates": 0}
    assert whole["trainer"]["max_steps"] == 5


def test_first_second_largest_and_last_loss(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("prm/ranking_loss,other\n2.197225,1\n,2\n30.5,3\n1.5,4\n")
    assert losses(tmp_path) == [2.197225, 30.5, 1.5]
    rows = table({"up": losses(tmp_path), "down": [math.log(9), 1.0]}).splitlines()[2:]
    assert rows == ["| `up` | 2.20 | 30.50 | 30.50 | 1.50 |", "| `down` | 2.20 | 1.00 | 2.20 | 1.00 |"]


def test_means_of_an_iteration_and_those_before_it_leave_out_what_is_missing() -> None:
    nan = math.nan
    assert trailing_means([1.0, 3.0, nan, 5.0, 9.0], near=2) == [1.0, 2.0, 3.0, 5.0, 7.0]
    assert math.isnan(trailing_means([nan, 1.0], near=2)[0])


def test_finished_runs_join_the_table_and_curves_are_kept(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "language_model.csv").write_text("run,seed,worth/sampled\nrloo,0,0.1\nrloo_and_prm,0,0.2\n")
    for run, logged in {
        "sft/base": "worth/sampled,lr\n0.25,1\n",
        "rl/rloo": "worth/sampled,worth/x\n,\n0.5,nan\n",
    }.items():
        folder = tmp_path / "runs" / run / "seed-0"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(logged)
        (folder / "done.json").write_text('{"seconds": 1.0}')
    (tmp_path / "runs" / "rl" / "prm_only" / "seed-0").mkdir(parents=True)  # not done
    collect(tmp_path / "runs", results)
    with (results / "language_model.csv").open(newline="") as file:
        rows = {row["run"]: row["worth/sampled"] for row in csv.DictReader(file)}
    assert rows == {"rloo": "0.5", "rloo_and_prm": "0.2", "sft": "0.25"}
    assert [path.name for path in results.glob("language_model_*.csv")] == ["language_model_rloo.csv"]
