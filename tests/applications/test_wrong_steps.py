"""Which steps of running sums are wrong, and how token rewards find them."""

from __future__ import annotations

import pytest
import torch

from repirl.applications.trained import Trained
from repirl.applications.wrong_steps import JudgedSteps, found_wrong, judged_rollouts, step_verdicts, token_values
from repirl.data.arithmetic import ARITHMETIC_TOKENS, RunningSums
from repirl.data.collate import collate_rows
from repirl.learning.actor import codec_of
from repirl.learning.settings import Text
from repirl.models.policy import Policy
from repirl.models.prm import PRM

TEXT = Text(max_prompt_tokens=32, max_response_tokens=20)


@pytest.mark.parametrize(
    ("response", "wrong"),
    [
        (r"\boxed{b8c7d9}", [False, False, False]),
        (r"\boxed{b8c6d8}", [False, True]),  # the last step follows from the wrong one: no verdict
        (r"\boxed{b8c7}", [False, False, True]),  # one is missing
        (r"\boxed{b8c7d9e1}", [False, False, False, True]),  # one too many
        ("b8", [True]),
    ],
)
def test_steps_have_verdicts_up_to_the_first_error(response: str, wrong: list[bool]) -> None:
    assert step_verdicts("a3b5c9d2", response) == wrong


def test_reward_of_a_step_is_that_of_its_letter_and_its_digit() -> None:
    # A box, then two tokens a step: the first row's steps sum to 3 and -1, the second's to .5 and 4.
    rewards = torch.tensor([[9.0, 1.0, 2.0, -3.0, 2.0, 7.0], [9.0, 0.25, 0.25, 1.0, 3.0, 7.0]])
    assert found_wrong(rewards, [[False, True], [True]]) == 1.0  # right 3, wrong -1 and .5
    assert found_wrong(rewards, [[True], [False, False]]) == 0.5  # wrong 3, right .5 and 4


def tiny(seed: int) -> Policy:
    config = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False}
    return Policy(config=config, tokens=list(ARITHMETIC_TOKENS), init_seed=seed).load()


def test_rollouts_of_the_start_are_the_same_for_every_run() -> None:
    problems, start = RunningSums(12, seed=0, split="test").load(), Trained(tiny(0), None, TEXT)
    steps, again = judged_rollouts(start, problems), judged_rollouts(start, problems)
    assert len(steps.steps) == 12
    assert torch.equal(again.rows.response_ids, steps.rows.response_ids)
    assert torch.equal(steps.log_probs, again.log_probs)
    # An untrained policy writes no right step, and there is nothing to compare wrong ones with.
    assert steps.judged_by(start) == {}


def test_the_log_ratio_is_that_of_the_trained_policy_over_the_start() -> None:
    policy = tiny(1)
    prm = PRM(kind="logit_difference")
    prm.build(policy)
    codec = codec_of(policy.tokenizer, TEXT)
    texts = [r"\boxed{b8c7}", r"\boxed{b8c6}"]
    rows = collate_rows(codec.encode_prompts(["a3b5c9"] * 2), codec.encode_responses(texts), codec.pad_id)
    own = token_values(rows, lambda some: policy(some)[0])
    planted = torch.zeros_like(own)
    planted[0, 4], planted[1, 4] = 1.0, -1.0  # the digits 7, right, and 6, wrong
    verdicts = [[False, False], [False, True]]
    trained = Trained(policy, prm, TEXT)
    assert JudgedSteps(rows, own - planted, verdicts).judged_by(trained)["wrong_steps_log_ratio"] == 1.0
    assert JudgedSteps(rows, own + planted, verdicts).judged_by(trained)["wrong_steps_log_ratio"] == 0.0
    # What the policy has learned does not enter what its PRM says.
    of_prm = found_wrong(prm.token_rewards(rows).detach(), verdicts)
    assert JudgedSteps(rows, own - planted, verdicts).judged_by(trained)["wrong_steps_prm"] == of_prm
