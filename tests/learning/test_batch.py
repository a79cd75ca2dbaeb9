"""The global batch: what it is made of, its subsets, and whose log-probabilities a row has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from repirl.learning.batch import GlobalBatch, batch_of, gathered_batch
from repirl.learning.recorder import rollout_figures
from repirl.rollout.transformers import InProcess
from repirl.structs import Expert, Problem, Prompt, Response
from tests.modules.tiny import EvenDigits, make_data, make_module, run, with_experts

NAN = float("nan")


def response(*ids: int, **options: Any) -> Response:
    return Response(ids, "", True, **options)


def prompt(name: str, experts: Sequence[Expert] = (), dataset: str = "") -> Prompt:
    return Prompt(Problem(name, name), (1, 2), tuple(experts), dataset)


def batch(**changes: Any) -> GlobalBatch:
    """Two prompts: two rollouts and an expert of the first, one rollout of the second."""
    expert = Expert("e", (7, 8, 9), correct=True)
    settings: dict[str, Any] = {
        "prompts": [prompt("p", [expert], "easy"), prompt("q", dataset="hard")],
        "positions": [0, 1],
        "rollouts": [[response(3), response(4, 5, log_probs=(-0.5, -0.25), policy_version=1)], [response(6)]],
        "experts": [[expert], []],
        "outcomes": [[1.0, 0.0], [NAN]],
        "gold_outcomes": [[0.0, 1.0], [NAN]],
        "format_rewards": [[0.0, -1.0], [0.0]],
        "policy_version": 2,
        "step_ends": None,
        "with_sampler_log_probs": True,
        "pad_id": 0,
        "device": torch.device("cpu"),
    }
    return gathered_batch(**(settings | changes))


def test_rows_are_the_rollouts_of_each_prompt_then_the_experts() -> None:
    rows = batch()
    assert rows.group.tolist() == [0, 0, 1, 0]
    assert rows.is_expert.tolist() == [False, False, False, True]
    assert rows.response_mask.sum(-1).tolist() == [1, 2, 1, 3]
    assert rows.outcome[[0, 1, 3]].tolist() == [1, 0, 1]
    assert rows.gold_outcome[[0, 1, 3]].tolist() == [0, 1, 1]
    assert rows.outcome[2].isnan()
    assert rows.format_reward.tolist() == [0, -1, 0, 0]
    assert rows.policy_version.tolist() == [2, 1, 2, 2]  # those without one have the present
    assert rows.step_ends.nonzero().tolist() == [[0, 0], [1, 1], [2, 0], [3, 2]]  # a response is one step
    assert rows.sampler_log_probs is not None
    assert rows.sampler_log_probs.tolist() == [[0, 0, 0], [-0.5, -0.25, 0], [0, 0, 0], [0, 0, 0]]


def test_subsets_keep_tokens_and_tensors_together() -> None:
    rows = batch()
    of_first = rows.of_groups(torch.tensor([0])).of_policy()
    assert of_first.rows.response_ids[:, 0].tolist() == [3, 4]
    assert of_first.group.tolist() == [0, 0]
    assert of_first.response_mask.shape == (2, 3)  # columns stay
    halves = rows.mini_batches(2)
    assert [half.group.unique().tolist() for half in halves] == [[0], [1]]
    assert halves[1].local(torch.arange(3.0)[None]).tolist() == [[0, 1, 2]]


def test_a_value_that_is_not_finite_is_told_with_its_prompt() -> None:
    rows = batch()
    values = torch.zeros(4, 3)
    rows.require_finite(values, "the reward")
    values[2, 0] = torch.inf
    with pytest.raises(FloatingPointError, match="the reward is NaN or infinite for prompt 'q'"):
        rows.require_finite(values, "the reward")
    with pytest.raises(FloatingPointError, match="for all prompts"):
        rows.require_finite(torch.full((4, 3), NAN), "the reward")


def test_a_batch_of_tensors_has_no_tokens() -> None:
    rows = batch_of(
        response_mask=torch.tensor([[True, True], [True, False]]),
        group=torch.tensor([0, 0]),
        is_expert=torch.tensor([True, False]),
    )
    assert rows.step_ends.tolist() == [[False, True], [True, False]]
    assert rows.outcome.isnan().all()
    with pytest.raises(AssertionError, match="no tokens"):
        _ = rows.rows


def test_figures_tell_the_parts_of_a_mixture_apart() -> None:
    rows = batch()
    assert rows.sources == ("easy", "hard")
    figures = rollout_figures(rows, [[None, None], [None]])
    assert float(figures["rollout"]["accuracy/easy"]) == 0.5
    assert "accuracy/hard" not in figures["rollout"]  # nothing is known of it
    assert float(figures["rollout"]["response_tokens/easy"]) == 1.5
    assert figures["prompts"]["of/easy"] == figures["prompts"]["of/hard"] == 1
    assert figures["prompts"]["with_experts"] == 1
    of_one = batch(prompts=[prompt("p", [Expert("e", (7, 8, 9))]), prompt("q")])
    assert of_one.sources == ("",)
    assert not [name for name in rollout_figures(of_one, [[None, None], [None]])["rollout"] if "/" in name]


class Late(InProcess):
    """Says that its responses come from the weights of an iteration before, with log-probabilities of -1 a token."""

    gives_log_probs = True

    def generate(self, *arguments: Any, **options: Any) -> list[list[Response]]:
        return [
            [replace(r, policy_version=-1, log_probs=(-1.0,) * len(r.token_ids)) for r in row]
            for row in super().generate(*arguments, **options)
        ]


def test_rows_of_earlier_weights_keep_their_sampler_s_log_probabilities() -> None:
    seen: list[GlobalBatch] = []
    module = make_module(rollout=Late(), verifier=EvenDigits())
    update = module.alternation.update_prm
    module.alternation.update_prm = lambda batch: (seen.append(batch), update(batch))[1]  # type: ignore[method-assign,func-returns-value]
    run(module, make_data(with_experts()))
    (rows,) = seen
    assert rows.behaviour_log_probs is not None
    assert rows.old_log_probs is not None
    mask = rows.response_mask
    of_rollouts, of_experts = mask & ~rows.is_expert[:, None], mask & rows.is_expert[:, None]
    assert of_rollouts.any()
    assert of_experts.any()
    assert (rows.behaviour_log_probs[of_rollouts] == -1).all()
    assert torch.equal(rows.behaviour_log_probs[of_experts], rows.old_log_probs[of_experts])
    assert not (rows.old_log_probs[of_rollouts] == -1).any()
