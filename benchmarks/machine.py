"""What a measurement needs to know of its machine, and how it is written down. Shared by the speed benchmarks."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch


def described(device: torch.device) -> dict[str, Any]:
    """Hardware, versions, load and commit, as a report names them."""
    model = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else (model or ["cpu"])[0],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": "CPU" if time.perf_counter is time.process_time else "wall",
        "load": [round(value, 2) for value in os.getloadavg()],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def commit() -> str:
    """The commit measured; `+` where the working tree differs from it. Empty outside of git."""
    folder = Path(__file__).parent
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"], cwd=folder, capture_output=True, text=True
    )
    return found.stdout.strip()


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def use_clock(clock: str) -> None:
    """`wall`, or `cpu`: all timings here and in repirl count this process's CPU seconds instead.

    For a machine that is busy with other work, on one thread: what a process waits for its turn does not count then.
    """
    if clock == "cpu":
        assert torch.get_num_threads() == 1, "the CPU clock adds up the seconds of all threads: use --threads 1"
        time.perf_counter = time.process_time


def wait(device: torch.device) -> None:
    """Until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, repeats: int, warm_up: int = 1) -> list[float]:
    """Seconds of each of `repeats` calls, after `warm_up` calls."""
    taken = []
    for turn in range(warm_up + repeats):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        if turn >= warm_up:
            taken.append(time.perf_counter() - start)
    return taken


def gemm_rate(device: torch.device, dtype: torch.dtype, sizes: Sequence[int] = (1024, 2048), repeats: int = 7) -> float:
    """Floating-point operations a second of a square matrix product: the median of the best size."""
    rates = []
    for size in sizes:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        rates.append(
            2 * size**3 / statistics.median(seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, repeats))
        )
    return max(rates)


def copy_rate(device: torch.device, megabytes: int = 256, repeats: int = 7) -> float:
    """Bytes a second of a large copy, those read and those written both counted: the median."""
    source = torch.ones(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    taken = statistics.median(seconds(lambda: target.copy_(source), device, repeats))
    return 2 * source.numel() * source.element_size() / taken


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def sentence(machine: dict[str, Any]) -> str:
    """The machine in a line of a report."""
    load = ", ".join(str(value) for value in machine["load"])
    return (
        f"{machine['date']}, commit {machine['commit']}: {machine['hardware']}, {machine['threads']} threads of "
        f"{machine['cores']} cores, load {load}, {machine['clock']} seconds, torch {machine['torch']}, "
        f"Python {machine['python']}.\n"
    )


def written(path: Path, text: str, raw: object) -> None:
    """The report as Markdown at `path`, and what it is made of beside it as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    print(text)
    print(f"written to {path} and {path.with_suffix('.json')}")
