"""Data modules as a trainer would set them up, on any rank, and a module that records what its steps are given."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer

from repirl.data.arithmetic import ARITHMETIC_TOKENS
from repirl.data.codec import ChatCodec
from repirl.data.sources import Source
from repirl.models.tokenizers import character_tokenizer
from repirl.structs import Problem, Prompt


class Given(Source):
    """Problems from memory."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems

    def load(self) -> list[Problem]:
        return self.problems


class Recorder(LightningModule):
    """Records what each step is given; the weight counts the training steps."""

    def __init__(self, accuracies: bool = False) -> None:
        super().__init__()
        self.codec = ChatCodec(character_tokenizer(ARITHMETIC_TOKENS))
        self.max_prompt_tokens, self.max_response_tokens = 20, 60
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.accuracies = accuracies
        self.seen: dict[str, list[list[str]]] = {"train": [], "validate": [], "test": [], "predict": []}

    def training_step(self, batch: list[Prompt], batch_idx: int) -> torch.Tensor:
        self._record("train", batch)
        if self.accuracies:
            ids = [prompt.problem.id for prompt in batch]
            self.trainer.datamodule.sampler.update(ids, [len(i) % 3 / 2 for i in ids])
        return self.weight * 1.0

    def validation_step(self, batch: list[Prompt], batch_idx: int) -> None:
        self._record("validate", batch)

    def test_step(self, batch: list[Prompt], batch_idx: int) -> None:
        self._record("test", batch)

    def predict_step(self, batch: list[Prompt], batch_idx: int) -> None:
        self._record("predict", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def _record(self, loop: str, batch: list[Prompt]) -> None:
        assert type(batch) is list
        assert all(isinstance(prompt, Prompt) for prompt in batch)
        self.seen[loop].append([prompt.problem.id for prompt in batch])


def trainer(tmp_path: Path, **arguments: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=tmp_path, **{"enable_checkpointing": False, **quiet, **arguments})


def attached(data: LightningDataModule, stage: str, rank: int = 0, world: int = 1, **module: Any) -> Any:
    """The data module after setup, as rank `rank` of `world` would have it."""
    codec = ChatCodec(character_tokenizer(ARITHMETIC_TOKENS))
    parts = {"codec": codec, "max_prompt_tokens": 20, "max_response_tokens": 60, **module}
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=SimpleNamespace(**parts), global_rank=rank, world_size=world, is_global_zero=rank == 0
    )
    data.setup(stage)
    return data


def ids(batch: Any) -> list[str]:
    return [prompt.problem.id for prompt in batch]
