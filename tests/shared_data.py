"""Public data sets that are too large for the repository: a folder beside the checkout, or the one that REPIRL_DATA names."""

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("REPIRL_DATA", Path(__file__).parents[2] / "shared" / "data"))


def shared_file(name: str) -> Path:
    """A file of the folder; the test is skipped where it is not there."""
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"needs {name} in ../shared/data or in the folder that REPIRL_DATA names")
    return path
