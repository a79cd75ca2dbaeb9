"""How long a process had a processor, and how long it waited for one: a process kept waiting is neither asleep nor stuck."""

import contextlib
import os


def processor_s(pid: int) -> tuple[float, float]:
    """Seconds that it ran, and that it waited while ready to run, of its busiest thread; zeros where the kernel is silent."""
    most = (0.0, 0.0)
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/schedstat") as file:
                ran, waited = (int(word) / 1e9 for word in file.read().split()[:2])
                most = max(most, (ran, waited), key=sum)
    return most


def idle_s(pid: int, elapsed_s: float) -> float:
    """Of the seconds since its start, those in which it neither ran nor waited for a processor."""
    return elapsed_s - sum(processor_s(pid))


def is_ready(pid: int) -> bool:
    """Whether it runs or waits for a processor; not where it sleeps, is stopped or has ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "R"
    except OSError:
        return False
