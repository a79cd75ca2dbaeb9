"""`repirl validate` on two gloo processes finds what one process finds."""

import copy
import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyarrow import parquet

from repirl.structs import Problem
from repirl.verifiers.math import MathVerifier
from tests.modules.tiny import DRAWN_LINEAR, LLAMA, TOKENS, EvenDigits

ROOT = Path(__file__).parents[2]
UNREADABLE = "t(0,4]"


def two_by(strategy: str) -> list[str]:
    return [
        "--trainer.devices=2",
        f"--trainer.strategy.class_path=repirl.modules.strategies.{strategy}",
        "--trainer.strategy.init_args.process_group_backend=gloo",
    ]


class EvenDigitsOfReadableGolds(EvenDigits):
    """Finds some of an untrained policy's responses right, and reads golds as mathematics."""

    def check_golds(self, problems: Sequence[Problem]) -> list[tuple[str, str]]:
        mathematics = MathVerifier()
        found = mathematics.check_golds(problems)
        mathematics.close()
        return found


def configuration(folder: Path, batch_prompts: int) -> Path:
    """An evaluation of two local sets with a verifier of mathematics and a PRM; one gold cannot be read."""
    golds = {"first": ["b1", UNREADABLE, "b3", "4", "b5", "1/6"], "second": ["b7", "b8"]}
    for name, answers in golds.items():
        rows = [{"id": f"p{n}", "problem": f"a{n}b{n}", "answer": answer} for n, answer in enumerate(answers)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = {
        name: {"class_path": "repirl.data.sources.Table", "init_args": {"path": str(folder / f"{name}.jsonl")}}
        for name in golds
    }
    records = [
        {"class_path": "repirl.callbacks.records.EvaluationRecords", "init_args": {"path": str(folder / f"r.{kind}")}}
        for kind in ("jsonl", "parquet")
    ]
    policy = {"config": LLAMA, "tokens": TOKENS, "init_seed": 1}
    whole = {
        "seed_everything": 0,
        "model": {
            "class_path": "repirl.RePIRL",
            "init_args": {
                "policy": {"class_path": "repirl.Policy", "init_args": policy},
                "prm": {"class_path": "repirl.PRM", "init_args": {"kind": DRAWN_LINEAR}},
                "verifier": {"class_path": f"{__name__}.{EvenDigitsOfReadableGolds.__name__}"},
                "text": {"max_prompt_tokens": 16, "max_response_tokens": 10},
                "eval_samples": 3,
            },
        },
        "data": {
            "class_path": "repirl.data.evaluation.EvalData",
            "init_args": {"val": sources, "eval_batch_prompts": batch_prompts},
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder),
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": str(folder), "name": "csv", "version": 0},
            },
            "callbacks": records,
        },
    }
    path = folder / "validate.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path


def validate(folder: Path, batch_prompts: int, *more: str) -> tuple[dict[str, float], list[dict[str, Any]], str]:
    """Figures, records and what was said on standard error."""
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "repirl", "validate", "-c", str(configuration(folder, batch_prompts)), *more],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    with (folder / "csv" / "version_0" / "metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    figures = {name: float(value) for name, value in row.items() if name.startswith("val/")}
    records = [json.loads(line) for line in (folder / "r.jsonl").read_text().split("\n") if line]
    assert parquet.read_table(folder / "r.parquet").to_pylist() == records
    return figures, records, done.stderr


@pytest.fixture(scope="module")
def of_one(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], list[dict[str, Any]], str]:
    return validate(tmp_path_factory.mktemp("evaluation") / "one", 3)


# 3 prompts a batch: uneven shares. 1: the second process never has a prompt.
@pytest.mark.parametrize(("strategy", "batch_prompts"), [("ReplicatedStrategy", 3), ("ShardedStrategy", 1)])
def test_two_processes_find_what_one_finds(of_one, tmp_path, batch_prompts, strategy):
    figures, records, said = copy.deepcopy(of_one)
    of_two, records_of_two, said_by_two = validate(tmp_path / "two", batch_prompts, *two_by(strategy))
    assert [(record["dataset"], record["id"]) for record in records] == [
        *(("first", f"p{n}") for n in (0, 2, 3, 4, 5)),
        *(("second", f"p{n}") for n in (0, 1)),
    ]
    assert said.count(UNREADABLE) == said_by_two.count(UNREADABLE) == 1  # asked by the first process, told to the other
    assert len({answer["response"] for record in records for answer in record["samples"]}) > 10
    for ours, theirs in zip(records, records_of_two, strict=True):
        for answer, other in zip(
            [ours["greedy"], *ours["samples"]], [theirs["greedy"], *theirs["samples"]], strict=True
        ):
            reward = other.pop("prm_mean_reward")
            assert reward == (
                None if answer["prm_mean_reward"] is None else pytest.approx(answer["prm_mean_reward"], abs=1e-6)
            )
            assert other == {name: value for name, value in answer.items() if name != "prm_mean_reward"}
    assert of_two == pytest.approx(figures, abs=1e-6)
    assert 0 < figures["val/average/sampled_accuracy"] < 1
    assert {"val/first/greedy_accuracy", "val/second/maj@3", "val/average/sampled_tokens"} <= figures.keys()
