"""`repirl`: the table of subcommands. Light: Lightning is imported only by a subcommand that needs it."""

from __future__ import annotations

import difflib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from repirl import __version__
from repirl.config import ConfigError

LIGHTNING = {
    "fit": "train: repirl fit --config configs/quickstart.yaml",
    "validate": "one pass over the validation data",
    "test": "one pass over the test data",
    "predict": "one pass over the prediction data",
}
"""Subcommand of the LightningCLI -> its line in the help."""

EXTRA: dict[str, tuple[str, str]] = {
    "quickstart": (
        "repirl.applications.quickstart:main",
        "train a small model on the CPU in minutes and show what it learned",
    ),
    "export": (
        "repirl.applications.export:main",
        "a run's policy or PRM as a folder that loads without repirl",
    ),
    "evaluate-prm": (
        "repirl.applications.evaluate_prm:main",
        "does a PRM find wrong steps: ProcessBench, or labelled solutions of your own",
    ),
    "label-steps": (
        "repirl.applications.label_steps:main",
        "labels of the steps of solutions by completions: repirl label-steps --checkpoint RUN.ckpt --input in.jsonl ...",
    ),
    "score": (
        "repirl.applications.score:main",
        "rewards of given solutions: repirl score --prm PRM --input in.jsonl --output out.jsonl",
    ),
    "search": (
        "repirl.applications.search:main",
        "best of n, votes and beams by a PRM: repirl search --checkpoint RUN.ckpt --config search.yaml",
    ),
    "generate-experts": (
        "repirl.applications.experts:main",
        "expert solutions by any model, verified: repirl generate-experts --base_url URL --model NAME -c experts.yaml",
    ),
    "hard": (
        "repirl.applications.hard:main",
        "the problems that a policy fails in n samples of a search: repirl hard --samples samples.jsonl --output hard.jsonl",
    ),
    "compare": (
        "repirl.applications.compare:main",
        "two evaluations of the same problems: repirl compare first.jsonl second.jsonl",
    ),
    "plan": (
        "repirl.applications.plan:main",
        "memory and time that a run will need: repirl plan --config run.yaml --processes 8",
    ),
    "sweep": (
        "repirl.applications.sweep:main",
        "a set of overlays times a set of seeds: parallel runs, one table",
    ),
}
"""Other subcommands -> ("module:function", line in the help). The function gets the remaining arguments."""

_HELP = """usage: repirl <subcommand> [options]

{title}

subcommands:
{rows}

options:
  -h, --help  show this help; 'repirl <subcommand> --help' shows all options of one subcommand
  --version   show the version

fit, validate, test and predict read YAML files, merged left to right, then command-line overrides:
  repirl fit --config base.yaml --config overlay.yaml --model.init_args.samples=4
Add --print_config to see the result. REPIRL_TRACEBACK=1 shows the traceback of a configuration error.
"""


def help_text() -> str:
    """The text of `repirl --help`."""
    lines = LIGHTNING | {name: line for name, (_, line) in EXTRA.items()}
    width = max(map(len, lines))
    rows = "\n".join(f"  {name:<{width}}  {line}" for name, line in lines.items())
    return _HELP.format(title=sys.modules["repirl"].__doc__, rows=rows)


def dispatch(argv: Sequence[str]) -> int | None:
    """Runs one subcommand; returns its exit status."""
    command = argv[0] if argv else "--help"
    if command in ("-h", "--help", "help"):
        print(help_text(), end="")
        return None
    if command == "--version":
        print(f"repirl {__version__}")
        return None
    if command in EXTRA:
        module, _, function = EXTRA[command][0].partition(":")
        status: int | None = getattr(import_module(module), function)(list(argv[1:]))
        return status
    name = _subcommand(argv)
    if name not in LIGHTNING:
        near = difflib.get_close_matches(str(name), [*LIGHTNING, *EXTRA], n=1)
        raise ConfigError(
            f"unknown subcommand {name!r}" if name else "no subcommand given",
            f"did you mean {near[0]!r}?" if near else f"give one of: {', '.join([*LIGHTNING, *EXTRA])}",
        )
    cli = import_module("repirl.cli")
    cli.RepirlCLI(argv)
    return None


def _subcommand(argv: Sequence[str]) -> str | None:
    """The first word that is neither `--config` nor its value: files may be named before the subcommand."""
    from repirl.config import split

    rest = split(argv)[1]
    return rest[0] if rest else None


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. A configuration error ends with two lines on stderr and status 2, a signal with 130 or 143."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # classes of the user's own are found beside the configuration, as by `python -m`
    with _ended_by_signals():
        try:
            status = dispatch(sys.argv[1:] if argv is None else argv)
        except ConfigError as error:
            if os.environ.get("REPIRL_TRACEBACK"):
                raise
            print(error, file=sys.stderr)
            status = 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            status = 130
    if status:
        raise SystemExit(status)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM unwinds the process, so that workers and servers are ended too, and gives status 143, as a shell would."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
