"""Process reward models: what each kind reads, where it starts, and what is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from repirl.models.policy import Policy
from repirl.models.prm import PRM
from tests.models.tiny import EOS, LLAMA, NEWLINE, PROMPTS, RESPONSES, TOKENS, alone, rows_of, tiny_policy

KINDS = ["q_head", "logit_difference", "implicit", "head", "linear"]
POLICY = tiny_policy()


def prm_of(kind: Any, seed: int = 0, **arguments: Any) -> PRM:
    """A PRM away from its start, so that its rewards are not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        prm = PRM(kind=kind, **arguments).build(POLICY)
        with torch.no_grad():
            for name, parameter in prm.named_parameters():
                if not name.startswith("reference."):
                    parameter.add_(0.05 * torch.randn_like(parameter))
    return prm


def rewards_of(prm: PRM, prompt: list[int], response: list[int]) -> Tensor:
    return prm(rows_of([prompt], [response]))[0].detach()


@pytest.mark.parametrize("rank", [None, 3])
def test_q_head_starts_at_zero_and_learns(rank: int | None) -> None:
    prm = PRM(kind="q_head", rank=rank).build(POLICY)
    rows = rows_of(PROMPTS, RESPONSES)
    assert (prm(rows) == 0).all()
    optimiser = torch.optim.SGD(prm.parameters(), lr=0.01)
    for _ in range(3):  # the first step moves the zero factor alone
        optimiser.zero_grad()
        (-prm(rows)[0].sum()).backward()
        optimiser.step()
    assert prm(rows)[0].sum() > 0.01
    if rank is not None:
        assert all(
            p.grad is not None and p.grad.abs().max() > 0 for p in (prm.head.query.weight, prm.head.action.weight)
        )
        assert prm.head.action.weight.shape == (POLICY.vocabulary_size, rank)


@pytest.mark.parametrize("kind", ["logit_difference", "implicit"])
def test_log_ratio_kinds_start_at_zero(kind: Any) -> None:
    prm = PRM(kind=kind, beta=3.0).build(POLICY)
    rows = rows_of(PROMPTS, RESPONSES)
    assert (prm(rows) == 0).all()
    (prm(rows)[0, 0]).backward()
    assert max(p.grad.abs().max() for p in prm.parameters() if p.grad is not None) > 1e-3


def test_rewards_are_the_formulas() -> None:
    """By plain forwards of the whole row, without padding or chunks."""
    prompt, response = PROMPTS[1], RESPONSES[2]
    ids = torch.tensor([[*prompt, *response]])
    before, at = slice(len(prompt) - 1, -1), slice(len(prompt), None)
    index = torch.tensor(response)
    with torch.no_grad():
        prm = prm_of("q_head")
        hidden = prm.backbone.model.base_model(ids).last_hidden_state[0]
        torch.testing.assert_close(
            rewards_of(prm, prompt, response),
            (prm.head.action.weight[index] * hidden[before]).sum(-1),
            rtol=0,
            atol=1e-5,
        )
        prm = prm_of("q_head", rank=2)
        hidden = prm.backbone.model.base_model(ids).last_hidden_state[0]
        expected = (prm.head.action.weight[index] * (hidden[before] @ prm.head.query.weight.T)).sum(-1)
        torch.testing.assert_close(rewards_of(prm, prompt, response), expected, rtol=0, atol=1e-5)
        for kind in ("linear", "head"):
            prm = prm_of(kind)
            hidden = prm.backbone.model.base_model(ids).last_hidden_state[0]
            got = rewards_of(prm, prompt, response)
            torch.testing.assert_close(got, prm.head.score(hidden[at])[:, 0], rtol=0, atol=1e-5)
            assert got.std() > 0.01
        prm = prm_of("implicit", beta=0.5)
        ratio = alone(prm.backbone, prompt, response) - alone(POLICY, prompt, response)
        expected = 0.5 * ratio.gather(1, index[:, None])[:, 0]
        torch.testing.assert_close(rewards_of(prm, prompt, response), expected, rtol=0, atol=1e-5)
        prm = prm_of("logit_difference", beta=0.5)
        new, old = (m.model(input_ids=ids).logits[0, before] for m in (prm.backbone, POLICY))
        expected = 0.5 * (new - old).gather(1, index[:, None])[:, 0]
        torch.testing.assert_close(rewards_of(prm, prompt, response), expected, rtol=0, atol=1e-5)
        assert expected.abs().max() > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_depends_on_its_past_only(kind: Any) -> None:
    prm = prm_of(kind)
    base = rewards_of(prm, [2, 3], [4, 5, 6, 7])
    # tokens after a_t do not matter, nor how many there are
    for other in ([4, 5, 8, 8], [4, 5, 6, 1], [4, 5, 2, 3, 4, 5]):
        torch.testing.assert_close(rewards_of(prm, [2, 3], other)[:2], base[:2], rtol=0, atol=1e-5)
    # the token itself and every earlier one do, the prompt's included
    assert (rewards_of(prm, [2, 3], [4, 8, 6, 7]) - base)[1:].abs().min() > 1e-4
    assert (rewards_of(prm, [3, 3], [4, 5, 6, 7]) - base).abs().min() > 1e-4


@pytest.mark.parametrize("kind", ["q_head", "logit_difference"])
def test_before_kinds_read_the_state_before_the_token(kind: Any) -> None:
    """With equal weights for all actions a_t itself makes no difference; a reader of its hidden state would see it."""
    prm = prm_of(kind)
    with torch.no_grad():
        models = (
            [prm.head.action]
            if kind == "q_head"
            else [m.model.get_output_embeddings() for m in (prm.backbone, prm.reference)]
        )
        for number, module in enumerate(models):
            module.weight.copy_(module.weight[2 + number].expand_as(module.weight).clone())
    base, other = (rewards_of(prm, [2, 3], [4, 5, a, 7]) for a in (6, 8))
    torch.testing.assert_close(base[:3], other[:3], rtol=0, atol=1e-6)
    assert (base[3] - other[3]).abs() > 1e-4


@pytest.mark.parametrize("kind", ["head", "linear"])
def test_at_kinds_read_the_state_of_the_token(kind: Any) -> None:
    prm = prm_of(kind)
    base, other = (rewards_of(prm, [2, 3], [4, 5, a]) for a in (6, 8))
    assert (base[2] - other[2]).abs() > 1e-4
    torch.testing.assert_close(base[:2], other[:2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("granularity", ["token", "step"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_company_do_not_matter(kind: Any, granularity: Any) -> None:
    prm = prm_of(kind, granularity=granularity)
    together = prm(rows_of(PROMPTS, RESPONSES, left=3, right=2, filler=NEWLINE)).detach()
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        torch.testing.assert_close(together[row, : len(response)], rewards_of(prm, prompt, response), rtol=0, atol=1e-5)
        assert (together[row, len(response) :] == 0).all()
    assert together.abs().max() > 0.01
    assert together.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_step_granularity_moves_rewards_to_line_ends(kind: Any) -> None:
    tokens, steps = prm_of(kind), prm_of(kind, granularity="step")
    rows = rows_of(PROMPTS, RESPONSES)
    by_token, by_step = tokens(rows).detach(), steps(rows).detach()
    torch.testing.assert_close(by_step.sum(-1), by_token.sum(-1), rtol=0, atol=1e-5)
    # third response: 7 \n | 2 \n \n | 5: a blank line is no step; the last token no line's end
    r = by_token[2]
    expected = torch.stack([r[0] * 0, r[0] + r[1], r[0] * 0, r[0] * 0, r[2] + r[3] + r[4], r[5]])
    torch.testing.assert_close(by_step[2], expected, rtol=0, atol=1e-5)
    # fourth response: 8 \n EOS: an end token alone is no step
    torch.testing.assert_close(by_step[3, :3], torch.stack([r[0] * 0, r[0] * 0, by_token[3].sum()]), rtol=0, atol=1e-5)
    # the last response token always has its reward: EOS, a plain token, after a line's end
    for row, response in enumerate(RESPONSES):
        assert by_step[row, len(response) - 1] != 0
        assert by_token[row, len(response) - 1] != 0
    assert RESPONSES[0][-1] == EOS


def test_bound() -> None:
    prm = prm_of("head")
    with torch.no_grad():
        prm.head.score[-2].weight.mul_(1000)
    rewards = prm(rows_of(PROMPTS, RESPONSES))
    assert prm.bound == 1
    assert rewards.abs().max() <= 1
    assert rewards.abs().max() > 0.95
    assert all(PRM(kind=kind).bound is None for kind in KINDS if kind != "head")
    assert PRM(kind="head", granularity="step").bound is None  # a sum of tokens


@pytest.mark.parametrize(("kind", "rank"), [("q_head", None), ("q_head", 2), ("head", None), ("linear", None)])
def test_heads_are_exact_under_mixed_precision(kind: Any, rank: int | None) -> None:
    prm = prm_of(kind, rank=rank)
    states, tokens = torch.randn(5, prm.backbone.hidden_size), torch.tensor([2, 3, 4, 5, 6])
    prm.backbone.action_states = lambda rows, after: states
    expected = prm._values(prm.backbone, None, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prm._values(prm.backbone, None, tokens), expected)
    assert expected.abs().max() > 0


def test_the_policy_is_copied_not_shared() -> None:
    policy = tiny_policy()
    prm = PRM(kind="implicit").build(policy)
    rows = rows_of(PROMPTS, RESPONSES)
    before = policy(rows)[0].detach()
    prm(rows)[0].sum().backward()
    assert all(p.grad is None for p in policy.parameters())
    optimiser = torch.optim.SGD(prm.parameters(), lr=0.1)
    optimiser.step()
    assert torch.equal(policy(rows)[0], before)
    assert prm(rows).abs().max() > 1e-3
    # and a policy that moves on leaves the reference where it was
    rewards = prm(rows).detach()
    with torch.no_grad():
        policy.head_weight.add_(1)
    assert torch.equal(prm(rows), rewards)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_what_is_trained(kind: Any, frozen: bool) -> None:
    if frozen and kind in ("logit_difference", "implicit"):
        with pytest.raises(ValueError, match=f"kind '{kind}' has no weights beside its backbone"):
            PRM(kind=kind, freeze_backbone=True)
        return
    prm = prm_of(kind, freeze_backbone=frozen)
    prm(rows_of(PROMPTS, RESPONSES)).square().sum().backward()
    reached = {name for name, p in prm.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    layers = {name for name, _ in prm.named_parameters() if name.startswith("backbone.model.model.layers.")}
    own = {name for name, _ in prm.named_parameters() if name.startswith("head.")}
    head = {"backbone.model.lm_head.weight"} if kind in ("logit_difference", "implicit") else set()
    assert layers
    assert bool(own) != bool(head)
    rest = {"backbone.model.model.embed_tokens.weight", "backbone.model.model.norm.weight"}
    assert reached == (own if frozen else own | layers | head | rest)
    assert (prm.reference is not None) == bool(head)


def test_an_own_backbone() -> None:
    small = Policy(config={**LLAMA, "hidden_size": 16}, tokens=TOKENS, init_seed=5)
    prm = PRM(kind="implicit", backbone=small).build(POLICY)
    rows = rows_of(PROMPTS, RESPONSES)
    assert (prm(rows) == 0).all()  # the reference is its own start, not the policy
    assert prm.backbone is small
    assert small.hidden_size == 16
    built = dict(prm.named_parameters())
    assert prm.build(POLICY) is prm
    assert all(p is built[name] for name, p in prm.named_parameters())  # a second time nothing happens


def test_other_tokens_are_refused() -> None:
    for tokens in ([*"abcdefgh", "\n"], [*"gfedcba", "\n"]):
        with pytest.raises(ValueError, match="its tokenizer differs from the policy's"):
            PRM(backbone=Policy(config=LLAMA, tokens=tokens)).build(POLICY)


def test_rank_belongs_to_q_head() -> None:
    for kind in KINDS[1:]:
        with pytest.raises(ValueError, match=f"rank belongs to q_head, not to '{kind}'"):
            PRM(kind=kind, rank=2)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_round_trip(kind: Any) -> None:
    prm, other = prm_of(kind), prm_of(kind, seed=1)
    rows = rows_of(PROMPTS, RESPONSES)
    assert (other(rows) - prm(rows)).abs().max() > 1e-3
    other.load_state_dict(prm.state_dict())
    assert torch.equal(other(rows), prm(rows))
