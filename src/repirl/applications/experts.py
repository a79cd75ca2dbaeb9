"""`repirl generate-experts`: verified solutions of given problems by any model, as rows that training reads."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from repirl import __version__, config
from repirl.applications.accuracy import fitting
from repirl.applications.experts_asking import (
    Missing,
    Record,
    Wanted,
    ask_endpoint,
    ask_policy,
    endpoint_of,
    policy_of,
)
from repirl.applications.experts_report import cost_of, counts_of, is_whole, outcomes_of, row_of
from repirl.applications.experts_settings import Experts
from repirl.applications.journal import Journal
from repirl.applications.processes import alone_in
from repirl.applications.score import stamp
from repirl.applications.settings import parser_of, settings_of
from repirl.config import ConfigError
from repirl.data.contamination import contaminated
from repirl.data.fingerprint import problems_digest
from repirl.learning.settings import Text
from repirl.rollout.endpoint import host_of
from repirl.rollout.openai import ChatEndpoint
from repirl.structs import Problem, Prompt, Verifier
from repirl.verifiers.math import MathVerifier

CLASSES = ("problems", "verifier", "rollout")  # settings that name one
VERIFIED_AT_ONCE = 64
KEPT = "what has come is kept; run the same again when it is repaired"
Verdicts = dict[tuple[str, int], Record]


def main(arguments: Sequence[str]) -> int:
    """Asks, verifies, writes the folder. Returns the exit status."""
    parser = _parser()
    if {"-h", "--help"} & set(arguments):
        parser.print_help()
        return 0
    asked, given = settings_of(parser, Experts, arguments, classes=CLASSES)
    asked.check()
    verifier = asked.verifier or MathVerifier()
    try:
        with alone_in(Path(asked.output)):
            _run(asked, given, verifier)
    finally:
        verifier.close()
    return 0


def _parser() -> ArgumentParser:
    return parser_of("generate-experts", Experts, __doc__)


def _run(asked: Experts, given: config.Config, verifier: Verifier) -> None:
    try:
        endpoint = None if asked.base_url is None else endpoint_of(asked)
        chosen = _chosen(asked, verifier)
    except ValueError as error:
        raise ConfigError(str(error), "nothing was asked; repair that, or see docs/experts.md") from error
    folder = Path(asked.output)
    beside = [folder / "experts.jsonl", folder / "summary.json"]
    journal = Journal(folder / "answers.jsonl", _description(asked, given, chosen.problems), beside)
    try:
        asked, chosen, missing = _ask(asked, given, endpoint, chosen, journal)
    except ValueError as error:
        raise ConfigError(str(error), KEPT) from error
    if missing and asked.missing == "refuse":
        raise ConfigError(
            f"{len(missing)} of {len(chosen.problems) * asked.n} answers are missing, the first of problem "
            f"{missing[0].id!r}: {missing[0].why}",
            "run the same again to ask for them, or with --missing=accept to do without",
        )
    _verify(chosen.problems, journal, verifier)
    _write(asked, given, chosen, journal, missing)


# ---- problems ----


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The problems to ask, and what became of the others.

    repeated, golds_unreadable, too_long: ids of problems left out. overlaps: name of a set -> id of a problem -> id of
    the set's problem that it is.
    """

    problems: Sequence[Problem]
    loaded: int
    repeated: Sequence[str]
    golds_unreadable: Sequence[str]
    overlaps: Mapping[str, Mapping[str, str]]
    too_long: Sequence[str] = ()

    def overlaps_of(self, name: str) -> dict[str, str]:
        """Name of a set -> id of its problem that this one is."""
        return {label: of_set[name] for label, of_set in self.overlaps.items() if name in of_set}


def _chosen(asked: Experts, verifier: Verifier) -> _Chosen:
    """Before anything is asked: each statement once, with a gold that can be read, in no evaluation set.

    Raises:
        ValueError: nothing says what is right, or no problem is left.
    """
    problems = asked.problems.load()
    first = {problem.text.strip(): problem for problem in reversed(problems)}
    once = [problem for problem in problems if first[problem.text.strip()] is problem]
    if len({problem.id for problem in once}) < len(once):
        raise ValueError("problems: several have the same id; give each its own")
    unreadable = _unreadable(once, verifier, asked.keep)
    sets = {name: source for name, source in (asked.guard or {}).items() if source is not None}
    overlaps = {name: contaminated(once, source.load()) for name, source in sets.items()}
    out = set(unreadable)
    if asked.contaminated == "drop":
        out |= {name for of_set in overlaps.values() for name in of_set}
    left = [problem for problem in once if problem.id not in out]
    if not left:
        raise ValueError(
            f"none of {len(problems)} problems is left: {len(unreadable)} have a gold answer that cannot be read, "
            f"{len(out) - len(unreadable)} are in evaluation sets"
        )
    repeated = [problem.id for problem in problems if first[problem.text.strip()] is not problem]
    return _Chosen(left, len(problems), repeated, unreadable, overlaps)


def _unreadable(problems: Sequence[Problem], verifier: Verifier, keep: str) -> list[str]:
    """Ids of those whose gold the verifier cannot read. Raises ValueError where it cannot judge one at all."""
    judged = [problem for problem in problems if _is_judged(problem)]
    if keep == "right" and len(judged) < len(problems):
        without = next(problem.id for problem in problems if not _is_judged(problem))
        raise ValueError(
            f"{len(problems) - len(judged)} problems have neither answer nor tests, the first is {without!r}: nothing "
            "says what is right; leave them out, or give --keep=all"
        )
    unreadable = [name for name, _ in verifier.check_golds(judged)] if judged else []
    verifier.verify(
        judged, [""] * len(judged)
    )  # now, and not when the answers are paid for, it says what it cannot judge
    return unreadable


def _is_judged(problem: Problem) -> bool:
    return problem.answer is not None or problem.tests is not None


# ---- answers ----


def _description(asked: Experts, given: config.Config, problems: Sequence[Problem]) -> dict[str, Any]:
    """What decides the records; a journal of other settings is refused."""
    names = ("base_url", "policy", "checkpoint", "n", *_sampling(asked))
    files = [stamp(Path(path)) for path in (asked.policy, asked.checkpoint) if path is not None]
    return {
        **{name: getattr(asked, name) for name in names},
        "text": None if asked.text is None else asdict(asked.text),
        "verifier": given.get("verifier"),
        "rollout": given.get("rollout"),
        "files": files,
        "problems": problems_digest(problems),
    }


def _sampling(asked: Experts) -> tuple[str, ...]:
    """Names of the settings that an answer depends on."""
    if asked.base_url is None:
        return ("temperature", "seed")
    return ("model", "system", "temperature", "top_p", "max_tokens", "max_tokens_field", "extra")


def _ask(
    asked: Experts, given: config.Config, endpoint: ChatEndpoint | None, chosen: _Chosen, journal: Journal
) -> tuple[Experts, _Chosen, list[Missing]]:
    """Adds the answers that are not there to the journal. Raises ValueError.

    Returns the settings with the text that was used, the problems that could be asked, and what did not come.
    """
    known = frozenset((one["id"], one["sample"]) for one in journal.records if "text" in one)
    if endpoint is not None:
        wanted: list[Wanted] = [(p, k) for p in chosen.problems for k in range(asked.n) if (p.id, k) not in known]
        asked = replace(asked, text=asked.text or Text())
        return asked, chosen, ask_endpoint(asked, endpoint, wanted, journal.append) if wanted else []
    actor = policy_of(asked, given)
    try:
        prompts: list[Prompt] = fitting(chosen.problems, actor)
        ask_policy(asked, actor, prompts, known, journal.append)
    finally:
        actor.close()
    fit = {prompt.problem.id for prompt in prompts}
    too_long = [problem.id for problem in chosen.problems if problem.id not in fit]
    problems = [problem for problem in chosen.problems if problem.id in fit]
    return replace(asked, text=actor.text), replace(chosen, problems=problems, too_long=too_long), []


def _verify(problems: Sequence[Problem], journal: Journal, verifier: Verifier) -> None:
    """Adds the verdicts that are not there to the journal, in parts, so that a killed program goes on."""
    by_id = {problem.id: problem for problem in problems if _is_judged(problem)}
    known = _verdicts(journal.records)
    left = [
        one
        for one in journal.records
        if "text" in one and one["id"] in by_id and is_whole(one) and (one["id"], one["sample"]) not in known
    ]
    for first in range(0, len(left), VERIFIED_AT_ONCE):
        some = left[first : first + VERIFIED_AT_ONCE]
        verdicts = verifier.verify([by_id[one["id"]] for one in some], [one["text"] for one in some])
        journal.append(
            [
                {"id": one["id"], "sample": one["sample"], "right": verdict.correct, "status": verdict.status}
                for one, verdict in zip(some, verdicts, strict=True)
            ]
        )


def _verdicts(records: Sequence[Record]) -> Verdicts:
    return {(one["id"], one["sample"]): one for one in records if "right" in one}


# ---- what is written ----


def _write(asked: Experts, given: config.Config, chosen: _Chosen, journal: Journal, missing: Sequence[Missing]) -> None:
    """The folder's files; answers.jsonl, by which a set is known to be whole, comes last."""
    folder = Path(asked.output)
    place = {problem.id: i for i, problem in enumerate(chosen.problems)}
    answers = [one for one in journal.records if "text" in one]
    answers.sort(key=lambda one: (place[one["id"]], one["sample"]))
    verdicts = _verdicts(journal.records)
    outcomes = outcomes_of(answers, verdicts, asked.keep)
    rows = [
        row_of(
            chosen.problems[place[one["id"]]],
            one,
            verdicts.get((one["id"], one["sample"])),
            about=_about(asked),
            contaminated=chosen.overlaps_of(one["id"]),
        )
        for one, outcome in zip(answers, outcomes, strict=True)
        if outcome == "expert"
    ]
    summary = _summary(asked, given, chosen, answers, verdicts, outcomes, missing)
    _replace(folder / "experts.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    _replace(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False, default=str) + "\n")
    nothing = {"right": None, "status": None}
    journal.finish(
        [
            {**one, **(verdicts.get((one["id"], one["sample"])) or nothing), "outcome": outcome}
            for one, outcome in zip(answers, outcomes, strict=True)
        ]
    )
    print(_words(folder, summary))


def _about(asked: Experts) -> Record:
    """What a row says of all answers: who gave them, and by which settings."""
    text = asked.text or Text()
    settings = {name: getattr(asked, name) for name in _sampling(asked) if name != "model"}
    if asked.base_url is None:
        settings |= {"max_tokens": text.max_response_tokens, "template": text.template}
    elif asked.max_tokens is None:
        settings["max_tokens"] = text.max_response_tokens
    return {
        "model": asked.model or asked.policy or asked.checkpoint,
        "host": None if asked.base_url is None else host_of(asked.base_url),
        "settings": settings | {"instruction": text.instruction},
    }


def _summary(
    asked: Experts,
    given: config.Config,
    chosen: _Chosen,
    answers: Sequence[Record],
    verdicts: Verdicts,
    outcomes: Sequence[Any],
    missing: Sequence[Missing],
) -> dict[str, Any]:
    experts = [one["id"] for one, outcome in zip(answers, outcomes, strict=True) if outcome == "expert"]
    prices = {"price_prompt": asked.price_prompt, "price_completion": asked.price_completion}
    return {
        "problems": {
            "loaded": chosen.loaded,
            "asked": len(chosen.problems),
            "with_expert": len(set(experts)),
            "without_expert": [p.id for p in chosen.problems if p.id not in set(experts)],
            "repeated": list(chosen.repeated),
            "golds_unreadable": list(chosen.golds_unreadable),
            "prompts_too_long": list(chosen.too_long),
            "contaminated": {name: dict(of_set) for name, of_set in chosen.overlaps.items()},
        },
        "answers": {
            "asked": len(chosen.problems) * asked.n,
            **counts_of(answers, verdicts, outcomes),
            "missing": [asdict(one) for one in missing],
        },
        "tokens": cost_of(answers, len(experts), **prices),
        "about": _about(asked),
        "settings": dict(given),
        "versions": {"repirl": __version__, "python": platform.python_version()},
    }


def _replace(path: Path, text: str) -> None:
    """The file is whole or not there."""
    whole = path.with_name(f".{path.name}.whole")
    whole.write_text(text, encoding="utf-8")
    whole.replace(path)


def _words(folder: Path, summary: Mapping[str, Any]) -> str:
    answers, problems, tokens = summary["answers"], summary["problems"], summary["tokens"]
    others = [
        f"{answers[name]} {name}"
        for name in ("wrong", "unfinished", "duplicate", "empty", "undecided")
        if answers[name]
    ]
    overlaps = [f"{len(of_set)} in {name}" for name, of_set in problems["contaminated"].items() if of_set]
    lines = [
        f"{folder}: {answers['expert']} experts of {problems['with_expert']} problems, from {answers['received']} answers "
        f"of {problems['asked']}" + (f" ({', '.join(others)})" if others else ""),
        f"{tokens['prompt_tokens']:,} prompt and {tokens['completion_tokens']:,} completion tokens"
        + ("" if tokens["cost"] is None else f", cost {tokens['cost']:.4g}"),
    ]
    if overlaps:
        lines.append(f"problems in evaluation sets: {', '.join(overlaps)}; summary.json names them")
    return "\n".join(lines)
