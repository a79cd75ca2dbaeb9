"""vLLM in a server process: the same responses as in this one, updates over HTTP, and a server that dies."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from peft import LoraConfig

from tests.vllm.engines import PROMPTS, SEEDS, attached, gap, ids, needs_vllm, step, wide_policy

pytestmark = needs_vllm


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "repirl.rollout.vllm_server", "--port", "0"]
    process = subprocess.Popen(command, env=os.environ.copy(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("listening at http://127.0.0.1:"), line
    yield process, line.removeprefix("listening at ").strip()
    process.terminate()
    process.wait()


@pytest.mark.parametrize("adapters", [False, True])
def test_a_server_samples_as_an_engine_here_and_follows_updates(
    server: tuple[subprocess.Popen[str], str], adapters: bool
) -> None:
    process, address = server
    policy = wide_policy(tie_word_embeddings=True)
    if adapters:
        policy.model.add_adapter(LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    here, there = attached(policy), attached(policy, server=address)
    for _ in range(2):
        remote = there.generate(PROMPTS, samples=4, seeds=SEEDS)
        assert gap(policy, remote) < 1e-4
        assert ids(remote) == ids(here.generate(PROMPTS, samples=4, seeds=SEEDS))
        step(policy, 0.3 if adapters else 0.02)
        assert gap(policy, remote) > 0.05
    here.close()
    process.kill()
    process.wait()
    with pytest.raises(ValueError, match=r"no answer to 'weights' .*vllm_server` running there"):
        there.generate(PROMPTS, samples=4, seeds=SEEDS)
