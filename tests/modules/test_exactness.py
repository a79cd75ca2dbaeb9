"""What makes an iteration fast changes none of its figures, up to rounding."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from repirl.learning.schedule import Schedule
from repirl.learning.settings import Surrogate
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.modules.repirl import RePIRL
from repirl.modules.sft import SFT
from repirl.rollout import past
from tests.modules.tiny import (
    LLAMA,
    SGD,
    TEXT,
    TOKENS,
    EvenDigits,
    make_data,
    make_module,
    make_policy,
    run,
    with_experts,
)

ROUNDING = 2e-4
SLOW = partial(torch.optim.SGD, lr=0.05)  # larger steps make rounding grow


class PlainPolicy(Policy):
    """Transformers' own attention and cache, padded rows, each with its prompt."""

    def load(self) -> Policy:
        super().load()
        self.model.set_attn_implementation("sdpa")
        self.packs = False
        return self


def plain_policy() -> Policy:
    return PlainPolicy(config=LLAMA, tokens=TOKENS)


def figures_of(policy: Policy, micro_batch_tokens: int) -> list[dict[str, float]]:
    def made() -> RePIRL:
        return make_module(
            policy=policy,
            prm=PRM(kind="q_head"),
            verifier=EvenDigits(),
            surrogate=Surrogate(kl_coef=0.1),
            schedule=Schedule(prm_updates=2, policy_mini_batches=2),
            policy_optimizer=SLOW,
            prm_optimizer=SLOW,
            micro_batch_tokens=micro_batch_tokens,
        )

    return run(made(), make_data(with_experts()), steps=4).figures


@pytest.mark.parametrize("shared", [True, False])
def test_an_iteration_is_that_of_padded_rows_one_at_a_time(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past, "SHARED_FROM", 0 if shared else 10**9)
    fast, plain = figures_of(make_policy(), 4096), figures_of(plain_policy(), 1)
    assert len(fast) == len(plain) == 4
    for iteration, (got, expected) in enumerate(zip(fast, plain, strict=True)):
        assert got == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING), iteration
    assert fast[0]["prm/ranking_loss"] != pytest.approx(fast[-1]["prm/ranking_loss"], rel=10 * ROUNDING)  # it did learn
    assert fast[0]["policy/entropy"] != pytest.approx(fast[-1]["policy/entropy"], rel=10 * ROUNDING)


def test_imitation_is_that_of_padded_rows() -> None:
    fast, plain = (
        run(SFT(policy=policy, policy_optimizer=SGD, text=TEXT), make_data(with_experts()), steps=4).figures
        for policy in (make_policy(), plain_policy())
    )
    for got, expected in zip(fast, plain, strict=True):
        assert got == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING)
    assert fast[0]["sft/loss"] > fast[-1]["sft/loss"]
