"""`repirl label-steps`: labels of the steps of given solutions, by what completions from them lead to (Math-Shepherd)."""

from __future__ import annotations

import json
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
import transformers

from repirl import __version__, config
from repirl.applications.journal import Journal
from repirl.applications.label_settings import LabelSteps
from repirl.applications.labelling import Labeller, Task, task_of
from repirl.applications.prm_report import plain
from repirl.applications.processes import alone_in
from repirl.applications.score import stamp
from repirl.applications.settings import given_text, parser_of, settings_of
from repirl.applications.trained import check_device, opened
from repirl.config import ConfigError
from repirl.data.code import read_tests
from repirl.data.fields import as_scalar
from repirl.data.solutions import PlacedSolution, fingerprint, read_solutions
from repirl.data.step_labelled import LabelledSolution, ids_hash, own_row
from repirl.data.step_labels import exported_rows, write_labelled
from repirl.learning.actor import Actor
from repirl.learning.settings import Text
from repirl.models.policy import Policy
from repirl.progress.count import Count
from repirl.rollout.transformers import InProcess
from repirl.structs import Problem
from repirl.verifiers.math import MathVerifier

CLASSES = ("verifier", "rollout")  # settings that name one
REPAIR = "what is labelled so far is kept; run the same again when it is repaired"


def main(arguments: Sequence[str]) -> int:
    """Writes the labels. Returns the exit status."""
    parser = parser_of("label-steps", LabelSteps, __doc__)
    if {"-h", "--help"} & set(arguments):
        parser.print_help()
        return 0
    asked, given = settings_of(parser, LabelSteps, arguments, classes=CLASSES)
    asked.check()
    with alone_in(Path(asked.output)):
        _run(asked, given)
    return 0


def _run(asked: LabelSteps, given: config.Config) -> None:
    placed = _read(asked)
    _refuse_unwritable(asked, placed)
    journal = Journal(Path(asked.output), _description(asked, given, placed), asked.beside)
    before = len(journal.records)
    policy, text = _model(asked, given)
    actor = Actor(policy, text, asked.rollout or InProcess(), asked.verifier or MathVerifier())
    try:
        actor.load()
        tasks, skipped = _tasks(asked, placed, actor)
        _label(asked, actor, tasks, journal)
    except ValueError as error:
        raise ConfigError(str(error), REPAIR) from error
    finally:
        actor.close()
    labelled = [record for record in journal.records if record["labels"] is not None]
    if not labelled:
        raise ConfigError(
            "no solution has a verdict for all of its steps", "see `status` in the journal, or the verifier"
        )
    _write(asked, given, journal, labelled, text, skipped)
    unknown = len(journal.records) - len(labelled)
    print(
        f"{asked.output}: {len(labelled)} solutions"
        + (f", {before} of {len(journal.records)} by an earlier run" if before else "")
        + (f"; {unknown} have a step without a verdict and are left out" if unknown else "")
        + (f"; {skipped} are unfit and left out" if skipped else "")
    )


def _read(asked: LabelSteps) -> list[tuple[PlacedSolution, Problem]]:
    """The solutions with their problems, ids made different. Raises ConfigError."""
    try:
        by: Any = asked.steps if asked.step_pattern is None else re.compile(asked.step_pattern)
        placed = read_solutions(asked.input, columns=asked.columns, by=by)
    except re.error as error:
        raise ConfigError(f"step_pattern: not a regular expression: {error}", "see Python's module re") from error
    except ValueError as error:
        raise ConfigError(f"input: {error}", "nothing was labelled; repair the file") from error
    seen: Counter[str] = Counter()
    found = []
    for one in placed:
        try:
            base = f"row-{one.row}" if one.others.get("id") is None else as_scalar(one.others["id"], "id")
            gold = next((one.others[name] for name in ("gold", "answer") if one.others.get(name) is not None), None)
            tests = read_tests(one.others, {})
            answer = None if gold is None else as_scalar(gold, "gold")
        except ValueError as error:
            raise ConfigError(f"input: {asked.input}, {one.where}: {error}", "repair the file") from error
        if answer is None and tests is None:
            raise ConfigError(
                f"input: {asked.input}, {one.where}: no gold answer as `gold` or `answer`, and no tests",
                "nothing says what is right: add one of them",
            )
        found.append(
            (
                one,
                Problem(f"{base}/{seen[base]}", one.solution.problem, answer, tests=tests, prompt=one.solution.prompt),
            )
        )
        seen[base] += 1
    return found


def _refuse_unwritable(asked: LabelSteps, placed: Sequence[tuple[PlacedSolution, Problem]]) -> None:
    """Raises ConfigError, before anything is sampled, where an export cannot hold a solution whatever its labels are."""
    for one, problem in placed:
        right = LabelledSolution(problem.id, one.solution, wrong_steps=())
        for name in asked.exports:
            try:
                exported_rows([right], name)
            except ValueError as error:
                raise ConfigError(
                    f"exports: {name}: {asked.input}, {one.where}: {error}", f"or leave {name} out of exports"
                ) from error


def _model(asked: LabelSteps, given: config.Config) -> tuple[Policy, Text]:
    try:
        check_device(asked.device)
        trained = opened(asked.checkpoint, asked.policy, given_text(asked.text, given))
    except (ValueError, OSError) as error:
        raise ConfigError(str(error), "give another checkpoint, policy or device") from error
    return trained.policy.to(asked.device), trained.text


def _tasks(asked: LabelSteps, placed: Sequence[tuple[PlacedSolution, Problem]], actor: Actor) -> tuple[list[Task], int]:
    """The solutions in tokens, and the number of those that are unfit. Raises ValueError, naming the row."""
    text = actor.text
    tasks, skipped = [], 0
    for one, problem in placed:
        try:
            task = task_of(problem, one.solution, (one.row, one.sample), actor.codec)
            if len(task.prompt_ids) > text.max_prompt_tokens:
                raise ValueError(f"the prompt has {len(task.prompt_ids)} tokens: raise text.max_prompt_tokens")
            if len(task.token_ids) > text.max_response_tokens:
                raise ValueError(f"the solution has {len(task.token_ids)} tokens: raise text.max_response_tokens")
        except ValueError as error:
            if asked.unfit == "refuse":
                raise ValueError(f"{asked.input}, {one.where}: {error}, or give --unfit=skip") from error
            skipped += 1
            continue
        tasks.append(task)
    if not tasks:
        raise ValueError(f"{asked.input}: all {skipped} solutions are unfit: raise text.max_response_tokens")
    return tasks, skipped


def _label(asked: LabelSteps, actor: Actor, tasks: Sequence[Task], journal: Journal) -> None:
    labeller = Labeller(
        actor,
        completions=asked.completions,
        temperature=asked.temperature,
        stop_after_wrong=asked.stop_after_wrong,
        seed=asked.seed,
    )
    with Count("label-steps", "solutions", len(tasks), len(journal.records)) as count:
        while count.done < len(tasks):
            count.show()
            journal.append(labeller.labelled(tasks[count.done : count.done + asked.solutions_at_once]))
            count.done = len(journal.records)


def _description(
    asked: LabelSteps, given: config.Config, placed: Sequence[tuple[PlacedSolution, Problem]]
) -> dict[str, Any]:
    """What decides the records; another program's journal is refused."""
    files = {name: stamp(Path(path)) for name in ("checkpoint", "policy") if (path := getattr(asked, name))}
    rest = {
        key: value for key, value in given.items() if key not in ("output", "device", "solutions_at_once", "exports")
    }
    return {"settings": rest, "files": files, "input": fingerprint([one for one, _ in placed])}


def _write(
    asked: LabelSteps,
    given: config.Config,
    journal: Journal,
    labelled: Sequence[Mapping[str, Any]],
    text: Text,
    skipped: int,
) -> None:
    """The files beside the output, then the output itself."""
    for name in asked.exports:
        write_labelled(asked.export(name), [own_row(record["id"], record) for record in labelled], name)
    settings: dict[str, Any] = {one.name: getattr(asked, one.name) for one in fields(LabelSteps)}
    settings |= {name: given.get(name) for name in CLASSES} | {"text": asdict(text)}
    steps = [label for record in labelled for label in record["labels"]]
    written = {
        "settings": settings,
        "ids": ids_hash(record["id"] for record in labelled),
        "solutions": len(labelled),
        "without_verdict": [record["id"] for record in journal.records if record["labels"] is None],
        "unfit": skipped,
        "steps": len(steps),
        "right_steps": sum(steps),
        "generated_tokens": sum(record["generated_tokens"] for record in journal.records),
        "policy_tokens": sum(record["policy_tokens"] for record in journal.records),
        "versions": {
            "repirl": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    asked.report.write_text(json.dumps(plain(written), indent=2, default=str) + "\n", encoding="utf-8")
    journal.finish(labelled)
