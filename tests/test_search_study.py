"""The study of a PRM at test time: equal tokens, and differences paired by problem, by hand."""

from __future__ import annotations

import json
import math
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
