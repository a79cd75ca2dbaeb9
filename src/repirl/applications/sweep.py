"""`repirl sweep`: one base configuration, a set of overlays and seeds; parallel processes, resumable, one table.

Every run is `repirl fit` of base + overlay in a process of its own. An overlay is one arm; `a.yaml+b.yaml` is one arm of two
overlays. `{seed}` and `{folder}` in any text of the configurations become the run's seed and folder. A finished run is not
repeated unless its configuration changed; a failed one is, the next time. The tables keep the finished runs of earlier
sweeps into the same folder: results.csv has a row a run, summary.csv mean and standard deviation an arm.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repirl import config
from repirl.applications.following import follow
from repirl.applications.processes import Processes, alone_in
from repirl.config.errors import parameters
from repirl.config.output import filled

SHOWN = ("val/greedy_accuracy", "val/sampled_accuracy", "rollout/accuracy")
"""Figures of the printed summary, where they are logged; the files have all."""


@dataclass(frozen=True)
class Run:
    """One arm with one seed. files: base and overlays, left to right."""

    arm: str
    seed: int
    files: tuple[Path, ...]
    folder: Path


def main(argv: Sequence[str]) -> int:
    """Runs what is not done yet and writes the table; the exit status is 1 where a run failed or was stopped."""
    parser = argparse.ArgumentParser(
        prog="repirl sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, nargs="+", required=True, help="the configuration of every run")
    parser.add_argument("--overlays", nargs="*", default=[], help="one arm each; a.yaml+b.yaml is one arm of both")
    parser.add_argument("--with-base", action="store_true", help="the base alone is an arm too")
    parser.add_argument("--seeds", default="0", help="such as 0-4 or 1,2,5 (default: 0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time (default: one a core)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a run (default: 1)")
    parser.add_argument("--output", type=Path, default=Path("outputs/sweep"), help="folder of all runs and the table")
    given = parser.parse_args(argv)
    runs = plan(given.base, given.overlays, parse_seeds(given.seeds), given.output, with_base=given.with_base)
    missing = sorted({str(path) for run in runs for path in run.files if not path.is_file()})
    if missing:
        raise config.ConfigError(f"no such file: {missing[0]}", "give the paths of existing YAML files")
    with alone_in(given.output):
        return _run_all(runs, given.jobs, given.threads, given.output)


def _run_all(runs: Sequence[Run], jobs: int, threads: int, output: Path) -> int:
    overlays = {run: overlay(run) for run in runs}
    todo = [run for run in runs if not is_done(run, overlays[run])]
    print(f"{len(runs)} runs, {len(runs) - len(todo)} done before, {jobs} at a time", flush=True)
    processes = Processes()
    with processes.threads(jobs) as pool:
        ended = {run.folder: pool.submit(execute, run, overlays[run], processes, threads) for run in todo}
        follow(processes, ended)
    failed = [run for future in ended.values() if (run := future.result()) is not None]
    rows = [row for run in runs if (row := result(run)) is not None]
    table = [*earlier(output, {(run.arm, run.seed) for run in runs}), *rows]
    write_table(table, output, "results")
    write_table(summary(table), output, "summary")
    print_summary(summary(table))
    print(f"{len(rows)} of {len(runs)} runs in {output / 'results.csv'}; a row an arm in {output / 'summary.csv'}")
    for run in failed:
        print(f"failed: {run.arm}, seed {run.seed}: {run.folder / 'log.txt'}", file=sys.stderr)
    return 1 if failed else 0


def plan(
    base: Sequence[Path], overlays: Sequence[str], seeds: Sequence[int], output: Path, *, with_base: bool
) -> list[Run]:
    """All runs, seed by seed. Raises ConfigError where two arms have one name or there is none."""
    arms: dict[str, tuple[Path, ...]] = {"base": ()} if with_base or not overlays else {}
    for words in overlays:
        paths = tuple(Path(word) for word in words.split("+"))
        name = "+".join(path.stem for path in paths)
        if name in arms:
            raise config.ConfigError(f"two arms are called {name!r}", "rename one of the overlay files")
        arms[name] = paths
    return [
        Run(arm, seed, (*base, *paths), output / arm / f"seed-{seed}") for seed in seeds for arm, paths in arms.items()
    ]


def parse_seeds(text: str) -> list[int]:
    """The seeds of "0-4" or "1,2,5". Raises ConfigError."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise config.ConfigError(f"--seeds: {text!r} is not understood", "write 0-4 or 1,2,5")
        seeds += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(seeds))


def overlay(run: Run) -> dict[str, Any]:
    """The run's merged configuration: placeholders filled in, seeds set, figures logged into its folder."""
    values = {"{seed}": str(run.seed), "{folder}": str(run.folder)}
    merged: dict[str, Any] = filled(config.load(list(run.files)), values)
    merged["seed_everything"] = run.seed
    if "output" in merged:
        merged["output"] = str(run.folder)
    for part in ("model", "data"):
        node = merged.get(part)
        if isinstance(node, dict) and "seed" in parameters(str(node.get("class_path"))):
            node.setdefault("init_args", {})["seed"] = run.seed
    trainer = merged.setdefault("trainer", {})
    trainer["default_root_dir"] = str(run.folder)
    trainer["logger"] = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": str(run.folder), "name": None, "version": ""},
    }
    return merged


def _digest(merged: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(merged, sort_keys=True).encode(), digest_size=16).hexdigest()


def is_done(run: Run, merged: dict[str, Any]) -> bool:
    """Whether the run ended well with this very configuration."""
    marker = run.folder / "done.json"
    return marker.is_file() and json.loads(marker.read_text())["configuration"] == _digest(merged)


def execute(run: Run, merged: dict[str, Any], processes: Processes, threads: int) -> Run | None:
    """Runs it in a process of its own; returns it where it failed."""
    run.folder.mkdir(parents=True, exist_ok=True)
    for name in ("done.json", "metrics.csv"):
        (run.folder / name).unlink(missing_ok=True)
    written = run.folder / "sweep.yaml"
    written.write_text(config.dump(merged))
    began = time.perf_counter()
    status = processes.repirl(["fit", "--config", str(written)], run.folder / "log.txt", threads)
    seconds = time.perf_counter() - began
    ended = "ok" if status == 0 else f"FAILED, exit status {status}"
    print(f"  {run.arm}, seed {run.seed}: {ended}, {seconds:.0f} s", flush=True)
    if status:
        return run
    marker = {"configuration": _digest(merged), "seconds": seconds}
    (run.folder / "done.json").write_text(json.dumps(marker) + "\n")
    return None


def result(run: Run) -> dict[str, Any] | None:
    """The run's row: arm, seed, seconds, and the last value of everything that was logged; None where it is not done."""
    marker, metrics = run.folder / "done.json", run.folder / "metrics.csv"
    if not marker.is_file():
        return None
    row: dict[str, Any] = {"arm": run.arm, "seed": run.seed, "seconds": json.loads(marker.read_text())["seconds"]}
    if metrics.is_file():
        with metrics.open(newline="") as file:
            for logged in csv.DictReader(file):
                row |= {name: float(value) for name, value in logged.items() if value not in ("", None)}
    return row


def earlier(output: Path, present: Container[tuple[str, int]]) -> list[dict[str, Any]]:
    """The rows of runs that an earlier sweep into the same folder has finished, and this one does not name."""
    rows = []
    for marker in sorted(output.glob("*/seed-*/done.json")):
        arm, seed = marker.parts[-3], int(marker.parts[-2].removeprefix("seed-"))
        if (arm, seed) not in present and (row := result(Run(arm, seed, (), marker.parent))) is not None:
            rows.append(row)
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row an arm: its number of seeds, and mean and standard deviation over them of every figure."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        arms.setdefault(row["arm"], []).append(row)
    table = []
    for arm, of_arm in arms.items():
        line: dict[str, Any] = {"arm": arm, "n": len(of_arm)}
        for name in dict.fromkeys(
            name for row in of_arm for name in row if name not in ("arm", "seed", "epoch", "step")
        ):
            values = [row[name] for row in of_arm if name in row]
            line[f"{name}_mean"] = statistics.fmean(values)
            line[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else math.nan
        table.append(line)
    return table


def print_summary(table: Sequence[dict[str, Any]]) -> None:
    """The accuracies of every arm, mean and standard deviation over seeds."""
    shown = [name for name in SHOWN if any(f"{name}_mean" in line for line in table)]
    for line in table:
        figures = [
            f"{name} {line[f'{name}_mean']:.3f}" + (f" sd {line[f'{name}_sd']:.3f}" if line["n"] > 1 else "")
            for name in shown
            if f"{name}_mean" in line
        ]
        print("  ".join([f"  {line['arm']}", f"n={line['n']}", *figures]))


def write_table(rows: Sequence[dict[str, Any]], folder: Path, stem: str) -> None:
    """`stem`.csv and .parquet; a column missing in a row is empty."""
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import csv as pyarrow_csv
    from pyarrow import parquet

    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    folder.mkdir(parents=True, exist_ok=True)
    pyarrow_csv.write_csv(table, folder / f"{stem}.csv")
    parquet.write_table(table, folder / f"{stem}.parquet")
