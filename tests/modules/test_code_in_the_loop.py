"""`repirl fit` with the code verifier in the loop, as a user runs it: rollouts are judged, and no process stays behind."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.processes import limited, orphans_adopted, wait_for

ROOT = Path(__file__).parents[2]
LIMIT_S = 400  # of a process, far beyond what it needs


def fit(config: str, folder: Path, **overlay: dict[str, object]) -> list[str]:
    """The command for a configuration of `configs/toy`, with an overlay that keeps to a folder."""
    file = folder / f"{Path(config).stem}-overlay.yaml"
    file.write_text(yaml.safe_dump({**overlay, "trainer": {"default_root_dir": str(folder), **overlay["trainer"]}}))
    return [sys.executable, "-m", "repirl", "fit", "-c", str(ROOT / "configs" / "toy" / config), "-c", str(file)]


def started(command: list[str], folder: Path) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, text=True)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that writes programs, some of them right."""
    folder = tmp_path_factory.mktemp("start")
    export = {"class_path": "repirl.callbacks.export.ExportPolicy", "init_args": {"folder": str(folder / "policy")}}
    command = fit(
        "code_start.yaml",
        folder,
        trainer={"max_steps": 120, "callbacks": [export]},
        data={"init_args": {"train": {"init_args": {"error_rate": 0.3}}}},
    )
    with limited(started(command, folder), LIMIT_S) as process:
        assert process.wait() == 0, (folder / "log.txt").read_text()
    return folder / "policy"


def loop(start: Path, folder: Path, iterations: int) -> list[str]:
    """Few prompts, and every iteration logged; records after the last one."""
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(folder)}}
    logger["init_args"] |= {"name": "", "version": "", "flush_logs_every_n_steps": 1}  # type: ignore[operator]
    writer = {"class_path": "repirl.callbacks.records.EvaluationRecords"}
    writer["init_args"] = {"path": str(folder / "records.jsonl")}  # type: ignore[assignment]
    trainer = {"max_steps": iterations, "val_check_interval": iterations, "logger": [logger], "callbacks": [writer]}
    return fit(
        "code.yaml",
        folder,
        trainer=trainer,
        model={"init_args": {"samples": 4, "policy": {"init_args": {"path": str(start)}}}},
        data={"init_args": {"batch_prompts": 8, "val": {"init_args": {"count": 6}}}},
    )


def logged(folder: Path) -> list[dict[str, str]]:
    """The iterations so far."""
    file = folder / "metrics.csv"
    if not file.exists():
        return []
    with file.open() as lines:
        return [row for row in csv.DictReader(lines) if row.get("rollout/accuracy")]


@pytest.fixture
def adopted() -> Iterator[Callable[[], list[int]]]:
    with orphans_adopted() as living:
        yield living


def test_rollouts_are_judged_and_no_process_is_left(start, tmp_path, adopted):
    with limited(started(loop(start, tmp_path, 3), tmp_path), LIMIT_S) as trainer:
        assert trainer.wait() == 0, (tmp_path / "log.txt").read_text()
    assert wait_for(lambda: not adopted()), adopted()
    shares = [float(row["rollout/accuracy"]) for row in logged(tmp_path)]
    assert len(shares) == 3
    # 8 prompts of 4 rollouts, each judged: shares of 32. The start policy is right sometimes, and not always.
    assert all(share * 32 == pytest.approx(round(share * 32)) for share in shares)
    assert 0 < sum(shares) < 3
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert len(records) == 6
    answers = [answer for record in records for answer in (record["greedy"], *record["samples"])]
    assert {answer["status"] for answer in answers} <= {"passed", "failed", "error", "no_answer"}
    assert all(answer["correct"] is (answer["status"] == "passed") for answer in answers)


def test_a_fit_killed_with_9_leaves_no_process(start, tmp_path, adopted):
    with limited(started(loop(start, tmp_path, 10_000), tmp_path), LIMIT_S) as trainer:
        assert wait_for(lambda: len(logged(tmp_path)) > 1 or trainer.poll() is not None, LIMIT_S)
        assert trainer.poll() is None, (tmp_path / "log.txt").read_text()
        assert len(adopted()) > 2  # the trainer, and at least one slot's two servers
        trainer.kill()
        trainer.wait(60)
    assert wait_for(lambda: not adopted()), adopted()
