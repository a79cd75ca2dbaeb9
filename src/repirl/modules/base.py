"""What all modules have in common: files that describe themselves, and an end in order at a signal."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule

from repirl import checkpoints
from repirl.data.codec import ChatCodec
from repirl.learning.settings import Text
from repirl.models.sharding import gather, release, shard
from repirl.modules.rescue import SaveOnException
from repirl.modules.saving import check_checkpoint, description, require_working, use_safe_files
from repirl.modules.stopping import StopOnSignal
from repirl.modules.strategies import require_explicit_gradients


class RunModule(LightningModule):
    """A module with a `policy`, a `prm`, or both, and manual optimisation where it trains.

    Args:
        text: how problems become prompts.

    configuration: the merged one, as YAML, where the command line has built the module; checkpoints store it.
    """

    configuration: str | None = None

    def __init__(self, text: Text) -> None:
        super().__init__()
        self.text = text
        self.max_prompt_tokens, self.max_response_tokens = text.max_prompt_tokens, text.max_response_tokens

    @property
    def codec(self) -> ChatCodec:
        """How problems become prompts; the data module asks for it."""
        raise NotImplementedError

    @property
    def can_validate(self) -> bool:
        """Whether there is something that validation can compare with."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        require_explicit_gradients(self.trainer)
        use_safe_files(self.trainer)

    def configure_callbacks(self) -> list[Callback]:
        """A signal ends the run in order, and an exception loses no whole iteration."""
        return [StopOnSignal(), SaveOnException()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the weights mean; nothing is saved of weights that no longer work."""
        require_working(self)
        checkpoint[checkpoints.DESCRIPTION] = description(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses weights that do not fit or mean something else."""
        check_checkpoint(self, checkpoint)

    def shard(self) -> None:
        """Spreads the weights over processes where the strategy asks for it; the last thing in `configure_model`."""
        shard(self, None if self.device_mesh is None else self.device_mesh["data_parallel"])

    def on_validation_start(self) -> None:
        """Gathers sharded weights: ranks need not have equally many problems, nor answers of one length."""
        models = [model for name in ("policy", "prm") if (model := getattr(self, name, None)) is not None]
        self._gathered = [part for model in models for part in gather(model)]

    def on_validation_end(self) -> None:
        release(self._gathered)

    def on_test_start(self) -> None:
        """As validation."""
        self.on_validation_start()

    def on_test_end(self) -> None:
        release(self._gathered)

    def on_predict_start(self) -> None:
        """As validation."""
        self.on_validation_start()

    def on_predict_end(self) -> None:
        release(self._gathered)
