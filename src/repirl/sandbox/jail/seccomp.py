"""The system-call filter: a list of what is allowed, as a classic BPF program.

A refused call fails with EPERM, so that a program sees a PermissionError and may go on; a call of another architecture's
interface ends the process. Layout of what the filter reads: `struct seccomp_data` of linux/seccomp.h.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import signal
import struct

from repirl.sandbox.jail.syscalls import ARCHITECTURES, CONDITIONAL, FREE

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_X32_BIT = 0x40000000

_THREAD = 0x00010000  # CLONE_THREAD
_NAMESPACES = 0x7E020080  # CLONE_NEW*
_O_TMPFILE = 0o20000000  # a file without a name would escape the count of what was written
_FCNTL = (
    0,
    1,
    2,
    3,
    4,
    5,
    1030,
)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_GETLK, F_DUPFD_CLOEXEC; no owner, no lease
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_PRCTL = (15, 16, 0x53564D41)  # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA; not PR_SET_PDEATHSIG
_SIGIO = int(signal.SIGIO)

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant

_PASS: Instruction = (_RETURN, 0, 0, _ALLOW)
_REFUSE: Instruction = (_RETURN, 0, 0, _ERRNO | errno.EPERM)


def _argument(index: int, *, high: bool = False) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index + 4 * high)


def _one_of(index: int, values: tuple[int, ...]) -> list[Instruction]:
    """Allows the call if the 32-bit argument is one of the values."""
    checks: list[Instruction] = [_argument(index)]
    for value in values:
        checks += [(_JUMP_EQUAL, 0, 1, value), _PASS]
    return [*checks, _REFUSE]


def _no_bits(index: int, bits: int, otherwise: int = errno.EPERM) -> list[Instruction]:
    return [_argument(index), (_JUMP_SET, 0, 1, bits), (_RETURN, 0, 0, _ERRNO | otherwise), _PASS]


def _conditions(pid: int) -> dict[str, list[Instruction]]:
    return {
        "open": _no_bits(1, _O_TMPFILE, errno.EOPNOTSUPP),
        "openat": _no_bits(2, _O_TMPFILE, errno.EOPNOTSUPP),
        "fcntl": _one_of(1, _FCNTL),
        "ioctl": _one_of(1, _IOCTL),
        "prctl": _one_of(0, _PRCTL),
        "kill": _one_of(0, (pid,)),
        "tgkill": _one_of(0, (pid,)),
        "tkill": _one_of(0, (pid,)),
        "prlimit64": _one_of(0, (0, pid)),
        # As on a file system without such attributes, so that a copy does without them.
        **{name: [(_RETURN, 0, 0, _ERRNO | errno.ENOTSUP)] for name in ("listxattr", "llistxattr", "flistxattr")},
        "clone3": [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)],  # its flags are in memory; the C library then uses clone
        "clone": [
            _argument(0),
            (_JUMP_SET, 0, 2, _THREAD),
            (_JUMP_SET, 1, 0, _NAMESPACES),
            _PASS,
            _REFUSE,
        ],
        # A connected pair of streams, for event loops; a datagram socket could be given an address later.
        "socketpair": [
            _argument(0),
            (_JUMP_EQUAL, 0, 3, 1),  # AF_UNIX
            _argument(1),
            (0x54, 0, 0, 0xF),  # and: the type without its flags
            (_JUMP_EQUAL, 1, 0, 1),  # SOCK_STREAM
            _REFUSE,
            _PASS,
        ],
        "sendto": [
            _argument(4),
            (_JUMP_EQUAL, 0, 3, 0),
            _argument(4, high=True),
            (_JUMP_EQUAL, 0, 1, 0),
            _PASS,
            _REFUSE,
        ],
    }


def program(machine: str, pid: int) -> bytes:
    """The filter for a process: an array of `struct sock_filter`. Raises OSError for an unknown architecture."""
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no system-call table for {machine}; there is one for {', '.join(ARCHITECTURES)}")
    column, audit = ARCHITECTURES[machine]
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _KILL_PROCESS),
    ]
    for numbers in FREE.values():
        number = numbers[column]
        if number is not None:
            code += [(_JUMP_EQUAL, 0, 1, number), _PASS]
    conditions = _conditions(pid)
    for name, numbers in CONDITIONAL.items():
        number = numbers[column]
        if number is not None:
            code += [(_JUMP_EQUAL, 0, len(conditions[name]), number), *conditions[name]]
    code.append(_REFUSE)
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def install(libc: ctypes.CDLL) -> None:
    """Filters this process and its later threads, for good. Needs no_new_privs. Raises OSError."""
    import os

    code = program(platform.machine(), os.getpid())
    buffer = ctypes.create_string_buffer(code, len(code))
    argument = _Program(len(code) // 8, ctypes.addressof(buffer))
    if libc.prctl(22, 2, ctypes.byref(argument), 0, 0) != 0:  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "seccomp filter refused")
