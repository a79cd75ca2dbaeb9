"""The paper's four runs, whole, with a tiny model in the place of the large one; code goes on from mathematics."""

from __future__ import annotations

import csv
import json
import math
import string
from pathlib import Path
from typing import Any

import pytest
import yaml

from repirl.__main__ import main
from repirl.models.policy import Policy
from tests.data.test_benchmarks import EURUS
from tests.modules.tiny import LLAMA as tiny_llama

PAPER = Path(__file__).parents[1] / "configs" / "paper"
RUNS = {  # output: overlays
    "math": [],
    "code": ["code"],
    "qwen3_4b_math": ["qwen3_4b"],
    "qwen3_4b_code": ["code", "qwen3_4b_code"],
}
LARGE = {"math": "Qwen/Qwen2.5-3B-Instruct", "qwen3_4b_math": "Qwen/Qwen3-4B-Base"}
LLAMA = tiny_llama | {"max_position_embeddings": 1024}
PROGRAM = "```python\nprint(2 * int(input()))\n```"


def rows(name: str, *values: dict[str, Any]) -> None:
    Path(name).write_text("".join(json.dumps(value) + "\n" for value in values))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the demonstrations, Eurus's validation problems, and a tiny model."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    sums = [
        {
            "problem": f"{n} + {n}?",
            "answer": f"{2 * n}",
            "solutions": [f"{n} + {n}\n\\boxed{{{2 * n}}}", f"\\boxed{{{2 * n}}}"],
        }
        for n in range(1, 5)
    ]
    rows("data/paper_math.jsonl", *sums)
    tests = [{"input": "3\n", "output": "6\n"}]
    rows(
        "data/paper_code.jsonl",
        *({"problem": f"Double {n}.", "tests": tests, "solutions": [PROGRAM]} for n in range(4)),
    )
    rows("validation.jsonl", *EURUS)
    Policy(config=LLAMA, tokens=list(string.printable)).load().save_pretrained("tiny")


def tiny(name: str, iterations: int) -> Path:
    """An overlay that makes a run small; where it trains from the hub's model, it takes the tiny one."""
    model: dict[str, Any] = {
        "text": {"max_prompt_tokens": 400, "max_response_tokens": 48},
        "prompt_filter": {"kind": "none"},
    }
    if name in LARGE:
        model["policy"] = {"init_args": {"path": "tiny"}}
    overlay = {
        "model": {"init_args": model},
        "data": {"init_args": {"val": {"init_args": {"path": "validation.jsonl"}}, "batch_prompts": 4}},
        "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": iterations, "enable_progress_bar": False},
    }
    path = Path(f"tiny-{name}.yaml")
    path.write_text(yaml.safe_dump(overlay))
    return path


def fit(name: str) -> list[dict[str, str]]:
    """The run's figures."""
    files = [PAPER / "math.yaml", *(PAPER / "overlays" / f"{overlay}.yaml" for overlay in RUNS[name]), tiny(name, 2)]
    main(["fit", *(f"--config={path}" for path in files)])
    with next(Path(f"outputs/paper/{name}/csv").rglob("metrics.csv")).open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["prm/ranking_loss"]]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("mathematics", "code"), [("math", "code"), ("qwen3_4b_math", "qwen3_4b_code")])
def test_mathematics_then_code(mathematics: str, code: str) -> None:
    for name in (mathematics, code):
        figures = fit(name)
        assert len(figures) == 2
        assert all(math.isfinite(float(row["policy/loss"])) for row in figures)
        assert Path(f"outputs/paper/{name}/checkpoints/last.ckpt").is_file()
        assert Path(f"outputs/paper/{name}/policy/model.safetensors").is_file()


def test_the_start_models_are_the_papers() -> None:
    for name, model in LARGE.items():
        files = [PAPER / "math.yaml", *(PAPER / "overlays" / f"{overlay}.yaml" for overlay in RUNS[name])]
        said = [yaml.safe_load(path.read_text())["model"]["init_args"]["policy"]["init_args"]["path"] for path in files]
        assert said[-1] == model
