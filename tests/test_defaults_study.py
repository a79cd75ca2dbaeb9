"""benchmarks/defaults in a reduced form: start policy, two arms, their measures; and the committed tables."""

import csv
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.defaults.report import HERE, STAGES, read, tables

ROOT = Path(__file__).parents[1]


def study(output: Path, *words: str) -> None:
    command = [sys.executable, str(HERE / "study.py"), *words, "--output", str(output), "--jobs", "1", "--seeds", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_arms_from_a_start_policy_of_two_steps(tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in HERE.glob("results/*")}
    study(tmp_path, "start", "--iterations", "2")
    study(tmp_path, "screen", "--tasks", "any_order", "--only", "head,outcome_only", "--iterations", "2")
    with (tmp_path / "screen" / "any_order" / "results.csv").open(newline="") as file:
        rows = {row["arm"].split("+")[-1]: row for row in csv.DictReader(file)}
    assert set(rows) == {"head", "outcome_only"}
    for row in rows.values():
        assert 0 <= float(row["study/sampled"]) <= 1
        assert float(row["study/start_sampled"]) == float(rows["head"]["study/start_sampled"])  # one start for all
        assert float(row["step"]) == 2
    assert 0 <= float(rows["head"]["study/best_of_16"]) <= 1
    assert not rows["outcome_only"]["study/best_of_16"]  # it has no PRM
    assert {path: path.read_bytes() for path in HERE.glob("results/*")} == before


def test_the_committed_tables_are_those_of_the_committed_results() -> None:
    assert tables({stage: found for stage in STAGES if (found := read(stage))}) == (HERE / "tables.md").read_text()
