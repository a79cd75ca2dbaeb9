"""`repirl sweep` through real processes: placeholders, one table, resuming, failures."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyarrow import parquet

from repirl import checkpoints
from repirl.applications.sweep import main, overlay, parse_seeds, plan, summary
from repirl.config import ConfigError
from tests.processes import below, limited, wait_for
from tests.progress.screen import in_terminal, on_screen

BASE = """
trainer: {accelerator: cpu, devices: 1, max_steps: 2, max_epochs: -1, limit_val_batches: 0, enable_checkpointing: false,
          enable_model_summary: false, enable_progress_bar: false, log_every_n_steps: 1,
          callbacks: [{class_path: repirl.callbacks.export.ExportPolicy, init_args: {folder: "{folder}/policy-{seed}"}}]}
model:
  class_path: repirl.modules.sft.SFT
  init_args:
    policy:
      class_path: repirl.Policy
      init_args:
        config: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}
        tokens: ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', a, b, c, d, "\\n", '\\boxed{', '}']
    text: {max_prompt_tokens: 16, max_response_tokens: 12}
data:
  class_path: repirl.data.expert.ExpertData
  init_args:
    train: {class_path: repirl.data.arithmetic.RunningSums, init_args: {count: 8, seed: 1, min_steps: 2, max_steps: 3}}
    batch_prompts: 4
"""


def write(folder: Path, **files: str) -> dict[str, str]:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return {name: str(folder / f"{name}.yaml") for name in files}


def sweep(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "repirl", "sweep", "--output", str(tmp_path / "out"), "--jobs", "2", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_arms_times_seeds_one_table_and_nothing_is_run_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write(
        tmp_path,
        base=BASE,
        fast="model: {init_args: {policy_optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.5}}}}",
        broken="data: {init_args: {train: {class_path: repirl.data.sources.Table, init_args: {path: missing.jsonl}}}}",
    )
    given = ["--base", files["base"], "--with-base", "--overlays", files["fast"], files["broken"], "--seeds", "3-4"]
    first = sweep(tmp_path, *given)
    assert first.returncode == 1
    assert "6 runs, 0 done before" in first.stdout
    assert sorted(line.split(":")[1].strip() for line in first.stderr.splitlines() if "failed:" in line) == [
        "broken, seed 3",
        "broken, seed 4",
    ]
    assert "missing.jsonl" in (tmp_path / "out/broken/seed-3/log.txt").read_text()
    assert any(re.match(r"\d of 6 runs done; ", line) for line in first.stderr.splitlines())

    with (tmp_path / "out/results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["arm"], r["seed"]) for r in rows] == [("base", "3"), ("fast", "3"), ("base", "4"), ("fast", "4")]
    losses = [float(r["sft/loss"]) for r in rows]
    assert len(set(losses)) == 4  # seeds and arms matter
    assert all(float(r["step"]) == 1 for r in rows)  # the last of two iterations
    assert parquet.read_table(tmp_path / "out/results.parquet").column("sft/loss").to_pylist() == losses
    assert (tmp_path / "out/fast/seed-4/policy-4/config.json").is_file()  # {folder} and {seed}

    write(tmp_path, fast="model: {init_args: {policy_optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}}}")
    files.update(write(tmp_path, broken="trainer: {max_steps: 1}"))
    again = sweep(tmp_path, *given)
    assert again.returncode == 0
    assert "6 runs, 2 done before" in again.stdout  # the base; both others are configured otherwise now
    with (tmp_path / "out/results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["sft/loss"]) for r in rows if r["arm"] == "base"] == [losses[0], losses[2]]
    assert float(next(r["sft/loss"] for r in rows if r["arm"] == "fast")) != losses[1]
    capsys.readouterr()
    main(["--base", files["base"], "--overlays", files["fast"], "--seeds", "4", "--output", str(tmp_path / "out")])
    assert "1 runs, 1 done before" in capsys.readouterr().out
    with (tmp_path / "out/results.csv").open(newline="") as file:
        assert sorted((r["arm"], r["seed"]) for r in csv.DictReader(file)) == sorted(
            (r["arm"], r["seed"]) for r in rows
        )
    with (tmp_path / "out/summary.csv").open(newline="") as file:
        base = next(row for row in csv.DictReader(file) if row["arm"] == "base")
    assert base["n"] == "2"
    assert float(base["sft/loss_mean"]) == pytest.approx((losses[0] + losses[2]) / 2)
    assert float(base["sft/loss_sd"]) == pytest.approx(abs(losses[0] - losses[2]) / 2**0.5)


def test_a_sweep_in_a_terminal_says_where_its_runs_are(tmp_path: Path) -> None:
    files = write(
        tmp_path, base=BASE.replace("enable_progress_bar: false, ", "").replace("max_steps: 2", "max_steps: 40")
    )
    words = ["--base", files["base"], "--seeds", "3-4", "--jobs", "2", "--output", str(tmp_path / "out")]
    command = [sys.executable, "-m", "repirl", "sweep", *words]
    status, written = in_terminal(command, cwd=tmp_path, env=os.environ, columns=120)
    assert status == 0, written
    assert re.search(r"\x1b\[K[01] of 2 runs done; [^\r]*seed-[34] \d+/40", written)
    first, *ended, summed, last, end = on_screen(written)
    assert first == "2 runs, 0 done before, 2 at a time"
    assert sorted(line.split(", ")[1].split(":")[0] for line in ended) == ["seed 3", "seed 4"]
    assert summed.strip().startswith("base  n=2")
    assert (last, end) == (
        f"2 of 2 runs in {tmp_path / 'out/results.csv'}; a row an arm in {tmp_path / 'out/summary.csv'}",
        "",
    )
    for seed in (3, 4):
        *_, said = (tmp_path / f"out/base/seed-{seed}/log.txt").read_text().splitlines()
        assert re.fullmatch(r"fit 40/40  .*took \d+:\d\d", said)


def test_seeds_reach_everything_that_has_one(tmp_path: Path) -> None:
    files = write(tmp_path, base=BASE)
    (run,) = plan([Path(files["base"])], [], [7], tmp_path, with_base=False)
    merged = overlay(run)
    assert merged["seed_everything"] == merged["model"]["init_args"]["seed"] == merged["data"]["init_args"]["seed"] == 7
    assert merged["data"]["init_args"]["train"]["init_args"]["seed"] == 1  # the problems stay
    assert json.dumps(merged).count(str(tmp_path / "base" / "seed-7")) == 3


def test_a_summary_has_mean_spread_and_number_of_seeds() -> None:
    rows = [
        {"arm": "a", "seed": 1, "seconds": 2.0, "val/greedy_accuracy": 0.5, "step": 3.0},
        {"arm": "a", "seed": 2, "seconds": 4.0, "val/greedy_accuracy": 0.7},
        {"arm": "b", "seed": 1, "seconds": 1.0},
    ]
    a, b = summary(rows)
    assert a["n"] == 2
    assert (a["seconds_mean"], a["val/greedy_accuracy_mean"]) == (3.0, pytest.approx(0.6))
    assert a["val/greedy_accuracy_sd"] == pytest.approx(0.02**0.5)  # (.1^2 + .1^2) / (2 - 1)
    assert b["n"] == 1
    assert b["seconds_sd"] != b["seconds_sd"]  # one value has no spread
    assert "step_mean" not in a


def test_seeds_are_read() -> None:
    assert parse_seeds("0-2,5,1") == [0, 1, 2, 5]
    for bad in ("", "a", "1-", "-3"):
        with pytest.raises(ConfigError, match="is not understood"):
            parse_seeds(bad)


def test_mistakes_are_told_before_anything_runs(tmp_path: Path) -> None:
    files = write(tmp_path, base=BASE)
    with pytest.raises(ConfigError, match="two arms are called 'x'"):
        plan([Path(files["base"])], ["a/x.yaml", "b/x.yaml"], [0], tmp_path, with_base=False)
    with pytest.raises(ConfigError, match="no such file"):
        main(["--base", files["base"], "--overlays", str(tmp_path / "none.yaml"), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_killed_sweep_leaves_no_run_behind(tmp_path: Path) -> None:
    files = write(tmp_path, base=BASE.replace("max_steps: 2", "max_steps: 1000000"))
    words = ["--base", files["base"], "--seeds", "0-1", "--jobs", "2", "--output", str(tmp_path / "out")]
    command = [sys.executable, "-m", "repirl", "sweep", *words]
    logs = [tmp_path / "out" / "base" / f"seed-{seed}" / "metrics.csv" for seed in (0, 1)]
    with limited(subprocess.Popen(command, stdout=subprocess.DEVNULL)):
        assert wait_for(lambda: all(log.exists() and log.read_text().count("\n") > 3 for log in logs)), (
            "no run has begun"
        )
    sizes: list[int] = []

    def at_rest() -> bool:
        time.sleep(2)  # a run logs many lines a second
        sizes[:], before = [log.stat().st_size for log in logs], list(sizes)
        return sizes == before

    assert wait_for(at_rest)


def endless(tmp_path: Path) -> list[str]:
    """The command of a sweep of two runs that do not end, and save."""
    text = BASE.replace("max_steps: 2", "max_steps: 1000000").replace("enable_checkpointing: false", "logger: true")
    files = write(tmp_path, base=text)
    words = ["--base", files["base"], "--seeds", "0-1", "--jobs", "2", "--output", str(tmp_path / "out")]
    return [sys.executable, "-m", "repirl", "sweep", *words]


def begun(tmp_path: Path) -> bool:
    logs = [tmp_path / "out" / "base" / f"seed-{seed}" / "metrics.csv" for seed in (0, 1)]
    return wait_for(lambda: all(log.exists() and log.read_text().count("\n") > 3 for log in logs))


def test_a_terminated_sweep_ends_its_runs_which_save_and_none_counts_as_done(tmp_path: Path) -> None:
    command = endless(tmp_path)
    start = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with limited(start) as process:
        assert begun(tmp_path), "no run has begun"
        second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert second.returncode == 2
        assert second.stderr.splitlines() == [
            f"another run (process {process.pid}) is writing into {str(tmp_path / 'out')!r}",
            "wait until it ends, or give this one another folder",
        ]
        process.terminate()
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 143
    assert said.count("FAILED, exit status 143") == 2
    for seed in (0, 1):
        folder = tmp_path / "out" / "base" / f"seed-{seed}"
        assert not (folder / "done.json").exists()
        assert "stopped by SIGTERM after iteration" in (folder / "log.txt").read_text()
        (saved,) = folder.rglob("last.ckpt")
        assert checkpoints.read(saved)["global_step"] > 2


def test_a_terminated_run_of_a_sweep_counts_as_failed(tmp_path: Path) -> None:
    command = endless(tmp_path)
    with limited(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)) as process:
        assert begun(tmp_path), "no run has begun"
        for pid in below([process.pid]):
            held = [os.path.realpath(f"/proc/{pid}/fd/{number}") for number in (1, 2)]
            if any(path.endswith("log.txt") for path in held):
                os.kill(pid, signal.SIGTERM)
        said, errors = process.communicate(timeout=120)
        assert process.returncode == 1
    assert said.count("FAILED, exit status 143") == 2
    assert errors.count("failed: base, seed") == 2
    assert "0 of 2 runs" in said
