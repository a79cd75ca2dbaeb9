"""Shuts a forked child in, before any line of a program runs: limits, privileges, files, system calls."""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import socket
import struct
import sys
import sysconfig
from dataclasses import dataclass

from repirl.sandbox.jail import landlock, seccomp

OPEN_FILES = 64
STACK_MIB = 256  # of the main thread, as it grows: recursion through functions in C, such as a cache's
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CAPABILITIES = 0x20080522  # _LINUX_CAPABILITY_VERSION_3


@dataclass(frozen=True, slots=True)
class Limits:
    """cpu_s: CPU seconds. memory_mib: address space. disk_mib: size of one file."""

    cpu_s: float
    memory_mib: int
    disk_mib: int


@dataclass(frozen=True, slots=True)
class Level:
    """What holds a program. landlock: its version, 0 without. missing: why a layer is absent, one sentence each."""

    landlock: int
    seccomp: bool
    bubblewrap: bool
    missing: tuple[str, ...]

    def __str__(self) -> str:
        layers = ["rlimits", "no_new_privs", "no capabilities"]
        layers += [f"Landlock {self.landlock}"] if self.landlock else []
        layers += ["seccomp"] if self.seccomp else []
        layers += ["bubblewrap"] if self.bubblewrap else []
        return ", ".join(layers)


def library() -> ctypes.CDLL:
    """The C library, with errno."""
    return ctypes.CDLL(None, use_errno=True)


def readable() -> list[tuple[str, int]]:
    """What every program may read: the interpreter, its packages, the system's libraries, a few devices."""
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths |= {sys.prefix, os.path.join(sys.base_prefix, "lib"), "/usr", "/lib", "/lib64"}
    files = ("/etc/ld.so.cache", "/etc/localtime", "/dev/zero", "/dev/urandom", "/dev/random")
    rules = [(path, landlock.READ) for path in sorted(path for path in paths if path != "/")]
    rules += [(path, landlock.READ_FILE) for path in files]
    return [*rules, ("/dev/null", landlock.READ_FILE | landlock.WRITE_FILE)]


def follow_parent(libc: ctypes.CDLL, parent: int) -> None:
    """Ends this process with its parent, even if that is killed."""
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def first_to_go() -> None:
    """If memory runs out, the kernel ends this process and not the trainer."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:  # no /proc: the kernel then chooses by size
        return


def set_limits(limits: Limits) -> None:
    """Soft limits, with hard limits a little above for CPU; never above a hard limit that is already there."""
    cpu_s = math.ceil(limits.cpu_s) + 1  # a backstop in whole seconds: the server reads the clock itself
    wanted = {
        resource.RLIMIT_CPU: (cpu_s, cpu_s + 1),
        resource.RLIMIT_AS: (limits.memory_mib << 20,) * 2,
        resource.RLIMIT_FSIZE: (limits.disk_mib << 20,) * 2,
        resource.RLIMIT_NOFILE: (OPEN_FILES,) * 2,
        resource.RLIMIT_STACK: (STACK_MIB << 20,) * 2,
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_MSGQUEUE: (0, 0),
        resource.RLIMIT_MEMLOCK: (0, 0),
    }
    for kind, (soft, hard) in wanted.items():
        present = resource.getrlimit(kind)[1]
        if present != resource.RLIM_INFINITY:
            soft, hard = min(soft, present), min(hard, present)
        resource.setrlimit(kind, (soft, hard))


def drop_privileges(libc: ctypes.CDLL) -> None:
    """No capability, also for root, and none to come. Raises OSError."""
    header = struct.pack("Ii", _CAPABILITIES, 0)
    number = 91 if os.uname().machine == "aarch64" else 126  # capset
    if libc.syscall(number, header, bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "cannot drop capabilities")
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs refused")


def shut_in(libc: ctypes.CDLL, limits: Limits, rules: int | None, *, filtered: bool) -> None:
    """Every layer, in the order in which each can still be set. rules: of Landlock. Raises OSError."""
    os.setsid()
    first_to_go()
    set_limits(limits)
    drop_privileges(libc)
    if rules is not None:
        landlock.restrict(libc, rules)
    if filtered:
        seccomp.install(libc)


def breaches(*, files: bool, calls: bool) -> list[str]:
    """Tries, in a process just shut in, what must fail: what was possible, one word each."""
    found = []
    if files:
        try:
            os.close(os.open("/etc", os.O_RDONLY | os.O_DIRECTORY))
            found.append("files")
        except OSError:
            pass
    if calls:
        try:
            socket.socket(socket.AF_UNIX).close()
            found.append("sockets")
        except OSError:
            pass
        try:
            os.kill(os.getppid(), 0)
            found.append("signals")
        except OSError:
            pass
        try:
            if os.fork() == 0:
                os._exit(0)
            found.append("fork")
        except OSError:
            pass
    return found
