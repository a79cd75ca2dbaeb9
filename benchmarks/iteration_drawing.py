"""Draws docs/iteration.png: what one iteration really does, on one and on two ranks.

Traces a tiny run: the phases of `Alternation`, each forward pass with its rows, and each collective. Where ranks do unlike
work the script fails.

    python benchmarks/iteration_drawing.py
"""

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.modules.tiny import EvenDigits, make_data, make_module, run, with_experts  # noqa: E402

from repirl.distributed import gather_objects, rank  # noqa: E402
from repirl.learning import learner, policy_learner, prm_learner  # noqa: E402
from repirl.learning.recorder import Recorder  # noqa: E402
from repirl.modules.strategies import ReplicatedStrategy  # noqa: E402

Event = tuple[str, str, int]
"""Phase, what (`pass` or the collective's name), rows of a pass."""
COLOURS = {
    "rollout": "#dbe9f6",
    "verify": "#e8e3f1",
    "log_probs": "#e3f0dd",
    "prm_update": "#fbe3cd",
    "score": "#fdf2c5",
    "policy_update": "#f6d5d5",
}
MARKS = {"all_gather": ("v", "#1f4e79", "gather rows of all ranks"), "all_reduce": ("s", "#7a1f1f", "sum over ranks")}


def traced() -> list[Event]:
    """The events of one iteration on this rank."""
    events: list[Event] = []
    phase = "between"
    timed = Recorder.timed

    @contextmanager
    def told(self: Recorder, name: str, device: torch.device) -> Iterator[None]:
        nonlocal phase
        phase = name
        events.append((name, "begin", 0))
        with timed(self, name, device):
            yield
        phase = "between"

    def watched(function: Callable[..., Any], what: str) -> Callable[..., Any]:
        @wraps(function)
        def of_phase(*arguments: Any, **options: Any) -> Any:
            if phase != "between":
                events.append((phase, what, len(arguments[2]) if what == "pass" else 0))
            return function(*arguments, **options)

        return of_phase

    Recorder.timed = told  # type: ignore[method-assign]
    for module in (learner, policy_learner, prm_learner):
        module.run = watched(learner.run, "pass") if module is not learner else module.run  # type: ignore[attr-defined]
    learner.run = watched(learner.run, "pass")
    for name in MARKS:
        setattr(dist, name, watched(getattr(dist, name), name))
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    strategy: Any = ReplicatedStrategy(process_group_backend="gloo") if devices > 1 else "auto"
    module = make_module(verifier=EvenDigits(), micro_batch_tokens=45)
    run(module, make_data(with_experts()), 1, devices=devices, strategy=strategy)
    return events


def of_ranks(devices: int) -> list[list[Event]]:
    """The events of each rank, by processes of their own."""
    ports = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517", "WORLD_SIZE": str(devices), "GLOO_SOCKET_IFNAME": "lo"}
    started = []
    for number in range(devices):
        own = {"LOCAL_RANK": str(number), "RANK": str(number), "NODE_RANK": "0"} if devices > 1 else {}
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | (ports | own if devices > 1 else {})
        command = [sys.executable, __file__, "--trace"]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    printed = [process.communicate()[0] for process in started]
    assert not any(process.returncode for process in started)
    found: list[list[Event]] = json.loads(printed[0].strip().splitlines()[-1])
    return found


def draw(axes: Axes, ranks: list[list[Event]]) -> None:
    """A lane for each rank: phases as boxes, in them passes with their rows, and collectives."""
    order = [[(phase, what) for phase, what, _ in events] for events in ranks]
    assert all(one == order[0] for one in order), "ranks did unlike work"
    left, begun, edges = 0.0, 0.0, []
    for place, (phase, what) in enumerate(order[0]):
        if what == "begin":
            left += 0.4
            begun = left
        left += 1.1 if what == "begin" and not _busy(order[0], place) else 0 if what == "begin" else 0.75
        if place + 1 == len(order[0]) or order[0][place + 1][1] == "begin":
            edges.append((phase, begun, left))
    for lane, events in enumerate(ranks):
        top = -lane * 1.5
        for phase, start, end in edges:
            axes.add_patch(
                Rectangle((start - 0.1, top), end - start + 0.2, 1, facecolor=COLOURS[phase], edgecolor="#888")
            )
            if not lane:
                axes.text((start + end) / 2, top + 1.1, phase.replace("_", "\n"), ha="center", va="bottom", fontsize=8)
        spots = iter(_places(order[0]))
        for _, what, rows in events:
            x = next(spots)
            if what == "pass":
                empty = rows == 0
                axes.add_patch(
                    Rectangle(
                        (x, top + 0.25), 0.6, 0.5, facecolor="white", edgecolor="#444", hatch="////" if empty else ""
                    )
                )
                axes.text(x + 0.3, top + 0.5, "" if empty else str(rows), ha="center", va="center", fontsize=8)
            elif what in MARKS and len(ranks) > 1:
                marker, colour, _ = MARKS[what]
                axes.plot([x + 0.3], [top + 0.5], marker, color=colour, markersize=5)
                if lane + 1 < len(ranks):
                    axes.plot([x + 0.3] * 2, [top + 0.5, top - 1], ":", color=colour, linewidth=1)
        axes.text(-0.3, top + 0.5, f"rank {lane}", ha="right", va="center", fontsize=9)
    axes.set_xlim(-2, left + 0.4)
    axes.set_ylim(-1.5 * (len(ranks) - 1) - 0.2, 1.9)
    axes.axis("off")


def _busy(order: list[tuple[str, str]], place: int) -> bool:
    return place + 1 < len(order) and order[place + 1][1] != "begin"


def _places(order: list[tuple[str, str]]) -> Iterator[float]:
    left = 0.0
    for place, (_, what) in enumerate(order):
        if what == "begin":
            left += 0.4
        yield left
        left += 1.1 if what == "begin" and not _busy(order, place) else 0 if what == "begin" else 0.75


def main() -> None:
    """Traces and draws, or, in a process of its own, traces."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "iteration.png")
    parser.add_argument("--trace", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if arguments.trace:
        ranks = gather_objects([traced()])
        if rank() == 0:
            print(json.dumps(ranks))
        return
    figure, axes = pyplot.subplots(2, 1, figsize=(13, 5.2), height_ratios=[1.9, 3.4])
    for panel, devices in zip(axes, (1, 2), strict=True):
        draw(panel, of_ranks(devices))
    handles = [
        *(pyplot.Line2D([], [], marker=m, color=c, linestyle="", label=label) for m, c, label in MARKS.values()),
        Rectangle((0, 0), 1, 1, facecolor="white", edgecolor="#444", label="forward pass, with its rows"),
        Rectangle((0, 0), 1, 1, facecolor="white", edgecolor="#444", hatch="////", label="pass without rows"),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(arguments.out, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
