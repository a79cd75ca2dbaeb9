"""A configuration and a checkpoint become the module that was trained, without a trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from repirl.__main__ import main
from repirl.build import build
from repirl.config import ConfigError
from repirl.data.collate import collate_rows
from tests.modules.tiny import DRAWN_LINEAR
from tests.test_runs import BASE

ROWS = collate_rows([[1, 2], [3, 4]], [[5, 6, 7], [8, 9]], pad_id=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two iterations: base.yaml and last.ckpt."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "base.yaml").write_text(BASE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "--config", "base.yaml", "--trainer.max_steps=2", "--trainer.default_root_dir=out"])
    (path,) = folder.rglob("last.ckpt")
    return path.rename(folder / "last.ckpt").parent


def test_a_checkpoint_s_weights_are_in_the_module(trained: Path) -> None:
    arguments = ["--config", str(trained / "base.yaml"), "--model.samples=8"]  # its trainer section is not read
    fresh, built = build(arguments), build(arguments, checkpoint=trained / "last.ckpt")
    stored = torch.load(trained / "last.ckpt", weights_only=True)["state_dict"]
    state = built.module.state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], stored[name]) for name in stored)
    module: Any = built.module
    assert module.alternation.samples == 8
    assert not module.training
    fresh_module: Any = fresh.module
    assert fresh_module.score(ROWS).abs().max() == 0  # a Q-head's start
    assert module.score(ROWS).abs().max() > 0
    data: Any = built.data
    assert len(data.train.load()) == 64


def test_data_may_be_missing(trained: Path, tmp_path: Path) -> None:
    text = (trained / "base.yaml").read_text()
    (tmp_path / "model.yaml").write_text(text[text.index("model:") : text.index("data:")])
    assert build(["--config", str(tmp_path / "model.yaml")]).data is None


@pytest.mark.parametrize(
    ("override", "checkpoint", "said"),
    [
        ("--model.samples=0", None, "cannot build what the configuration describes: samples must be at least 1"),
        ("--model.sample=4", None, "sample"),
        ("--model.samples=4", "missing.ckpt", "no such file"),
        ("--model.prm.kind=linear", "last.ckpt", "its PRM has kind 'q_head', this one 'linear'"),
        ("--model.prm=null", "last.ckpt", "has a PRM and this configuration has none"),
        ("--model.policy.init_args.config={model_type: llama, hidden_size: 8}", "last.ckpt", "does not fit"),
    ],
)
def test_what_does_not_fit_is_told(trained: Path, override: str, checkpoint: str | None, said: str) -> None:
    path = None if checkpoint is None else trained / checkpoint
    with pytest.raises(ConfigError, match=said):
        build(["--config", str(trained / "base.yaml"), override], checkpoint=path)


def test_what_is_drawn_at_random_follows_seed_everything_and_nothing_else(trained: Path) -> None:
    def head(seed: int) -> torch.Tensor:
        options = [f"--model.prm.init_args.kind={DRAWN_LINEAR}", f"--seed_everything={seed}"]
        module: Any = build(["--config", str(trained / "base.yaml"), *options]).module
        return torch.cat([p.detach().flatten() for p in module.prm.head.parameters()])

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = head(1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(head(1), first)
    assert not torch.equal(head(2), first)
