"""The standard benchmarks as sources of problems, by hub id with pinned revision or from a local file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import date
from itertools import islice
from typing import Any, Literal

from repirl.data import code, math
from repirl.data.benchmark_table import BENCHMARKS, BenchmarkName, Reader, Spec
from repirl.data.sources import Source
from repirl.data.tables import PlacedRows, read_table, read_urls
from repirl.structs import Problem

_log = logging.getLogger(__name__)

Release = Literal["release_v1", "release_v2", "release_v3", "release_v4", "release_v5", "release_v6"]
_LIVECODEBENCH = "hf://datasets/livecodebench/code_generation_lite@0fe84c3912ea0c4d4a78037083943e8f0c4dd505"
_EURUS, _EURUS_REVISION = "PRIME-RL/Eurus-2-RL-Data", "9776b13264b5aaa0b16495fcf086a0a8d86fd655"


class Benchmark(Source):
    """One of the standard sets, in its own order.

    Args:
        name: which (docs/benchmarks.md).
        path: a local file or folder in the set's own schema, or in the plain one of `Table`; default: the hub.
        revision: commit of the hub data set, in place of the pinned one.
        prompt: `usual` writes the set's usual prompt around each problem: then leave `text.instruction` empty. `plain`
            leaves it to `text.instruction`.
        limit: how many problems to use, after `skip`; default all.
        skip: how many to leave out at the start.

    Raises (in `load`): ValueError naming file, row, field, what was found and what to do.
    """

    def __init__(
        self,
        name: BenchmarkName,
        path: str | None = None,
        revision: str | None = None,
        prompt: Literal["usual", "plain"] = "usual",
        limit: int | None = None,
        skip: int = 0,
    ) -> None:
        if name not in BENCHMARKS:
            raise ValueError(f"unknown benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
        if path is not None and revision is not None:
            raise ValueError(f"{path}: `revision` is of the hub data set; leave it out beside `path`")
        _check_window(limit, skip)
        self.name, self.path, self.revision, self.prompt = name, path, revision, prompt
        self.limit, self.skip = limit, skip

    def load(self) -> list[Problem]:
        """The problems; the log names those left out for want of an answer, and says where the number is unusual."""
        spec = BENCHMARKS[self.name]
        unanswered: list[str] = []

        def read(row: Mapping[str, Any], default_id: str) -> Problem | None:
            problem = spec.read(row, default_id)
            if problem is None:
                return None
            if spec.kind == "math" and problem.answer is None:
                unanswered.append(problem.id)
                return None
            usual = problem.prompt if spec.prompt is None else spec.prompt.replace("{problem}", problem.text)
            return replace(problem, prompt=usual if self.prompt == "usual" else None)

        problems = _load(self.path or spec.path, self._rows(spec), read, self.name, self.skip, self.limit)
        if unanswered:
            _log.warning("%s: left out for lack of an answer: %s", self.name, ", ".join(map(repr, unanswered)))
        if self.limit is None and not self.skip and len(problems) + len(unanswered) != spec.size:
            _log.warning("%s: %d problems were read, but the set has %d", self.name, len(problems), spec.size)
        return problems

    def _rows(self, spec: Spec) -> PlacedRows:
        if self.path is not None:
            return read_table(self.path, split=spec.split)
        if spec.path.startswith("https://"):
            return read_urls([spec.path])
        revision = self.revision or spec.revision
        parts = (read_table(spec.path, split=spec.split, name=name, revision=revision) for name in spec.names)
        return (
            (f"{name} {where}" if name and len(spec.names) > 1 else where, row)
            for name, part in zip(spec.names, parts, strict=True)
            for where, row in part
        )


class LiveCodeBench(Source):
    """LiveCodeBench, code generation (the `lite` tests).

    Args:
        release: which problems; each release holds all earlier ones. Default release_v6, 1,055 problems.
        start, end: first and last contest date, such as 2024-08-01, both included; default all.
        path: a local JSONL file in the set's schema, in place of a release.
        prompt: `usual` is LiveCodeBench's own prompt; `plain` the statement alone.
        limit, skip: as in `Benchmark`, after the date window.
    """

    def __init__(
        self,
        release: Release | None = None,
        start: str | None = None,
        end: str | None = None,
        path: str | None = None,
        prompt: Literal["usual", "plain"] = "usual",
        limit: int | None = None,
        skip: int = 0,
    ) -> None:
        if release is not None and path is not None:
            raise ValueError(f"{path}: `release` chooses files of the hub data set; leave it out beside `path`")
        _check_window(limit, skip)
        self.release: Release = release or "release_v6"
        self.start, self.end = _day(start, "start"), _day(end, "end")
        self.path, self.prompt, self.limit, self.skip = path, prompt, limit, skip

    def load(self) -> list[Problem]:
        """The problems of the release and the window."""
        if self.path is None:
            count = int(self.release.removeprefix("release_v"))
            # Files and not the hub's loader, which is a script and no longer run by the datasets library.
            rows = read_urls([f"{_LIVECODEBENCH}/test{n if n > 1 else ''}.jsonl" for n in range(1, count + 1)])
        else:
            rows = read_table(self.path)
        return _load(self.path or self.release, rows, self._read, "livecodebench", self.skip, self.limit)

    def _read(self, row: Mapping[str, Any], default_id: str) -> Problem | None:
        if self.start or self.end:
            day = _day(str(row.get("contest_date"))[:10], "contest_date")
            assert day is not None
            if (self.start and day < self.start) or (self.end and day > self.end):
                return None
        problem = code.read_livecodebench(row, default_id)
        return problem if self.prompt == "usual" else replace(problem, prompt=None)


class Eurus(Source):
    """Eurus-2-RL-Data, training problems of mathematics and code, without expert solutions.

    The prompt is the row's own user message; its system message, which describes a special format, is left out.

    Args:
        subset: the problems to use.
        path: a local file or folder in the set's schema; default: the hub, at a pinned revision.
        split: `train` or `validation`.
        prompt, limit, skip: as in `Benchmark`; both counts are of the subset's problems.
    """

    def __init__(
        self,
        subset: Literal["math", "code", "all"] = "all",
        path: str | None = None,
        split: Literal["train", "validation"] = "train",
        prompt: Literal["usual", "plain"] = "usual",
        limit: int | None = None,
        skip: int = 0,
    ) -> None:
        _check_window(limit, skip)
        self.subset, self.path, self.split, self.prompt = subset, path, split, prompt
        self.limit, self.skip = limit, skip

    def load(self) -> list[Problem]:
        """The subset's problems."""
        revision = _EURUS_REVISION if self.path is None else None
        rows = read_table(self.path or _EURUS, split=self.split, revision=revision)
        return _load(self.path or _EURUS, rows, self._read, f"eurus/{self.split}", self.skip, self.limit)

    def _read(self, row: Mapping[str, Any], default_id: str) -> Problem | None:
        ability = row.get("ability")
        if ability not in ("math", "code"):
            raise ValueError(f"field 'ability': found {ability!r}, expected 'math' or 'code'")
        if self.subset not in (ability, "all"):
            return None
        if ability == "math":
            problem = math.read_eurus_math(row, code.eurus_user_message(row), default_id)
        else:
            problem = code.read_eurus_code(row, default_id)
        return problem if self.prompt == "usual" else replace(problem, prompt=None)


def _load(path: str, rows: PlacedRows, read: Reader, name: str, skip: int, limit: int | None) -> list[Problem]:
    """The problems `skip` to `skip + limit` of those that `read` finds in the rows, with unique ids."""
    stop = None if limit is None else skip + limit
    problems = list(islice(_problems(path, rows, read, name), skip, stop))
    if not problems:
        raise ValueError(f"{path}: no problems are left (skip {skip}); the filters leave none, or the file is empty")
    places: dict[str, int] = {}
    for number, problem in enumerate(problems):
        if problem.id in places:
            raise ValueError(
                f"{path}: problems {places[problem.id] + 1} and {number + 1} have the same id {problem.id!r}; "
                "give each its own id"
            )
        places[problem.id] = number
    return problems


def _problems(path: str, rows: PlacedRows, read: Reader, name: str) -> Iterator[Problem]:
    for number, (where, row) in enumerate(rows):
        try:
            problem = read(row, f"{name}/{number}")
        except (ValueError, KeyError, TypeError) as error:
            what = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path}, {where}: {what}") from error
        if problem is not None:
            yield problem


def _check_window(limit: int | None, skip: int) -> None:
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}; leave it out to use all problems")
    if skip < 0:
        raise ValueError(f"skip must not be negative, not {skip}")


def _day(text: str | None, name: str) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{name}: found {text!r}, expected a date such as 2024-08-01") from error
