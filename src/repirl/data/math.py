"""Problems to evaluate on, without expert trajectories."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn

from repirl.data.expert import prepared
from repirl.data.loaders import EvalLoader, PromptBatch, check_positive
from repirl.data.sources import Source
from repirl.structs import Prompt


class MathData(LightningDataModule):
    """Prompts for the validation, test and predict loops, without experts. A step gets a `list[Prompt]`.

    Tokens are made in `setup` with the module's `codec`, `max_prompt_tokens` and `max_response_tokens`, so the module
    must have them from its constructor on.

    Args:
        val: problems of the validation loop.
        test: problems of the test loop.
        predict: problems of the predict loop; `problem` texts are enough.
        eval_batch_prompts: prompts per batch over all ranks together.

    Raises (in `setup`): ValueError for unusable data or a missing source.
    """

    def __init__(
        self,
        val: Source | None = None,
        test: Source | None = None,
        predict: Source | None = None,
        eval_batch_prompts: int = 64,
    ) -> None:
        super().__init__()
        check_positive(eval_batch_prompts=eval_batch_prompts)
        self.sources: dict[str, Source | None] = {"val": val, "test": test, "predict": predict}
        self.eval_batch_prompts = eval_batch_prompts
        self._prompts: dict[str, list[Prompt]] = {}

    def setup(self, stage: str) -> None:
        """Loads and encodes the stage's problems."""
        stage = TrainerFn(stage).value
        if stage == "fit":
            raise ValueError("MathData is for evaluation only; train with repirl.data.expert.ExpertData")
        split = "val" if stage == "validate" else stage
        source = self.sources[split]
        if source is None:
            raise ValueError(f"MathData has no `{split}` source, which trainer.{stage} needs")
        self._prompts[split] = prepared(self.trainer, split, source.load(), max_experts=0, require_experts=False)

    def val_dataloader(self) -> EvalLoader:
        """This rank's share of the validation prompts."""
        return self._eval_loader("val")

    def test_dataloader(self) -> EvalLoader:
        """This rank's share of the test prompts."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> EvalLoader:
        """This rank's share of the prompts to predict."""
        return self._eval_loader("predict")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """The batch as a list; records stay where they are."""
        return batch.prompts if isinstance(batch, PromptBatch) else batch

    def _eval_loader(self, split: str) -> EvalLoader:
        assert self.trainer is not None, "setup has checked it"
        return EvalLoader(
            self._prompts[split], self.eval_batch_prompts, self.trainer.global_rank, self.trainer.world_size
        )
