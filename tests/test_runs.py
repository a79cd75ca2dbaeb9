"""Whole runs as processes of their own: signals, kills, a frozen rank, two runs in one folder."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from repirl import checkpoints
from repirl.__main__ import main
from tests.processes import alive, children, limited, wait_for

ROOT = Path(__file__).parents[1]
BASE = """
seed_everything: 1
trainer: {accelerator: cpu, devices: 1, max_steps: 100000, max_epochs: -1, limit_val_batches: 0, num_sanity_val_steps: 0,
          enable_model_summary: false, enable_progress_bar: false, log_every_n_steps: 1,
          callbacks: [{class_path: repirl.callbacks.checkpoint.Checkpoint,
                       init_args: {dirpath: out/saved, every_n_iterations: 2}}],
          logger: {class_path: lightning.pytorch.loggers.CSVLogger,
                   init_args: {save_dir: out, name: null, version: '', flush_logs_every_n_steps: 1}}}
model:
  class_path: repirl.RePIRL
  init_args:
    policy:
      class_path: repirl.Policy
      init_args:
        config: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}
        tokens: ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', a, b, c, d, "\\n", '\\boxed{', '}']
    prm: {class_path: repirl.PRM}
    verifier: {class_path: repirl.verifiers.exact.ExactVerifier}
    policy_optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}
    prm_optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}
    text: {max_prompt_tokens: 16, max_response_tokens: 12}
data:
  class_path: repirl.data.expert.ExpertData
  init_args:
    train: {class_path: repirl.data.arithmetic.RunningSums, init_args: {count: 64, seed: 1, min_steps: 2, max_steps: 3}}
    batch_prompts: 4
"""
TWO = [
    "--trainer.devices=2",
    "--trainer.strategy.class_path=repirl.modules.strategies.ReplicatedStrategy",
    "--trainer.strategy.init_args.process_group_backend=gloo",
]


SHARDED = [
    "--trainer.devices=2",
    "--trainer.strategy.class_path=repirl.modules.strategies.ShardedStrategy",
    "--trainer.strategy.init_args.process_group_backend=gloo",
    "--trainer.strategy.init_args.sharded_checkpoints=true",
]
strategies = pytest.mark.parametrize("two", [TWO, SHARDED], ids=["replicated", "sharded"])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["repirl"])
    return tmp_path


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "repirl", "fit", "-c", "base.yaml", *words]


def environment(**more: str) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo"} | more


@contextmanager
def running(folder: Path, *words: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A fit that has done some iterations; its output is in log.txt."""
    metrics = folder / "out" / "metrics.csv"
    with (folder / "log.txt").open("w") as log:
        start = subprocess.Popen(
            command(*words), cwd=folder, env=environment(**more), stdout=log, stderr=log, text=True
        )
        with limited(start) as process:
            begun = wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 4)
            assert begun, (folder / "log.txt").read_text()[-2000:]
            yield process


@pytest.fixture
def fit(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs a fit in this process; its status and what it said."""

    def run(*words: str) -> tuple[int, str]:
        status = 0
        try:
            main(command(*words)[3:])
        except SystemExit as error:
            status = int(error.code or 0)
        return status, capsys.readouterr().err

    return run


def second_rank(process: subprocess.Popen[str]) -> int:
    (found,) = [pid for pid in children(process.pid) if b"repirl" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return found


def test_a_signal_ends_a_run_with_its_status_and_says_how_to_go_on(folder: Path) -> None:
    with running(folder) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 143
    *_, what, todo = (folder / "log.txt").read_text().splitlines()
    done = checkpoints.read(folder / "out/saved/last.ckpt")["global_step"]
    last = folder / "out/saved/last.ckpt"
    assert what == f"stopped by SIGTERM after iteration {done}: saved {last}"
    assert todo == f"go on with the same command and --ckpt_path {last}"
    assert done >= 4
    with (folder / "out/metrics.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(done))


@pytest.mark.parametrize(
    ("number", "status", "to_both"), [(signal.SIGTERM, 143, False), (signal.SIGINT, 130, True)], ids=["one", "both"]
)
@strategies
def test_a_signal_to_any_of_two_processes_ends_both(
    folder: Path, number: int, status: int, to_both: bool, two: list[str]
) -> None:
    with running(folder, *two) as process:
        second = second_rank(process)
        os.kill(second, number)
        if to_both:
            process.send_signal(number)
        assert process.wait(120) == status
        assert wait_for(lambda: not alive(second), 30)
    assert f"saved {folder / 'out/saved/last.ckpt'}" in (folder / "log.txt").read_text()
    assert checkpoints.read(folder / "out/saved/last.ckpt")["global_step"] >= 4


@strategies
def test_a_killed_process_ends_the_other_soon(folder: Path, two: list[str]) -> None:
    with running(folder, *two) as process:
        second = second_rank(process)
        os.kill(second, signal.SIGKILL)
        assert process.wait(120) != 0
    checkpoints.read(folder / "out/saved/last.ckpt")


def test_a_frozen_process_is_told_after_the_stated_time_and_nothing_stays(folder: Path) -> None:
    with running(folder, *TWO, "--trainer.strategy.init_args.timeout_s=30") as process:
        second = second_rank(process)
        os.kill(second, signal.SIGSTOP)
        assert process.wait(200) == 2, (folder / "log.txt").read_text()[-4000:]
        assert wait_for(lambda: not alive(second), 30)
    what, todo = (folder / "log.txt").read_text().splitlines()[-2:]
    assert what.startswith("fit stopped: another process kept this one waiting in vain: it is stopped, hangs or is far")
    assert todo == f"the newest checkpoint is {folder / 'out/saved/last.ckpt'}: go on from it with --ckpt_path"


def test_a_killed_run_goes_on_exactly(folder: Path, fit: Callable[..., tuple[int, str]]) -> None:
    """TMPDIR is a folder that does not even exist: no checkpoint passes through it."""
    part, last = folder / "out/saved/.last.ckpt.part", folder / "out/saved/last.ckpt"
    with running(folder, TMPDIR=str(folder / "nowhere")) as process:
        wait_for(part.exists, 20)
        process.kill()
    reached = checkpoints.read(last)["global_step"]
    steps = f"--trainer.max_steps={reached + 3}"
    status, said = fit(steps, "--ckpt_path=out/saved/last.ckpt")
    assert status == 0, said
    found = checkpoints.read(last)
    assert fit(steps)[0] == 0
    wanted = checkpoints.read(last)
    assert wanted["global_step"] == found["global_step"] == reached + 3
    assert _equal(found["state_dict"], wanted["state_dict"])
    assert _equal(found["optimizer_states"], wanted["optimizer_states"])


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_equal(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_equal, first, second))
    return bool(first == second)


def test_a_second_run_in_the_same_folder_is_refused_and_changes_nothing(
    folder: Path, fit: Callable[..., tuple[int, str]]
) -> None:
    with running(folder) as process:
        kept = (folder / "out/config.yaml").read_text()
        status, said = fit("--model.samples=3")
        assert status == 2
        what, _ = said.splitlines()[-2:]
        assert what.startswith(f"fit stopped: another run (process {process.pid}) is writing into '{folder / 'out'}")
        assert (folder / "out/config.yaml").read_text() == kept
        process.kill()
    assert fit("--trainer.max_steps=1")[0] == 0  # the lock went with the process


@pytest.mark.parametrize("name", ["cut", "flipped", "foreign", "text", "empty"])
def test_broken_checkpoints_take_two_lines(folder: Path, fit: Callable[..., tuple[int, str]], name: str) -> None:
    assert fit("--trainer.max_steps=1")[0] == 0
    whole = (folder / "out/saved/last.ckpt").read_bytes()
    flipped = whole[:60_000] + bytes([whole[60_000] ^ 4]) + whole[60_001:]
    contents = {
        "cut": whole[: len(whole) // 2],
        "flipped": flipped,
        "foreign": whole[:50],
        "text": b"hello",
        "empty": b"",
    }
    path = folder / f"{name}.ckpt"
    path.write_bytes(contents[name])
    status, said = fit(f"--ckpt_path={path}", "--trainer.max_steps=2")
    assert status == 2
    what, todo = said.splitlines()[-2:]
    assert what.startswith(f"fit stopped: checkpoint '{path}' is damaged")
    assert todo.startswith("use another one, or copy the file again")


def test_the_loss_of_finite_weights_says_from_where_to_go_on(folder: Path, fit: Callable[..., tuple[int, str]]) -> None:
    assert fit("--trainer.max_steps=2")[0] == 0
    rates = ["--model.policy_optimizer.lr=1e30", "--model.prm_optimizer.lr=1e30"]
    status, said = fit("--trainer.max_steps=9", "--ckpt_path=out/saved/last.ckpt", *rates)
    assert status == 2, said
    what, todo = said.splitlines()[-2:]
    assert what.startswith("fit stopped: iteration 2")
    assert todo == "the newest checkpoint is out/saved/last.ckpt: go on from it with --ckpt_path, after a change"
