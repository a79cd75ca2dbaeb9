"""`repirl hard --samples samples.jsonl --output hard.jsonl`: the problems that a policy fails in n samples.

`repirl search` has sampled and judged them; nothing is sampled here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from repirl import __version__
from repirl.applications.prm_report import plain
from repirl.applications.searching import SEARCHED
from repirl.config import ConfigError
from repirl.data.fields import PROMPT_TEXT
from repirl.data.step_labelled import ids_hash
from repirl.data.tables import read_table
from repirl.metrics.comparison import mean_interval

KEPT = ("checkpoint", "policy", "rollout", "temperature", "seed")  # settings of the search that a row names


@dataclass(frozen=True)
class Sampled:
    """A problem with the verdicts on its samples, in order; None where nobody could judge."""

    id: str
    problem: str
    gold: str | None
    right: tuple[bool | None, ...]
    prompt: str | None = None


def main(arguments: Sequence[str]) -> int:
    """Writes the rows and beside them a summary. Returns the exit status."""
    options = _parser().parse_args(list(arguments))
    if options.output.suffix != ".jsonl":
        raise ConfigError(f"--output: {str(options.output)!r} is no .jsonl file", "name a file that ends in .jsonl")
    try:
        problems = read_samples(options.samples)
        n = min(len(one.right) for one in problems) if options.n is None else options.n
        hard, undecided = hard_of(problems, n)
        rows = _rows(hard, options.rows)
        about = _about(options.samples) | {"samples": str(options.samples), "n": n, "repirl": __version__}
    except ValueError as error:
        raise ConfigError(str(error), "give the samples.jsonl of `repirl search`; see docs/search.md") from error
    lines = [json.dumps(row | {"provenance": about}, ensure_ascii=False) + "\n" for row in rows.values()]
    summary = _summary(problems, hard, undecided, n) | about
    _write(options.output, "".join(lines), json.dumps(plain(summary), indent=2) + "\n")
    low, high = summary["pass_at_n_low"], summary["pass_at_n_high"]
    print(
        f"{options.output}: {len(hard)} of {summary['problems']} problems without a right answer in {n} samples"
        + (f"; {len(undecided)} without a verdict are left out" if undecided else "")
        + f"; pass@{n} {summary['pass_at_n']:.3f} ({low:.3f} to {high:.3f})"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="repirl hard",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--samples", type=Path, required=True, help="samples.jsonl that `repirl search` wrote")
    parser.add_argument("--output", type=Path, required=True, help="the .jsonl file to write; beside it a summary")
    parser.add_argument(
        "--n", type=int, help="the first so many samples of each problem count (all that every one has)"
    )
    parser.add_argument(
        "--rows", help="a file of problems whose own rows are written, chosen by `id`: with tests, solutions, ..."
    )
    return parser


def read_samples(path: Path) -> list[Sampled]:
    """The problems of a search in its order; beams are left out. Raises ValueError naming file and line."""
    verdicts: dict[str, list[bool | None]] = {}
    first: dict[str, Mapping[str, Any]] = {}
    for where, row in read_table(str(path)):
        if row.get("method") in SEARCHED:
            continue
        missing = [name for name in ("id", "problem", "right") if name not in row]
        if missing or not (row["right"] is None or isinstance(row["right"], bool)):
            field = missing[0] if missing else "right"
            raise ValueError(f"{path}, {where}: no `{field}` as a search writes it")
        first.setdefault(str(row["id"]), row)
        verdicts.setdefault(str(row["id"]), []).append(row["right"])
    if not first:
        raise ValueError(f"{path}: there are no samples in it")
    return [
        Sampled(name, row["problem"], row.get("gold"), tuple(verdicts[name]), row.get(PROMPT_TEXT))
        for name, row in first.items()
    ]


def hard_of(problems: Sequence[Sampled], n: int) -> tuple[list[Sampled], list[Sampled]]:
    """The problems of whose first n samples none is right, and those that cannot be told: none right, one unjudged.

    Raises ValueError where one has fewer samples, or n is below 1.
    """
    least = min(problems, key=lambda one: len(one.right))
    if not 1 <= n <= len(least.right):
        raise ValueError(f"n is {n}, and problem {least.id!r} has {len(least.right)} samples; give 1 to as many")
    failed = [one for one in problems if True not in one.right[:n]]
    undecided = [one for one in failed if None in one.right[:n]]
    return [one for one in failed if None not in one.right[:n]], undecided


def _rows(hard: Sequence[Sampled], path: str | None) -> dict[str, dict[str, Any]]:
    """A row a problem, as data modules read it: the file's own, else id, problem and answer. Raises ValueError."""
    if path is None:
        if bare := [one.id for one in hard if one.gold is None]:
            raise ValueError(
                f"problem {bare[0]!r} has no gold answer in the samples: give --rows, a file that has its tests"
            )
        return {one.id: {"id": one.id, "problem": one.problem, "answer": one.gold} | _prompt(one) for one in hard}
    given = {str(row.get("id")): dict(row) for _, row in read_table(path)}
    if unknown := [one.id for one in hard if one.id not in given]:
        raise ValueError(f"--rows: {path} has no row with the id {unknown[0]!r}")
    return {one.id: given[one.id] | _prompt(one) for one in hard}


def _prompt(one: Sampled) -> dict[str, Any]:
    """What the policy read, where that is more than the problem: who trains on it lets it read the same."""
    return {} if one.prompt is None else {PROMPT_TEXT: one.prompt}


def _write(output: Path, rows: str, summary: str) -> None:
    """The rows, and the summary beside them. Raises ConfigError, with every file left as it was."""
    beside = output.with_suffix(".json")
    if there := [path for path in (output, beside) if path.exists()]:  # it may be the samples, or their search.json
        raise ConfigError(f"--output: {str(there[0])!r} exists", "name another file, or remove this one")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(rows, encoding="utf-8")
        beside.write_text(summary, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--output: {str(output)!r} cannot be written: {error.strerror}", "name another file"
        ) from error


def _about(samples: Path) -> dict[str, Any]:
    """By what was sampled, as the summary beside the samples has it."""
    path = samples.with_name("search.json")
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8")).get("settings", {})
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, beside the samples, is no JSON: {error}") from error
    return {name: settings[name] for name in KEPT if settings.get(name) is not None}


def _summary(
    problems: Sequence[Sampled], hard: Sequence[Sampled], undecided: Sequence[Sampled], n: int
) -> dict[str, Any]:
    out = {one.id for one in undecided}
    solved = [float(True in one.right[:n]) for one in problems if one.id not in out]
    low, high = mean_interval(torch.tensor(solved, dtype=torch.float64)) if solved else (float("nan"),) * 2
    return {
        "problems": len(problems),
        "hard": len(hard),
        "undecided": [one.id for one in undecided],
        "pass_at_n": sum(solved) / len(solved) if solved else float("nan"),
        "pass_at_n_low": low,
        "pass_at_n_high": high,
        "ids": ids_hash(one.id for one in hard),
    }
