"""Prompts with expert trajectories."""

from __future__ import annotations

from typing import Any

from lightning import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from repirl.data.contamination import Overlap, reported_overlaps
from repirl.data.evaluation import EvalData
from repirl.data.fingerprint import UNMIXED, fingerprint
from repirl.data.loaders import EvalLoader, TrainLoader, check_positive
from repirl.data.mixture import loaded_parts, parts_of
from repirl.data.preparation import prepared_sets
from repirl.data.prompts import PromptSampler, UniformSampler
from repirl.data.sets import Sets, loaded, named
from repirl.data.sources import Source
from repirl.data.strata import StratifiedSampler, Stratum, check_sizes
from repirl.data.training_set import prepared_parts
from repirl.structs import Problem, Prompt


class ExpertData(EvalData):
    """Training prompts with expert trajectories, and held-out prompts.

    A step gets a `list[Prompt]`. Tokens are made in `setup` with the module's `codec`, `max_prompt_tokens` and
    `max_response_tokens`, so the module must have them from its constructor on. An epoch is as many iterations as whole
    batches fit into the training set; the rest of a pass opens the next one.

    Args:
        train: training problems; from several sources with repirl.data.mixture.Mixture.
        val: problems of the validation loop, from one source or from several by name.
        test: problems of the test loop, likewise.
        predict: problems of the predict loop, likewise; `problem` texts are enough.
        guard: sets by name that training problems must not overlap with, besides `val` and `test`.
        batch_prompts: prompts per iteration over all ranks together, split evenly.
        eval_batch_prompts: prompts per evaluation batch over all ranks together.
        max_experts: largest number of expert trajectories of a prompt; later ones are left out.
        require_experts: drop training problems without an expert trajectory, where no `expert_share` is given.
        expert_share: share of the prompts drawn that have an expert trajectory, in [0, 1]: with 1 and 0 the others are left
            out. None = in any proportion. Parts of a mixture have shares of their own.
        sampler: the order of training prompts, within each part of a mixture; default UniformSampler.
        seed: seed of that order.

    Raises (in `setup` and when the training loader is made): ValueError for unusable data.
    """

    def __init__(
        self,
        train: Source,
        val: Sets | None = None,
        test: Sets | None = None,
        predict: Sets | None = None,
        batch_prompts: int = 16,
        eval_batch_prompts: int = 64,
        max_experts: int = 4,
        require_experts: bool = True,
        sampler: PromptSampler | None = None,
        seed: int = 0,
        guard: dict[str, Source | None] | None = None,
        expert_share: float | None = None,
    ) -> None:
        super().__init__(val, test, predict, eval_batch_prompts)
        check_positive(batch_prompts=batch_prompts, max_experts=max_experts)
        self.train, self.parts = train, parts_of(train, expert_share)
        self.guard = named(guard)
        self.overlaps: dict[str, Overlap] = {}
        self.batch_prompts = batch_prompts
        self.max_experts, self.require_experts = max_experts, require_experts
        self.order: PromptSampler = UniformSampler() if sampler is None else sampler
        self.sampler = self.order  # of all prompts: `setup` makes one of strata where there are several
        self.strata: list[Stratum] = []
        self.seed = seed
        self._fingerprint: dict[str, Any] = {}
        self._restored: dict[str, Any] | None = None
        self._evaluates = False

    def setup(self, stage: str) -> None:
        """Loads and encodes what the stage needs. A fit without a restored state starts the prompt order anew."""
        self._evaluates = TrainerFn(stage) != TrainerFn.FITTING
        if self._evaluates:
            super().setup(stage)
            return
        held_out = loaded(self.sets["val"])
        self._set_up_training(held_out)
        if held_out:
            self._prompts["val"] = prepared_sets(self.trainer, "val", self.sets["val"], held_out)

    def _set_up_training(self, held_out: dict[str, list[Problem]]) -> None:
        problems = loaded_parts(self.parts)
        self._prompts["train"], self.strata = prepared_parts(
            self.trainer,
            self.parts,
            problems,
            max_experts=self.max_experts,
            require_experts=self.require_experts,
        )
        if self._trainer().is_global_zero:
            others = {"val": held_out, "test": loaded(self.sets["test"]), "guard": loaded(self.guard)}
            own = [problem for some in problems.values() for problem in some]
            self.overlaps = reported_overlaps(own, others)
        self._fingerprint = fingerprint(self._prompts["train"], self.parts, self.strata)
        self.sampler = self.order if len(self.strata) == 1 else StratifiedSampler(self.strata, self.order)
        self.sampler.start([prompt.problem.id for prompt in self._prompts["train"]], self.seed)
        if self._restored is not None:
            self._restore(self._restored)

    def train_dataloader(self) -> TrainLoader[Prompt]:
        """This rank's share of the training batches."""
        size, world = len(self._prompts["train"]), self._trainer().world_size
        if self.batch_prompts % world:
            raise ValueError(f"batch_prompts {self.batch_prompts} must be a multiple of the {world} processes")
        if size < self.batch_prompts:
            raise ValueError(f"batch_prompts {self.batch_prompts} exceeds the {size} usable training prompts; lower it")
        check_sizes(self.strata, self.batch_prompts)
        rank = self._trainer().global_rank
        return TrainLoader(self._prompts["train"], self.sampler, self.batch_prompts, rank, world)

    def val_dataloader(self) -> EvalLoader[Prompt] | list[Any]:  # type: ignore[override]  # a fit may have none
        """This rank's share of the validation prompts; no loader without a `val` source."""
        return self._eval_loader("val") if "val" in self._prompts else []

    def state_dict(self) -> dict[str, Any]:
        """Where the prompt order stands, and which training set it is over."""
        if "train" not in self._prompts:
            return {}
        state = {"sampler": self.sampler.state_dict(), "training_set": self._fingerprint}
        return state | {"order": type(self.order).__name__}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from that place; nothing to do where nothing is trained.

        Raises ValueError where the training set or the kind of order differs from the state's.
        """
        if self._evaluates:
            return
        if "train" in self._prompts:
            self._restore(state)
        else:
            self._restored = state

    def _restore(self, state: dict[str, Any]) -> None:
        stored, own = UNMIXED | state["training_set"], self._fingerprint
        different = [name.replace("_", " ") for name in own if stored.get(name, own[name]) != own[name]]
        if different:
            raise ValueError(
                f"the checkpoint is of a run over other training data: {', '.join(different)} differ "
                f"({stored['prompts']} usable prompts there, {own['prompts']} here). A run can be resumed only over its own "
                "data in its own order and shares, with its tokenizer, template, instructions and length limits; start a new "
                "run from the weights"
            )
        order = type(self.order).__name__
        if state.get("order", order) != order:
            raise ValueError(
                f"the checkpoint is of a run whose prompts came by data.sampler {state['order']}, here it is {order}: give "
                "the same sampler, or start a new run from the weights"
            )
        self.sampler.load_state_dict(state["sampler"])
        self._restored = None

    def _trainer(self) -> Trainer:
        assert self.trainer is not None, "setup has checked it"
        return self.trainer
