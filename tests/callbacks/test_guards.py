"""A fit ends where a figure leaves its bounds: at the iteration worked out by hand, saved, told in two lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from repirl import checkpoints
from repirl.callbacks.checkpoint import Checkpoint
from repirl.callbacks.guards import ENTROPY, LENGTH, REWARD, ROLLOUTS, Bounds, Guards
from repirl.callbacks.probes import RewardProbes
from repirl.callbacks.validation import Validation
from repirl.models.prm import PRM
from repirl.structs import Problem, Verdict, Verifier
from tests.modules.tiny import EvenDigits, Problems, Run, distance, make_data, make_module, problems, run

ACCURACY = "val/greedy_accuracy"


def bounds(**options: Any) -> Bounds:
    settings: dict[str, Any] = {"max_drop": None, "max_length_ratio": None, "min_entropy": None, "patience": 1}
    return Bounds(accuracy=ACCURACY, **(settings | options))


def test_an_accuracy_is_held_against_its_best_so_far() -> None:
    """Best .5 after 10 iterations, so that .375 is the last value within .125; the numbers are exact in binary."""
    guard = bounds(max_drop=0.125)
    said = [guard.validated(when, value) for when, value in [(0, 0.25), (10, 0.5), (20, 0.375), (30, 0.3125)]]
    assert said == [None, None, None, f"{ACCURACY} fell from 0.500 (iteration 10) to 0.312, by more than 0.125"]


@pytest.mark.parametrize(("slope", "exploited"), [(1.0, True), (-1.0, False), (0.0, False)])
def test_a_reward_that_rises_meanwhile_is_exploited(slope: float, exploited: bool) -> None:
    """The reward of iteration i is i: 6 to 10 before the best, 8 on average; 16 to 20 before the fall, 18."""
    guard = bounds(max_drop=0.1)
    for iteration in range(1, 21):
        assert guard.iterated({REWARD: slope * iteration}) is None
        if iteration == 10:
            assert guard.validated(10, 0.5) is None
    said = guard.validated(20, 0.25)
    assert said is not None
    assert ("while rollout/reward rose from 8 to 18: the reward is exploited" in said) == exploited


def test_at_the_start_the_reward_is_that_of_the_first_iteration() -> None:
    guard = bounds(max_drop=0.1)
    guard.validated(0, 0.5)
    for reward in (2.0, 3.0, 7.0):
        guard.iterated({REWARD: reward})
    assert "rose from 2 to 4: the reward is exploited" in str(guard.validated(3, 0.1))  # (2 + 3 + 7) / 3


@pytest.mark.parametrize(
    ("lengths", "spoke"),
    [
        ([10, 21, 21, 19, 21, 21, 21], [7]),  # the row of two ends at 19
        ([10, 4, 4, 4, 4], [4, 5]),  # less than half
        ([10, 20, 20, 20, 5, 5, 5], []),  # the bounds themselves are no trouble
        ([10, 4, math.nan, 4, 4], [5]),  # an iteration without rollouts neither counts nor ends the row
    ],
)
def test_lengths_three_times_in_a_row(lengths: Sequence[float], spoke: list[int]) -> None:
    guard = bounds(max_length_ratio=2.0, patience=3)
    said = [guard.iterated({LENGTH: length}) for length in lengths]
    assert [number for number, words in enumerate(said, start=1) if words] == spoke
    assert all("of the first iteration's 10, beyond a factor of 2 either way" in words for words in said if words)


def test_an_entropy_below_its_floor() -> None:
    guard = bounds(min_entropy=0.25, patience=2)
    said = [guard.iterated({ENTROPY: value}) for value in (0.25, 0.2, 0.3, 0.2, 0.1)]
    assert said == [None, None, None, None, f"{ENTROPY} is 0.1 nats, below 0.25"]


def test_a_hollow_response_that_leads_the_rollouts() -> None:
    """The lead is that of the highest probe. .25 above is within the bound; a probe of a validation stands until the next."""
    guard = bounds(max_hollow_lead=0.25, patience=2)
    probes = {"probe/empty": 0.5, "probe/one_token": -1.0}
    said = [guard.iterated(probes | {ROLLOUTS: value}) for value in (0.25, 0.0, 0.25, 0.125)]
    assert said == [None] * 4  # leads of .25, .5, .25, .375: beyond once, within, beyond once
    probes["probe/repeated"] = 2.0
    assert guard.iterated(probes | {ROLLOUTS: 1.0}) == (
        "probe/repeated is 2, above the 1 of prm/reward_policy by more than 0.25: a response that says nothing is rewarded "
        "above the rollouts, so that the reward is exploited or soon will be"
    )


def test_before_a_validation_and_without_rollouts_no_probe_speaks() -> None:
    guard = bounds(max_hollow_lead=0.0)
    assert guard.iterated({ROLLOUTS: -5.0}) is None
    assert guard.iterated({"probe/empty": 5.0}) is None
    assert guard.iterated({"probe/empty": math.nan, ROLLOUTS: -5.0}) is None
    assert guard.iterated({"probe/empty": 5.0, ROLLOUTS: 5.0}) is None  # a tie is no lead
    assert bounds(min_entropy=0.1).iterated({"probe/empty": 5.0, ROLLOUTS: -5.0}) is None  # not watched unless set


def test_figures_beyond_their_bounds_at_the_same_time_are_all_counted() -> None:
    """The length is beyond in the first three iterations, the entropy from the second on: its second is the third."""
    guard = bounds(max_length_ratio=2.0, min_entropy=0.25, patience=2)
    said = [
        guard.iterated({LENGTH: length, ENTROPY: entropy})
        for length, entropy in [(10, 1.0), (30, 1.0), (30, 0.1), (10, 0.1)]
    ]
    assert said[:2] == [None, None]
    assert str(said[2]).startswith(LENGTH)
    assert str(said[3]).startswith(ENTROPY)


def test_an_unknown_accuracy_says_nothing() -> None:
    guard = bounds(max_drop=0.1)
    assert [guard.validated(n, value) for n, value in enumerate([0.5, math.nan, 0.45])] == [None] * 3
    assert guard.best == (0.5, 0)


def test_what_was_seen_is_taken_up_again() -> None:
    guard = bounds(max_drop=0.1, max_length_ratio=2.0, patience=2)
    guard.validated(4, 0.5)
    guard.iterated({LENGTH: 10.0, REWARD: 1.0})
    guard.iterated({LENGTH: 30.0, REWARD: 2.0})
    other = bounds(max_drop=0.1, max_length_ratio=2.0, patience=2)
    other.restore(guard.state())
    assert "30, 3 of the first iteration's 10" in str(other.iterated({LENGTH: 30.0}))
    assert "fell from 0.500 (iteration 4) to 0.300" in str(other.validated(6, 0.3))
    assert bounds(max_length_ratio=2.0, patience=2).iterated({LENGTH: 30.0}) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": 0.0}, "max_drop must be a part of 1, such as 0.1, not 0.0"),
        ({"max_drop": 1.5}, "max_drop must be a part of 1"),
        ({"max_drop": math.nan}, "max_drop must be a part of 1"),
        ({"max_length_ratio": 1.0}, "max_length_ratio must be above 1, not 1.0"),
        ({"min_entropy": 0.0}, "min_entropy must be a number of nats above 0, not 0.0"),
        ({"patience": 0}, "patience must be at least 1 iteration, not 0"),
        ({"max_hollow_lead": -0.5}, "max_hollow_lead must be a reward of 0 or more, not -0.5"),
        ({"max_drop": None, "max_length_ratio": None}, "nothing is watched"),
    ],
)
def test_bad_bounds_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Guards: {message}"):
        Guards(**options)


# ---- through real runs ----


class Turning(Verifier, Callback):
    """Every answer is right, until so many iterations are done; then none is."""

    def __init__(self, after: int) -> None:
        self.after, self.done = after, 0

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        right = self.done < self.after
        return [Verdict(right, "equal" if right else "not_equal") for _ in responses]

    def close(self) -> None:
        """Nothing to end."""

    def on_train_batch_end(self, trainer: Any, *others: Any) -> None:
        self.done = trainer.global_step


class LikesTheEnd(PRM):
    """Rewards the end token with 1 and nothing else: of a response of n tokens the mean is 1/n, of the empty one 1."""

    def forward(self, rows: Any) -> Any:
        end = self.backbone.tokenizer.eos_token_id  # type: ignore[union-attr]
        return ((rows.response_ids == end) & rows.response_mask).float() + 0 * super().forward(rows)


def guarded(
    folder: Path, guard: Guards, *, steps: int = 9, verifier: Any = None, prm: PRM | None = None,
    others: Sequence[Callback] = (), **options: Any,
) -> Run:  # fmt: skip
    verifier = EvenDigits() if verifier is None else verifier
    prm = PRM(kind="q_head") if prm is None else prm
    callbacks = [guard, Validation(2), Checkpoint(str(folder), "{step}", every_n_iterations=2, keep_all=True), *others]
    if isinstance(verifier, Callback):
        callbacks.append(verifier)
    data = make_data(val=Problems(problems(4, "test")))
    settings = {"callbacks": callbacks, "limit_val_batches": 1.0, "enable_checkpointing": True}
    return run(make_module(verifier=verifier, prm=prm), data, steps, **(settings | options))


def test_a_fall_ends_the_fit_saved_and_in_two_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Validated after 0 and 2 iterations: 1. All is wrong from the third on, so that after 4 it is 0."""
    guard = Guards(ACCURACY, max_drop=0.5)
    done = guarded(tmp_path, guard, verifier=Turning(after=3))
    assert done.trainer.global_step == 4
    assert checkpoints.read(tmp_path / "last.ckpt")["global_step"] == 4
    assert (tmp_path / "step=4.ckpt").is_file()
    said = [line for line in capsys.readouterr().err.splitlines() if "guard" in line or "saved" in line]
    assert len(said) == 2
    assert said[0].startswith(
        f"guard: ended after iteration 4: {ACCURACY} fell from 1.000 (iteration 0) to 0.000, by more than 0.5"
    )
    assert said[1].startswith(f"saved {tmp_path / 'last.ckpt'}; start anew with")
    # Until then it is the run that it would have been.
    whole = guarded(tmp_path / "other", Guards(max_drop=None), steps=4, verifier=Turning(after=3))
    assert distance(done.weights, whole.weights) == 0


def test_figures_of_iterations_end_it_after_patience(tmp_path: Path) -> None:
    guard = Guards(max_drop=None, min_entropy=100.0, patience=3)
    done = guarded(tmp_path, guard)
    assert done.trainer.global_step == 3
    assert guard.ended is not None
    assert guard.ended.startswith(ENTROPY)
    assert checkpoints.read(tmp_path / "last.ckpt")["global_step"] == 3


def test_a_probe_ends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Validated before the first iteration; from then on the end token alone leads, and after three in a row it ends."""
    guard = Guards(max_drop=None, max_length_ratio=None, max_hollow_lead=0.25, patience=3)
    done = guarded(tmp_path, guard, prm=LikesTheEnd(kind="q_head"), others=[RewardProbes(limit=2)])
    assert done.trainer.global_step == 3
    assert checkpoints.read(tmp_path / "last.ckpt")["global_step"] == 3
    said = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("guard: "))
    assert said.startswith("guard: ended after iteration 3: probe/empty is 1, above the 0.")
    # With a bound that the lead, at most 1, cannot leave, the run goes on.
    free = Guards(max_drop=None, max_length_ratio=None, max_hollow_lead=1.0, patience=3)
    done = guarded(
        tmp_path / "free", free, steps=5, prm=LikesTheEnd(kind="q_head"), others=[RewardProbes(limit=2)]
    )  # fmt: skip
    assert done.trainer.global_step == 5
    assert free.ended is None


def test_probes_that_nobody_scores_are_not_watched(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_hollow_lead is set, but no hollow response is scored"):
        guarded(tmp_path, Guards(max_drop=None, max_hollow_lead=0.5))
    with pytest.raises(ValueError, match="max_hollow_lead is set, but no hollow response is scored"):
        guarded(
            tmp_path, Guards(max_drop=None, max_hollow_lead=0.5), others=[RewardProbes()], limit_val_batches=0
        )  # fmt: skip


def test_a_resumed_run_is_held_to_the_same_best(tmp_path: Path) -> None:
    guarded(tmp_path, Guards(ACCURACY, max_drop=0.5), steps=2, verifier=Turning(after=99))
    wrong = Turning(after=0)  # all is wrong from its start: only the first run knows what was right
    guard = Guards(ACCURACY, max_drop=0.5)
    done = guarded(tmp_path, guard, verifier=wrong, ckpt_path=tmp_path / "step=2.ckpt")
    assert done.trainer.global_step == 4
    assert "fell from 1.000 (iteration 0) to 0.000" in str(guard.ended)


def test_bounds_that_hold_change_nothing(tmp_path: Path) -> None:
    guard = Guards(ACCURACY, max_drop=1.0, max_length_ratio=100.0, min_entropy=1e-9)
    done = guarded(tmp_path, guard, steps=5)
    assert guard.ended is None
    assert done.trainer.global_step == 5
    assert not (tmp_path / "last.ckpt").exists()


def test_what_is_never_measured_is_not_watched(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Guards: val/sampled_accuracy is watched, but nothing is validated"):
        guarded(tmp_path, Guards(), limit_val_batches=0)
    with pytest.raises(ValueError, match=r"monitors 'val/accuracy', which is not logged; did you mean 'val/"):
        guarded(tmp_path, Guards("val/accuracy"))
