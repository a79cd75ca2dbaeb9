"""Rollouts one iteration ahead: whose they are, what is trained on them, and how a run goes on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from repirl import checkpoints
from repirl.learning.ahead import AheadActor, Sampled, from_plain, to_plain
from repirl.learning.schedule import Schedule
from repirl.models.prm import PRM
from repirl.modules.repirl import RePIRL
from repirl.rollout.transformers import InProcess
from repirl.structs import CodeTests, Expert, Problem, Prompt, Response
from tests.modules.tiny import ADAM, EvenDigits, distance, make_data, make_module, make_policy, run, with_experts

AHEAD = Schedule(rollouts_ahead=1)
LORA = {"r": 2, "target_modules": "all-linear"}
STILL = partial(torch.optim.SGD, lr=0.0)


def module(**options: Any) -> RePIRL:
    return make_module(**{"schedule": AHEAD, "verifier": EvenDigits(), "prm": PRM("q_head")} | options)


def prompts_of(made: RePIRL) -> list[Prompt]:
    data = make_data(with_experts())
    return [
        Prompt(
            p, made.codec.encode_prompt(p.text), tuple(Expert(s, made.codec.encode_response(s)) for s in p.solutions)
        )
        for p in data.train.load()[:3]
    ]


class Waiting(InProcess):
    """Samples once it is allowed to."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed = threading.Event()

    def generate(self, prompts: Sequence[Sequence[int]], **how: Any) -> list[list[Response]]:
        assert self.allowed.wait(60), "nobody trained meanwhile"
        return super().generate(prompts, **how)


class Broken(InProcess):
    """Cannot sample."""

    def generate(self, prompts: Sequence[Sequence[int]], **how: Any) -> list[list[Response]]:
        raise ConnectionError("the engine is gone")


@pytest.mark.parametrize("lora", [None, LORA])
def test_rollouts_are_of_the_weights_at_the_start_whatever_happens_to_them_then(lora: Any) -> None:
    rollout = Waiting()
    ahead, plain = (
        module(policy=make_policy(lora=lora), rollout=rollout),
        module(schedule=Schedule(), policy=make_policy(lora=lora)),
    )
    for made in (ahead, plain):
        made.configure_model()
        move(made)
    prompts = prompts_of(plain)
    plain.alternation.begin(5)
    now = plain.alternation.roll_out(prompts)
    batch = plain.alternation.with_log_probs(plain.alternation.collect(now)).of_policy()

    ahead.alternation.begin(5)
    assert ahead.alternation.roll_out(prompts) is None
    move(ahead)  # training, while the thread waits
    rollout.allowed.set()
    ahead.alternation.begin(6)
    taken = ahead.alternation.roll_out(prompts)
    assert taken.prompts == prompts
    assert [[r.token_ids for r in row] for row in taken.rollouts] == [
        [r.token_ids for r in row] for row in now.rollouts
    ]
    flat = [r for row in taken.rollouts for r in row]
    assert {r.policy_version for r in flat} == {5}
    expected = batch.behaviour_log_probs
    for response, row in zip(flat, expected, strict=True):
        torch.testing.assert_close(torch.tensor(response.log_probs), row[: len(response.token_ids)])
    known = ahead.alternation.with_log_probs(ahead.alternation.collect(taken)).of_policy()
    torch.testing.assert_close(known.behaviour_log_probs, expected)
    assert (known.old_log_probs - expected).abs().max() > 1e-3  # the weights have moved since
    ahead.actor.close()


def move(made: RePIRL) -> None:
    """Moves what is trained, the same way in each module."""
    with torch.no_grad():
        for parameter in made.policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.ones_like(parameter).cumsum(0).cos())


def test_a_snapshot_shares_what_is_never_trained() -> None:
    policy = make_policy(lora=LORA).load()
    snapshot = policy.snapshot()
    for own, of_policy in zip(snapshot.parameters(), policy.parameters(), strict=True):
        assert (own is of_policy) == (not of_policy.requires_grad)


def test_answers_are_the_present_policys() -> None:
    ahead, plain = module(), module(schedule=Schedule())
    for made in (ahead, plain):
        made.configure_model()
    prompts = prompts_of(plain)
    ahead.alternation.begin(0)
    ahead.alternation.roll_out(prompts)
    how: dict[str, Any] = {"samples": 2, "key": (1,), "temperature": 1.0}
    before = ahead.actor.sample(prompts, [0, 1, 2], **how)
    for made in (ahead, plain):
        move(made)
    now = ahead.actor.sample(prompts, [0, 1, 2], **how)
    assert now == plain.actor.sample(prompts, [0, 1, 2], **how)
    assert now != before
    ahead.actor.close()


def test_a_policy_that_stays_gives_the_prm_the_same_lessons_an_iteration_later() -> None:
    plain = run(module(schedule=Schedule(), policy_optimizer=STILL), make_data(with_experts()), steps=3)
    ahead = run(module(policy_optimizer=STILL), make_data(with_experts()), steps=4)
    names = ["prm/ranking_loss", "prm/margin", "prm/ess", "rollout/accuracy", "rollout/response_tokens"]
    first, *others = ahead.figures
    assert "rollout/accuracy" not in first
    assert not any(name.startswith("prm/ranking") for name in first)
    for later, now in zip(others, plain.figures, strict=True):
        assert {name: later[name] for name in names} == pytest.approx({name: now[name] for name in names}, abs=1e-5)
    assert plain.figures[0]["prm/ranking_loss"] != plain.figures[2]["prm/ranking_loss"]
    assert others[0]["sampler/gap_mean"] == pytest.approx(0, abs=1e-5)


def test_a_run_goes_on_exactly(tmp_path: Path) -> None:
    def made() -> RePIRL:
        return module(policy_optimizer=ADAM, prm_optimizer=ADAM)

    whole, first = run(made(), steps=5), run(made(), steps=3)
    first.trainer.save_checkpoint(tmp_path / "three.ckpt")
    resumed = run(made(), steps=5, ckpt_path=tmp_path / "three.ckpt")
    assert distance(resumed.weights, whole.weights) == 0
    assert resumed.figures == whole.figures[3:]
    assert whole.figures[4]["sampler/gap_mean"] > 1e-4
    assert len(checkpoints.read(tmp_path / "three.ckpt")["rollouts_ahead"]) == 4
    with pytest.raises(ValueError, match=r"holds rollouts ahead, which this run would lose: set model.schedule"):
        run(module(schedule=Schedule()), steps=5, ckpt_path=tmp_path / "three.ckpt")


def test_an_error_of_the_sampler_ends_the_run() -> None:
    with pytest.raises(ConnectionError, match="the engine is gone"):
        run(module(rollout=Broken()), steps=3)


def test_prompts_and_rollouts_are_stored_as_plain_values() -> None:
    tests = CodeTests("calls", pairs=(("[1]", "2"), ("[2]", "3")), entry_point="f")
    problem = Problem("a", "Add one.", solutions=("f", "g"), tests=tests)
    prompt = Prompt(problem, (1, 2), (Expert("f", (3, 4), True),), "code")
    bare = Prompt(Problem("b", "Two?", answer="2"), (5,))
    rollouts = [[Response((6, 7), "f", True, (-0.5, -1.0), 3)], [Response((8,), "2", False)]]
    stored = to_plain(Sampled([prompt, bare], rollouts))
    assert from_plain(stored) == Sampled([prompt, bare], rollouts)
    assert [row["position"] for row in stored] == [0, 1]
    assert isinstance(stored[0]["prompt"], dict)


def test_the_actor_of_a_run_without_is_the_plain_one() -> None:
    assert not isinstance(module(schedule=Schedule()).actor, AheadActor)
    assert not module(schedule=Schedule()).actor.gives_log_probs
