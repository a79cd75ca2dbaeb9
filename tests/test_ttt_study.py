"""The study of test-time training: the guard asked of logged figures, differences by hand, and its reduced form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks import ttt
from benchmarks.families import FAMILIES

from repirl import config

ROOT = Path(__file__).parents[1]


def metrics(path: Path, rows: list[dict[str, float]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [",".join(names), *(",".join(str(row.get(name, "")) for name in names) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_curve_and_guard_of_logged_figures(tmp_path: Path) -> None:
    """.25 at the start, .5 after one iteration, .4 after three: more than base.yaml's .08 below; the reward rose by 1."""

    def iteration(reward: float) -> dict[str, float]:
        return {"rollout/reward": reward, "rollout/response_tokens": 10, "policy/entropy": 1}

    figure = "val/hard/sampled_accuracy"
    rows = [{figure: 0.25}, iteration(1), {figure: 0.5}, iteration(2), iteration(3), {figure: 0.4}, {figure: 0.1}]
    curve, said = ttt.curve_of(metrics(tmp_path / "metrics.csv", rows), figure)
    assert curve == [(0, 0.25), (1, 0.5), (3, 0.4), (3, 0.1)]
    assert said["guard_iteration"] == 3
    assert "fell from 0.500 (iteration 1) to 0.400, by more than 0.08, while" in said["guard"]
    assert "rose from 1 to 2: the reward is exploited" in said["guard"]
    assert (said["reward_first"], said["reward_last"]) == (1, 2)  # (1 + 2 + 3) / 3


def test_differences_are_paired_by_seed() -> None:
    """`prm` ends .1 and .2 above gold answers and .3 and .6 above its start; one seed of `outcome` has no partner."""

    def one(first: float, last: float, spoke: int | None = None) -> dict[str, Any]:
        return {"curve": [(0, first), (5, 0.75), (9, last)], "guard": spoke and "fell", "guard_iteration": spoke}

    runs = {
        "prm": {"1": one(0.1, 0.4), "2": one(0.1, 0.7, spoke=9)},
        "outcome": {"1": one(0.2, 0.3), "2": one(0.1, 0.5), "3": one(0.1, 0.9)},
    }
    prm, outcome = ttt.rows_of(runs)
    assert (prm["start"], prm["best"], prm["last"]) == pytest.approx((0.1, 0.75, 0.55))
    assert prm["from_outcome"]["mean"] == pytest.approx(0.15)
    # standard error .1 / sqrt 2 / sqrt 2 = .05, t of one degree of freedom 12.706
    assert prm["from_outcome"]["high"] == pytest.approx(0.15 + 12.706 * 0.05, abs=1e-3)
    assert prm["from_start"]["mean"] == pytest.approx(0.45)
    assert prm["spoke"] == {"2": 9}
    assert outcome["from_outcome"] is None
    text = ttt.table([prm, outcome])
    assert "| `prm` | 2 | 0.100 | 0.750 | 0.550 | +0.450" in text
    assert text.splitlines()[2].endswith("| 2 at 9 |")


def test_every_arm_is_a_file_and_says_where_its_prm_is() -> None:
    files = {path.stem for path in (ROOT / "configs" / "ttt").glob("*.yaml")}
    assert set(ttt.ARMS) == files - {"base", "hard"}
    for arm in ttt.ARMS:
        overlay = ttt.arm_overlay(arm, FAMILIES["sums"], ttt.Models("start", "prm.ckpt"), ttt.FULL, hard=False)
        prm = overlay["model"]["init_args"].get("prm")
        assert (prm is not None) == ("prm" in arm or arm == "sft_ratio")
        assert prm is None or prm["init_args"].get("weights") == (None if arm == "sft_ratio" else "prm.ckpt")
        gold = config.load([ROOT / "configs" / "ttt" / f"{arm}.yaml"])["model"]["init_args"].get("outcomes") == "gold"
        assert gold == ("outcome" in arm)


def test_rivals_by_sft_have_the_prms_experts_and_its_objective() -> None:
    models = ttt.Models("start", "prm.ckpt", "sft")
    ratio, followed = (
        ttt.arm_overlay(arm, FAMILIES["sums"], models, ttt.FULL, hard=False) for arm in ("sft_ratio", "prm_maxent")
    )
    prm = ratio["model"]["init_args"].pop("prm")["init_args"]
    assert (prm["backbone"]["init_args"]["path"], prm["reference"]["init_args"]["path"]) == ("sft", "start")
    del followed["model"]["init_args"]["prm"]
    assert ratio == followed
    sft, learned = (
        config.merge(config.load([ROOT / "configs" / base]), overlay)
        for base, overlay in (
            ("toy/sft.yaml", ttt.sft_overlay(FAMILIES["sums"], "start", ttt.FULL)),
            ("quickstart.yaml", ttt.prm_overlay(ttt.FULL)),
        )
    )
    measured_on = sft["data"]["init_args"].pop("val")
    assert sft["data"] == learned["data"]
    assert sft["trainer"]["max_steps"] == learned["trainer"]["max_steps"]
    assert measured_on == followed["data"]["init_args"]["val"]


def test_the_reduced_form_runs_and_is_not_run_twice(tmp_path: Path) -> None:
    words = [
        "--reduced",
        "--seeds",
        "7",
        "--arms",
        "prm_maxent,sft,sft_ratio",
        "--hard-arms",
        "outcome",
        "--output",
        str(tmp_path),
    ]
    command = [sys.executable, str(ROOT / "benchmarks" / "ttt.py"), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    first, again = (
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        for _ in range(2)
    )
    assert first.returncode == 0, first.stdout + first.stderr
    assert again.stdout.count("1 runs, 1 done before") == 4  # start, PRM, SFT, hard arm
    assert again.stdout.count("2 runs, 2 done before") == 1  # the arms that follow a reward
    report = json.loads((tmp_path / "ttt.json").read_text())
    assert [iteration for iteration, _ in report["arms"]["prm_maxent"]["7"]["curve"]] == [0, 1, 2]
    assert [iteration for iteration, _ in report["arms"]["sft"]["7"]["curve"]] == [0, 1]  # as many as the PRM had
    assert [iteration for iteration, _ in report["hard_arms"]["outcome"]["7"]["curve"]] == [0, 1, 2]
    hard = [tmp_path / "hard" / "seed-7" / f"{name}.jsonl" for name in ("train", "held_out")]
    own, other = ({json.loads(line)["id"] for line in path.read_text().splitlines()} for path in hard)
    assert own
    assert other
    assert not own & other
    assert (tmp_path / "ttt.png").read_bytes().startswith(b"\x89PNG")


def test_a_few_hard_problems_are_not_trained_on(tmp_path: Path) -> None:
    """Seven lines: three to train on and four to measure on where seven are enough, none where they are not."""
    folder = tmp_path / "hard" / "seed-3"
    folder.mkdir(parents=True)
    (folder / "samples.jsonl").touch()
    lines = [f'{{"id": "{n}"}}\n' for n in range(7)]
    (folder / "hard.jsonl").write_text("".join(lines))
    made = [ttt.made_hard(tmp_path, FAMILIES["sums"], "start", 3, ttt.REDUCED | {"least_hard": n}) for n in (8, 7)]
    assert made == [None, folder]
    assert (folder / "train.jsonl").read_text() == "".join(lines[:3])
    assert (folder / "held_out.jsonl").read_text() == "".join(lines[3:])
