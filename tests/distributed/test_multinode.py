"""The examples for several machines: torchrun's as two "machines" on this one; SLURM's by what it asks for."""

from __future__ import annotations

import csv
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from benchmarks.faults import configuration

from repirl import checkpoints, config
from tests.distributed.launch import ROOT, environment
from tests.modules.tiny import distance

FOLDER = ROOT / "configs" / "scale" / "multinode"
OVERLAYS = [ROOT / "configs" / "scale" / "fsdp.yaml", FOLDER / "two_nodes.yaml"]
STEPS = 2


def run(folder: Path, *words: str, machines: int = 1) -> Path:
    """The folder of a run on so many machines, each with one process."""
    base = configuration(folder, steps=STEPS, width=16)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        first = f"127.0.0.1:{free.getsockname()[1]}"
    given = environment() | {"NODES": str(machines), "FIRST": first, "PROCESSES": "1", "PYTHON": sys.executable}
    command = ["bash", str(FOLDER / "torchrun.sh"), "-c", str(base), *words]
    started = [
        subprocess.Popen(command, cwd=ROOT, env=given, stderr=subprocess.PIPE, text=True) for _ in range(machines)
    ]
    told = [machine.communicate(timeout=300)[1] for machine in started]
    assert [machine.returncode for machine in started] == [0] * machines, "\n".join(told)[-4000:]
    return folder


def test_two_machines_by_torchrun_train_as_one(tmp_path: Path) -> None:
    overlays = [word for path in OVERLAYS for word in ("-c", str(path))]
    here = ["--trainer.devices=1", "--data.batch_prompts=4"]
    two = run(tmp_path / "two", *overlays, *here, machines=2)
    one = run(tmp_path / "one")
    ends = [checkpoints.read(folder / "checkpoints" / "last.ckpt") for folder in (one, two)]
    assert [end["global_step"] for end in ends] == [STEPS, STEPS]
    assert distance(ends[0]["state_dict"], ends[1]["state_dict"]) < 1e-3  # after two steps of Adam
    assert len(list((two / "checkpoints" / "last.ckpt.parts").rglob("?.ckpt"))) == 2  # each has written its part
    tables = [list(csv.DictReader((folder / "metrics.csv").open(newline=""))) for folder in (one, two)]
    for ours, theirs in zip(*tables, strict=True):
        assert float(ours["rollout/accuracy"]) == float(theirs["rollout/accuracy"])


def test_slurm_starts_a_process_a_device() -> None:
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", (FOLDER / "slurm.sbatch").read_text(), re.MULTILINE))
    trainer = config.load([FOLDER / "two_nodes.yaml"])["trainer"]
    assert (int(asked["nodes"]), int(asked["ntasks-per-node"])) == (trainer["num_nodes"], trainer["devices"])
    assert asked["gpus-per-node"] == asked["ntasks-per-node"]
    subprocess.run(["bash", "-n", str(FOLDER / "slurm.sbatch")], check=True)


def test_what_is_missing_is_said() -> None:
    bare = {name: value for name, value in os.environ.items() if name not in ("NODES", "FIRST")}
    done = subprocess.run(["bash", str(FOLDER / "torchrun.sh")], env=bare, capture_output=True, text=True)
    assert done.returncode != 0
    assert "NODES: the number of machines" in done.stderr
