"""Seconds until `repirl --help` has answered, and what `import repirl` takes.

python benchmarks/startup.py
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import described, sentence, table, written
from torch import device

GOAL_S = 1.5
COMMANDS = {
    "repirl --help": ["-m", "repirl", "--help"],
    "repirl --version": ["-m", "repirl", "--version"],
    "import repirl": ["-c", "import repirl"],
    "python, nothing imported": ["-c", "pass"],
}
LOADED = (
    "import json, sys, repirl; print(json.dumps(sorted({'torch', 'lightning', 'transformers'} & set(sys.modules))))"
)


def main() -> None:
    """Measures, writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--out", type=Path, default=Path("outputs/startup.md"))
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(args.repeats):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    loaded = json.loads(subprocess.run([sys.executable, "-c", LOADED], check=True, capture_output=True).stdout)
    raw = {"machine": described(device("cpu")), "seconds": seconds, "loaded_by_import": loaded}
    rows = [[f"`{n}`", f"**{statistics.median(s):.2f}**", f"{min(s):.2f} to {max(s):.2f}"] for n, s in seconds.items()]
    text = f"# Start\n\n    python benchmarks/startup.py\n\n{sentence(raw['machine'])}\n"
    text += table(["", "median, s", "spread"], rows)
    met = "met" if statistics.median(seconds["repirl --help"]) <= GOAL_S else "missed"
    light = ", ".join(loaded) or "none of torch, lightning, transformers"
    text += f"\nGoal of `--help`: at most {GOAL_S} s, {met}. `import repirl` loads: {light}.\n"
    written(args.out, text, raw)


if __name__ == "__main__":
    main()
