"""Samplers: coverage, determinism, state."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from repirl.data.prompts import CurriculumSampler, PromptSampler, UniformSampler


def started(sampler: PromptSampler, size: int, seed: int = 0) -> PromptSampler:
    sampler.start([f"id{index}" for index in range(size)], seed)
    return sampler


def test_uniform_sampler_draws_every_prompt_once_a_pass() -> None:
    sampler = started(UniformSampler(), 10)
    # 15 draws of 4 are 60 = 6 passes of 10; every batch of 4 holds different prompts, also where a pass ends in it.
    batches = [sampler.draw(4) for _ in range(15)]
    assert all(len(set(batch)) == 4 for batch in batches)
    assert Counter(index for batch in batches for index in batch) == dict.fromkeys(range(10), 6)
    # Three draws take 12: the pass of 10, then 2 of the next, none of them among the last 2 of the first.
    assert {*batches[0], *batches[1], *batches[2][:2]} == set(range(10))
    assert batches[:3] != batches[5:8]


def test_uniform_sampler_depends_on_the_seed_only() -> None:
    draws = [[started(UniformSampler(), 50, seed).draw(50) for _ in range(2)] for seed in (0, 1)]
    assert draws[0][0] == draws[0][1]
    assert draws[0][0] != draws[1][0]


@pytest.mark.parametrize("kind", [UniformSampler, CurriculumSampler])
def test_state_goes_through_json_and_on_exactly(kind: type[PromptSampler]) -> None:
    for stop in range(8):
        one, other = started(kind(), 10), started(kind(), 10, seed=99)
        for round_ in range(stop):
            one.update([f"id{index}" for index in one.draw(3)], [0.0, 0.5, round_ / 8])
        other.load_state_dict(json.loads(json.dumps(one.state_dict())))
        for _ in range(6):
            drawn = one.draw(3)
            assert drawn == other.draw(3)
            for sampler in (one, other):
                sampler.update([f"id{index}" for index in drawn], [0.25, 0.5, 1.0])


def test_curriculum_draws_new_prompts_first() -> None:
    sampler = started(CurriculumSampler(), 12)
    drawn = [index for _ in range(3) for index in sampler.draw(4)]
    assert sorted(drawn) == list(range(12))


def test_curriculum_prefers_prompts_near_the_target() -> None:
    sampler = started(CurriculumSampler(target=0.5, temperature=0.1), 30)
    for _ in range(3):
        drawn = sampler.draw(10)
        # 0-9 always fail, 10-19 are at the target, 20-29 always succeed
        sampler.update([f"id{index}" for index in drawn], [(index // 10) / 2 for index in drawn])
    counts = Counter(index // 10 for _ in range(50) for index in sampler.draw(8))
    # Weights are e^-5 : 1 : e^-5 and eight of the ten in the middle are wanted: few others come.
    assert counts[1] > 360
    assert counts[0] + counts[2] > 0, "the others are not starved"


def test_curriculum_averages_updates() -> None:
    sampler = started(CurriculumSampler(decay=0.5), 2)
    sampler.update(["id0", "id1"], [1.0, 0.0])
    sampler.update(["id0", "id0"], [0.0, 0.0])
    # 1 -> (1 + 0) / 2 = .5 -> (.5 + 0) / 2 = .25
    assert sampler.state_dict()["accuracy"] == {"id0": 0.25, "id1": 0.0}


def test_curriculum_refuses_nonsense() -> None:
    sampler = started(CurriculumSampler(), 2)
    with pytest.raises(ValueError, match="unknown prompt"):
        sampler.update(["id9"], [0.5])
    with pytest.raises(ValueError, match=r"not in \[0, 1\]"):
        sampler.update(["id0"], [float("nan")])
    with pytest.raises(ValueError, match="temperature > 0"):
        CurriculumSampler(temperature=0)
