"""From problems to prompts: tokens of problems and experts, what is dropped, and the report of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from lightning import Trainer

from repirl.data.math import last_boxed
from repirl.data.sets import EvalSet
from repirl.structs import Codec, Expert, Problem, Prompt, Verifier

_log = logging.getLogger(__name__)
_LISTED = 50  # unreadable golds in one log message

ExpertRule = Literal["required", "optional", "excluded"]
"""Which problems are used: those with an expert that fits, all, or those without."""
_EXPERT_ADVICE: dict[ExpertRule, str] = {
    "required": "; to train on problems without experts set expert_share to 0, or require_experts to false",
    "optional": "",
    "excluded": "; expert_share is 0, which leaves out problems with experts",
}


@dataclass(slots=True)
class PreparationReport:
    """What became of a split's problems and solutions. The first five counts are problems, the others solutions."""

    kept: int = 0
    golds_unreadable: int = 0
    prompts_too_long: int = 0
    without_expert: int = 0
    with_expert: int = 0
    experts_too_long: int = 0
    experts_beyond_limit: int = 0
    answers_appended: int = 0
    flawed: int = 0
    flawed_too_long: int = 0


def final_answer_appended(solution: str, answer: str | None) -> str:
    """The solution, with the final answer in the rollouts' format where it lacks one and the answer is known."""
    if answer is None or last_boxed(solution) is not None:
        return solution
    return f"{solution}\nThe answer is \\boxed{{{answer}}}."


class _Ahead:
    """A codec that has tokenised together what will be asked for: a call for each text would take ten times as long."""

    def __init__(self, codec: Codec, problems: Sequence[Problem], max_experts: int) -> None:
        self.codec = codec
        self.encode_prompts, self.encode_responses = codec.encode_prompts, codec.encode_responses
        self.decode = codec.decode
        asked = [problem.asked for problem in problems]
        given = [(p, solution) for p in problems if max_experts for solution in (*p.solutions[:max_experts], *p.flawed)]
        written = [_written(p, solution) for p, solution in given]
        self._prompts, self._responses = _table(asked, codec.encode_prompts), _table(written, codec.encode_responses)

    def encode_prompt(self, problem: str) -> tuple[int, ...]:
        return self._prompts.get(problem) or self.codec.encode_prompt(problem)

    def encode_response(self, text: str) -> tuple[int, ...]:
        return self._responses.get(text) or self.codec.encode_response(text)


def _table(
    texts: Sequence[str], encode: Callable[[Sequence[str]], list[tuple[int, ...]]]
) -> dict[str, tuple[int, ...]]:
    try:
        return dict(zip(texts, encode(texts), strict=True))
    except ValueError:  # one of them can't be encoded: asked one by one, the error says which
        return {}


def _written(problem: Problem, solution: str) -> str:
    return final_answer_appended(solution.strip(), problem.answer)


def encode_problem(
    problem: Problem,
    codec: Codec,
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
    max_experts: int,
    report: PreparationReport,
) -> Prompt | None:
    """The problem in tokens with its first `max_experts` solutions that fit; None where the prompt is too long.

    With 0, as in evaluation, solutions are neither read nor counted. Flawed ones that fit come along, all of them.

    Nothing is ever cut. Outer whitespace of solutions goes, so that it cannot tell experts from rollouts. Drops and
    appended answers are added to `report`. Raises ValueError, naming the problem, where the codec cannot encode it.
    """
    experts: list[Expert] = []
    try:
        token_ids = codec.encode_prompt(problem.asked)
        if len(token_ids) > max_prompt_tokens:
            report.prompts_too_long += 1
            return None
        for number, solution in enumerate(problem.solutions if max_experts else ()):
            if len(experts) == max_experts:
                report.experts_beyond_limit += len(problem.solutions) - number
                break
            text = _written(problem, solution)
            response_ids = codec.encode_response(text)
            if len(response_ids) > max_response_tokens:
                report.experts_too_long += 1
                continue
            report.answers_appended += text != solution.strip()
            experts.append(Expert(text=text, token_ids=tuple(response_ids)))
        flawed = _flawed(problem, codec, max_response_tokens) if max_experts else []
        report.flawed += len(flawed)
        report.flawed_too_long += len(problem.flawed) - len(flawed) if max_experts else 0
    except ValueError as error:
        raise ValueError(f"problem {problem.id!r}: {error}") from error
    return Prompt(problem=problem, token_ids=tuple(token_ids), experts=tuple(experts), flawed=tuple(flawed))


def _flawed(problem: Problem, codec: Codec, max_response_tokens: int) -> list[Expert]:
    """The problem's flawed solutions that fit, written as experts are."""
    texts = [_written(problem, text) for text in problem.flawed]
    tokens = [tuple(codec.encode_response(text)) for text in texts]
    return [
        Expert(text, ids, correct=False)
        for text, ids in zip(texts, tokens, strict=True)
        if len(ids) <= max_response_tokens
    ]


def encode_problems(
    problems: Iterable[Problem],
    codec: Codec,
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
    max_experts: int,
    experts: ExpertRule,
) -> tuple[list[Prompt], PreparationReport]:
    """The problems that fit and that the rule admits, in order, and the counts."""
    report = PreparationReport()
    prompts: list[Prompt] = []
    problems = list(problems)
    ahead = _Ahead(codec, problems, max_experts)
    for problem in problems:
        prompt = encode_problem(
            problem,
            ahead,
            max_prompt_tokens=max_prompt_tokens,
            max_response_tokens=max_response_tokens,
            max_experts=max_experts,
            report=report,
        )
        if prompt is None:
            continue
        report.without_expert += experts != "excluded" and max_experts > 0 and not prompt.experts
        report.with_expert += experts == "excluded" and bool(prompt.experts)
        if experts == "optional" or bool(prompt.experts) == (experts == "required"):
            prompts.append(prompt)
    report.kept = len(prompts)
    return prompts, report


def _with_readable_golds(trainer: Trainer, where: str, problems: Sequence[Problem]) -> Sequence[Problem]:
    """The problems without those whose gold answer the module's verifier cannot read; the log lists these.

    Rank zero alone asks the verifier, so that all ranks go on with the same problems. Evaluation leaves them out too:
    there an answer spelled like the gold would count as right, and every other one would be masked.
    """
    verifier: Verifier | None = getattr(trainer.lightning_module, "verifier", None)
    if verifier is None:
        return problems
    try:
        found = verifier.check_golds(problems) if trainer.is_global_zero else []
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    unreadable = dict(trainer.strategy.broadcast(found))
    if unreadable and trainer.is_global_zero:
        listed = "; ".join(f"{name!r}: {gold[:100]!r}" for name, gold in list(unreadable.items())[:_LISTED])
        more = f"; and {len(unreadable) - _LISTED} more" if len(unreadable) > _LISTED else ""
        _log.warning("%s: the verifier cannot read these gold answers, dropped: %s%s", where, listed, more)
    return [problem for problem in problems if problem.id not in unreadable]


def prepared(
    trainer: Trainer | None,
    split: str,
    problems: Sequence[Problem],
    *,
    max_experts: int,
    experts: ExpertRule,
    dataset: str = "",
    instruction: str | None = None,
) -> list[Prompt]:
    """The prompts of a split, or of its set `dataset`, by the codec and limits of the trainer's module.

    instruction: in place of the codec's own; None = the codec's.
    Logs the report on rank zero.
    Where the module has a `verifier`, problems whose gold answer it cannot read are dropped: not from `predict`, and not
    from `train` where it has `reads_gold_answers` False.
    Raises ValueError where no problem is left, or the module has no `codec` or no limits.
    """
    if trainer is None:
        raise ValueError("the data module has no trainer; pass it to Trainer.fit, validate, test or predict")
    module: Any = trainer.lightning_module
    for name in ("codec", "max_prompt_tokens", "max_response_tokens"):
        if getattr(module, name, None) is None:
            raise ValueError(f"{type(module).__name__} has no `{name}`; the data module needs it before setup")
    where = f"{split} {dataset}".strip()
    unread = split == "predict" or (split == "train" and not getattr(module, "reads_gold_answers", True))
    readable = problems if unread else _with_readable_golds(trainer, where, problems)
    prompts, report = encode_problems(
        readable,
        _codec_with(module.codec, instruction, where),
        max_prompt_tokens=module.max_prompt_tokens,
        max_response_tokens=module.max_response_tokens,
        max_experts=max_experts,
        experts=experts,
    )
    report.golds_unreadable = len(problems) - len(readable)
    counts = ", ".join(f"{name} {count}" for name, count in asdict(report).items() if count)
    if not prompts:
        raise ValueError(
            f"{where}: none of {len(problems)} problems is usable ({counts}); "
            + _advice(report, experts, module.max_prompt_tokens, module.max_response_tokens)
        )
    if trainer.is_global_zero:
        dropped = report.prompts_too_long + report.experts_too_long + (len(problems) - report.kept)
        _log.log(logging.WARNING if dropped else logging.INFO, "%s: %s of %d problems", where, counts, len(problems))
    return [replace(prompt, dataset=dataset) for prompt in prompts] if dataset else prompts


def _advice(report: PreparationReport, experts: ExpertRule, max_prompt_tokens: int, max_response_tokens: int) -> str:
    """What to do where no problem is left, by what took most of them."""
    if report.golds_unreadable:
        return "give their answers in a form that the verifier reads, such as 12 or \\frac{1}{2}"
    if report.prompts_too_long:
        return f"raise text.max_prompt_tokens ({max_prompt_tokens})"
    if report.experts_too_long:
        return f"raise text.max_response_tokens ({max_response_tokens}), which solutions must fit into"
    if report.without_expert:
        return "no row has a solution; name its field, as columns={'solution': ...}" + _EXPERT_ADVICE[experts]
    return "check the data" + _EXPERT_ADVICE[experts]


def _codec_with(codec: Any, instruction: str | None, where: str) -> Codec:
    """The codec with that instruction, its own where it is None."""
    try:
        changed: Codec = codec if instruction is None else codec.with_instruction(instruction)
    except ValueError as error:
        raise ValueError(f"{where}: instruction {instruction!r}: {error}") from error
    return changed


def prepared_sets(
    trainer: Trainer | None, split: str, sets: Mapping[str, EvalSet], problems: Mapping[str, Sequence[Problem]]
) -> list[Prompt]:
    """The prompts of all sets of an evaluation split, by name, one set after another; without experts."""
    return [
        prompt
        for dataset, one in sets.items()
        for prompt in prepared(
            trainer,
            split,
            problems[dataset],
            max_experts=0,
            experts="optional",
            dataset=dataset,
            instruction=one.instruction,
        )
    ]
