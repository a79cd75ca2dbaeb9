"""Runs tests in forks of one process that has imported the libraries, and nothing of repirl: that saves seconds a fault.

Reads a JSON line a run, {"tests": [...], "mutant": name or null, "log": file}; writes pytest's exit code as a line.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import Any

import beartype  # noqa: F401  these are imported for the forks
import hypothesis  # noqa: F401
import lightning.pytorch  # noqa: F401
import peft  # noqa: F401
import pytest
import torch
import transformers.models.llama.modeling_llama  # noqa: F401

from tests.mutants import VARIABLE

OPTIONS = ["-q", "-p", "tests.mutants", *(f"-pno:{name}" for name in ("cacheprovider", "xdist", "hypothesispytest"))]


def run(request: dict[str, Any]) -> int:
    """Pytest on the tests of a request, with its output in the log."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.pop(VARIABLE, None)
    if request["mutant"] is not None:
        os.environ[VARIABLE] = request["mutant"]
    code = int(pytest.main([*OPTIONS, *request["tests"]]))
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def main() -> None:
    torch.set_num_threads(1)
    assert not any(name.split(".")[0] == "repirl" for name in sys.modules)
    gc.freeze()  # pytest collects garbage several times
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            code = 70  # an error of ours
            try:
                code = run(request)
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
