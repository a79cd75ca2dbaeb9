"""Search by steps on a tree that is known: which beams go on, which are kept, and how many children are asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from repirl.rollout.beams import Beam, searched

# The steps after each prefix, in the order in which they are sampled; a prefix that is none of these has ended.
TREE: dict[tuple[int, ...], list[int]] = {
    (): [1, 2, 3, 1],
    (1,): [11, 12, 13, 14],
    (2,): [21, 22, 23, 24],
    (3,): [31, 32, 33, 34],
    (2, 21): [211, 212, 213, 214],
}
REWARDS = {1: 0.6, 2: 0.9, 3: 0.1, 11: 0.2, 12: 0.3, 13: 0.1, 14: 0.0, 21: 0.5, 22: 0.4, 23: 0.2, 24: 0.1}
REWARDS |= {211: 0.1, 212: 0.95, 213: 0.3, 214: 0.2}


class Known:
    """Samples along the tree, the first steps in turn, and scores by the sum of the steps' rewards."""

    def __init__(self, children: int) -> None:
        self.children, self.asked = children, list[list[tuple[int, ...]]]()
        self.judged = 0

    def grow(self, beams: Sequence[Beam], depth: int) -> list[Beam]:
        self.asked.append([beam.token_ids for beam in beams])
        grown = []
        for place, beam in enumerate(beams):
            steps = TREE[beam.token_ids]
            first = place * self.children if not beam.token_ids else 0
            for k in range(self.children):
                ids = (*beam.token_ids, steps[(first + k) % len(steps)])
                grown.append(replace(beam, token_ids=ids, ended=ids not in TREE, finished=ids not in TREE))
        return grown

    def judge(self, beams: Sequence[Beam]) -> list[Beam]:
        self.judged += len(beams)
        rewards = [tuple(REWARDS.get(step, 0.0) for step in beam.token_ids) for beam in beams]
        return [replace(b, step_rewards=r, value=sum(r)) for b, r in zip(beams, rewards, strict=True)]


def values(beams: Sequence[Beam]) -> dict[tuple[int, ...], float]:
    return {beam.token_ids: beam.value for beam in beams}


def test_the_best_beams_go_on_and_ended_ones_are_kept() -> None:
    """4 beams, 2 children: 2 go on. First steps 1, 2, 3 and 1 again, which counts once; 2 (.9) and 1 (.6) are kept.

    Of 2 then 21 goes on and 22 has ended; of 1 both children have ended. 21 alone goes on, to 211 and 212.
    """
    known = Known(children=2)
    (found,) = searched(1, beams=4, children=2, diverse=False, grow=known.grow, judge=known.judge)
    assert known.asked == [[(), ()], [(2,), (1,)], [(2, 21)]]
    assert known.judged == 3 + 4 + 2
    expected = {(2, 22): 1.3, (1, 11): 0.8, (1, 12): 0.9, (2, 21, 211): 1.5, (2, 21, 212): 2.35}
    assert values(found) == pytest.approx(expected)
    assert max(found, key=lambda beam: beam.value).token_ids == (2, 21, 212)


def test_diverse_subtrees_grow_apart() -> None:
    """Subtree 0 sees 1 and 2 and keeps 2; subtree 1 sees 3 and 1 and keeps 1."""
    known = Known(children=2)
    (found,) = searched(1, beams=4, children=2, diverse=True, grow=known.grow, judge=known.judge)
    assert known.asked == [[(), ()], [(2,), (1,)], [(2, 21)]]
    assert {(beam.tree, beam.token_ids) for beam in found} == {
        (0, (2, 22)), (0, (2, 21, 211)), (0, (2, 21, 212)), (1, (1, 11)), (1, (1, 12))}  # fmt: skip
    narrow = Known(children=4)
    (found,) = searched(1, beams=4, children=4, diverse=True, grow=narrow.grow, judge=narrow.judge)
    assert narrow.asked == [[()], [(2,)], [(2, 21)]]  # one subtree is greedy
    assert len(found) == 3 + 4


@pytest.mark.parametrize(("diverse", "kept"), [(False, [(1,), (2,)]), (True, [(1,), (4,)])])
def test_what_a_subtree_has_is_not_taken_by_another(diverse: bool, kept: list[tuple[int, ...]]) -> None:
    """First steps 1 (.9) and 2 (.8) in one subtree, 3 (.1) and 4 (.2) in the other."""
    first = {1: 0.9, 2: 0.8, 3: 0.1, 4: 0.2}
    asked = []

    def grow(beams: Sequence[Beam], depth: int) -> list[Beam]:
        asked.append([beam.token_ids for beam in beams])
        steps = iter(first) if depth == 0 else iter([0] * 4)
        return [
            replace(beam, token_ids=(*beam.token_ids, next(steps)), ended=depth == 1)
            for beam in beams
            for _ in range(2)
        ]

    def judge(beams: Sequence[Beam]) -> list[Beam]:
        return [replace(beam, value=first[beam.token_ids[0]]) for beam in beams]

    searched(1, beams=4, children=2, diverse=diverse, grow=grow, judge=judge)
    assert asked[1] == kept


def test_equal_beams_of_other_subtrees_stay() -> None:
    def grow(beams: Sequence[Beam], depth: int) -> list[Beam]:
        return [replace(beam, token_ids=(7,), ended=True) for beam in beams for _ in range(2)]

    for diverse, count in ((True, 2), (False, 1)):
        (found,) = searched(1, beams=4, children=2, diverse=diverse, grow=grow, judge=list)
        assert len(found) == count
        assert found[0].value == -math.inf


def test_problems_do_not_compete() -> None:
    known = Known(children=2)

    def grow(beams: Sequence[Beam], depth: int) -> list[Beam]:
        return [child for p in (0, 1) for child in known.grow([b for b in beams if b.problem == p], depth)]

    one, two = searched(2, beams=4, children=2, diverse=False, grow=grow, judge=known.judge)
    assert values(one) == values(two)
    assert {beam.problem for beam in one} == {0}
    assert {beam.problem for beam in two} == {1}


@pytest.mark.parametrize(("beams", "children"), [(6, 4), (2, 4), (4, 0)])
def test_beams_are_a_multiple_of_children(beams: int, children: int) -> None:
    known = Known(children=2)
    with pytest.raises(ValueError, match=f"{beams} beams cannot be shared out to {children} children"):
        searched(1, beams=beams, children=children, diverse=True, grow=known.grow, judge=known.judge)
