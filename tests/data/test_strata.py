"""Strata: exact shares, passes of their own, state."""

from __future__ import annotations

import json
import random
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest

from repirl.data.prompts import CurriculumSampler, PromptSampler, UniformSampler
from repirl.data.strata import StratifiedSampler, Stratum, check_sizes, largest_part, next_stratum


def of(*parts: tuple[Any, int]) -> list[Stratum]:
    """Strata "a", "b", ... of these shares and sizes, one after another."""
    strata, first = [], 0
    for name, (share, size) in zip("abcdef", parts, strict=False):
        strata.append(Stratum(name, Fraction(share), tuple(range(first, first + size))))
        first += size
    return strata


def started(strata: list[Stratum], order: PromptSampler | None = None, seed: int = 0) -> StratifiedSampler:
    sampler = StratifiedSampler(strata, order or UniformSampler())
    sampler.start([f"id{index}" for index in range(sum(len(s.positions) for s in strata))], seed)
    return sampler


def sequence(shares: list[Fraction], count: int) -> list[int]:
    drawn, order = [0] * len(shares), []
    for _ in range(count):
        order.append(next_stratum(shares, drawn))
        drawn[order[-1]] += 1
    return order


def test_prompts_are_apportioned_by_quota() -> None:
    # Shares 3/4 and 1/4. Prompt 1: both are owed, 0 < 3/4 and 0 < 1/4; (0 + 1) / (3/4) = 4/3 < 1 / (1/4) = 4.
    # Prompt 2: 1 < 6/4, 2 / (3/4) = 8/3 < 4. Prompt 3: 2 < 9/4, 3 / (3/4) = 4, a tie, to the first.
    # Prompt 4: the first has 3 = 12/4, its share; the second alone is owed.
    assert sequence([Fraction(3, 4), Fraction(1, 4)], 8) == [0, 0, 0, 1] * 2
    # 1/2, 1/3, 1/6: every six prompts are 3, 2 and 1.
    for start in (0, 6, 12):
        window = sequence([Fraction(1, 2), Fraction(1, 3), Fraction(1, 6)], 18)[start : start + 6]
        assert Counter(window) == {0: 3, 1: 2, 2: 1}


@pytest.mark.parametrize("seed", range(20))
def test_no_stratum_is_ever_a_whole_prompt_away_from_its_share(seed: int) -> None:
    generator = random.Random(seed)
    weights = [Fraction(generator.randint(1, 60)) for _ in range(generator.randint(2, 8))]
    shares = [weight / sum(weights) for weight in weights]
    drawn, batches, size = [0] * len(shares), [], generator.randint(1, 16)
    for number, index in enumerate(sequence(shares, 400), 1):
        drawn[index] += 1
        assert all(abs(n - share * number) < 1 for n, share in zip(drawn, shares, strict=True))
        if number % size == 0:
            batches.append(list(drawn))
    for before, after in zip([[0] * len(shares), *batches], batches, strict=False):
        parts = [new - old for old, new in zip(before, after, strict=True)]
        assert all(part <= largest_part(share, size) for part, share in zip(parts, shares, strict=True))


def test_batches_have_the_shares_exactly_where_they_divide() -> None:
    sampler = started(of(("3/4", 7), ("1/4", 5)))
    for _ in range(20):
        batch = sampler.draw(8)
        assert Counter(index < 7 for index in batch) == {True: 6, False: 2}
        assert len(set(batch)) == 8


def test_each_stratum_goes_through_its_own_passes() -> None:
    sampler = started(of(("2/3", 10), ("1/3", 4)))
    # 60 prompts: 40 of the first, four passes of 10; 20 of the second, five passes of 4.
    counts = Counter(index for _ in range(10) for index in sampler.draw(6))
    assert {index: counts[index] for index in range(14)} == dict.fromkeys(range(10), 4) | dict.fromkeys(
        range(10, 14), 5
    )


def test_strata_are_mixed_within_a_batch() -> None:
    sampler = started(of(("1/2", 50), ("1/2", 50)))
    places: Counter[int] = Counter()
    for _ in range(200):
        batch = sampler.draw(8)
        places.update(place for place, index in enumerate(batch) if index < 50)
    # Each place is of the first stratum in half of 200 batches: 100, standard deviation 7.
    assert all(70 < places[place] < 130 for place in range(8))


def test_strata_of_one_size_are_in_different_orders_and_the_seed_decides() -> None:
    strata = of(("1/2", 40), ("1/2", 40))
    first, again, other = started(strata), started(strata), started(strata, seed=1)
    batch = first.draw(40)
    assert batch == again.draw(40)
    assert batch != other.draw(40)
    assert [index for index in batch if index < 40] != [index - 40 for index in batch if index >= 40]


@pytest.mark.parametrize("order", [UniformSampler, CurriculumSampler])
def test_state_goes_through_json_and_on_exactly(order: type[PromptSampler]) -> None:
    strata = of(("0.3", 6), ("0.7", 9))
    for stop in range(8):
        one, other = started(strata, order()), started(strata, order(), seed=99)
        for round_ in range(stop):
            one.update([f"id{index}" for index in one.draw(3)], [0.0, 0.5, round_ / 8])
        other.load_state_dict(json.loads(json.dumps(one.state_dict())))
        for _ in range(6):
            drawn = one.draw(3)
            assert drawn == other.draw(3)
            for sampler in (one, other):
                sampler.update([f"id{index}" for index in drawn], [0.25, 0.5, 1.0])


def test_a_curriculum_chooses_within_each_stratum_and_leaves_the_shares() -> None:
    sampler = started(of(("1/4", 8), ("3/4", 24)), CurriculumSampler(target=0.5, temperature=0.05))
    for _ in range(4):  # 4 x 8: all 8 of the first, all 24 of the second
        drawn = sampler.draw(8)
        sampler.update([f"id{index}" for index in drawn], [0.5 if index % 2 else 1.0 for index in drawn])
    later = [sampler.draw(8) for _ in range(50)]
    assert all(sum(index < 8 for index in batch) == 2 for batch in later)
    # Odd prompts are at the target, even ones have weight e^-10: of 4 and 12 odd ones 2 and 6 are wanted.
    assert sum(index % 2 for batch in later for index in batch) > 395


def test_an_unknown_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match=r"accuracy 0\.5 of prompt 'id9': unknown prompt"):
        started(of(("1/2", 2), ("1/2", 2))).update(["id9"], [0.5])


@pytest.mark.parametrize(
    ("share", "size", "needed"),
    [("1/2", 8, 4), ("1", 8, 8), ("0.3", 2, 2), ("0.3", 8, 4), ("0.05", 4, 2), ("0.99", 4, 4)],  # 2.4: 2, 3 or 4 come
)
def test_the_largest_part_of_a_batch(share: str, size: int, needed: int) -> None:
    assert largest_part(Fraction(share), size) == needed


def test_a_stratum_that_is_too_small_is_refused() -> None:
    strata = of(("1/4", 2), ("3/4", 5))
    check_sizes(strata, 4)
    with pytest.raises(
        ValueError,
        match=r"b: 5 usable prompts, but a batch of 8 may need 6 for its share of 0\.75; lower batch_prompts",
    ):
        check_sizes(strata, 8)
