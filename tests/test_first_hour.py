"""A first hour, in order, by the commands that the docs print: own data, own model, train, stop, go on, export, score."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import signal
import string
import subprocess
import sys
from pathlib import Path

import pytest

from repirl.models.policy import Policy
from tests.modules.tiny import LLAMA
from tests.processes import wait_for
from tests.test_recipes import BLOCKS

ROOT = Path(__file__).parents[1]
RECIPES = (ROOT / "docs" / "recipes.md").read_text()
SMALL = """
model: {init_args: {text: {max_prompt_tokens: 40, max_response_tokens: 12}}}
data: {init_args: {batch_prompts: 2}}
trainer: {accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""


class Hour:
    """A working folder, and a shell in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def command(self, printed: str, *more: str) -> list[str]:
        """The command as docs/recipes.md prints it, with what makes it small."""
        assert printed in re.sub(r" \\\n +", " ", RECIPES), f"docs/recipes.md does not print {printed!r}"
        first, *words = shlex.split(printed)
        assert first == ".venv/bin/repirl"
        small = ["-c", "small.yaml"] if words[0] == "fit" else []
        return [str(Path(sys.executable).with_name("repirl")), *words, *small, *more]

    def run(self, printed: str, *more: str) -> str:
        """What it says; it must end well."""
        done = subprocess.run(
            self.command(printed, *more),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout + done.stderr

    def logged(self, name: str, output: str = "outputs/my_run") -> list[float]:
        """The figure in the newest log."""
        newest = max((self.folder / output).rglob("metrics.csv"), key=lambda path: path.stat().st_mtime_ns)
        with newest.open(newline="") as file:
            return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def prepare(folder: Path) -> None:
    """Forty rows, a tiny model, the files of the recipes."""
    for name, text in BLOCKS.items():
        (folder / name).write_text(text.replace("val_check_interval: 20", "val_check_interval: 2"))
    (folder / "small.yaml").write_text(SMALL)
    for name, count, form in (("train", 40, "{} + 1 = ?"), ("val", 4, "Add 1 to {}.")):
        rows = [
            {"problem": form.format(n), "solution": f"\\boxed{{{n + 1}}}", "answer": str(n + 1)} for n in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = LLAMA | {"max_position_embeddings": 1024}
    Policy(config=config, tokens=list(string.printable)).load().save_pretrained(str(folder / "my_model"))


def test_the_first_hour(tmp_path: Path) -> None:
    prepare(tmp_path)
    hour = Hour(tmp_path)
    best, last = tmp_path / "outputs/my_run/best/best.ckpt", tmp_path / "outputs/my_run/checkpoints/last.ckpt"

    # The smallest configuration: every iteration is logged, start and end are validated, the end is saved.
    said = hour.run(".venv/bin/repirl fit -c my.yaml", "--trainer.max_steps=2")
    assert "train: kept 40 of 40 problems" in said
    assert not re.search(r"sync_dist|Tip:|Epoch 0/-2", said)
    assert len(hour.logged("prm/ranking_loss")) == 2
    assert len(hour.logged("val/greedy_accuracy")) == 2
    assert last.is_file()
    last.unlink()

    # Adapters, a schedule, the best checkpoint; interrupted once it has saved something, and gone on with as it says.
    long = hour.command(".venv/bin/repirl fit -c my.yaml -c best.yaml", "-c", "lora.yaml", "-c", "rates.yaml")
    with (tmp_path / "log.txt").open("w") as log:
        run = subprocess.Popen(
            [*long, "--trainer.max_steps=5000"], cwd=tmp_path, env=hour.environment, stdout=log, stderr=log
        )
        try:
            assert wait_for(best.is_file), (tmp_path / "log.txt").read_text()[-2000:]
            run.send_signal(signal.SIGINT)
            assert run.wait(timeout=120) == 130
        finally:
            run.kill()
    done = (tmp_path / "log.txt").read_text()
    (iteration,) = map(int, re.findall(r"stopped by SIGINT after iteration (\d+): saved \S+last\.ckpt", done))
    assert f"--ckpt_path {last}" in done
    rates = hour.logged("prm/lr")
    assert rates[:2] == pytest.approx([1e-7, 2e-7])  # of 1e-6 after ten iterations of warm-up
    printed = ".venv/bin/repirl fit -c my.yaml -c best.yaml --ckpt_path outputs/my_run/checkpoints/last.ckpt"
    more = ["-c", "lora.yaml", "-c", "rates.yaml", f"--trainer.max_steps={iteration + 12}"]
    hour.run(printed, *more)
    assert min(hour.logged("step")) == iteration  # the first of its iterations, counted from 0
    assert hour.logged("prm/ranking_loss")

    # Two processes, and an objective of one's own.
    hour.run(".venv/bin/repirl fit -c my.yaml --trainer.devices=2", "--trainer.max_steps=2", "--output=outputs/two")
    assert len(hour.logged("prm/ranking_loss", "outputs/two")) == 2
    own = ".venv/bin/repirl fit -c my.yaml --model.objective=my_objective.MeanDifference"
    hour.run(own, "--trainer.max_steps=2", "--output=outputs/own")
    assert all(hour.logged("prm/gradient_norm", "outputs/own"))

    # The trained policy as a folder that needs no repirl, and the PRM in Python.
    export = (
        ".venv/bin/repirl export --checkpoint outputs/my_run/checkpoints/last.ckpt --part policy --output my_policy"
    )
    hour.run(export)
    assert (tmp_path / "my_policy" / "config.json").is_file()
    code = (
        "import json, repirl\n"
        f"score = repirl.load({str(last)!r}).score('3 + 1 = ?', '\\\\boxed{{4}}')\n"
        "print(json.dumps([score.tokens, score.token_rewards, score.steps]))\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300).stdout
    tokens, rewards, steps = json.loads(shown)
    assert "".join(tokens).startswith("\\boxed{4}")
    assert len(tokens) == len(rewards)
    assert steps == ["\\boxed{4}"]
