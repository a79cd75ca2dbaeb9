"""The past of a decoding step against plain forwards of each row alone, in each kind of model; rows that leave."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from repirl.models.policy import Policy
from repirl.rollout import past as past_module
from repirl.rollout import transformers as rollout
from repirl.rollout.past import RepeatedPast, SharedPast, prefill, remaining
from tests.models.test_packing import NOT_PACKING, PACKING
from tests.models.tiny import PAD, TOKENS, tiny_policy
from tests.rollout.test_transformers import PROMPTS, SEEDS, generator, ids, letters

MODELS = pytest.mark.parametrize("config", [*PACKING, *NOT_PACKING], ids=lambda c: f"{c['model_type']}")
SAMPLES = 3


@pytest.fixture(autouse=True, params=[0, 10**9], ids=["shared", "repeated"])
def shared_from(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Every test, with each prompt's keys held once where the model can, and with repeated ones: nothing may differ."""
    monkeypatch.setattr(past_module, "SHARED_FROM", request.param)
    return int(request.param)


def policy_of(config: dict[str, Any], seed: int = 3, **settings: Any) -> Policy:
    return Policy(config=config, tokens=TOKENS, init_seed=seed, **settings).load()


def plain(policy: Policy) -> Policy:
    """The same weights with transformers' own attention and cache."""
    policy.model.set_attn_implementation("sdpa")
    return policy


class Rows:
    """Rows of random tokens that go through the model, and leave, as a test says."""

    def __init__(self, policy: Policy, prompts: list[list[int]]) -> None:
        self.policy = policy
        logits, self.past = prefill(policy.model, prompts, SAMPLES, PAD)
        self.logits = logits.repeat_interleave(SAMPLES, 0)
        self.tokens = [list(prompt) for prompt in prompts for _ in range(SAMPLES)]
        self.draw = random.Random(0)

    def step(self) -> None:
        for row in self.tokens:
            row.append(self.draw.randrange(10))
        new, positions = (torch.tensor(x) for x in ([r[-1] for r in self.tokens], [len(r) - 1 for r in self.tokens]))
        self.logits = self.past.step(self.policy.model, new, positions)

    def leave(self, *rows: int) -> None:
        order = remaining(torch.tensor([i in rows for i in range(len(self.tokens))]))
        self.past.keep(order)
        self.tokens, self.logits = [self.tokens[i] for i in order], self.logits[order]

    def check(self) -> None:
        alone = [self.policy.model(torch.tensor([row]), use_cache=False).logits[0, -1] for row in self.tokens]
        torch.testing.assert_close(self.logits, torch.stack(alone), rtol=0, atol=1e-5)


@MODELS
@torch.no_grad()
def test_logits_are_those_of_each_row_alone(config: dict[str, Any], shared_from: int) -> None:
    policy = policy_of(config)
    policy.model.eval()
    rows = Rows(policy, [[2, 3], [4, 5, 6, 7, 8, 2, 2], [5], [2, 2, 9, 3]])
    assert type(rows.past) is (SharedPast if config in PACKING and shared_from == 0 else RepeatedPast)
    rows.check()
    for _ in range(2):
        rows.step()
        rows.check()
    for gone in ((0,), (10,), (2, 3, 4), (0, 1, 2)):  # the first, the last, a whole prompt or most of it
        rows.leave(*gone)
        rows.check()
        rows.step()
        rows.check()
    assert len(rows.tokens) == 4
    for _ in range(80):  # past the room that there was at first
        rows.step()
    rows.check()
    rows.leave(1, 2, 3)
    rows.step()
    rows.check()


@MODELS
def test_samples_are_those_with_the_library_s_cache(config: dict[str, Any]) -> None:
    made, other = (policy_of(config), plain(policy_of(config)))
    settings: dict[str, Any] = {"limit": 30, "decode": letters, "stop_strings": ["ga", "\n"]}
    got = generator(made, **settings).generate(PROMPTS, samples=4, seeds=SEEDS)
    assert got == generator(other, **settings).generate(PROMPTS, samples=4, seeds=SEEDS)
    assert len({len(response.token_ids) for group in got for response in group}) > 1


def test_samples_with_an_adapter_are_those_of_the_merged_weights(shared_from: int) -> None:
    policy, merged = tiny_policy(seed=3), tiny_policy(seed=3)
    base = ids(generator(policy).generate(PROMPTS, samples=4, seeds=SEEDS))
    for one in (policy, merged):
        torch.manual_seed(0)
        one.model = get_peft_model(one.model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    assert isinstance(prefill(policy.model, PROMPTS, 1, PAD)[1], SharedPast if shared_from == 0 else RepeatedPast)
    merged.model = plain(merged).model.merge_and_unload()
    got = ids(generator(policy).generate(PROMPTS, samples=4, seeds=SEEDS))
    assert got == ids(generator(merged).generate(PROMPTS, samples=4, seeds=SEEDS))
    assert got != base


def test_training_mode_does_not_matter() -> None:
    """Gradient checkpointing drops the cache in training mode, and dropout would change the policy."""
    config = {**PACKING[-1], "attn_pdrop": 0.5, "resid_pdrop": 0.5}
    for policy in (
        policy_of(config, gradient_checkpointing=True),
        plain(policy_of(config, gradient_checkpointing=True)),
    ):
        expected = generator(policy)
        policy.model.eval()
        calm = expected.generate(PROMPTS, samples=4, seeds=SEEDS)
        policy.model.train()
        assert expected.generate(PROMPTS, samples=4, seeds=SEEDS) == calm
        assert all(module.training for module in policy.model.modules())


@pytest.mark.parametrize("every", [2, 5, 100])
def test_when_finished_rows_are_dropped_does_not_matter(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = generator(limit=30).generate(PROMPTS, samples=4, seeds=SEEDS)
    monkeypatch.setitem(rollout._STEPS_BETWEEN_DROPS, "cpu", every)
    assert generator(limit=30).generate(PROMPTS, samples=4, seeds=SEEDS) == expected


@pytest.mark.parametrize("own_cache", [False, True])
def test_each_prompt_runs_once_and_finished_rows_no_more(own_cache: bool) -> None:
    policy = plain(tiny_policy(seed=3)) if own_cache else tiny_policy(seed=3)
    shapes: list[tuple[int, ...]] = []
    embeddings = policy.model.get_input_embeddings()
    embeddings.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    groups = generator(policy).generate(PROMPTS, samples=4, seeds=SEEDS)
    lengths = [len(response.token_ids) for group in groups for response in group]
    assert shapes[0] == (6, 7)  # the prompts
    rows = [sum(length > t for length in lengths) for t in range(1, max(lengths))]
    assert shapes[1:] == [(n, 1) for n in rows]
    assert len(set(rows)) > 3


@torch.no_grad()
def test_prompts_without_rows_cost_nothing() -> None:
    def operations(rows: Rows) -> int:
        with FlopCounterMode(display=False) as counter:
            rows.step()
        return counter.get_total_flops()

    policy = tiny_policy()
    both, one = Rows(policy, [[2, 3, 4], [5, 6, 7]]), Rows(policy, [[5, 6, 7]])
    before = operations(both)
    both.leave(0, 1, 2)
    operations(one)
    assert operations(both) == operations(one) < 0.6 * before


def moved(done: list[int]) -> list[int]:
    order: Tensor = remaining(torch.tensor(done, dtype=torch.bool))
    return order.tolist()


def test_the_last_rows_take_the_places_of_those_that_are_done() -> None:
    assert moved([0, 0, 0]) == [0, 1, 2]
    assert moved([1, 0, 0, 0]) == [3, 1, 2]
    assert moved([0, 1, 0, 1, 0, 1]) == [0, 4, 2]
    assert moved([1, 1, 0, 0]) == [2, 3]
    assert moved([0, 0, 1]) == [0, 1]
    assert moved([1, 1]) == []
