"""Canaries for the names of vLLM that its documentation does not promise (docs/private-names.md)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig

from repirl.weights import plain_weights
from tests.private_names.table import canary
from tests.vllm.engines import PROMPTS, SEEDS, attached, gap, needs_vllm, step, wide_policy

pytestmark = needs_vllm
ROUNDING = 1e-4  # nats, float32


def heads(worker: Any) -> list[tuple[bool, bool]]:
    """Of each output layer of a worker's model: whether it has a packed copy, and its name is in the model."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    modules = dict(worker.model_runner.get_model().named_modules())
    return [(hasattr(m, "cpu_linear"), name in modules) for name, m in modules.items() if isinstance(m, ParallelLMHead)]


@canary("LLM.llm_engine", "LLMEngine.engine_core", "Worker.model_runner", "Worker.reload_weights")
def test_weights_are_replaced_by_a_call_to_the_worker() -> None:
    policy = wide_policy()
    made = attached(policy)
    old = made.generate(PROMPTS, samples=2, seeds=SEEDS)
    llm = made._engine._llm  # type: ignore[union-attr]
    assert llm.llm_engine.model_config.max_model_len == 96
    assert callable(llm.llm_engine.engine_core.shutdown)
    step(policy)
    assert gap(policy, old) > 0.05
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(plain_weights(policy.model))})
    llm.reset_prefix_cache()
    parameters = made._engine._vllm.SamplingParams(temperature=0.0, max_tokens=1, logprobs=0, detokenize=False)  # type: ignore[union-attr]
    with torch.no_grad():
        (output,) = llm.generate([{"prompt_token_ids": [2, 3]}], parameters, use_tqdm=False)
        expected = policy.model(torch.tensor([[2, 3]])).logits[0, -1].log_softmax(-1)
    (token,) = output.outputs[0].token_ids
    assert token == int(expected.argmax())
    assert output.outputs[0].logprobs[0][token].logprob == pytest.approx(float(expected[token]), abs=ROUNDING)
    made.close()


@canary("layers.utils.dispatch_cpu_unquantized_gemm", "ParallelLMHead.cpu_linear")
def test_a_tied_head_is_packed_on_the_cpu_and_packed_again() -> None:
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.platforms import current_platform

    assert callable(dispatch_cpu_unquantized_gemm)
    policy = wide_policy(tie_word_embeddings=True)
    made = attached(policy)
    made.generate(PROMPTS, samples=1, seeds=SEEDS)
    (of_worker,) = made._engine._llm.collective_rpc(heads)  # type: ignore[union-attr]
    assert of_worker == [(current_platform.is_cpu(), True)]
    step(policy)
    assert gap(policy, made.generate(PROMPTS, samples=2, seeds=SEEDS)) < ROUNDING
    made.close()


@canary("distributed.destroy_model_parallel", "distributed.destroy_distributed_environment")
def test_a_second_engine_starts_after_the_first_has_ended() -> None:
    policy = wide_policy()
    for _ in range(2):
        made = attached(policy)
        assert gap(policy, made.generate(PROMPTS, samples=1, seeds=SEEDS)) < ROUNDING
        made.close()
        assert not torch.distributed.is_initialized()


@canary("LLMEngine.add_lora", "LLMEngine.remove_lora")
def test_adapters_are_read_at_once_and_leave() -> None:
    policy = wide_policy()
    policy.model.add_adapter(LoraConfig(r=4, target_modules=["q_proj"]))
    made = attached(policy)
    for version in (1, 2):
        assert gap(policy, made.generate(PROMPTS, samples=1, seeds=SEEDS)) < ROUNDING
        assert made._engine._llm.llm_engine.list_loras() == {version}  # type: ignore[union-attr]
        step(policy, 0.3)
    made.close()
