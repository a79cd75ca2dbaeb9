"""Imports point in one direction; see docs/architecture.md."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "repirl"

# Leftmost first. A unit imports itself and anything further right; siblings of one layer never import one another.
LAYERS = (
    {"cli"},
    {"applications", "callbacks"},
    {"build"},
    {"modules"},
    {"learning"},
    {"models", "rollout", "verifiers", "data"},
    {"objectives", "metrics", "sandbox", "distributed", "weights", "equality", "checkpoints", "folders", "progress"},
    {"structs"},
)
DEPTH = {unit: depth for depth, layer in enumerate(LAYERS) for unit in layer}
MAY_IMPORT_CONFIG = {"cli", "applications", "build"}


def unit_of(module: str) -> str | None:
    """The part of the package that a dotted module belongs to; None for the package itself and for other packages."""
    parts = module.split(".")
    if parts[0] != "repirl" or len(parts) == 1:
        return None
    return "cli" if parts[1] == "__main__" else parts[1]


def imported(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                package = parts[: len(parts) - node.level + is_package]
                base = ".".join([*package, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}" if base == "repirl" else base) for alias in node.names)


def violations(root: Path) -> list[str]:
    """Every import under `root` that points in a wrong direction, and every file without a layer."""
    units = {path.stem if path.is_file() else path.name for path in root.iterdir()}
    found = []
    for path in sorted(root.rglob("*.py")):
        is_package = path.name == "__init__.py"
        relative = path.relative_to(root.parent).with_suffix("")
        module = ".".join(relative.parent.parts if is_package else relative.parts)
        unit = unit_of(module)
        if unit is not None and unit not in DEPTH and unit != "config":
            found.append(f"{relative}: {unit} has no layer; add it to LAYERS")
            continue
        for line, name in imported(ast.parse(path.read_text(encoding="utf-8")), module, is_package=is_package):
            target = unit_of(name)
            if target is None or target == unit or target not in units | set(DEPTH):  # `from repirl import __version__`
                continue
            if unit is None or unit == "config":
                allowed = False
            elif target == "config":
                allowed = unit in MAY_IMPORT_CONFIG
            else:
                allowed = target in DEPTH and DEPTH[unit] < DEPTH[target]
            if not allowed:
                found.append(f"{relative}.py:{line}: {unit or 'repirl'} imports {target}")
    return found


def test_imports_point_to_the_right():
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("folder", "units"),
    [("sandbox", ("repirl.sandbox", "repirl.structs")), ("sandbox/jail", ("repirl.sandbox.jail",))],
)
def test_the_sandbox_stands_alone(folder, units):
    """Programs are run without a thought of training, by processes that start quickly and hold little to be found."""
    allowed = {*units, *sys.stdlib_module_names, "numpy"}  # numpy's arrays are values, where a program has made some
    foreign = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        for line, name in imported(ast.parse(path.read_text(encoding="utf-8")), module, is_package=False):
            if not any(name == unit or name.startswith(f"{unit}.") for unit in allowed):
                foreign.append(f"{path.name}:{line}: {name}")
    assert foreign == []


def test_no_top_level_name_hides_a_standard_module():
    names = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()} - {"__init__", "__main__"}
    assert names & set(sys.stdlib_module_names) == set()


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("objectives/irl.py", "from repirl.models.prm import PRM", "objectives imports models"),
        ("models/prm.py", "def f():\n    import repirl.data.math", "models imports data"),
        ("data/a.py", "if TYPE_CHECKING:\n    from repirl import modules", "data imports modules"),
        ("data/a.py", "from ..verifiers import math", "data imports verifiers"),
        ("sandbox/a.py", "from repirl.verifiers.code import CodeVerifier", "sandbox imports verifiers"),
        ("modules/__init__.py", "from ..callbacks.report import R", "modules imports callbacks"),
        ("callbacks/a.py", "from repirl.applications import search", "callbacks imports applications"),
        ("modules/a.py", "from repirl import config", "modules imports config"),
        ("config.py", "from repirl.structs import Prompt", "config imports structs"),
        ("helpers.py", "", "helpers has no layer"),
    ],
)
def test_the_checker_catches(tmp_path, file, source, expected):
    for unit in DEPTH:
        (tmp_path / "repirl" / unit).mkdir(parents=True)
    (tmp_path / "repirl" / "config.py").touch()
    path = tmp_path / "repirl" / file
    path.write_text(source)
    (found,) = violations(tmp_path / "repirl")
    assert expected in found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("cli/__init__.py", "from repirl import config, __version__\nfrom repirl.applications import search"),
        (
            "modules/a.py",
            "from .b import x\nfrom repirl.objectives.irl import y\nfrom ..structs import z\nimport torch",
        ),
        ("applications/a.py", "from repirl.config import load\nfrom repirl.modules import sft"),
    ],
)
def test_the_checker_allows(tmp_path, file, source):
    for unit in DEPTH:
        (tmp_path / "repirl" / unit).mkdir(parents=True)
    (tmp_path / "repirl" / "config.py").touch()
    (tmp_path / "repirl" / file).write_text(source)
    assert violations(tmp_path / "repirl") == []
