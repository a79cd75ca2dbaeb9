"""How long a process had a processor, and how long it waited for one: a process kept waiting is neither asleep nor stuck."""

import contextlib
import os
import time


def processor_s(pid: int) -> tuple[float, float]:
    """Seconds that it ran, and that it waited while ready to run, of its busiest thread; zeros where the kernel is silent."""
    most = (0.0, 0.0)
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/schedstat") as file:
                ran, waited = (int(word) / 1e9 for word in file.read().split()[:2])
                most = max(most, (ran, waited), key=sum)
    return most


def is_ready(pid: int) -> bool:
    """Whether it runs or waits for a processor; not where it sleeps, is stopped or has ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "R"
    except OSError:
        return False


def states(pid: int) -> set[str]:
    """One letter for each state that its threads are in (proc(5)); empty for a process that has ended."""
    found = set()
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/stat") as file:
                found.add(file.read().rpartition(")")[2].split()[0])
    return found


class IdleTime:
    """Sums up the seconds in which a process of one's own neither ran nor waited for a processor or a disk.

    It is as exact as the looks at it are frequent: between two of them all that the process did is taken off.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.seconds = 0.0
        self.started = self._last = time.monotonic()
        self._ran, self._waited = self._used()

    @property
    def elapsed_s(self) -> float:
        """Seconds from the start to the last look."""
        return self._last - self.started

    def _used(self) -> tuple[float, float]:
        waited = 0.0
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{self.pid}/task"):
                with contextlib.suppress(OSError), open(f"/proc/{self.pid}/task/{thread}/schedstat") as file:
                    waited += int(file.read().split()[1]) / 1e9
        return cpu_s(self.pid), waited

    def look(self) -> None:
        """Counts what went by since the last look."""
        now, (ran, waited) = time.monotonic(), self._used()
        passed, self._last = now - self._last, now
        busy = ran - self._ran + max(0.0, waited - self._waited)  # threads that have ended waited, too
        self._ran, self._waited = ran, waited
        if not states(self.pid) & {"R", "D"}:
            self.seconds = max(0.0, self.seconds + passed - busy)


def cpu_s(pid: int) -> float:
    """CPU seconds of a whole process, of its ended threads too. Raises OSError for a process that is not there."""
    return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3)
