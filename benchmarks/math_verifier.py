"""How often the math verifier is right, how fast it is, and whether hostile input freezes its caller.

    python benchmarks/math_verifier.py                        # the case table and 64 golds of GSM8K
    python benchmarks/math_verifier.py --data FOLDER          # and every .jsonl of the folder, as docs/data.md describes

`cases`: the table tests/verifiers/math_cases.tsv, as a confusion table. `golds`: each gold rewritten, which must be
right, and perturbed, which must be wrong (`math_rewrites.py`; proof in `math_reading.py`), each inside a whole
response. `speed`: one pair a call, nothing cached. `heartbeat`: the main thread ticks while another verifies hostile
answers.
"""

import argparse
import json
import os
import platform
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from math_rewrites import perturbed, response, rewrites

from repirl.data.sources import Sample, Table
from repirl.structs import Problem, Verdict
from repirl.verifiers.answers import extract_answer
from repirl.verifiers.math import MathVerifier
from repirl.verifiers.quick import decide

CASES = Path(__file__).parents[1] / "tests" / "verifiers" / "math_cases.tsv"
PARTS = ("cases", "golds", "speed", "heartbeat")
TICK_S = 0.005
HOSTILE = {
    "tower of powers": "9^{9^9}",
    "tower in Python": "9**9**9",
    "power written as a product": r"7^{1000\cdot 1000\cdot 1000}",
    "large factorial": "100000000!",
    "factorial of a factorial": "((10!)!)!",
    "factorial of a product": r"(5000\cdot 5000)!",
    "large binomial": r"\binom{10^9}{500000000}",
    "long sum": r"\sum_{k=1}^{10^9} k^k",
    "nested fractions": r"\frac{1}{1+" * 300 + "1" + "}" * 300,
    "nested parentheses": "(" * 900 + "1" + ")" * 900,
    "nested roots": r"\sqrt{" * 250 + "2" + "}" * 250,
    "open fractions": r"\frac{" * 300,
    "5,000 digits": "7" * 5_000,
    "950 digits and a point": "7" * 950 + ".5",
    "large power of a sum": "(x+y+z+1)^{900}",
    "sum of 178 roots": "+".join(rf"\sqrt{{{n}}}" for n in range(2, 180)),
    "matrix of 20 x 20": r"\begin{pmatrix}" + r"\\".join("&".join(["x^2"] * 20) for _ in range(20)) + r"\end{pmatrix}",
    "list of 400": ",".join(map(str, range(400))),
    "union of 90 intervals": r"\cup".join(f"({2 * n},{2 * n + 1})" for n in range(90)),
    "code": "__import__('os').system('sleep 60')",
    "unicode powers": "\u00b2" * 1_900,
    "zero bytes": "\x00" * 1_000,
    "a megabyte": "y" * 1_000_000,
    "150,000 open boxes": r"\boxed{" * 150_000,
}


def boxed(answer: str) -> str:
    """A short response."""
    return rf"So \boxed{{{answer}}}."


def cases(verifier: MathVerifier) -> dict[str, object]:
    """Expected against found statuses; rows that differ are listed."""
    rows = [line.split("\t") for line in CASES.read_text(encoding="utf-8").splitlines()[1:]]
    problems = [Problem(id=str(number), text="?", answer=row[1]) for number, row in enumerate(rows, 2)]
    found = [verdict.status for verdict in verifier.verify(problems, [boxed(row[2]) for row in rows])]
    table = Counter(f"{row[0]} -> {status}" for row, status in zip(rows, found, strict=True))
    wrong = [[*row, status] for row, status in zip(rows, found, strict=True) if status != row[0]]
    return {"rows": len(rows), "table": dict(sorted(table.items())), "wrong": wrong}


def data_sets(folder: Path | None) -> Iterator[tuple[str, list[Problem]]]:
    """The package's sample, then the folder's files."""
    yield "sample of GSM8K", [problem for problem in Sample().load() if problem.answer is not None]
    for path in sorted(folder.glob("*.jsonl")) if folder else ():
        yield path.stem, [problem for problem in Table(str(path)).load() if problem.answer is not None]


def golds(verifier: MathVerifier, problems: Sequence[Problem], seed: int) -> dict[str, object]:
    """Rates of false negatives and false positives over the golds that can be read, each listed."""
    unreadable = dict(verifier.check_golds(problems))
    generator = random.Random(seed)
    asked: dict[str, list[tuple[Problem, str, str]]] = {"rewritten": [], "perturbed": []}
    unproven = 0
    for problem in problems:
        if problem.id in unreadable:
            continue
        assert problem.answer is not None
        wrong = list(perturbed(problem.answer, generator))
        unproven += not wrong
        asked["rewritten"] += [(problem, rule, answer) for rule, answer in rewrites(problem.answer)]
        asked["perturbed"] += [(problem, rule, answer) for rule, answer in wrong]
    report: dict[str, object] = {
        "golds": len(problems),
        "unreadable": [[name, gold] for name, gold in unreadable.items()],
        "golds_without_a_proven_perturbation": unproven,
    }
    for kind, expected in (("rewritten", True), ("perturbed", False)):
        responses = [response(answer, generator) for _, _, answer in asked[kind]]
        started = time.perf_counter()
        verdicts = verifier.verify([problem for problem, _, _ in asked[kind]], responses)
        seconds = time.perf_counter() - started
        missed = [
            [problem.id, rule, problem.answer, answer, verdict.status]
            for (problem, rule, answer), verdict in zip(asked[kind], verdicts, strict=True)
            if verdict.correct is not expected
        ]
        report[kind] = {
            "pairs": len(verdicts),
            "missed": len(missed),
            "share_missed": len(missed) / max(1, len(verdicts)),
            "seconds": round(seconds, 1),
            "statuses": dict(Counter(verdict.status for verdict in verdicts)),
            "list": missed,
        }
    return report


def speed(problems: Sequence[Problem], pairs: int, seed: int) -> dict[str, object]:
    """Calls a second, median and 99th percentile, one pair a call, without a cache."""
    generator = random.Random(seed)
    asked = [
        (problem, answer)
        for problem in problems
        for _, answer in (*rewrites(str(problem.answer)), *perturbed(str(problem.answer), generator))
    ]
    asked = generator.sample(asked, min(pairs, len(asked)))
    responses = [response(answer, generator) for _, answer in asked]
    verifier = MathVerifier(cache_size=0)
    verifier.verify([Problem(id="start", text="?", answer="x+1")], [boxed("1+x")])  # starts the process
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for (problem, _), text in zip(asked, responses, strict=True):
        at_once = isinstance(decide(str(problem.answer), extract_answer(text)), Verdict)
        started = time.perf_counter()
        verifier.verify([problem], [text])
        seconds[at_once].append(time.perf_counter() - started)
    verifier.close()
    everything = [*seconds[False], *seconds[True]]
    named = {"all": everything, "decided_at_once": seconds[True], "by_computer_algebra": seconds[False]}
    return {name: _percentiles(values) for name, values in named.items() if len(values) > 1}


def _percentiles(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    ms = {"p50_ms": cuts[49] * 1e3, "p99_ms": cuts[98] * 1e3, "max_ms": max(seconds) * 1e3}
    return {"pairs": len(seconds), "calls_per_s": round(len(seconds) / sum(seconds), 1)} | {
        name: round(value, 2) for name, value in ms.items()
    }


def heartbeat() -> dict[str, object]:
    """Longest gap between ticks of the main thread, while another thread verifies each hostile answer, and idle."""
    verifier = MathVerifier()
    problem = Problem(id="a", text="?", answer="3")
    verifier.verify([Problem(id="start", text="?", answer="x+1")], [boxed("1+x")])
    found: dict[str, object] = {}
    for name, answer in HOSTILE.items():
        statuses: list[str] = []
        text = answer if r"\boxed" in answer else boxed(answer)

        def ask(text: str = text, statuses: list[str] = statuses) -> None:
            statuses += [verdict.status for verdict in verifier.verify([problem], [text])]

        thread = threading.Thread(target=ask)
        started = time.monotonic()
        thread.start()
        gap = _longest_gap(thread.is_alive, started)
        thread.join()
        seconds = time.monotonic() - started
        found[name] = {"status": statuses[0], "seconds": round(seconds, 3), "max_gap_ms": round(gap * 1e3, 1)}
    verifier.close()
    until = time.monotonic() + 10
    idle = _longest_gap(lambda: time.monotonic() < until, time.monotonic())
    gaps = [entry["max_gap_ms"] for entry in found.values() if isinstance(entry, dict)]
    return {"max_gap_ms": max(gaps), "idle_max_gap_ms": round(idle * 1e3, 1), "answers": found}


def _longest_gap(goes_on: Callable[[], bool], since: float) -> float:
    """Seconds; the first tick is at `since`, the last one after the end."""
    longest, last, running = 0.0, since, True
    while running:
        running = goes_on()
        time.sleep(TICK_S)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    return longest


def main() -> None:
    """Measures, prints, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of .jsonl files with problem and answer")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seed", type=int, default=0, help="of perturbations and responses")
    parser.add_argument("--speed-pairs", type=int, default=2000, help="pairs a data set")
    parser.add_argument("--out", type=Path, default=Path("outputs/math_verifier.json"))
    args = parser.parse_args()

    found: dict[str, object] = {
        "settings": {"seed": args.seed, "only": list(args.only)},
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    }
    sets = list(data_sets(args.data)) if {"golds", "speed"} & set(args.only) else []
    verifier = MathVerifier(cache_size=0)
    if "cases" in args.only:
        found["cases"] = cases(verifier)
    if "golds" in args.only:
        found["golds"] = {name: golds(verifier, problems, args.seed) for name, problems in sets}
    verifier.close()
    if "speed" in args.only:
        found["speed"] = {name: speed(problems, args.speed_pairs, args.seed) for name, problems in sets}
    if "heartbeat" in args.only:
        found["heartbeat"] = heartbeat()
    print(json.dumps(found, indent=1, ensure_ascii=False))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
