import csv
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from repirl.callbacks.labelled import LabelledSolutions, read_labelled
from repirl.data.sources import Table
from repirl.models.prm import PRM
from tests.callbacks.conftest import make_module, make_trainer

RIGHT = [
    {"problem": f"1+{n}=", "steps": [f"1+{n}={1 + n}", f"A: {1 + n}"], "prediction": str(1 + n), "is_correct": True}
    for n in range(4)
]
WRONG = [{**row, "steps": ["9", "A: 9"], "prediction": "9", "is_correct": False} for row in RIGHT]


class AnswerPRM(PRM):
    """Rewards the token 9 with -1: the wrong solutions above score lowest."""

    def forward(self, rows):
        nine = self.backbone.tokenizer.convert_tokens_to_ids("9")
        return -((rows.response_ids == nine) & rows.response_mask).float() + 0 * super().forward(rows)


def logged(tmp_path):
    rows = csv.DictReader((tmp_path / "lightning_logs" / "version_0" / "metrics.csv").open())
    return {(name, row["step"]): float(row[name]) for row in rows for name in row if "labelled" in name and row[name]}


def test_the_answer_line_gives_way_to_the_prediction_in_the_rollouts_format(write_rows):
    rows = [
        RIGHT[0],
        {"problem": "p", "solution": "x\n", "prediction": "7", "is_correct": False},
        {"problem": "p", "solution": "so \\boxed{3}", "prediction": "3", "is_correct": True},
        {"problem": "p", "steps": ["x", "A: 5"], "answer": "5", "is_correct": True},
    ]
    texts = [solution.text for solution in read_labelled(Path(write_rows("s.jsonl", rows)))]
    # Never the gold answer: the last row does not say what the solution answers.
    assert texts == ["1+0=1\nThe answer is \\boxed{1}.", "x\nThe answer is \\boxed{7}.", "so \\boxed{3}", "x\nA: 5"]


def test_the_score_before_and_after_training_is_logged(tmp_path, data, write_rows, capsys):
    callback = LabelledSolutions(write_rows("s.jsonl", RIGHT + WRONG), limit=8)
    trainer = make_trainer(tmp_path, [callback], max_steps=2, logger=CSVLogger(tmp_path))
    trainer.fit(make_module(PRM()), data)
    found = logged(tmp_path)
    # A q_head starts at 0 everywhere: all ties.
    assert found.pop(("labelled/auroc_before", "0")) == 0.5
    ((name, step),) = found
    assert (name, step) == ("labelled/auroc_after", "2")
    assert found[name, step] != 0.5
    assert "labelled/auroc_before 0.500 (8 solutions of s.jsonl)\n" in capsys.readouterr().out


def test_a_prm_that_knows_the_wrong_answers_scores_one(tmp_path, data, write_rows):
    callback = LabelledSolutions(write_rows("s.jsonl", RIGHT + WRONG), limit=8)
    trainer = make_trainer(tmp_path, [callback], limit_val_batches=1)
    (found,) = trainer.validate(make_module(AnswerPRM()), data, verbose=False)
    assert found["labelled/auroc"] == 1.0


def test_experts_are_compared_with_the_correct_solutions_of_the_same_problems(tmp_path, data, write_rows):
    # Experts of the problems 1+0 .. 1+3, and of one that no solution is of. The correct solutions of 1+0 and 1+1 hold no 9;
    # each expert does, so it scores lower: the expert is below the correct solution in every pair.
    experts = [{"problem": f"1+{n}=", "solution": f"9 {1 + n}", "answer": str(1 + n)} for n in (0, 1, 7)]
    callback = LabelledSolutions(
        write_rows("s.jsonl", RIGHT[:2] + WRONG[:2]), limit=4, experts=Table(write_rows("e.jsonl", experts))
    )
    module = make_module(AnswerPRM())
    kinds = [kind for *_, kind in callback._chosen(module)]
    assert kinds == ["correct", "correct", "failed", "failed", "expert", "expert"]
    trainer = make_trainer(tmp_path, [callback], limit_val_batches=1)
    (found,) = trainer.validate(module, data, verbose=False)
    assert found["labelled/auroc"] == 1.0
    assert found["labelled/auroc_expert_correct"] == 0.0


def test_experts_of_other_problems_are_refused(write_rows):
    experts = Table(write_rows("e.jsonl", [{"problem": "2+2=", "solution": "4", "answer": "4"}]))
    callback = LabelledSolutions(write_rows("s.jsonl", RIGHT + WRONG), limit=2, experts=experts)
    with pytest.raises(ValueError, match="`experts` holds no fitting solution of the problems chosen of"):
        callback._chosen(make_module(PRM()))


def test_the_choice_is_balanced_and_depends_on_the_seed_alone(write_rows):
    path = write_rows("s.jsonl", RIGHT + WRONG)
    module = make_module(PRM())
    choices = [LabelledSolutions(path, limit=4, seed=seed)._chosen(module) for seed in (0, 0, 1)]
    assert [kind for *_, kind in choices[0]] == ["correct", "correct", "failed", "failed"]
    assert choices[0] == choices[1] != choices[2]


def test_solutions_beyond_the_limits_are_passed_over(write_rows):
    long = {**RIGHT[0], "steps": ["1" * 40]}
    module = make_module(PRM())
    chosen = LabelledSolutions(write_rows("s.jsonl", [long, RIGHT[1], WRONG[0]]), limit=2)._chosen(module)
    assert module.codec.decode(chosen[0][1]) == "1+1=2\nThe answer is \\boxed{2}."
    with pytest.raises(ValueError, match="only 1 correct solutions fit into 16 \\+ 24 tokens; lower limit to 2"):
        LabelledSolutions(write_rows("s.jsonl", [long, RIGHT[1], *WRONG]), limit=4)._chosen(module)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "p", "steps": ["x"], "is_correct": None}, "line 2: field 'is_correct': found None, expected true"),
        ({"problem": "p", "steps": [], "is_correct": True}, "line 2: field 'steps': found list"),
        ({"problem": "p", "is_correct": True}, "line 2: no field 'solution'"),
        ({"steps": ["x"], "is_correct": True}, "line 2: no field 'problem'"),
        ({**RIGHT[0], "prediction": 7}, "line 2: field 'prediction': found 7, expected a text"),
    ],
)
def test_a_malformed_row_is_named(write_rows, row, message):
    path = write_rows("bad.jsonl", [RIGHT[0], row])
    with pytest.raises(ValueError, match=r"bad\.jsonl, " + message):
        list(read_labelled(Path(path)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such file of labelled solutions"):
        list(read_labelled(tmp_path / "none.jsonl"))


def test_a_module_without_prm_is_refused(write_rows):
    with pytest.raises(ValueError, match="RePIRL has no prm to score with"):
        LabelledSolutions(write_rows("s.jsonl", RIGHT + WRONG), limit=2)._aurocs(make_module())


def test_an_odd_limit_is_refused():
    with pytest.raises(ValueError, match="limit must be even"):
        LabelledSolutions("s.jsonl", limit=3)
