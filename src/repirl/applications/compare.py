"""`repirl compare A.jsonl B.jsonl`: two evaluations of the same problems, problem by problem."""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from repirl.config import ConfigError
from repirl.data.tables import read_table
from repirl.metrics import Comparison, holm, paired_comparison

Key = tuple[str, str]
"""Data set and problem."""
TOGETHER = "all problems"
"""The row of all data sets."""


def main(arguments: Sequence[str]) -> int:
    """Prints a table of the differences, a row a data set. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="repirl compare", description=__doc__, allow_abbrev=False)
    parser.add_argument("first", type=Path, help="records of the callback EvaluationRecords (.jsonl or .parquet)")
    parser.add_argument("second", type=Path, help="of another run")
    parser.add_argument("--kind", choices=["greedy", "sampled"], default="greedy", help="the responses to compare")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    options = parser.parse_args(list(arguments))
    try:
        first, second = (read_scores(path, options.kind) for path in (options.first, options.second))
        found, unmatched = compare(first, second, seed=options.seed)
    except ValueError as error:
        raise ConfigError(str(error), "give two files that EvaluationRecords wrote of the same problems") from error
    if unmatched:
        print(f"{unmatched} problems have a verdict in one file only and are left out", file=sys.stderr)
    adjusted = over_data_sets(found)
    if options.json:
        shown = {name: _plain(one) | {"p_holm": adjusted.get(name)} for name, one in found.items()}
        print(json.dumps(shown, indent=2))
    else:
        _print_table(found, adjusted, options.first, options.second)
    return 0


def read_scores(path: Path, kind: str) -> dict[Key, float | None]:
    """Share of right answers of each problem; None where no verdict is known. Raises ValueError naming file and line."""
    scores: dict[Key, float | None] = {}
    for where, record in read_table(str(path)):
        try:
            answers = [record["greedy"]] if kind == "greedy" else record["samples"]
            known = [answer["correct"] for answer in answers if answer is not None and answer["correct"] is not None]
            key = record["dataset"], record["id"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}, {where}: not a record of an evaluation (no {error})") from error
        if key in scores:
            raise ValueError(f"{path}, {where}: problem {key[1]!r} of set {key[0]!r} is there twice")
        scores[key] = sum(known) / len(known) if known else None
    return scores


def compare(
    first: Mapping[Key, float | None], second: Mapping[Key, float | None], *, seed: int = 0
) -> tuple[dict[str, Comparison], int]:
    """A comparison of each data set, and of all problems where there are several sets; and how many problems have no pair.

    Raises ValueError where no problem has a verdict in both.
    """
    pairs = {key: (a, b) for key, a in first.items() if a is not None and (b := second.get(key)) is not None}
    judged = {key for scores in (first, second) for key, score in scores.items() if score is not None}
    if not pairs:
        raise ValueError("no problem has a verdict in both files")
    names = list(dict.fromkeys(name for name, _ in pairs))
    groups: dict[str, list[Any]] = {name: [pair for key, pair in pairs.items() if key[0] == name] for name in names}
    if len(names) > 1:
        groups[TOGETHER] = list(pairs.values())
    found = {}
    for name, values in groups.items():
        a, b = torch.tensor(values, dtype=torch.float64).T
        found[name] = paired_comparison(a, b, seed=seed)
    return found, len(judged) - len(pairs)


def over_data_sets(found: Mapping[str, Comparison]) -> dict[str, float]:
    """The p-value of each data set adjusted for their number (`holm`); all problems together are no test more."""
    names = [name for name in found if name != TOGETHER]
    return dict(zip(names, holm([found[name].p_value for name in names]), strict=True))


def _plain(one: Comparison) -> dict[str, float | None]:
    """Its fields for JSON, which has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in asdict(one).items()}


def _print_table(found: Mapping[str, Comparison], adjusted: Mapping[str, float], first: Path, second: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    print(f"first:  {first}\nsecond: {second}\ndifference: second - first")
    table = Table()
    several = len(adjusted) > 1
    columns = ("data set", "problems", "first", "second", "difference", "95 % interval", "better", "worse", "p")
    for column in (*columns, "p (Holm)") if several else columns:
        table.add_column(column, justify="left" if column == "data set" else "right")
    for name, one in found.items():
        table.add_row(
            name or "-",
            str(one.problems),
            f"{one.first:.3f}",
            f"{one.second:.3f}",
            f"{one.difference:+.3f}",
            "-" if math.isnan(one.low) else f"{one.low:+.3f} to {one.high:+.3f}",
            str(one.better),
            str(one.worse),
            f"{one.p_value:.2g}",
            *([f"{adjusted[name]:.2g}" if name in adjusted else ""] if several else []),
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
