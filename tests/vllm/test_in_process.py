"""vLLM in this process: its log-probabilities are the policy's, before and after updates; seeds, ends, modes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from peft import LoraConfig

from repirl.data.codec import ChatCodec
from repirl.models.policy import Policy
from repirl.rollout.transformers import InProcess
from repirl.rollout.vllm import VLLM
from repirl.rollout.vllm_engine import Engine
from tests.models.tiny import EOS, PAD
from tests.vllm.engines import EAGER, PROMPTS, SEEDS, attached, gap, ids, needs_vllm, step, wide_policy

pytestmark = needs_vllm
ROUNDING = 1e-4  # nats, float32

POLICY = wide_policy()


@pytest.fixture(scope="module")
def shared() -> Iterator[VLLM]:
    """One engine for the tests that leave the weights alone."""
    made = attached(POLICY)
    yield made
    made.close()


def greedy(policy: Policy, limit: int = 16) -> list[list[tuple[int, ...]]]:
    loop = InProcess()
    decode = ChatCodec(policy.tokenizer).decode
    loop.attach(policy.model, decode=decode, pad_id=PAD, eos_ids=(EOS,), max_response_tokens=limit)
    return ids(loop.generate(PROMPTS, samples=1, seeds=SEEDS, temperature=0.0))


def test_log_probs_are_those_of_the_training_forward_pass(shared: VLLM) -> None:
    responses = shared.generate(PROMPTS, samples=8, seeds=SEEDS)
    flat = [response for group in responses for response in group]
    assert {r.finished for r in flat} == {True, False}
    assert len({r.token_ids for r in flat}) > 20
    assert gap(POLICY, responses) < ROUNDING


def test_greedy_is_the_decoding_loop_s(shared: VLLM) -> None:
    assert ids(shared.generate(PROMPTS, samples=1, seeds=SEEDS, temperature=0.0)) == greedy(POLICY)


def test_seeds_decide_the_samples(shared: VLLM) -> None:
    first = ids(shared.generate(PROMPTS, samples=4, seeds=SEEDS))
    assert ids(shared.generate(PROMPTS, samples=4, seeds=SEEDS)) == first
    assert ids(shared.generate(PROMPTS[::-1], samples=4, seeds=SEEDS[::-1])) == first[::-1]
    for prompt, seed, group in zip(PROMPTS, SEEDS, first, strict=True):
        assert ids(shared.generate([prompt], samples=4, seeds=[seed])) == [group]
    others = ids(shared.generate(PROMPTS, samples=4, seeds=[seed + 100 for seed in SEEDS]))
    assert all(a != b for a, b in zip(others, first, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_policy(shared: VLLM, temperature: float) -> None:
    count, prompt = 1000, [2, 3, 9]
    (got,) = shared.generate([prompt], samples=count, seeds=[5], temperature=temperature)
    with torch.no_grad():
        expected = (POLICY.model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1) * count
    seen = torch.bincount(torch.tensor([r.token_ids[0] for r in got]), minlength=len(expected))
    common = expected >= 5
    assert common.sum() >= 2
    chi_square = float(((seen - expected)[common] ** 2 / expected[common]).sum())
    degrees = int(common.sum())
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5


def test_responses_end_with_an_end_token_or_at_the_limit(shared: VLLM) -> None:
    for group in shared.generate(PROMPTS, samples=8, seeds=SEEDS):
        for response in group:
            assert EOS not in response.token_ids[:-1]
            assert response.finished == (response.token_ids[-1] == EOS)
            assert response.finished or len(response.token_ids) == 16
            assert response.text == ChatCodec(POLICY.tokenizer).decode(response.token_ids)


def test_an_impossible_length_is_refused(shared: VLLM) -> None:
    with pytest.raises(ValueError, match="exceed vLLM's max_model_len 96"):
        shared.generate([[2] * 90], samples=1, seeds=[1])


def test_the_process_is_as_before(shared: VLLM) -> None:
    """vLLM seeds the global generator and replaces torch.set_num_threads; neither may be felt."""
    shared.close()
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    shared.generate(PROMPTS, samples=2, seeds=SEEDS)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("tied", [False, True])
def test_updates_reach_the_engine(tied: bool) -> None:
    policy = wide_policy(tie_word_embeddings=tied)
    made = attached(policy)
    old = made.generate(PROMPTS, samples=4, seeds=SEEDS)
    assert gap(policy, old) < ROUNDING
    for _ in range(3):
        before = tuple(map(tuple, ids(old)))
        step(policy)
        assert gap(policy, old) > 0.05  # what was sampled before is now off
        old = made.generate(PROMPTS, samples=4, seeds=SEEDS)
        assert gap(policy, old) < ROUNDING
        assert tuple(map(tuple, ids(old))) != before
    assert ids(made.generate(PROMPTS, samples=1, seeds=SEEDS, temperature=0.0)) == greedy(policy)
    made.close()


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_lora_updates_reach_the_engine_alone_or_merged(
    merge: bool, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = wide_policy(tie_word_embeddings=tied)
    plain, loads = greedy(policy), []
    monkeypatch.setattr(Engine, "load", lambda *given, load=Engine.load: loads.append(1) or load(*given))
    policy.model.add_adapter(LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj", "down_proj"]))
    made = attached(policy, merge_adapters=merge)
    old = made.generate(PROMPTS, samples=4, seeds=SEEDS)
    assert gap(policy, old) < ROUNDING
    for _ in range(2):
        step(policy, 0.3)
        assert gap(policy, old) > 0.05
        old = made.generate(PROMPTS, samples=4, seeds=SEEDS)
        assert gap(policy, old) < ROUNDING
    assert greedy(policy) != plain
    assert ids(made.generate(PROMPTS, samples=1, seeds=SEEDS, temperature=0.0)) == greedy(policy)
    assert len(loads) == (3 if merge else 1)
    made.close()


def test_an_engine_made_in_inference_mode_takes_updates_outside_it() -> None:
    policy = wide_policy()
    made = attached(policy)
    with torch.inference_mode():
        assert gap(policy, made.generate(PROMPTS, samples=2, seeds=SEEDS)) < ROUNDING
    step(policy)
    assert gap(policy, made.generate(PROMPTS, samples=2, seeds=SEEDS)) < ROUNDING
    made.close()
    again = made.generate(PROMPTS, samples=2, seeds=SEEDS)  # it starts anew
    assert gap(policy, again) < ROUNDING
    made.close()


def test_sleep_is_refused_on_a_cpu() -> None:
    with pytest.raises(ValueError, match=r"rollout.sleep: vLLM frees memory on GPUs only"):
        attached(POLICY, sleep=True).generate(PROMPTS, samples=1, seeds=SEEDS)


def test_truncated_sampling_stays_within_its_tokens() -> None:
    made = attached(POLICY, top_k=1, engine=EAGER)
    assert ids(made.generate(PROMPTS, samples=1, seeds=SEEDS)) == greedy(POLICY)
    made.close()
