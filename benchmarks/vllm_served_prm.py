"""`repirl score` of a PRM that vLLM serves, and of the same folder without a server: the gap and seconds.

The PRM is one linear layer, drawn at random, over SmolLM2-135M's states, exported; the solutions are GSM8K's of the package.
On a CPU:

    VLLM_CPU_KVCACHE_SPACE=1 .venv-vllm/bin/python benchmarks/vllm_served_prm.py
"""

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from machine import described, table
from workloads import SMOLLM2

from repirl.applications import score
from repirl.applications.export import TEXT_FILE
from repirl.data.sources import Sample
from repirl.learning.settings import Text
from repirl.models.export import save_prm
from repirl.models.policy import Policy
from repirl.models.prm import PRM


def export(folder: Path) -> None:
    """The PRM's folder."""
    prm = PRM("linear").build(Policy(path=SMOLLM2).load())
    torch.manual_seed(0)
    with torch.no_grad():
        prm.head.score.weight.normal_(std=0.02)
        prm.head.score.bias.fill_(0.5)
    save_prm(prm, folder)
    (folder / TEXT_FILE).write_text(json.dumps(asdict(Text())), encoding="utf-8")


@contextlib.contextmanager
def served(folder: Path, log: Path) -> Iterator[str]:
    """The address of vLLM's server, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--model", str(folder), "--runner", "pooling", "--dtype", "float32", "--enforce-eager"]
    words += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "2048"]
    with log.open("w") as file:
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words]
        process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            while process.poll() is None:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                    break
                time.sleep(0.5)
            assert process.poll() is None, log.read_text()[-3000:]
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def scored(folder: Path, source: Path, output: Path, *words: str) -> tuple[list[dict[str, list[float]]], float]:
    """The output's lines, and wall seconds of the command, loading included."""
    start = time.perf_counter()
    score.main(["--prm", str(folder), "--input", str(source), "--output", str(output), "--tokens", *words])
    taken = time.perf_counter() - start
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()], taken


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solutions", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        rows = [{"problem": one.text, "solution": one.solutions[0]} for one in Sample(limit=given.solutions).load()]
        (place / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        export(place / "prm")
        here, seconds_here = scored(place / "prm", place / "in.jsonl", place / "here.jsonl")
        start = time.perf_counter()
        with served(place / "prm", place / "log") as address:
            until_ready = time.perf_counter() - start
            words = ["--server", address]
            there, first = scored(place / "prm", place / "in.jsonl", place / "first.jsonl", *words)
            _, second = scored(place / "prm", place / "in.jsonl", place / "second.jsonl", *words)
    figures = []
    for field in ("token_rewards", "step_rewards"):
        pairs = [p for a, b in zip(here, there, strict=True) for p in zip(a[field], b[field], strict=True)]
        gap, size = max(abs(a - b) for a, b in pairs), sum(abs(a) for a, _ in pairs) / len(pairs)
        figures.append([field, len(pairs), f"{gap:.1e}", f"{size:.2f}"])
    print(json.dumps(described(torch.device("cpu"))))
    print(table(["rewards", "number", "largest gap", "mean size"], figures))
    print(f"seconds: here {seconds_here:.1f}; server ready {until_ready:.1f}, scored {first:.1f}, again {second:.1f}")


if __name__ == "__main__":
    main()
