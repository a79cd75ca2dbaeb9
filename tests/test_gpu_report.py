"""benchmarks/gpu_report.py on the CPU, at a size of seconds, where packages that a bare GPU machine lacks are missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_first_hour import prepare

ROOT = Path(__file__).parents[1]
MISSING = ("datasets", "jsonargparse", "math_verify")
PROGRAM = f"""
import importlib, importlib.metadata, pkgutil, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {MISSING}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

found = importlib.metadata.Distribution.from_name.__func__

def from_name(cls, name):
    if name.lower().replace("-", "_") in {MISSING}:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(cls, name)

sys.meta_path.insert(0, Missing())
importlib.metadata.Distribution.from_name = classmethod(from_name)
for name in ("models", "rollout", "objectives", "modules"):
    package = importlib.import_module(f"repirl.{{name}}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"repirl.{{name}}.{{module.name}}")
import gpu_report
gpu_report.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu_report") / "report.md"
    small = ["--device", "cpu", "--sizes", "tiny", "--repeats", "1", "--threads", "1"]
    # `iterations` starts three more processes; `learning` needs the packages that are missing here
    parts = ["--parts", "parity", "updates", "decoding", "memory", "sharded", "shared-base"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *small, *parts, "--out", str(out)],
        env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'benchmarks'}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out.read_text(), json.loads(out.with_suffix(".json").read_text())


def test_every_part_is_in_the_report(report):
    text, raw = report
    for part in ("Parity", "Updates", "Decoding", "Memory", "Sharded", "Shared-base"):
        assert f"\n## {part}\n" in text
    assert "a dry run" in text
    assert set(raw["found"]["updates"]["tiny"]["flops"]) == {"log_probs", "prm_update", "score", "policy_update"}
    assert raw["found"]["memory"]["tiny"]["peaks"]["policy_update"] > raw["found"]["memory"]["tiny"]["weights"] > 0


def test_parity_is_exact_in_float32_and_small_in_bfloat16(report):
    parity = report[1]["found"]["parity"]
    for name, difference in parity["float32"].items():
        assert difference <= 1e-6, name
    assert len(parity["bfloat16"]) == 5
    for name, difference in parity["bfloat16"].items():
        assert 0 < difference < 0.1, name


def test_floating_point_operations(report):
    """The tiny model by hand: hidden 32, inner 48, 2 layers, 4 heads, vocabulary 1,024, no tied weights counted twice."""
    flops = report[1]["found"]["updates"]["tiny"]["flops"]
    weights = 4 * 32 * 32 + 3 * 32 * 48  # of a layer: 8,704
    # 2 prompts; of each 6 tokens and 2 responses, whose last of 4 tokens is not read: 6 + 2 x 3 = 12 tokens.
    # They attend to 1 + ... + 6 = 21 positions in the prompt, and each response to (6 + 1) + (6 + 2) + (6 + 3) = 24.
    trunk = 2 * (2 * weights * 12 + 4 * 32 * (21 + 2 * 24))
    assert flops["score"] == 2 * trunk
    head = 2 * 32 * 1024 * (2 * 4)
    assert flops["policy_update"] == 3 * 2 * (trunk + head)


def test_sharded_weights_learn_as_whole_ones_and_a_shared_base_holds_less(report):
    found = report[1]["found"]
    assert found["sharded"]["tiny"]["distance"] < 1e-5
    kinds = found["shared-base"]["tiny"]["kinds"]
    assert kinds["apart"]["base unchanged"]
    assert kinds["shared"]["base unchanged"]
    assert kinds["shared"]["weights"] < kinds["apart"]["weights"]


def test_a_run_is_stopped_half_way_and_gone_on_with(tmp_path):
    prepare(tmp_path)
    words = ["--device", "cpu", "--parts", "learning", "--learning", "my.yaml", "small.yaml"]
    words += ["--learning-iterations", "4"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu_report.py"), *words, "--out", str(tmp_path / "report.md")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    parts = json.loads((tmp_path / "report.json").read_text())["found"]["learning"]["rows"]
    assert [[row["step"] for row in part if "rollout/accuracy" in row] for part in parts] == [[0, 1], [2, 3]]
    assert "| rollout/accuracy | " in (tmp_path / "report.md").read_text()
