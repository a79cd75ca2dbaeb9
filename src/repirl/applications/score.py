"""`repirl score --prm PRM --input in.jsonl --output out.jsonl`: rewards of given solutions, of steps and of the whole."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from repirl.applications.journal import Journal, refuse_unfit_for_parquet
from repirl.applications.prms import BETA, add_options, given_options, load_prm
from repirl.applications.processes import alone_in
from repirl.applications.scoring import Score, Scorer
from repirl.config import ConfigError
from repirl.data.solutions import PlacedSolution, read_solutions
from repirl.data.steps import By
from repirl.progress.count import Count

CHUNK = 8  # batches between two writes
WHOLE = ("mean", "sum", "min", "last")
WRITTEN = ("row", "sample", "problem", "steps", "step_rewards", *WHOLE, "token_mean", "tokens", "token_rewards")


def main(arguments: Sequence[str]) -> int:
    """Writes the scores. Returns the exit status."""
    options = _parser().parse_args(list(arguments))
    try:
        by: Any = options.steps if options.step_pattern is None else re.compile(options.step_pattern)
        placed = read_solutions(options.input, columns=_columns(options.columns), by=by)
    except re.error as error:
        raise ConfigError(f"--step-pattern: not a regular expression: {error}", "see Python's module re") from error
    except ValueError as error:
        raise ConfigError(f"--input: {error}", "nothing was scored; repair the file, or see --help") from error
    _refuse_taken_names(placed)
    _refuse_unwritable(placed, options.output)
    with alone_in(options.output):  # two programs would mix their records
        _run(options, placed)
    return 0


def _run(options: argparse.Namespace, placed: Sequence[PlacedSolution]) -> None:
    prm = options.checkpoint or options.prm
    beta = BETA if options.beta is None else options.beta
    description: dict[str, Any] = {
        "PRM": [prm, options.kind, options.reference, beta, *stamps(prm, options.reference)],
        "tokens": options.tokens,
    }
    if options.server is not None:  # wherever it is: an address may change before a run goes on
        description["server"] = True
    journal = Journal(options.output, description)
    before = len(journal.records)
    _require_scored(journal, placed, options.input)
    try:
        scorer = load_prm(prm, **given_options(options))
        _score(scorer, placed, journal, options)
    except ValueError as error:
        raise ConfigError(
            str(error), "what is scored so far is kept; run the same again when it is repaired"
        ) from error
    journal.finish()
    skipped = sum(record["mean"] is None for record in journal.records)
    print(
        f"{options.output}: {len(placed)} solutions"
        + (f", {before} of them scored by an earlier run" if before else "")
        + (f", {skipped} too long and without rewards" if skipped else "")
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="repirl score", description=__doc__, allow_abbrev=False)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--checkpoint", help="a .ckpt file of a run that trained a PRM")
    which.add_argument("--prm", help="a folder of `repirl export --part prm`, another's PRM, or a checkpoint")
    parser.add_argument("--input", required=True, help="rows of a problem with solution, solutions or steps")
    parser.add_argument("--output", type=Path, required=True, help="the .jsonl or .parquet file to write")
    parser.add_argument(
        "--columns", nargs="*", default=[], metavar="FIELD=NAME", help="the input's names of our fields"
    )
    parser.add_argument("--steps", choices=get_args(By), default="newline", help="how solutions are cut (newline)")
    parser.add_argument("--step-pattern", metavar="REGEX", help="a step ends where a match ends, in place of --steps")
    parser.add_argument("--tokens", action="store_true", help="write tokens and their rewards too")
    parser.add_argument(
        "--too-long", choices=("refuse", "skip"), default="refuse", help="solutions longer than the PRM's context"
    )
    add_options(parser)
    return parser


def _columns(pairs: Sequence[str]) -> dict[str, str]:
    parts = [pair.partition("=") for pair in pairs]
    if wrong := [pair for pair, (field, _, name) in zip(pairs, parts, strict=True) if not field or not name]:
        raise ConfigError(f"--columns: {wrong[0]!r} is not FIELD=NAME", "write --columns problem=question")
    return {field: name for field, _, name in parts}


def _refuse_taken_names(placed: Sequence[PlacedSolution]) -> None:
    for one in placed:
        if taken := [name for name in WRITTEN if name in one.others]:
            raise ConfigError(
                f"--input: {one.where} has a field {taken[0]!r}, which the output has of its own",
                "rename it; all fields of the input that are not scored stand in the output too",
            )


def stamp(path: Path) -> list[list[Any]]:
    """Size and time of a file, or of the files of a folder: another PRM of the same name has others.

    Hidden files of a folder do not count: an output in the folder has its journal there.
    """
    inside = path.is_dir()
    files = sorted(path.iterdir()) if inside else [path] if path.is_file() else []
    kept = [file for file in files if file.is_file() and not (inside and file.name.startswith("."))]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in kept]


def stamps(*models: str | None) -> list[list[Any]]:
    """The stamps of all models that are given, one after another; a hub id has none."""
    return [one for model in models if model is not None for one in stamp(Path(model).expanduser())]


def _refuse_unwritable(placed: Sequence[PlacedSolution], output: Path) -> None:
    """Raises ConfigError where a field of the input that is only passed on cannot stand in the output."""
    for one in placed:
        try:
            json.dumps(dict(one.others), ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"--input: {one.where}: a text of it has half a surrogate pair", "nothing was scored; repair the text"
            ) from error
    if output.suffix == ".parquet":
        refuse_unfit_for_parquet([one.others for one in placed])


def _require_scored(journal: Journal, placed: Sequence[PlacedSolution], path: str) -> None:
    """Raises ConfigError unless the records are of the input's first solutions; what follows them may have changed."""
    for number, record in enumerate(journal.records):
        one = placed[number] if number < len(placed) else None
        if one is None or any(_as_kept(record.get(key)) != _as_kept(value) for key, value in _read(one).items()):
            raise ConfigError(
                f"--output: {str(journal.part)!r} was begun with another input, or steps: its solution {number + 1} is not "
                f"that of {path}",
                "name another output, or remove that file to begin anew",
            )


def _as_kept(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _score(scorer: Scorer, placed: Sequence[PlacedSolution], journal: Journal, options: argparse.Namespace) -> None:
    """Scores what is missing in the journal. Raises ValueError, naming the row."""
    lengths = _lengths(scorer, placed, options.input)
    limit = scorer.context
    long = {i for i, length in enumerate(lengths) if limit is not None and length > limit}
    if long and options.too_long == "refuse":
        first = min(long)
        raise ValueError(
            f"{options.input}, {placed[first].where}: {lengths[first]} tokens with the problem, and the PRM reads {limit}; "
            f"so have {len(long)} of {len(placed)} solutions too many. Take them out, or give --too-long skip"
        )
    with Count("score", "solutions", len(placed), len(journal.records)) as count:
        scorer.waiting = count.show
        for first, last in _chunks(lengths, len(journal.records), CHUNK * options.batch_tokens):
            count.show()
            chosen = [i for i in range(first, last) if i not in long]
            try:
                scores = dict(zip(chosen, scorer.scores([placed[i].solution for i in chosen]), strict=True))
            except ValueError as error:
                raise ValueError(f"{options.input}, {placed[first].where} and after: {error}") from error
            journal.append([_record(placed[i], scores.get(i), options.tokens) for i in range(first, last)])
            count.done = last


def _lengths(scorer: Scorer, placed: Sequence[PlacedSolution], path: str) -> list[int]:
    try:
        return scorer.lengths([one.solution for one in placed])
    except ValueError:
        for one in placed:  # which of them it is
            try:
                scorer.lengths([one.solution])
            except ValueError as error:
                raise ValueError(f"{path}, {one.where}: {error}") from error
        raise


def _chunks(lengths: Sequence[int], first: int, budget: int) -> Iterator[tuple[int, int]]:
    """Ranges of about `budget` tokens, at least one solution each, from `first` on."""
    start, total = first, 0
    for i in range(first, len(lengths)):
        if i > start and total + lengths[i] > budget:
            yield start, i
            start, total = i, 0
        total += lengths[i]
    if start < len(lengths):
        yield start, len(lengths)


def _read(one: PlacedSolution) -> dict[str, Any]:
    """What a line of the output says of the input."""
    about = {"row": one.row, "sample": one.sample, **one.others, "problem": one.solution.problem}
    return about | {"steps": list(one.solution.steps)}


def _record(one: PlacedSolution, score: Score | None, tokens: bool) -> dict[str, Any]:
    """A line of the output; without a score the rewards are null."""
    record = _read(one)
    record["step_rewards"] = None if score is None else list(score.step_rewards)
    for by in WHOLE:
        record[by] = None if score is None else score.reward(by)  # type: ignore[arg-type]
    record["token_mean"] = None if score is None else score.token_mean
    if tokens:
        record["tokens"] = None if score is None else list(score.tokens)
        record["token_rewards"] = None if score is None else list(score.token_rewards)
    return record
