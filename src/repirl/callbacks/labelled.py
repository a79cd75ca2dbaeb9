"""Does the PRM tell right solutions from wrong ones? Asked of solutions whose correctness is known."""

import math
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from repirl.data.collate import collate_rows
from repirl.data.preparation import final_answer_appended
from repirl.data.sources import Source, read_plain
from repirl.data.tables import read_jsonl
from repirl.distributed import rank, world_size
from repirl.metrics.accumulate import AUROC
from repirl.models.sharding import whole
from repirl.objectives.reduce import response_means

Kind = Literal["correct", "failed", "expert"]
KINDS: tuple[Kind, ...] = ("correct", "failed", "expert")
_ANSWER_LINE = re.compile(r"\n?A: [^\n]*\Z")  # GSM8K's published model solutions end with "A: 26"


@dataclass(frozen=True, slots=True)
class Labelled:
    """A solution, its final answer in the rollouts' format where the row tells it, and whether it is right."""

    problem: str
    text: str
    correct: bool


class LabelledSolutions(Callback):
    """Does the PRM's mean token reward tell correct from failed solutions, and does it see more than that?

    Logged as `labelled/auroc_before` and `labelled/auroc_after` training, and as `labelled/auroc` in `validate`: correct
    against failed. With `experts` also `labelled/auroc_expert_correct...`: expert solutions against the *correct* ones of the
    same problems. What is above .5 there is style leakage: both are right. The solutions are written as experts are. They are
    texts of other models, so the figures are not only of the PRM's judgement of rollouts. With 60 solutions the standard
    error is near .07.

    Args:
        path: .jsonl or .jsonl.gz with `problem`, `steps` or `solution`, `is_correct`, and where known `prediction`, the
            solution's own final answer. A last line "A: ..." gives way to the prediction in the rollouts' format.
        limit: solutions to score, half of them correct; those beyond the module's length limits are passed over.
        seed: seed of the choice.
        experts: problems with expert solutions, those of `path` among them.

    Raises: ValueError naming file, line and field for a malformed row; for a file without correct or failed solutions; for
        `experts` that solve none of the chosen problems.
    """

    def __init__(self, path: str, limit: int = 60, seed: int = 0, experts: Source | None = None) -> None:
        if limit < 2 or limit % 2:
            raise ValueError(f"LabelledSolutions: limit must be even and at least 2, not {limit}")
        self.path, self.limit, self.seed, self.experts = path, limit, seed, experts

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores before the first update."""
        self._log(trainer, pl_module, "_before")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores after the last update."""
        self._log(trainer, pl_module, "_after")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores in `validate`; validation within training is left alone."""
        if trainer.state.fn == "validate":
            for name, value in self._aurocs(pl_module).items():
                pl_module.log(f"labelled/{name}", value, rank_zero_only=True)

    def _log(self, trainer: Trainer, pl_module: LightningModule, when: str) -> None:
        found = {f"labelled/{name}{when}": value for name, value in self._aurocs(pl_module).items()}
        for logger in trainer.loggers:
            logger.log_metrics(found, step=trainer.global_step)
        if trainer.is_global_zero:
            for name, value in found.items():
                print(f"{name} {value:.3f} ({self.limit} solutions of {Path(self.path).name})", flush=True)

    def _aurocs(self, pl_module: LightningModule) -> dict[str, float]:
        module: Any = pl_module
        if getattr(module, "prm", None) is None:
            raise ValueError(f"LabelledSolutions: {type(module).__name__} has no prm to score with; remove it")
        chosen = self._chosen(module)
        own = chosen[rank() :: world_size()]
        means = torch.zeros(0, device=module.device)
        with whole(module.prm):  # ranks need not have equally many
            if own:
                rows = collate_rows([p for p, *_ in own], [r for _, r, _ in own], module.codec.pad_id, module.device)
                means = response_means(module.score(rows), rows.response_mask)
        kind = torch.tensor([KINDS.index(k) for *_, k in own], dtype=torch.long, device=module.device)
        aurocs: dict[str, float] = {}
        for name, high, low in (("auroc", "correct", "failed"), ("auroc_expert_correct", "expert", "correct")):
            either = (kind == KINDS.index(high)) | (kind == KINDS.index(low))
            metric = AUROC().to(module.device)
            metric.update(means[either], kind[either] == KINDS.index(high))
            if not math.isnan(value := float(metric.compute())):
                aurocs[name] = value
        return aurocs

    def _chosen(self, module: Any) -> list[tuple[tuple[int, ...], tuple[int, ...], Kind]]:
        """Prompt and response tokens of `limit` solutions that fit, and of the experts of the correct ones' problems."""
        solutions = list(read_labelled(Path(self.path)))
        random.Random(self.seed).shuffle(solutions)
        chosen: list[tuple[tuple[int, ...], tuple[int, ...], Kind]] = []
        solved: dict[str, None] = {}
        for kind in ("correct", "failed"):
            found = 0
            for solution in (s for s in solutions if s.correct == (kind == "correct")):
                if (fitting := _tokens(module, solution.problem, solution.text)) is not None:
                    chosen.append((*fitting, kind))
                    found += 1
                    if solution.correct:
                        solved[solution.problem.strip()] = None
                if found == self.limit // 2:
                    break
            else:
                raise ValueError(
                    f"{self.path}: only {found} {kind} solutions fit into "
                    f"{module.max_prompt_tokens} + {module.max_response_tokens} tokens; lower limit to "
                    f"{2 * found or 2}, or give other solutions"
                )
        return chosen if self.experts is None else chosen + self._of_experts(module, self.experts, solved)

    def _of_experts(
        self, module: Any, source: Source, solved: Iterable[str]
    ) -> list[tuple[tuple[int, ...], tuple[int, ...], Kind]]:
        by_text = {problem.text.strip(): problem for problem in source.load()}
        chosen: list[tuple[tuple[int, ...], tuple[int, ...], Kind]] = []
        for problem in (by_text[text] for text in solved if text in by_text):
            for solution in problem.solutions[:1]:
                written = final_answer_appended(solution.strip(), problem.answer)
                if (fitting := _tokens(module, problem.text, written)) is not None:
                    chosen.append((*fitting, "expert"))
        if not chosen:
            raise ValueError(
                f"LabelledSolutions: `experts` holds no fitting solution of the problems chosen of {self.path}"
            )
        return chosen


def _tokens(module: Any, problem: str, text: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Prompt and response; None beyond the module's length limits."""
    prompt, response = module.codec.encode_prompt(problem), module.codec.encode_response(text)
    fits = len(prompt) <= module.max_prompt_tokens and len(response) <= module.max_response_tokens
    return (prompt, response) if fits else None


def read_labelled(path: Path) -> Iterator[Labelled]:
    """The file's solutions. Raises ValueError naming file, line and field."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file of labelled solutions")
    for where, row in read_jsonl(path):
        try:
            if not isinstance(row.get("is_correct"), bool):
                raise ValueError(f"field 'is_correct': found {row.get('is_correct')!r}, expected true or false")
            problem, solutions, _ = read_plain(row, {"steps": "steps"} if "steps" in row else {"solution": "solution"})
            prediction = row.get("prediction")
            if prediction is not None and not isinstance(prediction, str):
                raise ValueError(f"field 'prediction': found {prediction!r}, expected a text")
        except ValueError as error:
            raise ValueError(f"{path}, {where}: {error}") from error
        written = solutions[0].strip()
        if prediction:
            written = _ANSWER_LINE.sub("", written)
        yield Labelled(problem, final_answer_appended(written, prediction or None).strip(), row["is_correct"])
