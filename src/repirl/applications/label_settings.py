"""What `repirl label-steps` is asked for, and whether it goes together."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from repirl.applications.journal import FORMATS
from repirl.config import ConfigError
from repirl.data.step_labels import Export
from repirl.data.steps import By
from repirl.learning.settings import Text
from repirl.structs import Generator, Verifier


@dataclass(frozen=True)
class LabelSteps:
    """What labels are asked for.

    Args:
        input: problems with solutions: rows as `repirl score` reads them, with the gold answer as `gold` or `answer`, or
            with `tests`.
        output: the .jsonl or .parquet file to write; beside it a .json file says how it was made.
        checkpoint: of a run: its policy completes.
        policy: in place of a checkpoint, a model folder or hub id.
        text: how problems become prompts, and how long responses may be; what is not given is as the checkpoint says.
        columns: our field names to the input's, such as {problem: question}.
        completions: sampled from the end of each step but the last, k.
        temperature: of the completions.
        stop_after_wrong: sample no more for a solution once a step has no right completion: later ones count as wrong, but
            for the last one, which the verifier judges.
        steps: how solutions are cut.
        step_pattern: a regular expression in place of `steps`: a step ends where a match ends.
        verifier: of final answers; None = repirl.verifiers.math.MathVerifier.
        rollout: the sampler; None = in this process.
        exports: further files beside the output, in the forms of others.
        unfit: solutions that are longer than `text` allows, or have a step without a token of its own: `refuse` them, or
            `skip` and count them.
        seed: of the completions.
        solutions_at_once: solutions between two writes.
        device: where the policy runs.
    """

    input: str
    output: str
    checkpoint: str | None = None
    policy: str | None = None
    text: Text | None = None
    columns: dict[str, str] = field(default_factory=dict)
    completions: int = 8
    temperature: float = 0.8
    stop_after_wrong: bool = False
    steps: By = "newline"
    step_pattern: str | None = None
    verifier: Verifier | None = None
    rollout: Generator | None = None
    exports: list[Export] = field(default_factory=list)
    unfit: Literal["refuse", "skip"] = "refuse"
    seed: int = 0
    solutions_at_once: int = 16
    device: str = "cpu"

    @property
    def report(self) -> Path:
        """The file that says how the labels were made."""
        return Path(self.output).with_suffix(".json")

    def export(self, name: Export) -> Path:
        """The file of the labels in another's form."""
        return Path(self.output).with_suffix(f".{name}.jsonl")

    @property
    def beside(self) -> list[Path]:
        """The files that go with the output."""
        return [self.report, *map(self.export, self.exports)]

    def check(self) -> None:
        """Raises ConfigError where settings do not go together."""
        if (self.checkpoint is None) == (self.policy is None):
            raise ConfigError(
                "completions come from one of checkpoint and policy, and there "
                + ("is none" if self.policy is None else "are both"),
                "give --checkpoint RUN.ckpt or --policy FOLDER",
            )
        for name in ("completions", "solutions_at_once"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is below 1", "give a number from 1")
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature: {self.temperature} gives one completion again and again", "give one above 0"
            )
        if Path(self.output).suffix not in FORMATS:
            raise ConfigError(
                f"output: {self.output!r} is no {' or '.join(FORMATS)} file", "name a file that ends in one of them"
            )
