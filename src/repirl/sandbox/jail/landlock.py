"""Which files a process may open: Landlock (Linux 5.13 and later), through its three system calls.

Constants: linux/landlock.h. The numbers of the calls are those of every architecture.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

_CREATE, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446

WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG, REFER, TRUNCATE = (
    1 << bit for bit in (1, 2, 3, 4, 5, 7, 8, 13, 14)
)
_IN_FILES = WRITE_FILE | READ_FILE | TRUNCATE
READ = READ_FILE | READ_DIR
# Plain files and folders, which may be moved between its folders: no link, socket or pipe.
SCRATCH = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | REFER | TRUNCATE
_BITS_OF_VERSION = {1: 13, 2: 14, 3: 15, 4: 15}  # 16 from version 5 on


def version(libc: ctypes.CDLL) -> int:
    """The kernel's Landlock version; 0 where it has none."""
    return max(0, int(libc.syscall(_CREATE, None, 0, 1)))


def ruleset(libc: ctypes.CDLL, rules: Iterable[tuple[str, int]]) -> int:
    """A descriptor of rules: each path with what is allowed beneath it. Paths that do not exist are left out.

    Everything else that Landlock knows is denied: other files, TCP, and from version 6 on signals to processes outside
    and abstract sockets. Raises OSError.
    """
    found = version(libc)
    if not found:
        raise OSError(ctypes.get_errno(), "this kernel has no Landlock")
    files = (1 << _BITS_OF_VERSION.get(found, 16)) - 1
    attributes = struct.pack("QQQ", files, 3, 3)[: 8 if found < 4 else 16 if found < 6 else 24]
    made = int(libc.syscall(_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0))
    if made < 0:
        raise OSError(ctypes.get_errno(), "Landlock refused the rule set")
    for path, allowed in rules:
        try:
            target = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            allowed &= files if os.path.isdir(path) else files & _IN_FILES
            if libc.syscall(_ADD_RULE, made, 1, struct.pack("=Qi", allowed, target), 0) != 0:
                raise OSError(ctypes.get_errno(), "Landlock refused a rule", path)
        finally:
            os.close(target)
    return made


def restrict(libc: ctypes.CDLL, rules: int) -> None:
    """Holds this process and its later threads to the rules, for good. Needs no_new_privs. Raises OSError."""
    if libc.syscall(_RESTRICT_SELF, rules, 0) != 0:
        raise OSError(ctypes.get_errno(), "Landlock refused the restriction")
