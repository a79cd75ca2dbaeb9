"""Solutions with labelled steps for training a PRM offline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from repirl.data.contamination import Overlap, reported_overlaps
from repirl.data.loaders import EvalLoader, RecordBatch, TrainLoader, check_positive
from repirl.data.prompts import UniformSampler
from repirl.data.step_labelled import LabelledSolution, ids_hash
from repirl.data.step_rows import LabelledResponse, Targets, encode_labelled, log_report
from repirl.data.step_sources import StepSets, StepSource, named_sets
from repirl.structs import Problem

Loaded = dict[str, list[LabelledSolution]]


class StepLabelData(LightningDataModule):
    """Solutions with labelled steps. A step gets a `list[LabelledResponse]`.

    Tokens are made in `setup` with the module's `codec`, `max_prompt_tokens` and `max_response_tokens`. Solutions that are
    longer, or have a step without a token of its own, are left out and counted. An epoch is as many iterations as whole
    batches fit into the training set; the rest of a pass opens the next one.

    Args:
        train: solutions to learn from.
        val: solutions of the validation loop, from one source or from several by name.
        test: solutions of the test loop, likewise.
        targets: what the PRM learns: `hard` labels, 1 or 0, or `soft` ones, probabilities. Figures of validation are always
            of hard labels, its loss is of these targets.
        batch_solutions: solutions per iteration over all ranks together, split evenly.
        eval_batch_solutions: solutions per evaluation batch over all ranks together.
        seed: seed of the order.

    Raises (in `setup` and when the training loader is made): ValueError for unusable data.
    """

    def __init__(
        self,
        train: StepSource | None = None,
        val: StepSets | None = None,
        test: StepSets | None = None,
        targets: Targets = "hard",
        batch_solutions: int = 64,
        eval_batch_solutions: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_positive(batch_solutions=batch_solutions, eval_batch_solutions=eval_batch_solutions)
        self.train, self.sets = train, {"val": named_sets(val), "test": named_sets(test)}
        self.targets, self.batch_solutions, self.eval_batch_solutions = targets, batch_solutions, eval_batch_solutions
        self.seed, self.sampler = seed, UniformSampler()
        self.overlaps: dict[str, Overlap] = {}
        self._solutions: dict[str, list[LabelledResponse]] = {}
        self._training_set: dict[str, Any] = {}
        self._restored: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        """Loads and encodes what the stage needs. A fit without a restored state starts the order anew."""
        if TrainerFn(stage) == TrainerFn.FITTING:
            held_out = self._loaded("val")
            self._set_up_training(held_out)
            if held_out:
                self._solutions["val"] = self._encoded_sets("val", held_out)
            return
        split = "val" if TrainerFn(stage) == TrainerFn.VALIDATING else TrainerFn(stage).value
        if not self.sets.get(split):
            raise ValueError(f"StepLabelData has no `{split}` source, which trainer.{TrainerFn(stage).value} needs")
        self._solutions[split] = self._encoded_sets(split, self._loaded(split))

    def _set_up_training(self, held_out: Loaded) -> None:
        if self.train is None:
            raise ValueError("StepLabelData has no `train` source, which trainer.fit needs")
        solutions = self.train.load()
        self._solutions["train"] = encoded = self._encoded("train", solutions)
        if self._trainer().is_global_zero:
            others = {"val": held_out, "test": self._loaded("test")}
            sets = {kind: {name: _problems(some) for name, some in of.items()} for kind, of in others.items()}
            self.overlaps = reported_overlaps(_problems(solutions), sets)
        self._training_set = {
            "solutions": len(encoded),
            "ids": ids_hash(r.id for r in encoded),
            "rows": _digest(encoded),
        }
        self.sampler.start([response.id for response in encoded], self.seed)
        if self._restored is not None:
            self._restore(self._restored)

    def train_dataloader(self) -> TrainLoader[LabelledResponse]:
        """This rank's share of the training batches."""
        trainer, solutions = self._trainer(), self._solutions["train"]
        if self.batch_solutions % trainer.world_size:
            raise ValueError(
                f"batch_solutions {self.batch_solutions} must be a multiple of the {trainer.world_size} processes"
            )
        if len(solutions) < self.batch_solutions:
            raise ValueError(
                f"batch_solutions {self.batch_solutions} exceeds the {len(solutions)} usable solutions; lower it"
            )
        return TrainLoader(solutions, self.sampler, self.batch_solutions, trainer.global_rank, trainer.world_size)

    def val_dataloader(self) -> EvalLoader[LabelledResponse] | list[Any]:
        """This rank's share of the validation solutions; no loader without a `val` source."""
        return self._eval_loader("val") if "val" in self._solutions else []

    def test_dataloader(self) -> EvalLoader[LabelledResponse]:
        """This rank's share of the test solutions."""
        return self._eval_loader("test")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """The batch as a list; records stay where they are."""
        return batch.records if isinstance(batch, RecordBatch) else batch

    def state_dict(self) -> dict[str, Any]:
        """Where the order stands, and which training set it is over."""
        if "train" not in self._solutions:
            return {}
        return {"sampler": self.sampler.state_dict(), "training_set": self._training_set}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from that place; nothing to do where nothing is trained.

        Raises ValueError where the training set differs from the state's.
        """
        if self._trainer().state.fn != TrainerFn.FITTING:
            return
        self._restored = state
        if "train" in self._solutions:
            self._restore(state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        stored = state["training_set"]
        if stored != self._training_set:
            raise ValueError(
                f"the checkpoint is of a run over other training data ({stored.get('solutions')} usable solutions there, "
                f"{self._training_set['solutions']} here). A run can be resumed only over its own data in its own order, "
                "with its tokenizer, template, targets and length limits; start a new run from the weights with prm.weights"
            )
        self.sampler.load_state_dict(state["sampler"])
        self._restored = None

    def _loaded(self, split: str) -> Loaded:
        return {name: source.load() for name, source in self.sets[split].items()}

    def _encoded_sets(self, split: str, sets: Loaded) -> list[LabelledResponse]:
        return [one for name, some in sets.items() for one in self._encoded(split, some, name)]

    def _encoded(self, split: str, solutions: Sequence[LabelledSolution], name: str = "") -> list[LabelledResponse]:
        """The usable ones. Raises ValueError where there is none, or the module says not how to encode them."""
        module: Any = self._trainer().lightning_module
        if not all(hasattr(module, name) for name in ("codec", "max_prompt_tokens", "max_response_tokens")):
            raise ValueError(
                f"{type(module).__name__} trains on no labelled steps; use repirl.modules.prm.SupervisedPRM"
            )
        where = f"{split} {name}".strip()
        try:
            encoded, report = encode_labelled(
                solutions,
                module.codec,
                max_prompt_tokens=module.max_prompt_tokens,
                max_response_tokens=module.max_response_tokens,
                targets=self.targets,
                dataset=name,
            )
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if not encoded:
            raise ValueError(
                f"{where}: none of {len(solutions)} solutions is usable ({report.prompts_too_long} prompts and "
                f"{report.responses_too_long} solutions are too long, {report.steps_without_token} have a step without a "
                "token of its own): raise text.max_prompt_tokens or max_response_tokens, or cut the steps otherwise"
            )
        if self._trainer().is_global_zero:
            log_report(where, report, len(solutions))
        return encoded

    def _eval_loader(self, split: str) -> EvalLoader[LabelledResponse]:
        trainer = self._trainer()
        return EvalLoader(self._solutions[split], self.eval_batch_solutions, trainer.global_rank, trainer.world_size)

    def _trainer(self) -> Trainer:
        if self.trainer is None:
            raise ValueError("the data module has no trainer; pass it to Trainer.fit, validate or test")
        return self.trainer


def _problems(solutions: Sequence[LabelledSolution]) -> list[Problem]:
    """Their problems, each once."""
    first = {one.solution.problem: one.id for one in reversed(solutions)}
    return [Problem(id, text) for text, id in first.items()]


def _digest(responses: Sequence[LabelledResponse]) -> str:
    digest = hashlib.sha256()
    for one in responses:
        digest.update(json.dumps([one.prompt_ids, one.response_ids, one.ends, one.targets]).encode())
    return digest.hexdigest()
