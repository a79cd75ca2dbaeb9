"""A linear PRM that is exported and served by vLLM's pooling interface gives the rewards of training."""

from __future__ import annotations

from pathlib import Path

import torch

from repirl.models.export import save_prm
from repirl.models.prm import PRM
from tests.models.tiny import EOS, rows_of
from tests.vllm.engines import EAGER, PROMPTS, needs_vllm, wide_policy

RESPONSES = [[3, 4, EOS], [7, 2, 2, 9, 4, 5, EOS], [8], [6, 6, 6, 6, 6]]


@needs_vllm
def test_a_linear_prm_that_is_served_gives_the_rewards_of_training(tmp_path: Path) -> None:
    from vllm import LLM, PoolingParams

    prm = PRM(kind="linear").build(wide_policy())
    with torch.no_grad():
        prm.head.score.weight.normal_(generator=torch.Generator().manual_seed(0))
        prm.head.score.bias.fill_(0.7)
    save_prm(prm, tmp_path / "prm")
    rows = rows_of(PROMPTS, RESPONSES)
    with torch.no_grad():
        expected = prm(rows)
    served = LLM(str(tmp_path / "prm"), runner="pooling", dtype="float32", **EAGER)
    given = [{"prompt_token_ids": prompt + response} for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    raw = PoolingParams(use_activation=False)  # with one label the default is a sigmoid
    outputs = served.encode(given, pooling_params=raw, pooling_task="token_classify")
    for row, prompt, response, output in zip(expected, PROMPTS, RESPONSES, outputs, strict=True):
        rewards = output.outputs.data.float().flatten()[len(prompt) :]
        assert torch.allclose(rewards, row[: len(response)], atol=1e-5)
    assert expected.abs().max() > 0.1
