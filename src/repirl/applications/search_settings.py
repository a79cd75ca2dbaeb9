"""What `repirl search` is asked for, and whether it goes together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from repirl.applications.prms import check_implicit
from repirl.applications.scoring import BATCH_TOKENS
from repirl.applications.search_report import BY_REWARD, SELECTIONS, Selection
from repirl.applications.searching import SEARCHED, Searched, TooLong
from repirl.config import ConfigError
from repirl.data.sources import Source
from repirl.data.steps import By
from repirl.data.token_steps import PATTERNS
from repirl.learning.settings import Text
from repirl.metrics.selection import Aggregation
from repirl.structs import Generator, Verifier

Method = Literal[
    "random",
    "majority_vote",
    "best_of_n",
    "weighted_vote",
    "exp_weighted_vote",
    "pass_at_n",
    "beam_search",
    "dvts",
]

OF_SAMPLING = ("text", "problems", "rollout", "samples", "temperature")
"""Settings that do nothing with an input, which is sampled already."""
BEAMS = ("beams", "children")
"""Settings of searches by steps."""


@dataclass(frozen=True)
class Search:
    """What a search is asked for.

    Args:
        output: the folder to write.
        checkpoint: of a run: its policy samples, and its PRM scores unless `prm` names another.
        policy: in place of a checkpoint, a model folder or hub id.
        input: in place of both, solutions that are there: rows of a problem with solution, solutions or steps.
        text: how problems become prompts, and how long responses may be; what is not given is as the checkpoint says. Not
            with `input`.
        problems: where they come from; not with `input`.
        prm: a checkpoint, an exported folder, or another's PRM (docs/score.md).
        kind: of another's PRM, where its config.json does not tell.
        reference: of kind implicit.
        beta: of kind implicit; None = 1.
        server: the address of a vLLM that serves the PRM, such as http://127.0.0.1:8000 (docs/score.md).
        server_model: the PRM's name there, where it serves several models.
        verifier: of final answers; None = repirl.verifiers.math.MathVerifier.
        rollout: the sampler; None = in this process. Not with `input`.
        methods: ways to choose among samples, and searches by steps.
        n: numbers of samples to choose from.
        samples: sampled a problem; None = the largest n. Not with `input`.
        beams: sizes of beam_search and dvts, multiples of children.
        children: of each beam, M; beams / M beams go on, or in dvts grow apart.
        aggregation: how step rewards become the score of a solution, and of the beginning of one.
        temperature: of what is sampled; not with `input`.
        steps: how solutions are cut; while sampling newline or blank_line.
        step_pattern: a regular expression in place of `steps`: a step ends where a match, or a token that has one, ends.
        too_long: of a solution that the PRM cannot read, such as one longer than its context: `refuse` ends the search,
            `skip` ranks it last. It may be changed when a search goes on.
        subsets: most subsets of samples that a vote is averaged over.
        seed: of samples, subsets and intervals.
        problems_at_once: problems between two writes.
        batch_tokens: most tokens of a forward pass of the PRM.
        device: where policy and PRM run.
    """

    output: str
    checkpoint: str | None = None
    policy: str | None = None
    input: str | None = None
    text: Text | None = None
    problems: Source | None = None
    prm: str | None = None
    kind: str | None = None
    reference: str | None = None
    beta: float | None = None
    server: str | None = None
    server_model: str | None = None
    verifier: Verifier | None = None
    rollout: Generator | None = None
    methods: list[Method] = field(default_factory=lambda: list(SELECTIONS))
    n: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    samples: int | None = None
    beams: list[int] = field(default_factory=lambda: [4, 8, 16])
    children: int = 4
    aggregation: Aggregation = "mean"
    temperature: float = 0.8
    steps: By = "newline"
    step_pattern: str | None = None
    too_long: TooLong = "refuse"
    subsets: int = 1000
    seed: int = 0
    problems_at_once: int = 16
    batch_tokens: int = BATCH_TOKENS
    device: str = "cpu"

    @property
    def selections(self) -> list[Selection]:
        """Methods that choose among samples."""
        return [name for name in SELECTIONS if name in self.methods]

    @property
    def searches(self) -> list[Searched]:
        """Methods that go by steps."""
        return [name for name in SEARCHED if name in self.methods]

    @property
    def needs_prm(self) -> bool:
        """Whether a method reads rewards."""
        return bool(self.searches) or any(name in BY_REWARD for name in self.methods)

    @property
    def without_effect(self) -> tuple[str, ...]:
        """Settings that do nothing, given the others."""
        return (*(OF_SAMPLING if self.input is not None else ()), *(BEAMS if not self.searches else ()))

    def check(self) -> None:
        """Raises ConfigError where settings do not go together."""
        sources = [name for name in ("checkpoint", "policy", "input") if getattr(self, name) is not None]
        if len(sources) != 1:
            raise ConfigError(
                f"solutions come from one of checkpoint, policy and input, and there is {' and '.join(sources) or 'none'}",
                "give --checkpoint RUN.ckpt, --policy FOLDER, or --input SOLUTIONS.jsonl",
            )
        self._check_numbers()
        self._check_prm()
        self._check_methods()
        if self.input is None and self.problems is None:
            raise ConfigError(
                "no problems to solve", "give problems, a class of repirl.data, or --input SOLUTIONS.jsonl"
            )
        if self.input is None and self.step_pattern is None and self.steps not in PATTERNS:
            raise ConfigError(
                f"steps: {self.steps!r} cannot be told while a solution is sampled",
                f"give {' or '.join(PATTERNS)}, or a step_pattern",
            )

    def _check_numbers(self) -> None:
        for name, values in (("n", self.n), ("beams", self.beams)):
            if not values or min(values) < 1:
                raise ConfigError(f"{name}: {values} has no number, or one below 1", "give numbers such as [1, 2, 4]")
        for name in ("children", "subsets", "problems_at_once", "batch_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is below 1", "give a number from 1")
        if self.samples is not None and self.samples < max(self.n):
            raise ConfigError(
                f"samples: {self.samples} are too few to choose from {max(self.n)}", "raise samples, or lower n"
            )
        if not self.temperature > 0:
            raise ConfigError(f"temperature: {self.temperature} gives one solution again and again", "give one above 0")

    def _check_prm(self) -> None:
        if self.server is not None and self.prm is None:
            raise ConfigError("server: it serves a PRM, and there is none", "give --prm, its folder, too")
        for name in ("kind", "reference", "beta", "server_model"):
            if self.prm is None and getattr(self, name) is not None:
                raise ConfigError(f"{name}: it is of the PRM that prm names, and there is none", "give --prm too")
        try:
            check_implicit(self.kind, self.reference, self.beta)
        except ValueError as error:
            raise ConfigError(f"prm: {error}", "see docs/score.md for the kinds") from error

    def _check_methods(self) -> None:
        if not self.methods:
            raise ConfigError("methods: there is none", f"give some of {', '.join((*SELECTIONS, *SEARCHED))}")
        if self.searches and self.input is not None:
            raise ConfigError(
                f"methods: {self.searches[0]} samples step by step, and input is sampled already",
                "leave it out, or give --checkpoint or --policy in place of --input",
            )
        if self.searches and (wrong := [size for size in self.beams if size % self.children]):
            raise ConfigError(
                f"beams: {wrong[0]} cannot be shared out to {self.children} children each",
                f"give multiples of {self.children}, or other children",
            )
