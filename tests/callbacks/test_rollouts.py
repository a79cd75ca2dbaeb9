"""Rollouts to be read, through real runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from repirl.callbacks.checkpoint import Checkpoint
from repirl.callbacks.rollouts import RolloutTexts
from tests.modules.tiny import EvenDigits, make_module, run


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_second_iteration_two_prompts_with_their_rewards(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rollouts.jsonl"
    module = make_module(verifier=EvenDigits())
    run(module, steps=4, callbacks=[RolloutTexts(str(path), every_n_iterations=2)])
    rows = written(path)
    assert [row["iteration"] for row in rows] == [1, 1, 3, 3]
    assert rows[0]["id"] != rows[1]["id"]
    assert {row["correct"] for row in rows} <= {True, False}
    assert rows[0]["prm_mean_reward"] != 0  # the PRM has learned once when it scores


def test_what_is_written_is_what_the_policy_learned_from(tmp_path: Path) -> None:
    """Mean reward and mean advantage of the last iteration, against the batch that the module still has."""
    path = tmp_path / "rollouts.jsonl"
    module = make_module(verifier=EvenDigits())
    run(module, steps=1, callbacks=[RolloutTexts(str(path), count=100)])
    batch, rows = module.newest_rollouts, written(path)
    assert batch is not None
    assert len(rows) == 12  # 4 prompts, 3 rollouts each
    mask = batch.response_mask
    for values, name in ((batch.prm_rewards, "prm_mean_reward"), (batch.advantages, "mean_advantage")):
        assert values is not None
        means = (values * mask).sum(-1) / mask.sum(-1)
        assert sorted(row[name] for row in rows) == pytest.approx(sorted(means.tolist()), abs=1e-4)
    assert sum(row["correct"] for row in rows) == int(batch.outcome.sum())


def test_a_resumed_run_adds_and_a_new_one_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    texts = RolloutTexts(str(path), every_n_iterations=1, count=1)
    run(make_module(), steps=2, callbacks=[texts, Checkpoint(str(tmp_path))], enable_checkpointing=True)
    run(make_module(), steps=3, callbacks=[texts], ckpt_path=tmp_path / "last.ckpt")
    assert [row["iteration"] for row in written(path)] == [1, 2, 3]
    assert written(path)[0]["correct"] is None  # no verifier
    run(make_module(prm=None, verifier=EvenDigits()), steps=1, callbacks=[texts])
    assert [(row["iteration"], row["prm_mean_reward"]) for row in written(path)] == [(1, None)]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must end in \.jsonl"):
        RolloutTexts("rollouts.txt")
    with pytest.raises(ValueError, match="at least 1, not 0 and 2"):
        RolloutTexts("rollouts.jsonl", every_n_iterations=0)
