"""Sources of labelled steps, their tokens, and the data module over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from repirl.data.codec import ChatCodec
from repirl.data.step_labelled import LabelledSolution, read_labelled_steps
from repirl.data.step_rows import encode_labelled, labelled_rows, step_places
from repirl.data.step_sources import LabelledSteps, LabelledSums, named_sets
from repirl.structs import WrittenSolution
from tests.modules.tiny import make_policy

ROW = {"problem": "1a2", "steps": ["a3", "b4", "c5"], "labels": [True, False, False]}
SIZES = {"max_prompt_tokens": 8, "max_response_tokens": 16}


@pytest.fixture(scope="module")
def codec() -> ChatCodec:
    return ChatCodec(make_policy().tokenizer)


def file_of(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("format", "row"),
    [
        ("labels", ROW),
        ("trl", {"prompt": "1a2", "completions": ["a3", "b4", "c5"], "labels": [True, False, False]}),
        ("math_shepherd", {"input": "1a2 Step 1: a3 ки\nStep 2: b4 ки\nStep 3: c5 ки\n",
                           "label": "1a2 Step 1: a3 +\nStep 2: b4 -\nStep 3: c5 -\n"}),
        ("prm800k", {"question": {"problem": "1a2"}, "label": {"steps": [
            {"completions": [{"text": text, "rating": rating}], "human_completion": None, "chosen_completion": 0}
            for text, rating in (("a3", 1), ("b4", -1), ("c5", -1))]}}),
    ],
)  # fmt: skip
def test_every_form_says_the_same(format: Any, row: dict[str, Any], tmp_path: Path) -> None:
    (one,) = LabelledSteps(file_of(tmp_path, row), format).load()
    assert one.labels == (True, False, False)
    assert [step.strip().partition(": ")[2] or step.strip() for step in one.solution.steps] == ["a3", "b4", "c5"]
    assert one.solution.problem.strip() == "1a2"


def test_of_process_bench_what_follows_the_first_error_has_no_label(tmp_path: Path) -> None:
    row = {"id": "gsm8k-7", "problem": "1a2", "steps": ["a3", "b4", "c5"], "label": 1, "generator": "a model"}
    (one,) = LabelledSteps(file_of(tmp_path, row), "process_bench").load()
    assert one.labels == (True, False)


def test_rows_are_counted_and_left_out(tmp_path: Path) -> None:
    unrated = {"question": {"problem": "p"}, "label": {"steps": []}}
    rated = {"question": {"problem": "p"}, "label": {"steps": [
        {"completions": [{"text": "s", "rating": 0}], "human_completion": None, "chosen_completion": 0}]}}  # fmt: skip
    path = file_of(tmp_path, unrated, rated, rated, rated)
    assert [one.id for one in LabelledSteps(path, "prm800k").load()] == ["row-1", "row-2", "row-3"]
    assert [one.id for one in LabelledSteps(path, "prm800k", skip=2, limit=1).load()] == ["row-0"]
    with pytest.raises(ValueError, match="limit must be at least 1"):
        LabelledSteps(path, limit=0)


def test_soft_labels_and_steps_that_end_no_line(tmp_path: Path) -> None:
    soft = ROW | {"steps": ["a3", "b4"], "labels": [True, True], "soft_labels": [0.75, 1], "solution": "a3b4"}
    (one,) = read_labelled_steps(file_of(tmp_path, soft))
    assert one.solution.steps == ("a3", "b4")  # without it a newline would stand between them
    assert one.soft_labels == (0.75, 1.0)
    with pytest.raises(ValueError, match="line 1: field 'solution': it is not the steps joined"):
        read_labelled_steps(file_of(tmp_path, soft | {"solution": "a3\nb4"}))
    with pytest.raises(ValueError, match="line 1: 1 soft labels of 2 steps"):
        read_labelled_steps(file_of(tmp_path, soft | {"soft_labels": [1]}))
    with pytest.raises(ValueError, match=r"soft label 1\.5 is outside"):
        read_labelled_steps(file_of(tmp_path, soft | {"soft_labels": [1, 1.5]}))


def test_sums_are_labelled_by_what_stands_before_them() -> None:
    solutions = LabelledSums(40, 3, error_rate=0.4, base=4).load()
    wrong = 0
    for one in solutions:
        total = int(one.solution.problem[1])
        digits = [int(digit) for digit in one.solution.problem[3::2]]
        for step, digit, right in zip(one.solution.steps, digits, one.labels[:-1], strict=False):
            assert step[1:5] == f"{total}+{digit}="
            assert right == (int(step[5]) == (total + digit) % 4)
            total = int(step[5])
            wrong += not right
        assert one.solution.steps[-1] == f"\\boxed{{{total}}}"
        assert one.labels[-1]
    assert 0.3 < wrong / sum(len(one.labels) - 1 for one in solutions) < 0.5
    assert LabelledSums(40, 3, error_rate=0.4, base=4).load() == solutions
    held_out = {one.solution.problem for one in LabelledSums(40, 3, base=4, split="val").load()}
    assert not held_out & {one.solution.problem for one in solutions}


def test_tokens_end_where_steps_do(codec: ChatCodec) -> None:
    """Tokens: a 3 newline | b 4 newline | c 5 end."""
    solution = WrittenSolution("1a2", ("a3\n", "b4\n", "c5"))
    assert step_places(solution, codec) == (0, 0, 0, 1, 1, 1, 2, 2, 2)
    whole = LabelledSolution.of_labels("w", solution, [True, True, False])
    first = LabelledSolution("f", solution, (1,), only_first=True)
    (one, two), report = encode_labelled([whole, first], codec, **SIZES, targets="hard")
    assert (one.ends, one.targets, one.right) == ((2, 5, 8), (1, 1, 0), (True, True, False))
    assert one.response_ids == codec.encode_response(solution.text)
    assert (two.ends, two.targets) == ((2, 5), (1, 0))
    assert two.response_ids == one.response_ids[:6]  # what follows the first error is not read
    assert (report.kept, report.responses_too_long) == (2, 0)
    given = labelled_rows([one, two], codec.pad_id, "cpu")
    assert given.ends.nonzero().tolist() == [[0, 2], [0, 5], [0, 8], [1, 2], [1, 5]]
    assert given.targets[given.ends].tolist() == [1, 1, 0, 1, 0]
    assert torch.equal(given.targets.isnan(), ~given.ends)
    assert given.is_wrong.nonzero().tolist() == [[0, 8], [1, 5]]
    assert given.whole.tolist() == [True, False]


def test_what_does_not_fit_is_counted(codec: ChatCodec) -> None:
    short = LabelledSolution.of_labels("s", WrittenSolution("1a2", ("a3",)), [True])
    long = LabelledSolution.of_labels("l", WrittenSolution("1a2", ("a3" * 9,)), [True])
    wide = LabelledSolution.of_labels("w", WrittenSolution("1a2b3c4d5", ("a3",)), [True])
    # "\\boxed{" is one token, of the step in which it begins: "ed{" has none.
    joined = LabelledSolution.of_labels("j", WrittenSolution("1a2", ("\\box", "ed{", "3}")), [True, True, True])
    kept, report = encode_labelled([short, long, wide, joined], codec, **SIZES, targets="hard")
    assert [one.id for one in kept] == ["s"]
    assert (report.kept, report.prompts_too_long, report.responses_too_long, report.steps_without_token) == (1, 1, 1, 1)


def test_soft_targets_need_soft_labels(codec: ChatCodec) -> None:
    solution = WrittenSolution("1a2", ("a3\n", "b4"))
    soft = LabelledSolution.of_labels("s", solution, [True, True])
    with pytest.raises(ValueError, match=r"solution 's' has no soft labels: set data\.targets to hard"):
        encode_labelled([soft], codec, **SIZES, targets="soft")
    given = LabelledSolution("s", solution, (), soft_labels=(0.25, 1.0))
    (one,), _ = encode_labelled([given], codec, **SIZES, targets="soft")
    assert (one.targets, one.right) == ((0.25, 1.0), (True, True))


def test_a_solution_that_cannot_be_encoded_is_named(codec: ChatCodec) -> None:
    good = LabelledSolution.of_labels("good", WrittenSolution("1a2", ("a3",)), [True])
    bad = LabelledSolution.of_labels("bad", WrittenSolution("1a2", ("aé",)), [True])
    with pytest.raises(ValueError, match="solution 'bad': no token for"):
        encode_labelled([good, bad], codec, **SIZES, targets="hard")


def test_sets_have_names_that_metrics_carry() -> None:
    sums = LabelledSums(1, 1)
    assert list(named_sets(sums)) == [""]
    assert list(named_sets({"one": sums, "two": None})) == ["one"]
    with pytest.raises(ValueError, match="names must not be empty or contain"):
        named_sets({"a/b": sums})
