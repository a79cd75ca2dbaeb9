"""`repirl label-steps`: labels worked by hand, tokens never made again, every solution once through an end in between."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from repirl.__main__ import main
from repirl.applications import label_steps
from repirl.applications.journal import Journal
from repirl.applications.labelling import Labeller, Task, task_of
from repirl.config import ConfigError
from repirl.data.step_data import StepLabelData
from repirl.data.step_labelled import read_labelled_steps
from repirl.data.step_sources import LabelledSteps
from repirl.learning.actor import Actor, codec_of
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.structs import Generator, Problem, Response, Verdict, Verifier, WrittenSolution
from repirl.verifiers.exact import ExactVerifier
from tests.applications.test_scoring import trained
from tests.modules.test_prm import make_prm
from tests.modules.tiny import BROKEN, TEXT, make_policy, run

RIGHT, WRONG = "\\boxed{c6}", "\\boxed{c9}"


class Scripted(Generator):
    """Says given texts after given beginnings, and keeps what it was asked."""

    def __init__(self, says: dict[str, list[str]]) -> None:
        self.says = says
        self.prompts: list[tuple[int, ...]] = []
        self.seeds: list[int] = []
        self.limits: list[int] = []

    def attach(self, model: Any, *, decode: Any, **rest: Any) -> None:
        self.decode = decode

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        seeds: Sequence[int],
        temperature: float = 1.0,
        limits: Sequence[int] | None = None,
    ) -> list[list[Response]]:
        assert limits is not None
        self.prompts += [tuple(prompt) for prompt in prompts]
        self.seeds += seeds
        self.limits += limits
        found = []
        for prompt in prompts:
            (texts,) = [texts for begun, texts in self.says.items() if self.decode(prompt).endswith("\n" + begun)]
            assert len(texts) == samples
            found.append([Response(self.codec.encode_response(text), text, finished=True) for text in texts])
        return found

    codec: Any = None


class OneBreaks(ExactVerifier):
    """Has no verdict on what ends in 9."""

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        found = super().verify(problems, responses)
        broken = Verdict(None, "infra_error")
        return [broken if "9" in text else verdict for text, verdict in zip(responses, found, strict=True)]


PROBLEM = Problem("p", "a1b2c3", "c6")


def labelled(
    says: dict[str, list[str]],
    *steps: str,
    stop: bool = False,
    verifier: Verifier | None = None,
) -> tuple[dict[str, Any], Scripted, Task]:
    rollout = Scripted(says)
    actor = Actor(make_policy(), TEXT_OF_16, rollout, verifier or ExactVerifier())
    actor.load()
    rollout.codec = actor.codec
    task = task_of(PROBLEM, WrittenSolution(PROBLEM.text, steps), (1, 0), actor.codec)
    labeller = Labeller(actor, completions=4, temperature=0.8, stop_after_wrong=stop, seed=7)
    (record,) = labeller.labelled([task])
    return record, rollout, task


TEXT_OF_16 = type(TEXT)(max_prompt_tokens=16, max_response_tokens=16)
SAYS = {
    "b3\n": [RIGHT, WRONG, "c6\n" + RIGHT, "d4"],
    "b3\nb5\n": [WRONG, WRONG, WRONG, "c6"],
    "b3\nb5\nc6\n": [WRONG, RIGHT, WRONG, WRONG],
}


def test_labels_by_hand() -> None:
    """From `b3` 2 of 4 end right, from `b5` 0, from `c6` 1; the last step is the solution's own verdict."""
    record, rollout, task = labelled(SAYS, "b3\n", "b5\n", "c6\n", RIGHT)
    assert record["right"] == [2, 0, 1, 1]
    assert record["completions"] == [4, 4, 4, 1]
    assert record["labels"] == [True, False, True, True]
    assert record["soft_labels"] == [0.5, 0, 0.25, 1]
    assert record["status"] == "equal"
    # In tokens, the end included: "\boxed{" c 6 } end = 5, c 6 newline and these = 8, d 4 end = 3, c 6 end = 3
    assert record["generated_tokens"] == (5 + 5 + 8 + 3) + (5 + 5 + 5 + 3) + 4 * 5
    # The prompt (six letters and digits, a newline) and three, six, nine tokens are read before them.
    assert len(task.prompt_ids) == 7
    assert record["policy_tokens"] == record["generated_tokens"] + (7 + 3) + (7 + 6) + (7 + 9)
    # What is completed is a beginning of the solution's own tokens.
    assert rollout.prompts == [task.prompt_ids + task.token_ids[:end] for end in (3, 6, 9)]
    assert rollout.limits == [13, 10, 7]
    assert len(set(rollout.seeds)) == 3


def test_a_wrong_solution_ends_wrong() -> None:
    record, _, _ = labelled(SAYS, "b3\n", "b5\n", WRONG)
    assert (record["labels"], record["right"], record["completions"]) == ([True, False, False], [2, 0, 0], [4, 4, 1])


def test_after_a_step_without_right_completions_nothing_is_sampled() -> None:
    record, rollout, _ = labelled(SAYS, "b3\n", "b5\n", "c6\n", RIGHT, stop=True)
    assert len(rollout.prompts) == 2
    assert record["right"] == [2, 0, 0, 1]
    assert record["completions"] == [4, 4, 0, 1]
    assert record["labels"] == [True, False, False, True]


def test_completions_without_a_verdict_do_not_count() -> None:
    record, _, _ = labelled(SAYS, "b3\n", "b5\n", RIGHT, verifier=OneBreaks())
    assert record["completions"] == [3, 1, 1]  # of the second step "c6" alone has a verdict: no answer
    assert record["soft_labels"] == [2 / 3, 0, 1]
    says = {"b3\n": [WRONG] * 4, "b3\nb5\n": [RIGHT] * 4}
    for stop in (False, True):
        record, _, _ = labelled(says, "b3\n", "b5\n", RIGHT, verifier=OneBreaks(), stop=stop)
        assert record["labels"] is None
    record, rollout, _ = labelled(SAYS, "b3\n", RIGHT, verifier=BROKEN)
    assert (record["labels"], record["right"], rollout.prompts) == (None, None, [])


def test_a_text_without_tokens_is_refused_whatever_the_tokenizer(tmp_path: Path) -> None:
    """A saved tokenizer comes back as the library's own, which says so by a bare Exception."""
    make_policy().load().save_pretrained(tmp_path)
    codec = codec_of(Policy(path=str(tmp_path)).load().tokenizer, TEXT)
    with pytest.raises(ValueError, match="this tokenizer cannot encode the text"):
        task_of(PROBLEM, WrittenSolution(PROBLEM.text, ("h\u00e9",)), (1, 0), codec)


# --- the whole command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run.ckpt"
    trained(path, prm=PRM("q_head"))
    return path


ROWS: list[dict[str, Any]] = [
    {"id": "one", "problem": "a1b2c3", "gold": "b3c6", "solution": "\\boxed{b3c6}"},
    {"id": "one", "problem": "a1b2c3", "gold": "b3c6", "solution": "\\boxed{b3c5}"},
    {"problem": "a4b4", "answer": "b8", "solutions": ["\\boxed{b8}", "b8\nb8"]},
    {"problem": "a2b2", "answer": "b4", "steps": ["\\boxed{b4}"]},
]


def words(folder: Path, checkpoint: Path, name: str, *more: str, rows: Sequence[dict[str, Any]] = ROWS) -> list[str]:
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [
        f"--input={source}",
        f"--output={folder / name}",
        f"--checkpoint={checkpoint}",
        "--verifier=repirl.verifiers.exact.ExactVerifier",
        "--step_pattern='[0-9]'",
        "--completions=3",
        "--temperature=4.0",  # else this policy's responses end at once
        *more,
    ]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_labels_are_written_read_and_learned_from(checkpoint: Path, tmp_path: Path) -> None:
    main(["label-steps", *words(tmp_path, checkpoint, "labels.jsonl", "--exports=[trl, math_shepherd, prm800k]")])
    records = read(tmp_path / "labels.jsonl")
    assert [record["id"] for record in records] == ["one/0", "one/1", "row-3/0", "row-3/1", "row-4/0"]
    assert records[0]["steps"] == ["\\boxed{b3", "c6", "}"]
    assert [record["labels"][-1] for record in records] == [True, False, True, False, True]
    for record in records:
        assert record["completions"] == [3] * (len(record["steps"]) - 1) + [1]
        shares = [n / of for n, of in zip(record["right"], record["completions"], strict=True)]
        assert record["soft_labels"] == pytest.approx(shares)
        assert record["labels"] == [share > 0 for share in shares]
    solutions = read_labelled_steps(str(tmp_path / "labels.jsonl"))
    assert [one.solution.text for one in solutions] == [
        "\\boxed{b3c6}", "\\boxed{b3c5}", "\\boxed{b8}", "b8\nb8", "\\boxed{b4}"]  # fmt: skip
    report = json.loads((tmp_path / "labels.json").read_text())
    assert report["solutions"] == 5
    assert report["steps"] == sum(len(record["steps"]) for record in records)
    assert report["generated_tokens"] == sum(record["generated_tokens"] for record in records)
    assert report["settings"]["text"]["max_response_tokens"] == TEXT.max_response_tokens
    assert report["settings"]["seed"] == 0
    trl = read(tmp_path / "labels.trl.jsonl")
    assert [row["labels"] for row in trl] == [record["labels"] for record in records]
    for name in ("math_shepherd", "prm800k"):
        exported = LabelledSteps(str(tmp_path / f"labels.{name}.jsonl"), name).load()  # type: ignore[arg-type]
        assert [list(one.labels) for one in exported] == [record["labels"] for record in records]
    with pytest.raises(ConfigError, match="exists"):
        label_steps.main(words(tmp_path, checkpoint, "labels.jsonl"))
    data = StepLabelData(LabelledSteps(str(tmp_path / "labels.jsonl")), targets="soft", batch_solutions=5)
    module = make_prm(prm=PRM("linear", backbone=make_policy()), text=TEXT)
    assert run(module, data).figures[0]["prm/loss"] > 0


def test_a_run_that_was_ended_goes_on_whatever_is_beside_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label_steps.main(words(tmp_path, checkpoint, "whole.jsonl", "--solutions_at_once=5"))
    original = Labeller.labelled
    done: list[int] = []

    def ended(self: Labeller, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(len(tasks))
        return original(self, tasks)

    monkeypatch.setattr(Labeller, "labelled", ended)
    with pytest.raises(KeyboardInterrupt):
        label_steps.main(words(tmp_path, checkpoint, "part.jsonl", "--solutions_at_once=1"))
    monkeypatch.undo()
    assert not (tmp_path / "part.jsonl").exists()
    with pytest.raises(ConfigError, match="was begun with another settings"):
        label_steps.main(words(tmp_path, checkpoint, "part.jsonl", "--seed=1"))
    label_steps.main(words(tmp_path, checkpoint, "part.jsonl", "--solutions_at_once=2"))
    assert (tmp_path / "part.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_run_that_was_ended_before_its_output_was_there_writes_all_anew(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = words(tmp_path, checkpoint, "labels.jsonl", "--exports=[trl]")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", lambda journal, lines: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            label_steps.main(asked)
    assert not (tmp_path / "labels.jsonl").exists()
    beside = {name: (tmp_path / name).read_bytes() for name in ("labels.json", "labels.trl.jsonl")}
    label_steps.main(asked)
    assert len(read(tmp_path / "labels.jsonl")) == 5
    assert {name: (tmp_path / name).read_bytes() for name in beside} == beside


@pytest.mark.parametrize("name", ["labels.json", "labels.trl.jsonl"])
def test_what_stands_beside_the_output_is_not_overwritten(name: str, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{name}', which goes with it, exists"):
        label_steps.main(words(tmp_path, checkpoint, "labels.jsonl", "--exports=[trl]"))
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("more", "rows", "message"),
    [
        (["--policy=folder"], ROWS, "there are both"),
        (["--completions=0"], ROWS, "completions: 0 is below 1"),
        (["--temperature=0"], ROWS, "one completion again and again"),
        ([], [{"problem": "a4b4", "solution": "b8"}], "in.jsonl, line 1: no gold answer as `gold` or `answer`"),
        ([], [{"problem": "a4b4", "answer": "b8", "solution": "b8" * 9}], "line 1: the solution has 19 tokens"),
        ([], [{"problem": "a4b4", "answer": "b8", "solution": "\u00e9"}], "line 1: no token for"),
        (
            ["--exports=[trl, math_shepherd]"],
            [{"problem": "a4", "answer": "4", "solution": "ки"}],
            "exports: math_shepherd: ",
        ),
        (["--exports=[openai]"], ROWS, "exports"),
        (["--unfit=skip"], [{"problem": "a4b4", "answer": "b8", "solution": "b8" * 9}], "all 1 solutions are unfit"),
        (["--step_pattern='['"], ROWS, "not a regular expression"),
        (["--device=abacus"], ROWS, "device 'abacus' is not to be had here"),
    ],
)
def test_what_cannot_be_is_refused(
    more: list[str], rows: list[dict[str, Any]], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        label_steps.main(words(tmp_path, checkpoint, "out.jsonl", *more, rows=rows))
    assert message in str(error.value)


def test_samples_of_a_search_are_taken_as_they_were_cut(checkpoint: Path, tmp_path: Path) -> None:
    sample = {"id": "p", "problem": "a1b2c3", "gold": "b3c6", "answer": "x", "step_rewards": None, "sample": 0}
    rows = [sample | {"steps": ["\\boxed{b3", "c6}"]}, sample | {"steps": []}]
    label_steps.main(words(tmp_path, checkpoint, "out.jsonl", rows=rows))
    (record,) = read(tmp_path / "out.jsonl")
    assert (record["id"], record["solution"], record["gold"]) == ("p/0", "\\boxed{b3c6}", "b3c6")
    assert record["labels"][-1]


def test_a_setting_of_text_leaves_the_others_as_the_run_had_them(tmp_path: Path) -> None:
    text = replace(TEXT_OF_16, instruction="d", prompt_format="{problem}{instruction}b")
    trained(tmp_path / "run.ckpt", prm=PRM("q_head"), text=text)
    label_steps.main(words(tmp_path, tmp_path / "run.ckpt", "out.jsonl", "--text.max_response_tokens=12"))
    used = json.loads((tmp_path / "out.json").read_text())["settings"]["text"]
    assert used == asdict(replace(text, max_response_tokens=12))


def test_unfit_solutions_are_counted(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*ROWS[:1], {"problem": "a4b4", "answer": "b8", "solution": "b8" * 9}]
    label_steps.main(words(tmp_path, checkpoint, "out.jsonl", "--unfit=skip", rows=rows))
    assert "1 solutions; 1 are unfit and left out" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["unfit"] == 1
