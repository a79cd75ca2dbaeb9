"""Wall seconds of idle, stopped, swallowing and waiting programs, one after the other.

    python benchmarks/sandbox_idle.py [--hogs 8]

hogs: busy processes beside, four a core for a machine that is oversubscribed.
"""

import argparse
import subprocess
import sys
import time

from repirl.sandbox.pool import Job, Sandbox
from repirl.structs import CodeTests

KINDS = {
    "idle": "import time\ntime.sleep(10**6)",
    "stopped": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "swallowing": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "waiting": "import threading\nthreading.Event().wait()",
    "honest": "import time\nwhile time.process_time() < 2: pass\ndef f(x): return x + 1",
}


def main() -> None:
    """Five of each kind, at a time-out of 6 s."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hogs", type=int, default=0)
    arguments = parser.parse_args()
    hogs = [subprocess.Popen([sys.executable, "-I", "-c", "while True: pass"]) for _ in range(arguments.hogs)]
    sandbox = Sandbox(workers=1)
    try:
        for name, program in KINDS.items():
            for _ in range(5):
                started = time.perf_counter()
                found = sandbox.run(Job(program, CodeTests("asserts", "assert f(1) == 2"), 6.0))
                print(
                    f"{name}: {found.status}, {time.perf_counter() - started:.1f} s, {found.cpu_s:.1f} s CPU",
                    flush=True,
                )
    finally:
        sandbox.close()
        for hog in hogs:
            hog.kill()
            hog.wait()


if __name__ == "__main__":
    main()
