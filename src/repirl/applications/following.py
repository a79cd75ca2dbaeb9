"""Where the runs of a quick start or a sweep are: read from their logs, shown in one line."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from repirl.applications.processes import Processes
from repirl.progress.line import Line
from repirl.progress.words import last_brief

EVERY_S = 15.0  # between two lines where the output is no terminal
LOOK_S = 0.5  # between two looks at the logs
MEASURING = "measured.log"  # of a process that measures a run rather than trains it
_TAIL_BYTES = 1 << 16


def follow(processes: Processes, runs: Mapping[Path, Future[Any]], besides: Collection[Future[Any]] = ()) -> None:
    """Waits for all, and shows how many runs are done and where the others are.

    Args:
        processes: what the futures start; their logs are read.
        runs: a run's folder -> its future.
        besides: what is waited for without being a run.

    Raises:
        What the first future that failed has raised; the others may be running still.
    """
    names = short_names(list(runs))
    pending = {*runs.values(), *besides}
    with Line(EVERY_S) as line:
        while pending:
            ended, pending = wait(pending, timeout=LOOK_S, return_when=FIRST_COMPLETED)
            for future in ended:
                future.result()
            if pending and line.due():
                line.show(status(sum(run.done() for run in runs.values()), len(runs), states(processes.logs, names)))


def status(done: int, total: int, running: Sequence[str]) -> str:
    """The line, such as `2 of 6 runs done; sft 80/120 1:10 left; prm_only 37/120 3:12 left`."""
    return "; ".join([f"{done} of {total} runs done", *(running or ["starting"])])


def states(logs: Sequence[Path], names: Mapping[Path, str]) -> list[str]:
    """Where each process is, by its log: `sft 80/120 1:10 left`."""
    return [f"{names.get(log.parent, log.parent.name)} {state(log)}" for log in logs]


def state(log: Path) -> str:
    """Count and time left of the log's last line of progress."""
    if log.name == MEASURING:
        return "measuring"
    try:
        with log.open("rb") as file:
            file.seek(max(file.seek(0, 2) - _TAIL_BYTES, 0))
            tail = file.read().decode(errors="replace")
    except FileNotFoundError:
        tail = ""
    return last_brief(tail) or "starting"


def short_names(folders: Sequence[Path]) -> dict[Path, str]:
    """Each folder by the parts of its path that not all have; one folder alone by the last."""
    if len(folders) == 1:
        return {folders[0]: folders[0].name}
    shared = set.intersection(*(set(folder.parts) for folder in folders)) if folders else set()
    return {folder: "/".join(part for part in folder.parts if part not in shared) for folder in folders}
