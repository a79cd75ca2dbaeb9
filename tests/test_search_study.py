"""The study of a PRM at test time: equal tokens, and differences paired by problem, by hand."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from benchmarks import search


def test_a_curve_at_equal_tokens_is_linear_between_its_points() -> None:
    curve = [(10.0, 0.2), (20.0, 0.4), (30.0, 0.3)]
    # 5 is before the first; 15 half way to .4; 28 is .8 of the way from .4 to .3; 99 beyond the last
    assert [search._at(curve, tokens) for tokens in (5, 10, 15, 28, 99)] == pytest.approx([0.2, 0.2, 0.3, 0.32, 0.3])


def line(method: str, n: int, problem: str, accuracy: float, tokens: float = 1.0) -> dict[str, Any]:
    return {"id": problem, "method": method, "n": n, "accuracy": accuracy, "generated_tokens": tokens}


def test_differences_are_paired_by_problem(tmp_path: Path) -> None:
    """Two problems, 2 samples of 10 tokens each: right .9 and wrong .1 in `p`, wrong .9 and right .1 in `q`.

    Best of 1 is .5 in both, best of 2 is 1 in `p` and 0 in `q`. Beams at 15 tokens meet .75 and .25.
    """
    lines = []
    for problem, best in (("p", 0.9), ("q", 0.3)):
        for n in search.SIZES:
            lines += [line(method, n, problem, best) for method in search.BY_PRM]
            lines += [line("majority_vote", n, problem, 0.5), line("random", n, problem, 0.4)]
        lines += [line(method, n, problem, 1.0, 15.0) for method in ("beam_search", "dvts") for n in search.BEAMS]
    samples = [
        {"problem": problem, "id": problem, "gold": "1", "steps": ["x"], "step_rewards": [reward], "right": right}
        | {"generated_tokens": 10, "answer": "1", "finished": True}
        for problem, rights in (("p", (True, False)), ("q", (False, True)))
        for reward, right in zip((0.9, 0.1), rights, strict=True)
    ]
    for name, rows in (("problems.jsonl", lines), ("samples.jsonl", samples)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "search.json").write_text(json.dumps({"settings": {"aggregation": "sum"}}))
    found = search.differences(tmp_path)
    assert found["best_of_n - majority_vote, n = 4"] == pytest.approx((0.4 - 0.2) / 2)
    assert found["best_of_n - random, n = 4"] == pytest.approx((0.5 - 0.1) / 2)
    assert found["dvts - best_of_n at equal tokens, 8 beams"] == pytest.approx((0.25 + 0.75) / 2)
    assert found["accuracy of random, n = 2"] == pytest.approx(0.4)


def test_the_interval_is_over_seeds() -> None:
    """Of .1, .2 and .3: mean .2, standard error .1 / sqrt 3 = .0577, t of 2 degrees of freedom 4.303."""
    rows = search.summary([{"a": 0.1}, {"a": 0.2}, {"a": 0.3}])["a"]
    assert rows["mean"] == pytest.approx(0.2)
    assert (rows["low"], rows["high"]) == pytest.approx((0.2 - 4.303 * 0.05774, 0.2 + 4.303 * 0.05774), abs=1e-3)
    assert math.isnan(search.summary([{"a": 0.1}])["a"]["low"])


def test_a_panel_is_drawn_for_each_cell(tmp_path: Path) -> None:
    methods = ("pass_at_n", *search.BY_PRM, *search.BASELINES)
    rows = {f"accuracy of {method}, n = {n}": {"mean": 0.5, "seeds": [0.4, 0.6]} for method in methods for n in (1, 16)}
    search.draw(dict.fromkeys(search.TITLES, rows), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(KeyError, match="unknown"):
        search.draw({"early": rows, "unknown": rows}, tmp_path / "other.png")


def arguments(output: Path, **given: Any) -> Namespace:
    settings = {"family": "sums", "output": output, "worth": output, "early": None, "iterations": None}
    return Namespace(**settings | {"start_iterations": None} | given)


def finished_run(folder: Path, **sizes: int | None) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    for iteration in (20, 40, 140):
        (folder / "checkpoints" / f"step={iteration}.ckpt").touch()
    (folder / "trained.json").write_text(json.dumps({"iterations": None, "start_iterations": None, **sizes}))


def test_cells_of_sums_name_the_prm_and_the_log_ratio_of_one_start(tmp_path: Path) -> None:
    of_seed = tmp_path / "seed-40"
    finished_run(of_seed / "repirl")
    finished_run(of_seed / "sft")
    (of_seed / "sft" / "policy").mkdir()
    found = search.models_of(40, arguments(tmp_path))
    assert set(found) == set(search.TITLES)
    early, last = (str(of_seed / "repirl" / "checkpoints" / f"step={n}.ckpt") for n in (40, 140))
    assert found["late_prm"] == ["--checkpoint", early, "--prm", last]
    ratio = ["--prm", str(of_seed / "sft" / "policy"), "--kind", "implicit", "--reference", str(of_seed / "start")]
    assert found["early_ratio"] == ["--checkpoint", early, *ratio]
    assert found["sft_ratio"][:2] == ["--policy", str(of_seed / "sft" / "policy")]
    assert found["sft_ratio"][-6:] == ratio
    with pytest.raises(SystemExit, match="give one before the last"):
        search.models_of(40, arguments(tmp_path, early=140))


def test_a_trial_is_not_taken_for_the_run(tmp_path: Path) -> None:
    finished_run(tmp_path / "seed-40" / "repirl", iterations=6)
    with pytest.raises(SystemExit, match="name another --output"):
        search.models_of(40, arguments(tmp_path))


def test_cells_of_dial_start_from_the_study_of_worth(tmp_path: Path) -> None:
    finished_run(tmp_path / "rl" / "many_experts-prm_only" / "seed-30")
    found = search.models_of(30, arguments(tmp_path, family="dial"))
    assert "early_ratio" not in found
    start, sft = (tmp_path / stage / "seed-30" / "policy" for stage in ("start/base", "sft/many_experts"))
    assert found["sft_ratio"][-6:] == ["--prm", str(sft), "--kind", "implicit", "--reference", str(start)]
