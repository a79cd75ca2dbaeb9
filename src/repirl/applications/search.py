"""`repirl search`: accuracy against n, tokens and operations where a PRM chooses among solutions or guides their steps."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from jsonargparse import ArgumentParser

from repirl import __version__, config
from repirl.applications.journal import Journal
from repirl.applications.prm_report import plain
from repirl.applications.prms import load_prm
from repirl.applications.processes import alone_in
from repirl.applications.score import stamp
from repirl.applications.scoring import Scorer, count_of
from repirl.applications.search_report import (
    BY_REWARD,
    OPERATIONS,
    VOTES,
    curves_of,
    draw,
    outcomes_of,
    write_curves,
)
from repirl.applications.search_settings import OF_SAMPLING, Search
from repirl.applications.search_stored import Stored, read_stored, stored_units
from repirl.applications.searching import SEARCHED, ResponseScorer, Solver
from repirl.applications.settings import given_text, parser_of, settings_of
from repirl.applications.trained import check_device, opened
from repirl.config import ConfigError
from repirl.data.fields import PROMPT_TEXT
from repirl.data.fingerprint import problems_digest
from repirl.data.preparation import encode_problems
from repirl.data.token_steps import PATTERNS, separator_ids
from repirl.learning.actor import Actor
from repirl.learning.settings import Text
from repirl.models.policy import Policy
from repirl.rollout.transformers import InProcess
from repirl.structs import Problem, Prompt
from repirl.verifiers.math import MathVerifier

CLASSES = ("problems", "verifier", "rollout")  # settings that name one
BESIDE = ("curves.csv", "curves.png", "problems.jsonl", "search.json")  # files that go with the samples
REPAIR = "what is done so far is kept; run the same again when it is repaired"
Unit = dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    """Searches, writes the folder, prints a table. Returns the exit status."""
    parser = _parser()
    if {"-h", "--help"} & set(arguments):
        parser.print_help()
        return 0
    asked, given = parsed(parser, arguments)
    asked.check()
    _refuse_unread(asked, given)
    with alone_in(Path(asked.output)):
        _run(asked, given)
    return 0


def _parser() -> ArgumentParser:
    return parser_of("search", Search, __doc__)


def parsed(parser: ArgumentParser, arguments: Sequence[str]) -> tuple[Search, config.Config]:
    """The settings of YAML files and the command line, and the mapping they came from. Raises ConfigError."""
    return settings_of(parser, Search, arguments, classes=CLASSES)


def _refuse_unread(asked: Search, given: config.Config) -> None:
    """Raises ConfigError where a setting of sampling is given beside an input."""
    if asked.input is not None and (names := [name for name in OF_SAMPLING if given.get(name) is not None]):
        raise ConfigError(
            f"{names[0]}: input is sampled already, and nothing would read it",
            "leave it out, or give --checkpoint or --policy in place of --input",
        )


def _run(asked: Search, given: config.Config) -> None:
    folder = Path(asked.output)
    pattern = PATTERNS.get(asked.steps, "") if asked.step_pattern is None else asked.step_pattern
    stored = _stored(asked)
    problems = _problems(asked) if stored is None else []
    beside = [folder / name for name in BESIDE]
    journal = Journal(folder / "samples.jsonl", _description(asked, given, stored, problems), beside)
    before = len(journal.records)
    try:
        work = _from_stored(asked, stored) if stored is not None else _from_policy(asked, given, pattern, problems)
        used = work.solve(journal)
        _write(asked, given, folder, journal, used)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error), REPAIR) from error
    kept = f"; {before} of {len(journal.records)} searches are an earlier run's" if before else ""
    print(f"{folder}: curves.csv, curves.png, problems.jsonl, samples.jsonl, search.json{kept}")


@dataclass(frozen=True)
class _Used:
    """What a search ran with: sizes of the models, None where unknown, and how problems became prompts."""

    policy_parameters: int | None
    prm_parameters: int | None
    text: Text | None = None


class _Work:
    """What is still to do after so many units, in one order, and with what."""

    def __init__(self, parts: Callable[[int], Iterator[list[Unit]]], used: _Used) -> None:
        self.parts, self.used = parts, used

    def solve(self, journal: Journal) -> _Used:
        """Adds the missing units to the journal. Raises ValueError."""
        for units in self.parts(len(journal.records)):
            journal.append(units)
        return self.used


def _stored(asked: Search) -> list[list[Stored]] | None:
    """The solutions of the input, where it is asked for. Raises ConfigError."""
    if asked.input is None:
        return None
    try:
        by: Any = asked.steps if asked.step_pattern is None else re.compile(asked.step_pattern)
        groups = read_stored(asked.input, by)
    except re.error as error:
        raise ConfigError(f"step_pattern: not a regular expression: {error}", "see Python's module re") from error
    except ValueError as error:
        raise ConfigError(f"input: {error}", "nothing was scored; repair the file, or see docs/search.md") from error
    if few := [group for group in groups if len(group) < max(asked.n)]:
        raise ConfigError(
            f"input: problem {few[0][0].problem.id!r} has {len(few[0])} solutions, too few to choose from {max(asked.n)}",
            "lower n, or sample more solutions",
        )
    return groups


def _from_stored(asked: Search, groups: Sequence[Sequence[Stored]]) -> _Work:
    scorer = None if asked.prm is None or not asked.needs_prm else _prm(asked)
    verifier = asked.verifier or MathVerifier()

    def parts(first: int) -> Iterator[list[Unit]]:
        try:
            for begin in range(first, len(groups), asked.problems_at_once):
                chosen = groups[begin : begin + asked.problems_at_once]
                yield stored_units(chosen, scorer, verifier, needs_rewards=asked.needs_prm, too_long=asked.too_long)
        finally:
            verifier.close()

    return _Work(parts, _Used(None, None if scorer is None else scorer.parameters))


def _from_policy(asked: Search, given: config.Config, pattern: str, problems: Sequence[Problem]) -> _Work:
    policy, text, scorer = _models(asked, given)
    actor = Actor(policy, text, asked.rollout or InProcess(), asked.verifier or MathVerifier())
    actor.load()
    separators = separator_ids(policy.tokenizer, pattern)
    prompts = _prompts(problems, actor)
    rewards = ResponseScorer(scorer or _NoPRM(), actor.codec, separators, asked.too_long)
    solver = Solver(
        actor,
        rewards,
        scores=scorer is not None,
        aggregation=asked.aggregation,
        temperature=asked.temperature,
        seed=asked.seed,
    )
    tasks: list[Callable[[Sequence[Prompt]], list[Unit]]] = []
    if asked.selections:
        tasks.append(partial(solver.sampled, n=asked.samples or max(asked.n)))
    for name in asked.searches:
        for size in asked.beams:
            tasks.append(partial(solver.searched, method=name, n=size, children=asked.children))

    def parts(first: int) -> Iterator[list[Unit]]:
        try:
            for place in range(first, len(tasks) * len(prompts)):
                task, begin = divmod(place, len(prompts))
                if place == first or begin % asked.problems_at_once == 0:
                    end = begin + asked.problems_at_once - begin % asked.problems_at_once
                    yield tasks[task](prompts[begin:end])
        finally:
            actor.close()

    return _Work(parts, _Used(count_of(policy), None if scorer is None else scorer.parameters, actor.text))


class _NoPRM(Scorer):
    """In the place of a PRM where no method reads rewards."""

    def lengths(self, solutions: Sequence[Any]) -> list[int]:
        """None are read."""
        return [0] * len(solutions)

    def _scores(self, solutions: Sequence[Any]) -> list[Any]:
        raise AssertionError("no method reads rewards")


def _models(asked: Search, given: config.Config) -> tuple[Policy, Text, Scorer | None]:
    """The policy, how its problems become prompts, and the PRM where a method needs one. Raises ValueError."""
    check_device(asked.device)
    scorer = _prm(asked) if asked.prm is not None and asked.needs_prm else None
    trained = opened(asked.checkpoint, asked.policy, given_text(asked.text, given))
    if scorer is None and asked.needs_prm and trained.prm is not None:
        trained.prm.to(asked.device)
        scorer = trained.scorer(asked.batch_tokens)
    if scorer is None and asked.needs_prm:
        names = [name for name in asked.methods if name in (*BY_REWARD, *SEARCHED)]
        raise ValueError(f"method {names[0]} needs a PRM, and there is none: give `prm`")
    return trained.policy.to(asked.device), trained.text, scorer


def _prm(asked: Search) -> Scorer:
    assert asked.prm is not None
    return load_prm(
        asked.prm,
        asked.kind,
        reference=asked.reference,
        beta=asked.beta,
        batch_tokens=asked.batch_tokens,
        device=asked.device,
        server=asked.server,
        server_model=asked.server_model,
    )


def _problems(asked: Search) -> list[Problem]:
    """The problems to solve. Raises ConfigError."""
    assert asked.problems is not None
    try:
        problems = asked.problems.load()
    except ValueError as error:
        raise ConfigError(f"problems: {error}", "nothing was sampled; repair that") from error
    if without := [p.id for p in problems if p.answer is None and p.tests is None]:
        raise ConfigError(
            f"{len(without)} problems have no answer, the first is {without[0]!r}: nothing says what is right",
            "leave them out, or add their answers",
        )
    if any(p.tests is not None for p in problems) and set(VOTES) & set(asked.methods):
        raise ConfigError("programs have no answers to vote on", "leave the votes out of methods")
    return list(problems)


def _prompts(problems: Sequence[Problem], actor: Actor) -> list[Prompt]:
    """The problems that fit. Raises ValueError."""
    prompts, report = encode_problems(
        problems,
        actor.codec,
        max_prompt_tokens=actor.text.max_prompt_tokens,
        max_response_tokens=actor.text.max_response_tokens,
        max_experts=0,
        experts="optional",
    )
    if not prompts:
        raise ValueError(f"all {len(problems)} problems are longer than text.max_prompt_tokens: raise it")
    if report.prompts_too_long:
        print(f"{report.prompts_too_long} problems are longer than text.max_prompt_tokens and left out")
    return prompts


def _description(
    asked: Search, given: config.Config, stored: Sequence[Sequence[Stored]] | None, problems: Sequence[Problem]
) -> dict[str, Any]:
    """What decides the records; another search's journal is refused."""
    files = {
        name: stamp(Path(path))
        for name in ("checkpoint", "policy", "prm", "reference", "input")
        if (path := getattr(asked, name))
    }
    rest = {
        key: value
        for key, value in given.items()
        if key not in ("output", "device", "batch_tokens", "server", "too_long")
    }
    rest |= {} if asked.server is None else {"served": True}  # wherever it is: an address may change
    content = {"problems": problems_digest(problems), "problems in the input": None if stored is None else len(stored)}
    return {"settings": rest, "files": files} | content


def _write(asked: Search, given: config.Config, folder: Path, journal: Journal, used: _Used) -> None:
    """The folder's files; samples.jsonl, by which a search is known to be whole, comes last."""
    known = {"aggregation": asked.aggregation, "subsets": asked.subsets, "seed": asked.seed}
    units = journal.records
    found = [outcomes_of(unit, asked.selections, asked.n, **known) for unit in units]  # type: ignore[arg-type]
    outcomes = [outcome for of_unit in found for outcome in of_unit]
    if not outcomes:
        raise ConfigError(
            "no problem has a verdict for all of its solutions", "see `status` in the journal, or the verifier"
        )
    rows = curves_of(
        outcomes, policy_parameters=used.policy_parameters, prm_parameters=used.prm_parameters, seed=asked.seed
    )
    lines = [json.dumps(outcome, ensure_ascii=False) + "\n" for outcome in outcomes]
    (folder / "problems.jsonl").write_text("".join(lines), encoding="utf-8")
    write_curves(rows, folder / "curves.csv")
    draw(rows, folder / "curves.png")
    unknown = sorted({unit["id"] for unit, of_unit in zip(units, found, strict=True) if not of_unit})
    unread = sum(_is_unread(sample) for unit in units for sample in unit["samples"])
    settings = {one.name: getattr(asked, one.name) for one in fields(Search)}
    settings |= {name: given.get(name) for name in ("problems", "verifier", "rollout")}
    settings["text"] = None if used.text is None else asdict(used.text)
    settings |= dict.fromkeys(asked.without_effect)
    written = {
        "settings": settings,
        "ids": list(dict.fromkeys(unit["id"] for unit in units)),
        "without_verdict": unknown,
        "unread": unread,
        "parameters": {"policy": used.policy_parameters, "prm": used.prm_parameters},
        "operations": OPERATIONS,
        "versions": {
            "repirl": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "curves": rows,
    }
    (folder / "search.json").write_text(json.dumps(plain(written), indent=2, default=str) + "\n", encoding="utf-8")
    journal.finish(_lines(units))
    _print(rows)
    if unread:
        print(f"{unread} solutions were too long for the PRM, or had a text that it refuses: they rank last")


def _is_unread(sample: Mapping[str, Any]) -> bool:
    return bool(sample["steps"]) and sample["step_rewards"] == []


def _lines(units: Sequence[Unit]) -> list[Mapping[str, Any]]:
    """A line a solution."""
    return [
        {
            name: unit[name]
            for name in ("id", "problem", PROMPT_TEXT, "gold", "method", "n", "prompt_tokens")
            if name in unit
        }
        | {"sample": i}
        | sample
        for unit in units
        for i, sample in enumerate(unit["samples"])
    ]


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("method", "n", "accuracy", "95 % interval", "tokens sampled", "PRM tokens", "operations"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        costs = [row[name] for name in ("generated_tokens", "prm_tokens", "operations")]
        table.add_row(
            row["method"],
            str(row["n"]),
            f"{row['accuracy']:.3f}",
            f"{row['low']:.3f} to {row['high']:.3f}",
            *("-" if cost is None else f"{cost:.3g}" for cost in costs),
        )
    Console(width=120).print(table)
