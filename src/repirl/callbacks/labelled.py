"""Does the PRM tell right solutions from wrong ones? Asked of solutions whose correctness is known."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from repirl.data.collate import collate_rows
from repirl.data.expert import final_answer_appended
from repirl.data.sources import read_plain
from repirl.data.tables import read_jsonl
from repirl.metrics import auroc
from repirl.modules.distributed import gather_rows, rank, world_size
from repirl.objectives.reduce import response_means

_ANSWER_LINE = re.compile(r"\n?A: [^\n]*\Z")  # GSM8K's published model solutions end with "A: 26"


@dataclass(frozen=True, slots=True)
class Labelled:
    """A solution, its final answer in the rollouts' format where the row tells it, and whether it is right."""

    problem: str
    text: str
    correct: bool


class LabelledSolutions(Callback):
    """AUROC of the PRM's mean token reward, correct against failed solutions.

    Logged as `labelled/auroc_before` and `labelled/auroc_after` training, and as `labelled/auroc` in `validate`. The
    solutions are written as experts are. They are text of other models: what shows is not only the PRM's judgement of
    rollouts, and 60 of them leave a standard error near .07.

    Args:
        path: .jsonl or .jsonl.gz with `problem`, `steps` or `solution`, `is_correct`, and where known `prediction`, the
            solution's own final answer. A last line "A: ..." gives way to the prediction in the rollouts' format.
        limit: solutions to score, half of them correct; those beyond the module's length limits are passed over.
        seed: of the choice.

    Raises: ValueError naming file, line and field for a malformed row; for a file without correct or failed solutions.
    """

    def __init__(self, path: str, limit: int = 60, seed: int = 0) -> None:
        if limit < 2 or limit % 2:
            raise ValueError(f"LabelledSolutions: limit must be even and at least 2, not {limit}")
        self.path, self.limit, self.seed = path, limit, seed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores before the first update."""
        self._log(trainer, "labelled/auroc_before", self._auroc(pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores after the last update."""
        self._log(trainer, "labelled/auroc_after", self._auroc(pl_module))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores in `validate`; validation within training is left alone."""
        if trainer.state.fn == "validate":
            pl_module.log("labelled/auroc", self._auroc(pl_module), rank_zero_only=True)

    def _log(self, trainer: Trainer, name: str, value: float) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({name: value}, step=trainer.global_step)
        if trainer.is_global_zero:
            print(f"{name} {value:.3f} ({self.limit} solutions of {Path(self.path).name})", flush=True)

    def _auroc(self, pl_module: LightningModule) -> float:
        module: Any = pl_module
        if getattr(module, "prm", None) is None:
            raise ValueError(f"LabelledSolutions: {type(module).__name__} has no prm to score with; remove it")
        chosen = self._chosen(module)
        own = chosen[rank() :: world_size()]
        means = torch.zeros(0, device=module.device)
        if own:
            rows = collate_rows([p for p, *_ in own], [r for _, r, _ in own], module.codec.pad_id, module.device)
            means = response_means(module.score(rows), rows.response_mask)
        correct = torch.tensor([c for *_, c in own], dtype=torch.bool, device=module.device)
        value: Tensor = auroc(gather_rows(means), gather_rows(correct))
        return float(value)

    def _chosen(self, module: Any) -> list[tuple[tuple[int, ...], tuple[int, ...], bool]]:
        """Prompt and response tokens of `limit` solutions that fit, and their labels."""
        solutions = list(read_labelled(Path(self.path)))
        random.Random(self.seed).shuffle(solutions)
        chosen: list[tuple[tuple[int, ...], tuple[int, ...], bool]] = []
        for correct in (True, False):
            found = 0
            for solution in (s for s in solutions if s.correct == correct):
                prompt = module.codec.encode_prompt(solution.problem)
                response = module.codec.encode_response(solution.text)
                if len(prompt) <= module.max_prompt_tokens and len(response) <= module.max_response_tokens:
                    chosen.append((prompt, response, correct))
                    found += 1
                if found == self.limit // 2:
                    break
            else:
                raise ValueError(
                    f"{self.path}: only {found} {'correct' if correct else 'failed'} solutions fit into "
                    f"{module.max_prompt_tokens} + {module.max_response_tokens} tokens; lower limit to "
                    f"{2 * found or 2}, or give other solutions"
                )
        return chosen


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
