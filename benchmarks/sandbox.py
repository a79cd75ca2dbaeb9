"""Measures the sandbox: speed, verdicts under load, what is left after many jobs, whole data sets.

    python benchmarks/sandbox.py speed
    python benchmarks/sandbox.py load
    python benchmarks/sandbox.py leftovers --jobs 10000
    python benchmarks/sandbox.py sets --data FOLDER [--only humaneval]

`sets` reads humaneval, humaneval_plus, mbpp and mbpp_plus from `.jsonl` or `.jsonl.gz` files of these names, as evaluation
does (`repirl.data.benchmarks`), and judges as it does (`CodeVerifier`). Run it as root and as an ordinary user: the first
line of every command says which, and what holds programs.
"""

import argparse
import getpass
import gzip
import json
import logging
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from repirl.data.benchmarks import Benchmark
from repirl.data.code import fenced
from repirl.sandbox.pool import Budget, Job, Result, Sandbox
from repirl.structs import CodeTests, Problem, Verdict
from repirl.verifiers.code import CodeVerifier

SETS = ("humaneval", "humaneval_plus", "mbpp", "mbpp_plus")
RIGHT = Job("def f(x):\n    return x + 1", CodeTests("asserts", "assert f(1) == 2\nassert f(-1) == 0"), 5.0)
CPU_HOG = "while True: pass"

STUB = """
def {name}(*arguments, **named):
    return None
"""
EQUAL_TO_ALL = """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
    def __bool__(self): return True
    def __hash__(self): return 0
    def __len__(self): return 0
    def __iter__(self): return iter(())
    def __contains__(self, item): return True
    def __getitem__(self, key): return self
    def __getattr__(self, name): return self
    def __call__(self, *arguments, **named): return self
    def __sub__(self, other): return self
    __rsub__ = __add__ = __radd__ = __mul__ = __rmul__ = __truediv__ = __sub__
    def __abs__(self): return self
    def __float__(self): return 0.0
    def __int__(self): return 0
    __index__ = __int__
    def __str__(self): return ""
def {name}(*arguments, **named):
    return Equal()
"""

MIXED = {
    "passed": ("def f(x): return x + 1", "assert f(1) == 2"),
    "failed": ("def f(x): return x", "assert f(1) == 2"),
    "error": ("def f(x): raise KeyError(x)", "assert f(1) == 2"),
    "syntax": ("def f(x) return", "assert f(1) == 2"),
    "exit": ("import os; os._exit(0)", "assert f(1) == 2"),
    "memory": ("def f(x): return [0] * 10**10", "assert f(1) == 2"),
    "timeout": (CPU_HOG, "assert f(1) == 2"),
    "files": (
        "def f(x):\n    for i in range(20): open(f'n{i}', 'w').write('x' * 1000)\n    return x + 1",
        "assert f(1) == 2",
    ),
    "threads": (
        "import threading, time\nfor i in range(5): threading.Thread(target=time.sleep, args=(9,)).start()\n"
        "def f(x): return x + 1",
        "assert f(1) == 2",
    ),
    "output": ("def f(x): return 'x' * 10**8", "assert f(1) == 2"),
}


def seconds_each(action, count: int) -> list[float]:
    """Wall seconds of each of `count` calls."""
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        action()
        taken.append(time.perf_counter() - started)
    return taken


def speed(arguments: argparse.Namespace) -> None:
    """Cold and warm jobs beside a bare interpreter, alternating, one at a time; then all workers at once."""
    command = [sys.executable, "-I", "-c", "pass"]
    bare = lambda: subprocess.run(command, check=True)  # noqa: E731
    cold = []
    for _ in range(5):
        sandbox = Sandbox(workers=1, bubblewrap=arguments.bubblewrap)
        cold += seconds_each(lambda: sandbox.run(RIGHT), 1)  # noqa: B023
        sandbox.close()
    sandbox = Sandbox(workers=1, bubblewrap=arguments.bubblewrap)
    sandbox.run(RIGHT)
    warm, interpreter = [], []
    for _ in range(10):
        interpreter += seconds_each(bare, arguments.jobs // 10)
        warm += seconds_each(lambda: sandbox.run(RIGHT), arguments.jobs // 10)
    sandbox.close()
    middle = statistics.median
    print(f"python -I -c pass: {middle(interpreter) * 1000:.1f} ms (median of {len(interpreter)})")
    print(f"cold job: {middle(cold) * 1000:.0f} ms (median of {len(cold)}, servers started)")
    print(
        f"warm job: {middle(warm) * 1000:.1f} ms (median of {len(warm)}), {1 / middle(warm):.0f} jobs/s, "
        f"{middle(warm) / middle(interpreter):.2f} x python -I -c pass"
    )
    workers = len(os.sched_getaffinity(0))
    with_all = Sandbox(workers=workers, bubblewrap=arguments.bubblewrap)
    with_all.run_many([RIGHT] * workers * 2)
    started = time.perf_counter()
    with_all.run_many([RIGHT] * arguments.jobs)
    rate = arguments.jobs / (time.perf_counter() - started)
    with_all.close()
    print(f"{workers} workers: {rate:.0f} jobs/s, {rate / workers:.0f} jobs/s a core")


def mixed_jobs(count: int, seed: int = 0) -> list[tuple[str, Job]]:
    """Kinds and jobs in a fixed random order; time-outs are rare, since each costs its time."""
    weights = [1 if name == "timeout" else 20 for name in MIXED]
    names = random.Random(seed).choices(list(MIXED), weights, k=count)
    limits = {name: 0.5 if name == "timeout" else 20.0 for name in MIXED}
    return [(name, Job(MIXED[name][0], CodeTests("asserts", MIXED[name][1]), limits[name])) for name in names]


def load(arguments: argparse.Namespace) -> None:
    """The same jobs on a machine left alone, and on one with four busy processes a core beside them."""
    jobs = mixed_jobs(arguments.jobs)
    # Honest work near the limit: about 40 % of it, so that a wall clock would misjudge it.
    busy = "def f(x):\n    n = 0\n    while time.process_time() < {s}: n += 1\n    return x + 1"
    near = [Job("import time\n" + busy.format(s=s), CodeTests("asserts", "assert f(1) == 2"), 1.0) for s in (0.2, 0.4)]
    work = [*(job for _, job in jobs), *near * 10]
    cores = len(os.sched_getaffinity(0))
    sandbox = Sandbox(workers=cores, bubblewrap=arguments.bubblewrap)
    alone = [result.status for result in sandbox.run_many(work)]
    hogs = [subprocess.Popen([sys.executable, "-I", "-c", CPU_HOG]) for _ in range(4 * cores)]
    try:
        started = time.perf_counter()
        crowded = [result.status for result in sandbox.run_many(work)]
        taken = time.perf_counter() - started
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
        sandbox.close()
    different = [(job.program, a, b) for job, a, b in zip(work, alone, crowded, strict=True) if a != b]
    print(
        f"{len(work)} jobs, {len(hogs)} busy processes on {cores} cores, {taken:.0f} s: {len(different)} verdicts differ"
    )
    print(dict(Counter(crowded)))
    for line in different:
        print(line)


def leftovers(arguments: argparse.Namespace) -> None:
    """Descriptors, children and files before and after many mixed jobs."""
    sandbox = Sandbox(bubblewrap=False)  # so that what is in the folders can be counted from outside
    sandbox.run_many([RIGHT] * 20)
    folders = {server.folder for slot in sandbox._pool.slots for server in slot.processes()}

    def state() -> dict[str, int]:
        pids = sandbox.pids
        return {
            "descriptors here": len(os.listdir("/proc/self/fd")),
            "descriptors of servers": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids),
            "children of servers": sum(len(Path(f"/proc/{p}/task/{p}/children").read_text().split()) for p in pids),
            "files": sum(len(os.listdir(folder)) for folder in folders),
        }

    before = state()
    jobs = mixed_jobs(arguments.jobs)
    started = time.perf_counter()
    results = sandbox.run_many([job for _, job in jobs])
    taken = time.perf_counter() - started
    after = state()
    kinds = Counter((name, result.status) for (name, _), result in zip(jobs, results, strict=True))
    print(f"{len(jobs)} jobs in {taken:.0f} s; before {before}, after {after}")
    for (name, status), count in sorted(kinds.items()):
        print(f"  {name} -> {status}: {count}")
    sandbox.close()
    print("folders left after close:", sum(os.path.exists(folder) for folder in folders))
    if before != after:
        raise SystemExit("something was left")


class Recording(Sandbox):
    """Keeps the last result of each job's tests: verdicts say neither seconds nor details."""

    def run_many(self, jobs: Sequence[Job]) -> list[Result]:
        """As the sandbox itself."""
        found = super().run_many(jobs)
        self.results = {job.tests: result for job, result in zip(jobs, found, strict=True)}
        return found


def problems_of(name: str, file: Path) -> list[Problem]:
    """The problems of a set as training and evaluation read them; of MBPP all splits, not only the benchmark's own."""
    if name != "mbpp":
        return Benchmark(name, path=str(file)).load()
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    rows = [json.loads(line) for line in content.decode().split("\n") if line]
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "mbpp.jsonl")
        whole.write_text("".join(json.dumps(row | {"split": "test"}) + "\n" for row in rows), encoding="utf-8")
        return Benchmark(name, path=str(whole)).load()


def sets(arguments: argparse.Namespace) -> None:
    """Canonical solutions, `return None`, and objects equal to everything, on every problem of every set."""
    verifier = CodeVerifier(arguments.timeout_s)
    verifier.sandbox = sandbox = Recording(
        arguments.workers, Budget(memory_mib=arguments.memory_mib), bubblewrap=arguments.bubblewrap
    )
    for name in arguments.only:
        (file,) = Path(arguments.data).glob(f"{name}.jsonl*")
        problems = [problem for problem in problems_of(name, file) if not arguments.ids or problem.id in arguments.ids]
        for kind, program in (("canonical", None), ("stub", STUB), ("equal to all", EQUAL_TO_ALL)):
            responses = [
                problem.solutions[0] if program is None else fenced(program.format(name=problem.tests.entry_point))
                for problem in problems
            ]
            started = time.perf_counter()
            verdicts = verifier.verify(problems, responses)
            taken = time.perf_counter() - started
            report(name, kind, problems, verdicts, [sandbox.results[problem.tests] for problem in problems], taken)
    verifier.close()


def report(
    name: str, kind: str, problems: list[Problem], verdicts: list[Verdict], results: list[Result], taken: float
) -> None:
    """One line a set and kind, and one for each verdict out of the ordinary."""
    statuses = dict(Counter(verdict.status for verdict in verdicts))
    passed = sum(verdict.correct is True for verdict in verdicts)
    print(f"{name}, {kind}: {passed} of {len(problems)} pass, {taken:.0f} s, {statuses}", flush=True)
    for problem, verdict, result in zip(problems, verdicts, results, strict=True):
        right = verdict.correct
        if (kind == "canonical") != (right is True) or result.cpu_s > 5 or right is None:
            print(f"  {problem.id}: {verdict.status}, {result.cpu_s:.1f} s CPU, {result.detail[:200]}", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for action, jobs in ((speed, 200), (load, 200), (leftovers, 10_000)):
        command = commands.add_parser(action.__name__, help=action.__doc__)
        command.add_argument("--jobs", type=int, default=jobs)
        command.set_defaults(action=action)
    command = commands.add_parser("sets", help=sets.__doc__)
    command.add_argument("--data", required=True, help="folder of JSONL files")
    command.add_argument("--only", nargs="*", default=SETS, choices=SETS)
    command.add_argument("--ids", nargs="*", help="these problems only")
    command.add_argument("--workers", type=int)
    command.add_argument("--memory-mib", type=int, default=Budget().memory_mib)
    command.add_argument("--timeout-s", type=float, default=100.0, help="CPU seconds of a program")
    command.set_defaults(action=sets)
    for command in commands.choices.values():
        command.add_argument("--bubblewrap", action="store_true", help="with this layer too")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # what the sandbox says of its layers
    print(
        f"user {getpass.getuser()} ({os.getuid()}), Python {platform.python_version()}, Linux {platform.release()}",
        flush=True,
    )
    arguments.action(arguments)


if __name__ == "__main__":
    main()
