"""Checkpoint files: whole or as before, damage and foreign code refused."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from repirl import checkpoints

ROOT = Path(__file__).parents[1]


def content(seed: int = 0, size: int = 300) -> dict[str, Any]:
    torch.manual_seed(seed)
    adam = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(size)}}, "param_groups": [{"lr": 1e-3}]}
    weights = {"policy.w": torch.randn(size, 7), "policy.b": torch.randn(5, dtype=torch.bfloat16)}
    return {"state_dict": weights, "optimizer_states": [adam], "global_step": seed, "words": "as they were"}


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second) and first.dtype == second.dtype
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "last.ckpt"  # the folder is made
    checkpoints.write(content(), path)
    assert same(checkpoints.read(path), content())
    checkpoints.write(content(1), path)
    assert same(checkpoints.read(path), content(1))
    assert list(path.parent.iterdir()) == [path]  # no temporary file is left
    assert same(torch.load(path, weights_only=True), content(1))  # plain torch reads it too


def test_no_flipped_bit_is_read_in_silence(tmp_path: Path) -> None:
    """Anywhere in the file, the directory at its end and the pickled structure at its start included."""
    path, flipped = tmp_path / "whole.ckpt", tmp_path / "flipped.ckpt"
    checkpoints.write(content(), path)
    whole = path.read_bytes()
    places = random.Random(0)
    refused = 0
    for number in range(200):
        damaged = bytearray(whole)
        at = places.randrange(len(whole)) if number % 2 else places.choice([*range(3000), *range(-3000, 0)])
        damaged[at] ^= 1 << places.randrange(8)
        flipped.write_bytes(damaged)
        try:
            found = checkpoints.read(flipped)
        except ValueError:
            refused += 1
        else:
            assert same(found, content()), at  # a byte that nothing reads: padding, dates
    assert refused > 150


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_cut_file_is_named(tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.ckpt"
    checkpoints.write(content(), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"checkpoint '.*cut.ckpt' is damaged"):
        checkpoints.read(path)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda p: p.write_text("seed_everything: 1\n"), "is damaged, or no checkpoint at all"),
        (lambda p: torch.save([1, 2], p), "has no state_dict"),
        (lambda p: torch.save({"weight": torch.ones(2)}, p), "has no state_dict"),
        (lambda p: p.mkdir(), "no such file"),
        (lambda p: None, "no such file"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, made: Any, message: str) -> None:
    made(tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=message):
        checkpoints.read(tmp_path / "x.ckpt")


class Foreign:
    """Unpickling it would run code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_foreign_code_is_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "foreign.ckpt", tmp_path / "ran"
    torch.save(content() | {"callbacks": Foreign(mark)}, path)
    with pytest.raises(ValueError, match="could run foreign code: it is not read"):
        checkpoints.read(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # it would have run


SMALL_DISK = """
import resource, sys
from pathlib import Path
from repirl import checkpoints
from tests.test_checkpoints import content, same
path = Path(sys.argv[1])
checkpoints.write(content(), path)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # of a file: what a full disk does to a writer
try:
    checkpoints.write(content(1, size=100_000), path)
except OSError as error:
    assert same(checkpoints.read(path), content()), "the old file is as it was"
    print(error)
"""


def test_a_full_disk_leaves_the_old_file_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    command = [sys.executable, "-c", SMALL_DISK, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith(
        f"checkpoint {str(path)!r} could not be written: File too large; the one before it is"
    )
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"could not be written: (Not a directory|File exists); nothing is there"):
        checkpoints.write(content(), tmp_path / "file" / "last.ckpt")


KILLED = """
import sys
from pathlib import Path
from repirl import checkpoints
from tests.test_checkpoints import content
for n in range(1, 1000):
    checkpoints.write(content(n, size=200_000), Path(sys.argv[1]))
"""


def size(path: Path) -> int:
    """Bytes; -1 where no file is, or none any more."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def test_a_kill_while_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    path, part = tmp_path / "last.ckpt", tmp_path / ".last.ckpt.part"
    caught = 0
    for number in range(6):
        with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], cwd=ROOT) as writer:
            while not path.exists() or size(part) < number * 900_000:
                assert writer.poll() is None
                time.sleep(0.0002)  # the writer needs the processor more than this loop
            writer.kill()
        caught += part.exists()
        found = checkpoints.read(path)
        assert same(found, content(found["global_step"], size=200_000))
        part.unlink(missing_ok=True)
        path.unlink()
    assert caught >= 3  # most kills met a file half written
