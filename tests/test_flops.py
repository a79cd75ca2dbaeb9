"""The floating-point operations that the speed reports divide by, against PyTorch's own count and by hand."""

import random
from collections.abc import Callable

import torch
from benchmarks.workloads import Work, apart, needed, policy_of, shared, synthetic_prompts
from torch.utils.flop_counter import FlopCounterMode

from repirl.data.collate import collate_rows
from repirl.models.prm import PRM


def test_tokens_and_contexts_of_a_prompt_with_two_responses() -> None:
    # Prompt of 3: 1 + 2 + 3. Response of 2: 4 + 5. Response of 1: 4.
    assert shared(3, [2, 1]) == (6, 19)
    # Rows of 5 and 4: 15 + 10.
    assert apart(3, [2, 1]) == (9, 25)


def test_phases_are_made_of_the_matrix_products_that_the_models_do() -> None:
    work = Work(prompts=2, samples=4, prompt_tokens=24, response_tokens=16)
    policy = policy_of("0.1M").load()
    prm = PRM().build(policy)
    draw = random.Random(0)
    pairs = [
        (prompt.token_ids, tuple(draw.choices(range(2, 900), k=16)))
        for prompt in synthetic_prompts(policy.tokenizer, work, 1)[0]
        for _ in range(work.samples)
    ]
    rows = collate_rows([p for p, _ in pairs], [r for _, r in pairs], 0, torch.device("cpu"))

    def products(forward: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            forward()
        return counter.get_total_flops()  # attention on the CPU is not in it

    # Of both prompts, in each of 2 layers: scores and weighted values, 2 operations a channel (64) and context.
    _, contexts = shared(24, [15] * 4)  # the last token of a response predicts nothing
    attention = 2 * 2 * 2 * 2 * 64 * contexts
    phases = needed(policy.model.config, work, shared)
    assert products(lambda: policy(rows)) == phases["policy_update"] / 3 - attention
    assert products(lambda: prm(rows)) == phases["score"] - attention
