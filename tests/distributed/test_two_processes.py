"""Two gloo processes through the Trainer make the same run as one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.launch import saved_by
from tests.distributed.two_processes import IMITATION, LABELLED, SETTINGS, train
from tests.modules.tiny import distance

GLOBAL_FIGURES = (
    "rollout/accuracy",
    "rollout/reward",
    "rollout/majority_share",
    "prompts/kept",
    "prm/ranking_loss",
    "prm/ess",
    "prm/gradient_norm",
    "policy/loss",
    "sft/loss",
    "prm/loss",
    "prm/step_accuracy",
    "prm/wrong_steps",
    "val/one/loss",
    "val/one/wrong_step_auroc",
    "val/one/f1",
    "val/other/loss",  # one rank has none of its solutions
    "val/other/accuracy_erroneous",
    "val/average/loss",
)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes found."""
    out = tmp_path_factory.mktemp("two") / "out.pt"
    found: dict[str, Any] = saved_by("tests.distributed.two_processes", out, "--devices", "2")
    return found


@pytest.mark.parametrize("name", [*SETTINGS, *IMITATION, *LABELLED])
def test_two_processes_agree_with_one(name: str, of_two: dict[str, Any]) -> None:
    one, two = train(name, 1), of_two[name]
    first, second = two["weights"]
    assert distance(first, second) == 0  # the ranks are replicas
    assert one["responses"] == two["responses"]
    if name in SETTINGS:
        assert two["shares"] == [4, 4]  # two of four prompts a rank, in two iterations
        assert one["shares"] == [8]
    (alone,) = one["weights"]
    assert distance(alone, first) < 1e-5
    for ours, theirs in zip(one["figures"], two["figures"], strict=True):
        for figure in [figure for figure in GLOBAL_FIGURES if figure in ours]:
            assert ours[figure] == pytest.approx(theirs[figure], abs=1e-4), figure


def test_the_runs_moved_the_weights_and_the_filter_left_uneven_ranks(of_two: dict[str, Any]) -> None:
    states = [of_two[name]["weights"][0] for name in ("scope prompt", "scope batch", "per position, reference")]
    for part in ("prm.head.score", "policy."):
        shared = [{k: v for k, v in state.items() if k.startswith(part)} for state in states]
        assert all(distance(shared[0], other) > 1e-5 for other in shared[1:])
    assert of_two["filtered"]["figures"][0]["prompts/kept"] == 1
    assert of_two["mini-batches"]["figures"][0]["prompts/kept"] == 2


def test_prompts_with_experts_beside_those_without_are_on_either_rank(of_two: dict[str, Any]) -> None:
    """In each iteration one prompt of four has experts: the other rank has none, and other micro-batches."""
    first, second = of_two["mixture"]["prompts"]
    assert len(first) == len(second) == 2
    for ours, theirs in zip(first, second, strict=True):
        with_experts = sorted(sum(experts > 0 for _, experts in rank) for rank in (ours, theirs))
        assert with_experts == [0, 1]
        assert sorted(name for name, _ in [*ours, *theirs]) == ["bare", "mixed", "mixed", "mixed"]
        assert [experts for name, experts in [*ours, *theirs] if name == "bare"] == [0]
    for figures in of_two["mixture"]["figures"]:
        # Without positives there is nothing to learn from: of the four prompts three.
        assert (figures["prm/prompts_used"], figures["prm/prompts_skipped"]) == (1, 3)
        assert figures["prm/expert_share"] == 1
    one, other = of_two["mixture"]["micro_batches"]
    assert len(one) == len(other)
    assert any(ours != theirs for ours, theirs in zip(one, other, strict=True))


def test_plain_ddp_is_refused(of_two: dict[str, Any]) -> None:
    assert of_two["refusal"].startswith("trainer.strategy is DDPStrategy on 2 processes; set trainer.strategy")
    assert "repirl.modules.strategies.ReplicatedStrategy" in of_two["refusal"]
