"""`repirl search` with vLLM as the sampler: samples, and beams whose steps end at tokens of the search."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from repirl.models.policy import Policy
from repirl.models.prm import PRM
from tests.applications.test_scoring import trained
from tests.modules.tiny import LLAMA, TOKENS
from tests.vllm.engines import HEADS, needs_vllm

pytestmark = needs_vllm
ROOT = Path(__file__).parents[2]


def searched(folder: Path, checkpoint: Path, rollout: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The samples of a search by both ways, in a process of its own."""
    settings: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "problems": {
            "class_path": "repirl.data.arithmetic.RunningSums",
            "init_args": {"count": 3, "seed": 1, "min_steps": 2, "max_steps": 3, "split": "test"},
        },
        "verifier": {"class_path": "repirl.verifiers.exact.ExactVerifier"},
        "step_pattern": "[0-9]",
        "methods": ["best_of_n", "majority_vote", "beam_search", "dvts"],
        "n": [4],
        "beams": [4],
        "children": 2,
        "temperature": 2.0,  # else this policy's responses end at once
    }
    if rollout is not None:
        settings["rollout"] = rollout
    folder.mkdir()
    (folder / "s.yaml").write_text(yaml.safe_dump(settings))
    done = subprocess.run(
        [sys.executable, "-m", "repirl", "search", "-c", str(folder / "s.yaml"), "--output", str(folder / "out")],
        cwd=ROOT,
        env=os.environ.copy(),
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in (folder / "out" / "samples.jsonl").read_text().splitlines()]


def test_samples_and_beams_of_vllm(tmp_path: Path) -> None:
    """What is sampled differs from the sampler in this process; what is kept and how it is scored does not."""
    checkpoint = tmp_path / "run.ckpt"
    trained(checkpoint, prm=PRM("q_head"), policy=Policy(config=LLAMA | HEADS, tokens=TOKENS))
    engine = {
        "class_path": "repirl.rollout.vllm.VLLM",
        "init_args": {"engine": {"enforce_eager": True, "max_model_len": 64}},
    }
    rows = searched(tmp_path / "vllm", checkpoint, engine)
    own = searched(tmp_path / "own", checkpoint, None)
    assert {(row["id"], row["method"]) for row in rows} == {(row["id"], row["method"]) for row in own}
    counts = [sum(row["method"] == "sampled" for row in some) for some in (rows, own)]
    assert counts == [3 * 4, 3 * 4]
    for row in rows:
        assert len(row["step_rewards"]) == len(row["steps"])
        assert all(sum(c.isdigit() for c in step) == 1 for step in row["steps"][:-1])
        assert row["finished"] or row["generated_tokens"] == 10
    assert max(len(row["steps"]) for row in rows if row["method"] != "sampled") > 1
