"""The table of PRM heads: the configuration's kinds are its names, and a new one is one class."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from repirl.models.heads import HEADS, Head, Kind
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from tests.models.tiny import PROMPTS, RESPONSES, rows_of, tiny_policy


def test_the_configuration_s_kinds_are_the_table_s() -> None:
    assert get_args(Kind) == tuple(HEADS)


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_says_truly_whether_it_has_weights(kind: str) -> None:
    assert HEADS[kind].has_weights == bool(list(HEADS[kind](tiny_policy()).parameters()))


class Constant(Head):
    """The same trained value for every token, and twice that by the reference."""

    needs_reference = True
    bound = 3.0

    def __init__(self, backbone: Policy, rank: int | None = None) -> None:
        super().__init__(backbone, rank)
        self.value = nn.Parameter(torch.tensor(2.0))

    def forward(self, states: Tensor, tokens: Tensor, model: Policy) -> Tensor:
        return self.value.expand(len(tokens)) * (1 if model.head_weight.requires_grad else 2)


def test_a_new_kind_is_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEADS, "constant", Constant)
    prm = PRM(kind="constant", beta=0.5).build(tiny_policy())
    rows = rows_of(PROMPTS, RESPONSES)
    rewards = prm(rows)
    assert torch.equal(rewards, torch.where(rows.response_mask, 0.5 * (2.0 - 4.0), 0.0))
    assert prm.bound == 3.0
    rewards.sum().backward()
    assert prm.head.value.grad == 0.5 * 13  # 13 tokens; the reference's part is without gradient
    assert prm.meaning() == {"kind": "constant", "granularity": "token", "beta": 0.5}


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="kind 'value' is none of q_head, logit_difference"):
        PRM(kind="value")


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("no_such_module.Gated", "cannot be imported: No module named 'no_such_module'"),
        (f"{__name__}.Missing", "cannot be imported: module .* has no attribute 'Missing'"),
        ("torch.nn.Linear", "is no subclass of repirl.models.heads.Head"),
    ],
)
def test_an_import_path_must_lead_to_a_head(kind: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"kind '{kind}' {problem}"):
        PRM(kind=kind)
