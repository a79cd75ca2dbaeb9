"""In-process rollouts: the library's greedy decoding, samples decided by seeds alone, the right distribution."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from repirl.data.codec import ChatCodec
from repirl.models.policy import Policy
from repirl.rollout.transformers import InProcess, draw, row_seed
from repirl.structs import Generator, Response
from tests.models.tiny import EOS, NEWLINE, PAD, alone, rows_of, tiny_policy

POLICY = tiny_policy(seed=3)
# of many lengths, so that batches are padded
PROMPTS = [[2, 3], [4, 5, 6, 7, 8, 2, 2], [5], [2, 2, 9, 3], [7, 7, 7], [3]]
SEEDS = [11, 12, 13, 14, 15, 16]


def generator(
    policy: Policy = POLICY, limit: int = 12, eos: tuple[int, ...] = (EOS,), decode: Any = None, **settings: Any
) -> InProcess:
    made = InProcess(**settings)
    decode = decode or ChatCodec(policy.tokenizer).decode
    made.attach(policy.model, decode=decode, pad_id=PAD, eos_ids=eos, max_response_tokens=limit)
    return made


def ids(responses: list[list[Response]]) -> list[list[tuple[int, ...]]]:
    return [[response.token_ids for response in group] for group in responses]


SAMPLED = generator().generate(PROMPTS, samples=4, seeds=SEEDS)


def test_the_reference_samples_are_varied() -> None:
    """Else the comparisons below would say little: rows must end early, late, and not at all."""
    flat = [response for group in SAMPLED for response in group]
    lengths = {len(response.token_ids) for response in flat}
    assert len(lengths) > 5
    assert {response.finished for response in flat} == {True, False}
    assert len({response.token_ids for response in flat}) > 15
    assert isinstance(generator(), Generator)


@pytest.mark.parametrize("policy_seed", range(4))
def test_greedy_is_the_library_s(policy_seed: int) -> None:
    policy = tiny_policy(seed=policy_seed)
    got = generator(policy).generate(PROMPTS, samples=1, seeds=SEEDS, temperature=0.0)
    for prompt, (response,) in zip(PROMPTS, got, strict=True):
        expected = policy.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
        assert list(response.token_ids) == expected[0, len(prompt) :].tolist()


def test_samples_do_not_depend_on_the_batch() -> None:
    for i, prompt in enumerate(PROMPTS):  # alone: no padding
        assert ids(generator().generate([prompt], samples=4, seeds=SEEDS[i : i + 1])) == ids(SAMPLED[i : i + 1])
    for rows in (1, 4, 5, 8, 9, 24, 1000):
        assert ids(generator(max_batch_rows=rows).generate(PROMPTS, samples=4, seeds=SEEDS)) == ids(SAMPLED)
    for order in ((5, 4, 3, 2, 1, 0), (2, 0, 5)):
        got = generator().generate([PROMPTS[i] for i in order], samples=4, seeds=[SEEDS[i] for i in order])
        assert ids(got) == [ids(SAMPLED)[i] for i in order]


def test_a_prompt_may_stand_twice() -> None:
    same, other = generator().generate([PROMPTS[0]] * 2, samples=4, seeds=[11, 12])
    assert ids([same]) == ids(SAMPLED[:1])
    assert ids([other]) != ids([same])


def test_what_the_pad_token_is_does_not_matter() -> None:
    made = generator()
    made.pad_id = NEWLINE
    assert ids(made.generate(PROMPTS, samples=4, seeds=SEEDS)) == ids(SAMPLED)


def test_a_shorter_limit_cuts() -> None:
    for group, whole in zip(generator(limit=3).generate(PROMPTS, samples=4, seeds=SEEDS), SAMPLED, strict=True):
        assert len({response.token_ids for response in group}) > 1
        for response, longer in zip(group, whole, strict=True):
            assert len(response.token_ids) <= 3
            assert response.finished == (response.token_ids[-1] == EOS)
            assert 1 <= len(longer.token_ids) <= 12


def test_each_prompt_may_have_a_limit_of_its_own() -> None:
    limits = [3, 12, 1, 20, 5, 2]
    cut = ids(generator().generate(PROMPTS, samples=4, seeds=SEEDS, limits=limits))
    assert cut == [
        [response.token_ids[:limit] for response in group] for group, limit in zip(SAMPLED, limits, strict=True)
    ]
    for wrong, message in [([3] * 5, "6 prompts but 6 seeds and 5 limits"), ([0] * 6, "its limit cannot be 0")]:
        with pytest.raises(ValueError, match=message):
            generator().generate(PROMPTS, samples=4, seeds=SEEDS, limits=wrong)


def test_eos_ends_and_the_limit_cuts() -> None:
    for response in itertools.chain(*SAMPLED):
        assert EOS not in response.token_ids[:-1]
        assert response.finished == (response.token_ids[-1] == EOS)
        assert response.finished or len(response.token_ids) == 12
        assert response.text == ChatCodec(POLICY.tokenizer).decode(response.token_ids)
    # several end tokens: the first of any ends
    for whole, got in zip(
        itertools.chain(*SAMPLED),
        itertools.chain(*generator(eos=(EOS, 5)).generate(PROMPTS, samples=4, seeds=SEEDS)),
        strict=True,
    ):
        end = next((n + 1 for n, token in enumerate(whole.token_ids) if token in (EOS, 5)), 12)
        assert got.token_ids == whole.token_ids[:end]
        assert got.finished == (got.token_ids[-1] in (EOS, 5))


def letters(token_ids: Sequence[int]) -> str:
    return "".join("." * (i < 2) + "abcdefg\n"[i - 2] * (i >= 2) for i in token_ids)


def thirds(token_ids: Sequence[int]) -> str:
    """A third of a character each, as byte-level tokenizers have it."""
    return bytes("€".encode()[i % 3] for i in token_ids).decode(errors="replace")


@pytest.mark.parametrize(
    ("stop", "decode"),
    [(["g"], letters), (["ga", "\n"], letters), (["bcd", "fe", "aa"], letters), (["€"], thirds), (["€€"], thirds)],
)
def test_stop_strings_end_where_they_are_complete(stop: list[str], decode: Callable[[Sequence[int]], str]) -> None:
    plain, stopping = (generator(limit=40, decode=decode, eos=(), stop_strings=s) for s in ([], stop))
    stopped = 0
    for whole, got in zip(
        *(itertools.chain(*made.generate(PROMPTS, samples=16, seeds=SEEDS)) for made in (plain, stopping)), strict=True
    ):
        assert len(whole.token_ids) == 40
        assert not whole.finished
        texts = [decode(whole.token_ids[: n + 1]) for n in range(40)]
        end = next((n + 1 for n, text in enumerate(texts) if any(s in text for s in stop)), 40)
        assert got.token_ids == whole.token_ids[:end]
        assert got.text == texts[end - 1]
        assert got.finished is any(s in got.text for s in stop)
        stopped += end < 40
    assert stopped >= 3


def test_a_stop_string_of_the_prompt_does_not_count() -> None:
    # "g\n" is complete with the response's first token only if the prompt were looked at.
    made = generator(stop_strings=["g\n"], limit=6)
    for group, whole in zip(
        made.generate([[8]], samples=40, seeds=[1]),
        generator(limit=6).generate([[8]], samples=40, seeds=[1]),
        strict=True,
    ):
        assert any(response.token_ids[0] == NEWLINE and len(response.token_ids) > 1 for response in whole)
        for got, expected in zip(group, whole, strict=True):
            if "g\n" not in expected.text:
                assert got.token_ids == expected.token_ids


def test_seeds_decide() -> None:
    again = generator().generate(PROMPTS, samples=4, seeds=SEEDS)
    assert again == SAMPLED
    torch.manual_seed(99)  # the global generator has no part in it, and is left alone
    state = torch.get_rng_state()
    assert generator().generate(PROMPTS, samples=4, seeds=SEEDS) == SAMPLED
    assert torch.equal(torch.get_rng_state(), state)
    other = generator().generate(PROMPTS, samples=4, seeds=[*SEEDS[:-1], 0])
    assert ids(other)[:-1] == ids(SAMPLED)[:-1]
    assert ids(other)[-1] != ids(SAMPLED)[-1]


def test_temperature_zero_ignores_seeds() -> None:
    made = generator()
    one, other = (made.generate(PROMPTS, samples=2, seeds=s, temperature=0.0) for s in (SEEDS, SEEDS[::-1]))
    assert one == other
    assert all(first == second for first, second in one)
    assert made.generate(PROMPTS, samples=4, seeds=SEEDS, temperature=1.0) == SAMPLED  # the next call is as asked


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="max_batch_rows must be at least 1, not 0"):
        InProcess(max_batch_rows=0)
    with pytest.raises(ValueError, match="6 prompts but 5 seeds"):
        generator().generate(PROMPTS, samples=1, seeds=SEEDS[:5])
    assert generator().generate([], samples=2, seeds=[]) == []


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_policy(temperature: float) -> None:
    """Pairs of first and second token: both the prefill's and the cache's step must have the right distribution."""
    count, prompt = 4000, [2, 3, 9]
    (got,) = generator(limit=2, max_batch_rows=count).generate(
        [prompt], samples=count, seeds=[5], temperature=temperature
    )
    with torch.no_grad():
        logits = [
            POLICY.model(torch.tensor([[*prompt, *more]])).logits[0, -1] for more in ([], *([a] for a in range(10)))
        ]
    first, *second = ((x / temperature).softmax(-1) for x in logits)
    probabilities = {(EOS,): float(first[EOS])}
    probabilities |= {(a, b): float(first[a] * second[a][b]) for a in range(10) for b in range(10) if a != EOS}
    seen = dict.fromkeys(probabilities, 0)
    for response in got:
        seen[response.token_ids] += 1
    common = [pair for pair, p in probabilities.items() if p * count >= 5]
    assert len(common) >= 8
    chi_square = sum((seen[pair] - count * probabilities[pair]) ** 2 / (count * probabilities[pair]) for pair in common)
    degrees = len(common)
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5


def test_log_probs_of_samples_are_those_of_a_plain_loop() -> None:
    prompts = [prompt for prompt in PROMPTS for _ in range(4)]
    responses = [list(response.token_ids) for group in SAMPLED for response in group]
    with torch.no_grad():
        log_probs, _ = POLICY(rows_of(prompts, responses))
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            for t, token in enumerate(response):
                plain = POLICY.model(torch.tensor([[*prompt, *response[:t]]])).logits[0, -1].log_softmax(-1)[token]
                assert abs(float(plain - log_probs[row, t])) < 1e-4


def test_greedy_tokens_are_the_likeliest() -> None:
    (responses,) = zip(*generator().generate(PROMPTS, samples=1, seeds=SEEDS, temperature=0.0), strict=True)
    for prompt, response in zip(PROMPTS, responses, strict=True):
        assert alone(POLICY, prompt, response.token_ids).argmax(-1).tolist() == list(response.token_ids)


def test_weights_are_read_anew() -> None:
    policy = tiny_policy(seed=3)
    made = generator(policy)
    assert made.generate(PROMPTS, samples=4, seeds=SEEDS) == SAMPLED
    with torch.no_grad():
        policy.head_weight.neg_()
    assert made.generate(PROMPTS, samples=4, seeds=SEEDS) != SAMPLED


# --- one draw


def test_draw_has_the_right_frequencies() -> None:
    probabilities = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.25, 0.05, 0.0])
    count = 20_000
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(0))
    for temperature in (1.0, 0.5):
        expected = probabilities ** (1 / temperature) / (probabilities ** (1 / temperature)).sum()
        drawn = draw(probabilities.log().expand(count, -1), uniform, temperature)
        seen = torch.bincount(drawn, minlength=7)
        assert (seen[probabilities == 0] == 0).all()
        where = probabilities > 0
        chi_square = ((seen - count * expected)[where] ** 2 / (count * expected[where])).sum()
        assert chi_square < 16.3  # 3 degrees of freedom, one in a thousand


@pytest.mark.parametrize("uniform", [0.0, 1e-30, 0.5, 1 - 2**-24])
def test_a_token_without_probability_is_never_drawn(uniform: float) -> None:
    u = torch.tensor([uniform])
    for first in range(6):
        logits = torch.full((1, 6), -torch.inf)
        logits[0, first] = 3.0
        assert draw(logits, u, 1.0).tolist() == [first]
        # by underflow, in a vocabulary long enough for the sums to round
        long = torch.full((1, 50_000), -200.0)
        long[0, first * 9_000 + 1] = 5.0
        assert draw(long, u, 1.0).tolist() == [first * 9_000 + 1]
    flat = torch.zeros(1, 50_000)
    flat[0, -100:] = -torch.inf
    assert draw(flat, u, 1.0) < 49_900


def test_draw_inverts_the_cumulative_distribution() -> None:
    logits = torch.tensor([[0.25, 0.5, 0.25]]).log().expand(5, -1)
    assert draw(logits, torch.tensor([0.0, 0.2, 0.3, 0.7, 0.8]), 1.0).tolist() == [0, 0, 1, 1, 2]
    assert draw(logits, torch.tensor([0.0, 0.2, 0.3, 0.7, 0.8]), 0.0).tolist() == [1] * 5


def test_row_seeds() -> None:
    found = {row_seed(run, iteration, row) for run in range(5) for iteration in range(20) for row in range(20)}
    assert len(found) == 2000
    assert all(0 <= seed < 2**63 for seed in found)
    assert row_seed(1, 2, 3) == row_seed(1, 2, 3) != row_seed(3, 2, 1)
    torch.Generator().manual_seed(max(found))


def test_nan_logits_still_give_a_token_so_that_the_check_of_log_probs_can_name_the_prompt() -> None:
    drawn = draw(torch.full((2, 5), float("nan")), torch.tensor([0.1, 0.9]), 1.0)
    assert ((drawn >= 0) & (drawn < 5)).all()
