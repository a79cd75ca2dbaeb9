"""The quick start and the four subcommands as a user runs them: real processes, the repository's own configurations."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def repirl(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "repirl", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("quickstart")
    printed = repirl("quickstart", "--output", str(output), "--iterations", "4", "--start-iterations", "3")
    assert "rePIRL, PRM only" in printed
    assert str(output / "accuracy.png") in printed
    assert re.search(r"^[012] of 3 runs done; ", printed, re.MULTILINE)
    return output


def test_quickstart_measures_every_run_and_draws_it(quickstart: Path) -> None:
    (result,) = json.loads((quickstart / "results.json").read_text())
    assert list(result["arms"]) == ["rePIRL, PRM only", "RLOO, outcome only", "SFT on the same experts"]
    for arm in result["arms"].values():
        assert [point["iteration"] for point in arm["curve"]] == [0, 1, 2, 3, 4]
        assert 0 <= arm["final"]["sampled"] <= 1
    assert (quickstart / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert list((quickstart / "seed-1" / "repirl").glob("events.out.tfevents.*"))


def test_quickstart_runs_say_in_their_logs_where_they_are(quickstart: Path) -> None:
    for run, iterations in (("start", 3), ("repirl", 4), ("rloo", 4), ("sft", 4)):
        said = [
            line for line in (quickstart / "seed-1" / run / "log.txt").read_text().splitlines() if line[:4] == "fit "
        ]
        assert said[0].startswith(f"fit 0/{iterations}  ")
        assert said[-1].startswith(f"fit {iterations}/{iterations}  ")


def test_prm_only_logs_no_accuracy_and_rloo_does(quickstart: Path) -> None:
    header = {
        arm: (quickstart / "seed-1" / arm / "metrics.csv").read_text().split("\n")[0] for arm in ("repirl", "rloo")
    }
    assert "accuracy" not in header["repirl"]
    assert "prm/ranking_loss" in header["repirl"]
    assert "rollout/accuracy" in header["rloo"]
    assert "prm/" not in header["rloo"]


def test_validate_and_predict_from_a_checkpoint(quickstart: Path, tmp_path: Path) -> None:
    (checkpoint,) = (quickstart / "seed-1" / "repirl" / "checkpoints").glob("step=4.ckpt")
    shared = [
        *("-c", "configs/quickstart.yaml", "-c", "configs/toy/overlays/measured.yaml"),
        *("-c", str(quickstart / "seed-1" / "repirl" / "overlay.yaml"), "--ckpt_path", str(checkpoint)),
    ]
    shown = repirl("validate", *shared, "--data.val.init_args.count=20")
    assert "val/greedy_accuracy" in shown
    assert "val/sampled_accuracy" in shown

    problems, written = tmp_path / "own.jsonl", tmp_path / "predictions.jsonl"
    problems.write_text('{"problem": "a1b2c3"}\n{"problem": "a4b4", "answer": "b8"}\n')
    own = tmp_path / "own.yaml"
    writer = {"class_path": "repirl.callbacks.predictions.PredictionWriter", "init_args": {"path": str(written)}}
    source = {"class_path": "repirl.data.sources.Table", "init_args": {"path": str(problems)}}
    own.write_text(json.dumps({"trainer": {"callbacks": [writer]}, "data": {"init_args": {"predict": source}}}))
    repirl("predict", *shared, "-c", str(own))
    records = [json.loads(line) for line in written.read_text().splitlines()]
    assert [r["problem"] for r in records] == ["a1b2c3", "a4b4"]
    assert records[0]["verdict"] is None
    assert records[1]["verdict"]["status"] in ("equal", "not_equal", "no_answer")
    assert all(len(r["prm_token_rewards"]) == r["tokens"] > 0 for r in records)
