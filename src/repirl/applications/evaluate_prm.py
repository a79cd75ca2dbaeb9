"""`repirl evaluate-prm --prm PRM --output report.json`: does a PRM find wrong steps, or does it know style?"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from repirl import __version__
from repirl.applications.calibration import calibration, draw_reliability, platt_of
from repirl.applications.journal import Journal
from repirl.applications.prm_report import (
    CONTROLS,
    Scored,
    all_right,
    by_length,
    controls,
    expert_controls,
    plain,
    report,
    same_problem,
    scored,
    threshold_of,
)
from repirl.applications.prms import add_options, given_options, load_prm
from repirl.applications.processes import alone_in
from repirl.applications.score import stamps
from repirl.applications.scoring import Scorer
from repirl.config import ConfigError
from repirl.data.flawed import Domain
from repirl.data.solutions import read_solutions
from repirl.data.step_labelled import (
    PRM_BENCH,
    PROCESS_BENCH,
    PROCESS_BENCH_PARTS,
    LabelledSolution,
    ids_hash,
    read_labelled_steps,
    read_prm_bench,
    read_process_bench,
)
from repirl.metrics.prm_bench import CATEGORIES, UNMODIFIED, PRMBench
from repirl.structs import WrittenSolution

CHUNK = 32  # solutions between two writes
CHOSEN_ON = "gsm8k"


def main(arguments: Sequence[str]) -> int:
    """Scores, writes the report, prints a table. Returns the exit status."""
    options = _parser().parse_args(list(arguments))
    _check(options)
    sets = _sets(options)
    _require_threshold(options, sets)
    experts = _experts(options, sets)
    with alone_in(options.output):  # two programs would mix their records
        _run(options, sets, experts)
    return 0


def _run(
    options: argparse.Namespace, sets: dict[str, list[LabelledSolution]], experts: Sequence[WrittenSolution]
) -> None:
    _refuse_others(options, sets)
    scorer = _loaded(options)
    for name, solutions in sets.items():
        _refuse_unfit(scorer, name, solutions)
    for name in sets:
        _rewards_path(options, name).unlink(missing_ok=True)
    journals = {name: _scored(scorer, name, solutions, options) for name, solutions in sets.items()}
    found = {
        name: scored(solutions, [record["step_rewards"] for record in journals[name].records])
        for name, solutions in sets.items()
    }
    written = _report(options, sets, found) | {"controls": _controls(options, scorer, sets, found, experts)}
    draw_reliability(
        {name: one["calibration"] for name, one in written["sets"].items()}, options.output.with_suffix(".png")
    )
    options.output.write_text(json.dumps(plain(written), indent=2) + "\n", encoding="utf-8")
    for journal in journals.values():  # not before the report: what was scored would be scored again after a crash
        journal.finish([{name: record[name] for name in ("id", "step_rewards")} for record in journal.records])
    _print(written)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="repirl evaluate-prm", description=__doc__, allow_abbrev=False)
    parser.add_argument("--prm", required=True, help="a checkpoint, a folder of `repirl export`, or another's PRM")
    parser.add_argument("--set", choices=("processbench", "prmbench", "labelled"), default="processbench")
    parser.add_argument(
        "--path", nargs="*", default=[], metavar="NAME=FILE", help="files in place of the hub's, such as gsm8k=FILE"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="the .json file to write; beside it step rewards and a figure"
    )
    parser.add_argument(
        "--threshold", type=float, help=f"a step below it is held for wrong (chosen on the part {CHOSEN_ON} alone)"
    )
    parser.add_argument("--limit", type=int, help="the first so many solutions of each set")
    parser.add_argument(
        "--controls", type=int, default=CONTROLS, help=f"right solutions of a set that style is asked of ({CONTROLS})"
    )
    parser.add_argument("--domain", choices=get_args(Domain), default="prose", help="of flawed twins (prose)")
    parser.add_argument(
        "--experts", metavar="FILE", help="experts of the sets' problems: does style tell them from right solutions?"
    )
    parser.add_argument("--seed", type=int, default=0, help="of intervals and twins (0)")
    add_options(parser)
    return parser


def _check(options: argparse.Namespace) -> None:
    """Raises ConfigError where an option says what cannot be."""
    if options.output.suffix != ".json" or options.output.is_dir():
        raise ConfigError(f"--output: {str(options.output)!r} is no .json file", "name a file that ends in .json")
    for name, value, least in (("limit", options.limit, 1), ("controls", options.controls, 0)):
        if value is not None and value < least:
            raise ConfigError(f"--{name}: {value} is below {least}", f"give a number from {least}, or leave it out")
    if options.threshold is not None and not math.isfinite(options.threshold):
        raise ConfigError(f"--threshold: {options.threshold} is no finite number", "give one, or leave it out")


def _sets(options: argparse.Namespace) -> dict[str, list[LabelledSolution]]:
    """The solutions by set. Raises ConfigError."""
    pairs = [part.partition("=") for part in options.path]
    for part, (name, _, path) in zip(options.path, pairs, strict=True):
        if not name or not path or "/" in name:  # the name is a part of a file's
            raise ConfigError(f"--path: {part!r} is not NAME=FILE", "write --path gsm8k=processbench_gsm8k.jsonl")
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise ConfigError("--path: two files have the same name", "give each its own: --path first=FILE second=FILE")
    if options.set == "labelled" and not pairs:
        raise ConfigError("--set labelled needs files", "write --path mine=FILE")
    default = (
        {"prmbench": PRM_BENCH} if options.set == "prmbench" else dict.fromkeys(PROCESS_BENCH_PARTS, PROCESS_BENCH)
    )
    files = {name: path for name, _, path in pairs} or default
    try:
        read = {name: _READ[options.set](path, name) for name, path in files.items()}
    except ValueError as error:
        raise ConfigError(f"--path: {error}", "nothing was scored; repair the file, or name another") from error
    if options.set == "prmbench":
        read = by_category(solution for solutions in read.values() for solution in solutions)
    written = {_rewards_path(options, name).resolve() for name in read}
    if taken := [path for path in files.values() if Path(path).expanduser().resolve() in written]:
        raise ConfigError(f"--path: {taken[0]!r} is where step rewards go", "name another --output")
    return {name: solutions[: options.limit] for name, solutions in read.items()}


_READ: dict[str, Callable[[str, str], list[LabelledSolution]]] = {
    "processbench": read_process_bench,
    "prmbench": lambda path, name: read_prm_bench(path),
    "labelled": lambda path, name: read_labelled_steps(path),
}


def by_category(solutions: Iterable[LabelledSolution]) -> dict[str, list[LabelledSolution]]:
    """PRMBench's solutions by kind of error, in the benchmark's order. Raises ConfigError for a kind that it has not."""
    found: dict[str, list[LabelledSolution]] = {category: [] for category in CATEGORIES}
    for one in solutions:
        if one.category not in (*CATEGORIES, UNMODIFIED):
            raise ConfigError(
                f"--path: {one.id}: unknown classification {one.category!r}", f"PRMBench has {', '.join(CATEGORIES)}"
            )
        found.get(one.category, []).append(one)
    return {category: some for category, some in found.items() if some}


def _experts(options: argparse.Namespace, sets: Mapping[str, Sequence[LabelledSolution]]) -> list[WrittenSolution]:
    """Those of --experts whose problem has a right solution in a set. Raises ConfigError where there is none."""
    if options.experts is None:
        return []
    try:
        read = [placed.solution for placed in read_solutions(options.experts)]
    except ValueError as error:
        raise ConfigError(f"--experts: {error}", "nothing was scored; repair the file, or name another") from error
    if Path(options.experts).expanduser().resolve() in {_rewards_path(options, name).resolve() for name in sets}:
        raise ConfigError(f"--experts: {options.experts!r} is where step rewards go", "name another --output")
    right = [one.solution for solutions in sets.values() for one in solutions if one.first_error < 0]
    problems = {same_problem(solution.problem) for solution in right}
    met = [expert for expert in read if same_problem(expert.problem) in problems]
    if not met:
        raise ConfigError(
            f"--experts: none of its {len(read)} solutions is of a problem that has a right solution in a set",
            f"nothing was scored; give experts of the problems of {', '.join(sets)}, worded as there",
        )
    return met


def _require_threshold(options: argparse.Namespace, sets: Mapping[str, Sequence[LabelledSolution]]) -> None:
    erroneous = sum(one.first_error >= 0 for one in sets.get(CHOSEN_ON, ()))
    if CHOSEN_ON in sets and erroneous in (0, len(sets[CHOSEN_ON])):
        raise ConfigError(
            f"the part {CHOSEN_ON!r} has {erroneous} erroneous solutions of {len(sets[CHOSEN_ON])}: thresholds are chosen on "
            "it, and need both kinds",
            f"raise --limit, give another {CHOSEN_ON}=FILE, or call the file otherwise and give --threshold",
        )
    if options.threshold is not None or options.set == "labelled" or CHOSEN_ON in sets:
        return
    if options.set == "prmbench":
        raise ConfigError(
            "--set prmbench needs a threshold, and has no part to choose it on",
            "give --threshold, such as the `threshold` that a report of --set processbench has",
        )
    raise ConfigError(
        f"no threshold, and no part {CHOSEN_ON!r} to choose it on", f"give --threshold, or {CHOSEN_ON}=FILE"
    )


def _loaded(options: argparse.Namespace) -> Scorer:
    try:
        return load_prm(options.prm, **given_options(options))
    except ValueError as error:
        raise ConfigError(f"--prm: {error}", "give another, or --kind") from error


def _refuse_others(options: argparse.Namespace, sets: Iterable[str]) -> None:
    """Raises ConfigError where a file that would be written anew is not this command's."""
    report: Path = options.output
    if report.exists() and not _is_report(report):
        raise ConfigError(
            f"--output: {str(report)!r} is no report of evaluate-prm, which alone is written anew",
            "name another file, or remove this one",
        )
    rewards = [_rewards_path(options, name) for name in sets]
    if report.exists() or any(path.with_name(f".{path.name}.part").exists() for path in rewards):
        return  # what stands beside it is of an earlier run, or of one that was ended
    if there := [path for path in (*rewards, report.with_suffix(".png")) if path.exists()]:
        raise ConfigError(
            f"--output: {str(there[0])!r}, which goes with it, exists, and no report beside it",
            "name another --output, or remove that file",
        )


def _is_report(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"version", "prm", "sets"} <= content.keys()


def _refuse_unfit(scorer: Scorer, name: str, solutions: Sequence[LabelledSolution]) -> None:
    """Raises ConfigError, before anything is scored, where the PRM cannot read a solution."""
    try:
        long = scorer.too_long([one.solution for one in solutions])
    except ValueError as error:
        raise ConfigError(f"{name}: {error}", "nothing was scored; leave that solution out") from error
    if long:
        raise ConfigError(
            f"{name}: {len(long)} of {len(solutions)} solutions are longer than the {scorer.context} tokens that the PRM "
            f"reads, the first is {solutions[long[0]].id!r}",
            "nothing was scored; leave them out",
        )


def _rewards_path(options: argparse.Namespace, name: str) -> Path:
    """The file of a set's step rewards."""
    output: Path = options.output
    return output.with_suffix(f".{name}.jsonl")


def _about(one: LabelledSolution) -> dict[str, str]:
    """A solution's id, and a digest of what a PRM reads. Ids alone would not do: rows without one are numbered."""
    content = json.dumps([one.solution.asked, one.solution.steps])
    return {"id": one.id, "read": hashlib.sha256(content.encode()).hexdigest()[:16]}


def _require_read(journal: Journal, name: str, solutions: Sequence[LabelledSolution]) -> None:
    """Raises ConfigError unless the records are of the set's first solutions; what follows them may have changed."""
    for number, record in enumerate(journal.records):
        own = _about(solutions[number]) if number < len(solutions) else {"id": ""}
        if any(record[key] != value for key, value in own.items()):
            raise ConfigError(
                f"--output: {str(journal.part)!r} was begun with other solutions: its {record['id']!r} is not that of {name}",
                "name another output, or remove that file to begin anew",
            )


def _scored(scorer: Scorer, name: str, solutions: Sequence[LabelledSolution], options: argparse.Namespace) -> Journal:
    """The rewards of one set, those of a run that was ended among them."""
    description: dict[str, Any] = {"PRM": [options.prm, options.kind, *stamps(options.prm, options.reference)]}
    if options.reference is not None:
        description["reference"] = [options.reference, options.beta]
    if options.server is not None:
        description["server"] = True
    journal = Journal(_rewards_path(options, name), description)
    _require_read(journal, name, solutions)
    for begin in range(len(journal.records), len(solutions), CHUNK):
        part = solutions[begin : begin + CHUNK]
        try:
            rewards = scorer.step_rewards([one.solution for one in part])
        except ValueError as error:
            raise ConfigError(
                f"{name}, {part[0].id!r} and after: {error}",
                "what is scored so far is kept; run the same again when it is repaired",
            ) from error
        journal.append([_about(one) | {"step_rewards": list(own)} for one, own in zip(part, rewards, strict=True)])
    return journal


def _report(
    options: argparse.Namespace, sets: dict[str, list[LabelledSolution]], found: dict[str, Scored]
) -> dict[str, Any]:
    chosen = options.threshold is None and CHOSEN_ON in found
    threshold = threshold_of(found[CHOSEN_ON]) if chosen else options.threshold
    of_length = threshold_of(by_length(found[CHOSEN_ON])) if CHOSEN_ON in found else None
    platt = platt_of(found[CHOSEN_ON]) if CHOSEN_ON in found else None
    figures = {
        name: report(one, threshold, of_length, seed=options.seed)
        | {"calibration": calibration(one, platt), "ids": ids_hash(s.id for s in sets[name])}
        for name, one in found.items()
    }
    written: dict[str, Any] = {
        "version": __version__,
        "prm": options.prm,
        "kind": options.kind,
        "reference": options.reference,
        "beta": options.beta,
        "set": options.set,
        "limit": options.limit,
        "experts": options.experts,
        "seed": options.seed,
        "threshold": threshold,
        "threshold_chosen_on": CHOSEN_ON if chosen else None,
        "sets": figures,
    }
    if platt is not None:
        written["probability"] = {"slope": platt.slope, "offset": platt.offset, "fitted_on": CHOSEN_ON}
    if options.set == "prmbench":
        written["prmbench"] = _prm_bench(found, threshold)
        written["prmbench_all_right"] = _prm_bench({name: all_right(one) for name, one in found.items()}, 0.0)
    elif threshold is not None:
        for kind in ("prm", "length_alone"):
            values = [f1 for one in figures.values() if not math.isnan(f1 := one[kind].get("f1", math.nan))]
            written[f"mean_f1_{kind}"] = sum(values) / len(values) if values else None
    return written


def _prm_bench(found: Mapping[str, Scored], threshold: float) -> dict[str, float]:
    metric = PRMBench(threshold)
    for category, one in found.items():
        metric.update(category, step_rewards=one.rewards, step_mask=one.mask, is_wrong=one.is_wrong)
    return {name: float(value) for name, value in metric.compute().items()}


def _controls(
    options: argparse.Namespace,
    scorer: Scorer,
    sets: dict[str, list[LabelledSolution]],
    found: dict[str, Scored],
    experts: Sequence[WrittenSolution],
) -> dict[str, dict[str, float]]:
    """Of each set. Raises ConfigError where the PRM cannot read a twin or an expert."""
    measured = {}
    for name, solutions in sets.items():
        rewards = [row[mask].tolist() for row, mask in zip(found[name].rewards, found[name].mask, strict=True)]
        asked: dict[str, Any] = {"domain": options.domain, "limit": options.controls, "seed": options.seed}
        try:
            measured[name] = controls(scorer, solutions, rewards, too_long=scorer.too_long, **asked)
        except ValueError as error:
            raise ConfigError(
                f"{name}: a flawed twin or hollow text cannot be read: {error}",
                "say by --domain what the solutions are, or leave the controls out (--controls 0)",
            ) from error
        if not experts:
            continue
        try:
            measured[name] |= expert_controls(scorer, solutions, rewards, experts, too_long=scorer.too_long)
        except ValueError as error:
            raise ConfigError(f"--experts: {error}", "leave that solution out of the file") from error
    return measured


def _print(written: dict[str, Any]) -> None:
    if written["set"] == "prmbench":
        _print_prm_bench(written)
        return
    columns = ["F1", "95 % interval", "F1 of length", "wrong-step AUROC", "of length", "twin step", "hollow wins"]
    asked = ["expert_wins"] if written["experts"] else []
    rows = []
    for name, one in written["sets"].items():
        prm, length, control = one["prm"], one["length_alone"], written["controls"][name]
        known = not math.isnan(prm.get("f1", math.nan))
        interval = f"{prm['f1_low']:.3f} to {prm['f1_high']:.3f}" if known else "-"
        values = [prm.get("f1"), interval, length.get("f1"), prm["wrong_step_auroc"], length["wrong_step_auroc"]]
        asked_of = [control[key] for key in ("twin_step_wins", "hollow_wins", *asked)]
        rows.append([name, one["solutions"], *values, *asked_of])
    _print_table(("set", "n", *columns, *(["expert wins"] if asked else [])), rows)
    if written["threshold"] is not None:
        by = f"chosen on {written['threshold_chosen_on']}" if written["threshold_chosen_on"] else "given"
        mean = "no F1" if (f1 := written["mean_f1_prm"]) is None else f"a mean F1 of {f1:.3f}"
        print(f"threshold {written['threshold']:.4g}, {by}; {mean}")


def _print_prm_bench(written: dict[str, Any]) -> None:
    """Scores by kind of error and by group, and as a whole."""
    scores, idle, sets = written["prmbench"], written["prmbench_all_right"], written["sets"]
    rows: list[list[object]] = []
    for name in [key.removesuffix("/score") for key in scores if "/" in key] + ["whole"]:
        key = "score" if name == "whole" else f"{name}/score"
        one = sets.get(name)
        auroc = [one[kind]["wrong_step_auroc"] for kind in ("prm", "length_alone")] if one else [None, None]
        rows.append([name, one["solutions"] if one else "", scores[key], idle[key], *auroc])
    _print_table(("kind of error", "n", "score", "all steps right", "wrong-step AUROC", "of length"), rows)
    print(f"threshold {written['threshold']:.4g}, given")


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        cells = ["-" if v is None or v != v else f"{v:.3f}" if isinstance(v, float) else str(v) for v in row]
        table.add_row(*cells)
    Console(width=120).print(table)
