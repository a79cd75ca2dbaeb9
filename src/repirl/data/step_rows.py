"""Solutions with labelled steps in tokens, and as tensors: what a PRM learns from offline."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from repirl.data.codec import ChatCodec
from repirl.data.collate import collate_rows
from repirl.data.step_labelled import LabelledSolution
from repirl.data.steps import step_of_tokens
from repirl.structs import Rows, WrittenSolution

_log = logging.getLogger(__name__)

Targets = Literal["hard", "soft"]
"""hard: 1 for a right step, 0 for a wrong one. soft: the probability that the step is right, where the data have it."""


@dataclass(frozen=True, slots=True)
class LabelledResponse:
    """A solution with labelled steps in tokens.

    response_ids: up to the last step that has a label, the end token included where that is the last of all.
    ends: of each labelled step its last token. targets: of each, in [0, 1], what the PRM learns. right: of each, whether
    it is right. whole: whether labels go on after a first wrong step. dataset: the set that it belongs to; empty where
    there is one alone.
    """

    id: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    ends: tuple[int, ...]
    targets: tuple[float, ...]
    right: tuple[bool, ...]
    whole: bool
    dataset: str = ""


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Labelled responses as tensors.

    ends: True at the last token of each labelled step. targets: there in [0, 1], NaN elsewhere. is_wrong: True there where
    the step is wrong. whole: whether labels of a solution go on after a first wrong step.
    """

    rows: Rows
    ends: Bool[Tensor, "rows time"]
    targets: Float[Tensor, "rows time"]
    is_wrong: Bool[Tensor, "rows time"]
    whole: Bool[Tensor, " rows"]


@dataclass(slots=True)
class StepReport:
    """What became of a set's solutions."""

    kept: int = 0
    prompts_too_long: int = 0
    responses_too_long: int = 0
    steps_without_token: int = 0


def step_places(solution: WrittenSolution, codec: ChatCodec) -> tuple[int, ...]:
    """The step, counted from 0, of each token of the response, the end token where it has one.

    A step that the tokenizer has joined to another wholly has no token.
    """
    length = len(solution.text)
    end = [(length, length)] if solution.ended else []
    return step_of_tokens([*codec.spans(solution.text), *end], solution.steps)


def step_ends_of(places: Sequence[int], steps: int) -> tuple[int, ...] | None:
    """The last token of each step; None where a step has none."""
    last = {place: token for token, place in enumerate(places)}
    return tuple(last[step] for step in range(steps)) if len(last) == steps else None


def encode_labelled(
    solutions: Sequence[LabelledSolution],
    codec: ChatCodec,
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
    targets: Targets,
    dataset: str = "",
) -> tuple[list[LabelledResponse], StepReport]:
    """The solutions that fit, in order, and the counts; nothing is ever cut but what follows the last labelled step.

    A solution is tokenised as a whole, as `repirl score` does.

    Raises:
        ValueError: one has no soft labels where they are asked for, or cannot be encoded; it is named.
    """
    report, found = StepReport(), []
    problems = {one.solution.asked: one.id for one in reversed(solutions)}
    prompts = dict(zip(problems, _encoded([*problems], [*problems.values()], codec.encode_prompts), strict=True))
    ids = [one.id for one in solutions]
    responses = _encoded([one.solution.text for one in solutions], ids, codec.encode_responses)
    for one, response in zip(solutions, responses, strict=True):
        if targets == "soft" and not one.soft_labels:
            raise ValueError(f"solution {one.id!r} has no soft labels: set data.targets to hard, or add `soft_labels`")
        prompt = prompts[one.solution.asked]
        ends = step_ends_of(step_places(one.solution, codec), len(one.solution.steps))
        report.prompts_too_long += (too_long := len(prompt) > max_prompt_tokens)
        report.responses_too_long += not too_long and len(response) > max_response_tokens
        if too_long or len(response) > max_response_tokens:
            continue
        if ends is None:
            report.steps_without_token += 1
            continue
        count, right = one.labelled_steps, one.labels
        aims = one.soft_labels[:count] if targets == "soft" else tuple(map(float, right))
        cut, whole = response[: ends[count - 1] + 1], not (one.only_first and one.wrong_steps)
        found.append(LabelledResponse(one.id, prompt, cut, ends[:count], aims, right, whole, dataset))
    report.kept = len(found)
    return found, report


def labelled_rows(responses: Sequence[LabelledResponse], pad_id: int, device: torch.device | str) -> LabelledRows:
    """The responses as tensors on a device."""
    rows = collate_rows([r.prompt_ids for r in responses], [r.response_ids for r in responses], pad_id, device)
    ends = torch.zeros(rows.response_mask.shape, dtype=torch.bool)
    targets, wrong = torch.full(ends.shape, float("nan")), torch.zeros_like(ends)
    for row, one in enumerate(responses):
        places = list(one.ends)
        ends[row, places] = True
        targets[row, places] = torch.tensor(one.targets)
        wrong[row, places] = ~torch.tensor(one.right)
    whole = torch.tensor([one.whole for one in responses], device=device)
    return LabelledRows(rows, ends.to(device), targets.to(device), wrong.to(device), whole)


def log_report(where: str, report: StepReport, solutions: int) -> None:
    """One message with the counts that are not zero; a warning where something was dropped."""
    counts = ", ".join(f"{name} {count}" for name, count in asdict(report).items() if count)
    level = logging.WARNING if report.kept < solutions else logging.INFO
    _log.log(level, "%s: %s of %d solutions", where, counts, solutions)


def _encoded(
    texts: Sequence[str], names: Sequence[str], encode: Callable[[Sequence[str]], list[tuple[int, ...]]]
) -> list[tuple[int, ...]]:
    """All at once; where one can't be encoded, the error names its solution."""
    try:
        return encode(texts)
    except ValueError:
        for text, name in zip(texts, names, strict=True):
            try:
                encode([text])
            except ValueError as error:
                raise ValueError(f"solution {name!r}: {error}") from error
        raise
