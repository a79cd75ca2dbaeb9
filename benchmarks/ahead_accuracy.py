"""The quick start's accuracy with rollouts one iteration ahead, beside taking turns: same starts, problems and seeds.

    repirl quickstart --seeds 11-13
    python benchmarks/ahead_accuracy.py --quickstart outputs/quickstart --seeds 11-13

The first command makes the start policies and the runs in turns. The second adds a run to each seed's folder, and prints
held-out accuracy of both, sampled and greedy. A seed that has been run is not run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from repirl.applications.processes import Processes
from repirl.applications.quickstart import ARMS, REPIRL, arm_overlay, folder_of, run
from repirl.applications.sweep import parse_seeds

TURNS, AHEAD = "rePIRL, PRM only", "rePIRL, PRM only, ahead"
ARMS[AHEAD] = ("ahead", [REPIRL, "configs/scale/ahead.yaml"])


def final(output: Path, seed: int, arm: str) -> dict[str, float] | None:
    """Accuracies at the end of a run, if it is done."""
    path = folder_of(output, seed, arm) / "measured.json"
    found: dict[str, float] | None = json.loads(path.read_text())["final"] if path.exists() else None
    return found


def main() -> None:
    """Two runs at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quickstart", type=Path, required=True, help="the folder of `repirl quickstart`")
    parser.add_argument("--seeds", type=parse_seeds, default=[11, 12, 13])
    given = parser.parse_args()
    processes = Processes()
    with processes.threads(2) as pool:
        missing = [seed for seed in given.seeds if final(given.quickstart, seed, AHEAD) is None]
        overlays = [arm_overlay(given.quickstart, seed, AHEAD, None) for seed in missing]
        for future in [pool.submit(run, processes, ARMS[AHEAD][1], overlay) for overlay in overlays]:
            future.result()
    print("| seed | in turns: sampled | greedy | ahead: sampled | greedy |\n|---|---|---|---|---|")
    for seed in given.seeds:
        figures = [final(given.quickstart, seed, arm) for arm in (TURNS, AHEAD)]
        cells = [f"{one[name]:.3f}" if one else "" for one in figures for name in ("sampled", "greedy")]
        print(f"| {seed} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
