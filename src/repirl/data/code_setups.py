"""What the sets' own judges have run before a program: imports and the recursion limit."""

from __future__ import annotations

# What the judges of APPS and LiveCodeBench import, name by name and whole. `builtins` comes after modules that shadow
# some of it: `pow` is the built-in one.
_STARS = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools",
    "functools", "operator", "io", "sys", "json", "builtins", "typing",
)  # fmt: skip
_WHOLE = tuple(name for name in _STARS if name not in ("bisect", "builtins", "typing"))


def _imports(stars: tuple[str, ...], whole: tuple[str, ...]) -> str:
    return "\n".join([*(f"from {name} import *" for name in stars), *(f"import {name}" for name in whole)])


LIVECODEBENCH_SETUP = f"{_imports(_STARS, _WHOLE)}\nsys.setrecursionlimit(50_000)\n"
"""LiveCodeBench's: of programs that read standard input, too."""

APPS_SETUP = f"{_imports(_STARS, _WHOLE)}\nsys.setrecursionlimit(600_000)\n"
"""That of APPS, as PRIME uses it for Eurus-2-RL-Data."""

LEETCODE_SETUP = (
    _imports(
        ("bisect", "collections", "functools", "heapq", "itertools", "math", "typing", "builtins"),
        (
            "bisect", "collections", "copy", "datetime", "functools", "hashlib", "heapq", "itertools", "math", "numpy",
            "operator", "random", "re", "string", "sys",
        ),
    )
    + "\nimport numpy as np\n"
)  # fmt: skip
"""LeetCode's own environment together with what DeepSeek-Coder's judge of its contests imports."""
