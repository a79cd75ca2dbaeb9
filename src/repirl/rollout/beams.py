"""Search by steps: beams grow by a step at a time, a PRM says which go on. Pure over two functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Beam:
    """A solution as far as it is written.

    problem: its problem's number. tree: the subtree it belongs to, which matters in a diverse search.
    token_ids: of the response. ended: nothing follows, by itself or at the limit. finished: by itself.
    step_rewards: of its steps. value: what it is compared by.
    """

    problem: int
    tree: int
    token_ids: tuple[int, ...] = ()
    ended: bool = False
    finished: bool = False
    step_rewards: tuple[float, ...] = ()
    value: float = -math.inf


Grow = Callable[[Sequence[Beam], int], list[Beam]]
"""Beams and depth -> all children, each a step longer than its parent, or ended."""
Judge = Callable[[Sequence[Beam]], list[Beam]]
"""Beams -> the same with step rewards and value."""


def searched(problems: int, *, beams: int, children: int, diverse: bool, grow: Grow, judge: Judge) -> list[list[Beam]]:
    """The ended beams of each problem, in the order in which they ended.

    At every step each of at most beams / children beams of a problem gets `children` children. Equal children count once.
    Those that have ended are set aside and kept to the end. Of the others the best beams / children go on; in a diverse
    search (DVTS) beams / children subtrees grow apart, and in each the best child goes on.

    Raises:
        ValueError: `children` does not divide `beams`.
    """
    if not 1 <= children <= beams or beams % children:
        raise ValueError(
            f"{beams} beams cannot be shared out to {children} children each: give a multiple of {children}"
        )
    width = beams // children
    active = [Beam(problem, tree) for problem in range(problems) for tree in range(width)]
    ended: list[list[Beam]] = [[] for _ in range(problems)]
    depth = 0
    while active:
        grown = judge(_distinct(grow(active, depth), diverse=diverse))
        for beam in grown:
            if beam.ended:
                ended[beam.problem].append(beam)
        active = _best([beam for beam in grown if not beam.ended], width, diverse=diverse)
        depth += 1
    return ended


def _group(beam: Beam, *, diverse: bool) -> tuple[int, ...]:
    """The beams among which a beam is compared have this in common."""
    return (beam.problem, beam.tree) if diverse else (beam.problem,)


def _distinct(beams: Sequence[Beam], *, diverse: bool) -> list[Beam]:
    """The first of equal ones."""
    first: dict[Hashable, Beam] = {}
    for beam in beams:
        first.setdefault((_group(beam, diverse=diverse), beam.token_ids), beam)
    return list(first.values())


def _best(beams: Sequence[Beam], width: int, *, diverse: bool) -> list[Beam]:
    """Of each group the `width` best, in a diverse search one; of equal values the earlier."""
    groups: dict[tuple[int, ...], list[Beam]] = {}
    for beam in beams:
        groups.setdefault(_group(beam, diverse=diverse), []).append(beam)
    kept = 1 if diverse else width
    return [beam for group in groups.values() for beam in sorted(group, key=lambda b: -b.value)[:kept]]
