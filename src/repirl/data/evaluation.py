"""Problems to evaluate on, without expert trajectories."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn

from repirl.data.loaders import EvalLoader, RecordBatch, check_positive
from repirl.data.preparation import prepared_sets
from repirl.data.sets import Sets, loaded, named
from repirl.structs import Prompt


class EvalData(LightningDataModule):
    """Prompts for the validation, test and predict loops, without experts. A step gets a `list[Prompt]`.

    Tokens are made in `setup` with the module's `codec`, `max_prompt_tokens` and `max_response_tokens`, so the module
    must have them from its constructor on.

    Args:
        val: problems of the validation loop, from one source or from several by name.
        test: problems of the test loop, likewise.
        predict: problems of the predict loop, likewise; `problem` texts are enough.
        eval_batch_prompts: prompts per batch over all ranks together.

    Raises (in `setup`): ValueError for unusable data or a missing source.
    """

    def __init__(
        self,
        val: Sets | None = None,
        test: Sets | None = None,
        predict: Sets | None = None,
        eval_batch_prompts: int = 64,
    ) -> None:
        super().__init__()
        check_positive(eval_batch_prompts=eval_batch_prompts)
        self.sets = {"val": named(val), "test": named(test), "predict": named(predict)}
        self.eval_batch_prompts = eval_batch_prompts
        self._prompts: dict[str, list[Prompt]] = {}

    def setup(self, stage: str) -> None:
        """Loads and encodes the stage's problems."""
        stage = TrainerFn(stage).value
        if stage == "fit":
            raise ValueError("EvalData is for evaluation only; train with repirl.data.expert.ExpertData")
        split = "val" if stage == "validate" else stage
        if not self.sets[split]:
            raise ValueError(f"{type(self).__name__} has no `{split}` source, which trainer.{stage} needs")
        sets = self.sets[split]
        self._prompts[split] = prepared_sets(self.trainer, split, sets, loaded(sets))

    def val_dataloader(self) -> EvalLoader[Prompt]:
        """This rank's share of the validation prompts."""
        return self._eval_loader("val")

    def test_dataloader(self) -> EvalLoader[Prompt]:
        """This rank's share of the test prompts."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> EvalLoader[Prompt]:
        """This rank's share of the prompts to predict."""
        return self._eval_loader("predict")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """The batch as a list; records stay where they are."""
        return batch.records if isinstance(batch, RecordBatch) else batch

    def _eval_loader(self, split: str) -> EvalLoader[Prompt]:
        assert self.trainer is not None, "setup has checked it"
        return EvalLoader(
            self._prompts[split], self.eval_batch_prompts, self.trainer.global_rank, self.trainer.world_size
        )
