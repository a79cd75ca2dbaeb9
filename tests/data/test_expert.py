"""Encoding of experts, and the data modules: sharding, exact resume, reports."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import LightningDataModule, Trainer
from transformers import PreTrainedTokenizerBase

from repirl.data.arithmetic import ARITHMETIC_TOKENS, RunningSums
from repirl.data.codec import ChatCodec
from repirl.data.evaluation import EvalData
from repirl.data.expert import ExpertData
from repirl.data.math import last_boxed
from repirl.data.preparation import (
    ExpertRule,
    PreparationReport,
    encode_problem,
    encode_problems,
    final_answer_appended,
)
from repirl.data.prompts import CurriculumSampler, UniformSampler
from repirl.data.sets import EvalSet
from repirl.data.sources import Sample, Table
from repirl.models.tokenizers import character_tokenizer
from repirl.structs import Problem, Verdict, Verifier
from tests.data.attaching import Given, Recorder, attached, ids, trainer

# --- experts in tokens


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{9}", True),
        (r"\boxed{\frac{1}{2}}.", True),
        (r"\boxed{\{1, 2\}}", True),
        (r"\boxed{\left\{ x \right.}", True),
        (r"\boxed{ }", False),
        (r"\boxed{9", False),
        (r"\boxed{9\}", False),
        (r"\boxed 9", False),
        (r"\boxed{} then \boxed{3}", True),
        ("", False),
    ],
)
def test_last_boxed(text: str, found: bool) -> None:
    assert (last_boxed(text) is not None) is found


def test_final_answer_is_appended_only_where_missing() -> None:
    assert final_answer_appended("It is 4.", "4") == "It is 4.\nThe answer is \\boxed{4}."
    assert final_answer_appended("It is \\boxed{5}.", "4") == "It is \\boxed{5}."
    assert final_answer_appended("It is 4.", None) == "It is 4."


@pytest.mark.smollm2
def test_encoding_counts_and_never_cuts(smollm2: PreTrainedTokenizerBase) -> None:
    codec = ChatCodec(smollm2)
    problem = Problem(
        id="p", text="2+2?", answer="4", solutions=(" It is 4.\n", "word " * 50, "So \\boxed{4}.", "One.", "Two.")
    )
    report = PreparationReport()
    limits = {"max_prompt_tokens": 60, "max_response_tokens": 30, "max_experts": 2}
    prompt = encode_problem(problem, codec, report=report, **limits)
    assert prompt is not None
    assert prompt.problem is problem
    assert prompt.token_ids == codec.encode_prompt("2+2?")
    assert [expert.text for expert in prompt.experts] == ["It is 4.\nThe answer is \\boxed{4}.", "So \\boxed{4}."]
    assert [expert.token_ids for expert in prompt.experts] == [codec.encode_response(e.text) for e in prompt.experts]
    # The second solution has 50 words and more; the last two come after two that fit.
    assert report == PreparationReport(experts_too_long=1, experts_beyond_limit=2, answers_appended=1)
    # A limit of exactly the length keeps, one less drops.
    for limit, kept in ((len(prompt.token_ids), True), (len(prompt.token_ids) - 1, False)):
        found = encode_problem(problem, codec, report=report, **{**limits, "max_prompt_tokens": limit})
        assert (found is not None) is kept
    assert report.prompts_too_long == 1
    assert encode_problem(problem, codec, report=report, **{**limits, "max_response_tokens": 5}) is not None


@pytest.mark.smollm2
def test_the_sample_gets_its_answers(smollm2: PreTrainedTokenizerBase) -> None:
    limits = {"max_prompt_tokens": 512, "max_response_tokens": 512, "max_experts": 4}
    prompts, report = encode_problems(Sample().load(), ChatCodec(smollm2), experts="required", **limits)
    assert len(prompts) == 64
    assert report == PreparationReport(kept=64, answers_appended=64)
    assert all(p.experts[0].text.endswith(f"\nThe answer is \\boxed{{{p.problem.answer}}}.") for p in prompts)


def test_problems_without_experts_are_dropped_only_where_required(arithmetic: PreTrainedTokenizerBase) -> None:
    problems = [Problem("a", "a1b1", "2", ("b2",)), Problem("b", "a1b2", "3"), Problem("c", "a1b3", "4", ("1" * 99,))]
    limits = {"max_prompt_tokens": 20, "max_response_tokens": 20, "max_experts": 1}
    without_answers = [Problem(p.id, p.text, None, p.solutions) for p in problems]
    rules: list[tuple[ExpertRule, list[str], dict[str, int]]] = [
        ("required", ["a"], {"without_expert": 2}),
        ("optional", ["a", "b", "c"], {"without_expert": 2}),
        ("excluded", ["b", "c"], {"with_expert": 1}),
    ]
    for rule, kept, counts in rules:
        prompts, report = encode_problems(without_answers, ChatCodec(arithmetic), experts=rule, **limits)
        assert ids(prompts) == kept
        assert report == PreparationReport(kept=len(kept), experts_too_long=1, **counts)


def test_a_problem_that_cannot_be_encoded_is_named() -> None:
    data = ExpertData(Given([Problem("odd", "a1 b1", "2", ("b2",))]))
    with pytest.raises(ValueError, match="problem 'odd': no token for ' '"):
        attached(data, "fit")


# --- loaders


def test_ranks_share_the_global_batch() -> None:
    one = attached(ExpertData(RunningSums(50, 0), batch_prompts=12), "fit").train_dataloader()
    whole = [ids(batch) for batch in one]
    assert len(whole) == len(one) == 4  # 50 // 12
    for world in (2, 3, 4):
        parts = []
        for rank in range(world):
            loader = attached(ExpertData(RunningSums(50, 0), batch_prompts=12), "fit", rank, world).train_dataloader()
            parts.append([ids(batch) for batch in loader])
        for number, batch in enumerate(whole):
            for rank in range(world):
                assert parts[rank][number] == batch[rank::world]
    with pytest.raises(ValueError, match="batch_prompts 12 must be a multiple of the 5 processes"):
        attached(ExpertData(RunningSums(50, 0), batch_prompts=12), "fit", 0, 5).train_dataloader()


def test_every_prompt_comes_equally_often_also_where_epochs_do_not_divide() -> None:
    data = attached(ExpertData(RunningSums(10, 0), batch_prompts=4), "fit")
    loader = data.train_dataloader()
    counts = Counter(
        i for _ in range(10) for batch in loader for i in ids(batch)
    )  # 10 epochs of 2 x 4 = 8 passes of 10
    assert set(counts.values()) == {8}


@pytest.mark.parametrize(("count", "world"), [(10, 1), (10, 3), (7, 2), (130, 4), (1, 2)])
def test_evaluation_covers_every_prompt_once(count: int, world: int) -> None:
    source = RunningSums(count, 0, split="test")
    parts = []
    for rank in range(world):
        data = attached(EvalData(test=source, eval_batch_prompts=8), "test", rank, world)
        parts.append([ids(batch) for batch in data.test_dataloader()])
    assert len({len(part) for part in parts}) == 1, "ranks agree on the number of batches"
    assert len(parts[0]) == -(-count // 8)
    assert sorted(i for part in parts for batch in part for i in batch) == sorted(p.id for p in source.load())
    assert all(len(part[number]) <= -(-8 // world) for part in parts for number in range(len(part)))


@pytest.mark.parametrize("sampler", [UniformSampler, CurriculumSampler])
def test_resume_is_exact_at_every_position(sampler: type) -> None:
    """Stops after each of 3 epochs' iterations, epoch ends included; 10 prompts in batches of 4 leave a tail of 2."""

    def step(data: ExpertData, batch: Any) -> list[str]:
        data.sampler.update(ids(batch), [len(prompt.problem.text) % 4 / 3 for prompt in batch])
        return ids(batch)

    def make() -> ExpertData:
        return attached(ExpertData(RunningSums(10, 0), batch_prompts=4, sampler=sampler(), seed=3), "fit")

    whole = make()
    expected, states = [], []
    for _ in range(3):
        for batch in whole.train_dataloader():
            expected.append(step(whole, batch))
            states.append(json.loads(json.dumps(whole.state_dict())))  # inside the loop: as a checkpoint would be taken
    assert len(expected) == 6
    assert len({tuple(batch) for batch in expected}) > 1
    for position, state in enumerate(states):
        resumed = make()
        next(iter(resumed.train_dataloader()))  # whatever has been drawn before the state is loaded does not matter
        resumed.load_state_dict(state)
        found = []
        while len(found) < 6 - position - 1:
            iter(resumed.train_dataloader())  # an iterator that nobody uses takes nothing
            found += [step(resumed, batch) for batch in resumed.train_dataloader()]
        assert found[: 6 - position - 1] == expected[position + 1 :]


def test_a_state_loaded_before_setup_is_applied_by_it() -> None:
    one = attached(ExpertData(RunningSums(20, 0), batch_prompts=4), "fit")
    next(iter(one.train_dataloader()))
    other = ExpertData(RunningSums(20, 0), batch_prompts=4)
    other.load_state_dict(one.state_dict())
    attached(other, "fit")
    assert [ids(b) for b in other.train_dataloader()] == [ids(b) for b in one.train_dataloader()]


def test_a_state_of_other_data_is_refused() -> None:
    state = attached(ExpertData(RunningSums(20, 0), batch_prompts=4), "fit").state_dict()
    with pytest.raises(
        ValueError, match=r"other training data: ids, .*, order differ \(20 usable prompts there, 20 here\)"
    ):
        attached(ExpertData(RunningSums(20, 1), batch_prompts=4), "fit").load_state_dict(state)


def test_a_state_of_another_kind_of_order_is_refused() -> None:
    state = attached(ExpertData(RunningSums(20, 0), batch_prompts=4, sampler=CurriculumSampler()), "fit").state_dict()
    with pytest.raises(
        ValueError, match=r"by data\.sampler CurriculumSampler, here it is UniformSampler: give the same"
    ):
        attached(ExpertData(RunningSums(20, 0), batch_prompts=4), "fit").load_state_dict(state)


# --- in Lightning


def test_a_checkpoint_that_was_evaluated_has_no_say_in_the_next_fit(tmp_path: Path) -> None:
    def fitted(data: ExpertData) -> list[list[str]]:
        module, fit = Recorder(), trainer(tmp_path, max_steps=3, max_epochs=-1)
        fit.fit(module, datamodule=data)
        fit.save_checkpoint(tmp_path / "end.ckpt")
        return module.seen["train"]

    def made() -> ExpertData:
        return ExpertData(RunningSums(20, 0), batch_prompts=4, val=RunningSums(4, 1))

    expected, data = fitted(made()), made()
    trainer(tmp_path).validate(Recorder(), datamodule=data, ckpt_path=tmp_path / "end.ckpt", weights_only=False)
    assert fitted(data) == expected


@pytest.mark.parametrize("sampler", [UniformSampler, CurriculumSampler])
@pytest.mark.parametrize("stop", range(1, 8))
def test_lightning_resumes_exactly(tmp_path: Path, stop: int, sampler: type) -> None:
    """10 prompts in batches of 3: epochs of 3 iterations; stops within epochs and at their ends."""

    def run(steps: int, checkpoint: str | None = None) -> tuple[list[list[str]], Trainer]:
        module, data = Recorder(accuracies=True), ExpertData(RunningSums(10, 0), batch_prompts=3, sampler=sampler())
        fit = trainer(tmp_path, max_steps=steps, max_epochs=-1)
        fit.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=False)
        assert module.weight.item() == -steps
        return module.seen["train"], fit

    expected, _ = run(9)
    assert len(expected) == 9
    first, stopped = run(stop)
    stopped.save_checkpoint(tmp_path / "stop.ckpt")
    rest, _ = run(9, str(tmp_path / "stop.ckpt"))
    assert first + rest == expected


def test_lightning_checkpoints_of_the_loop_resume_exactly(tmp_path: Path) -> None:
    """Checkpoints that Lightning writes itself after each iteration and each epoch."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    def run(folder: str, epochs: int, checkpoint: Path | None = None) -> list[list[str]]:
        saver = [
            ModelCheckpoint(tmp_path / folder, "step{step}", save_top_k=-1, every_n_train_steps=1, monitor=None),
            ModelCheckpoint(tmp_path / folder, "epoch{epoch}", save_top_k=-1, save_on_train_epoch_end=True),
        ]
        module, data = Recorder(), ExpertData(RunningSums(10, 0), val=RunningSums(3, 0, split="val"), batch_prompts=3)
        fit = trainer(tmp_path, max_epochs=epochs, enable_checkpointing=True, callbacks=saver)
        fit.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=False)
        return module.seen["train"]

    expected = run("whole", 3)
    assert len(expected) == 9
    written = sorted((tmp_path / "whole").glob("*.ckpt"))
    assert len(written) == 12
    for path in written:
        done = torch.load(path, weights_only=False)["global_step"]
        assert run("again", 3, path) == expected[done:], path.name


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_all_loops_get_lists_of_prompts(tmp_path: Path, precision: Any) -> None:
    module = Recorder()
    data = ExpertData(
        RunningSums(8, 0),
        val=RunningSums(5, 0, split="val"),
        test=RunningSums(3, 0, split="test"),
        predict=RunningSums(2, 0, split="test", solution=False),
        batch_prompts=4,
        eval_batch_prompts=2,
    )
    fit = trainer(tmp_path, max_epochs=1, precision=precision, num_sanity_val_steps=0)
    fit.fit(module, datamodule=data)
    fit.validate(module, datamodule=data, verbose=False)
    fit.test(module, datamodule=data, verbose=False)
    fit.predict(module, datamodule=data)
    assert [len(batch) for batch in module.seen["train"]] == [4, 4]
    assert [len(batch) for batch in module.seen["validate"]] == [1, 2, 2] * 2  # 5 in three batches of nearly equal size
    assert [len(batch) for batch in module.seen["test"]] == [1, 2]
    assert [len(batch) for batch in module.seen["predict"]] == [2]


def test_limited_epochs_go_on_where_they_stopped(tmp_path: Path) -> None:
    module, data = Recorder(), ExpertData(RunningSums(12, 0), batch_prompts=3)
    trainer(tmp_path, max_epochs=4, limit_train_batches=1).fit(module, datamodule=data)
    assert sorted(i for batch in module.seen["train"] for i in batch) == sorted(p.id for p in RunningSums(12, 0).load())


def test_evaluation_module(tmp_path: Path) -> None:
    module, data = Recorder(), EvalData(predict=Given([Problem("x", "a1b1"), Problem("y", "a1b2")]))
    trainer(tmp_path).predict(module, datamodule=data)
    assert module.seen["predict"] == [["x", "y"]]
    with pytest.raises(ValueError, match=r"EvalData has no `test` source, which trainer\.test needs"):
        trainer(tmp_path).test(module, datamodule=data)
    with pytest.raises(ValueError, match="EvalData is for evaluation only"):
        trainer(tmp_path, max_steps=1).fit(module, datamodule=data)


def test_a_fit_needs_no_validation_source_but_validate_does(tmp_path: Path) -> None:
    module, data = Recorder(), ExpertData(RunningSums(4, 0), batch_prompts=2)
    trainer(tmp_path, max_steps=1).fit(module, datamodule=data)
    with pytest.raises(ValueError, match=r"ExpertData has no `val` source, which trainer\.validate needs"):
        trainer(tmp_path).validate(module, datamodule=data)


# --- reports and errors


def test_the_report_is_logged_once_by_rank_zero(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "repirl")
    long = Problem("long", "a1" * 30, "1", ("1",))
    for rank in range(2):
        attached(ExpertData(Given([*RunningSums(5, 0).load(), long]), batch_prompts=2), "fit", rank, 2)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", "train: kept 5, prompts_too_long 1 of 6 problems")
    ]


class PlainGolds(Verifier):
    """Cannot read a gold with a question mark."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        raise AssertionError("preparation verifies nothing")

    def check_golds(self, problems: Sequence[Problem]) -> list[tuple[str, str]]:
        self.asked += [problem.id for problem in problems]
        return [(p.id, p.answer) for p in problems if p.answer is not None and "?" in p.answer]

    def close(self) -> None: ...


def test_unreadable_golds_are_listed_and_dropped_in_training_and_evaluation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "repirl")
    odd = [Problem("odd", "a1b1", "?!", ("b2",)), Problem("blank", "a1b2", None, ("b3",))]
    module = Recorder()
    module.verifier = PlainGolds()  # type: ignore[assignment]
    source = Given([*RunningSums(4, 0).load(), *odd])
    data = ExpertData(source, val=source, test=source, predict=Given([Problem("odd", "a1b1", "?!")]), batch_prompts=5)
    fit = trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0)
    fit.fit(module, datamodule=data)
    fit.test(module, datamodule=data, verbose=False)
    kept = sorted([p.id for p in RunningSums(4, 0).load()] + ["blank"])
    assert [sorted(batch) for loop in ("train", "validate", "test") for batch in module.seen[loop]] == [kept] * 3
    asked = len(module.verifier.asked)
    fit.predict(module, datamodule=data)
    assert module.seen["predict"] == [["odd"]]
    assert len(module.verifier.asked) == asked
    messages = [(r.levelname, r.getMessage()) for r in caplog.records if "overlap" not in r.getMessage()]
    for split in ("train", "val", "test"):
        assert ("WARNING", f"{split}: the verifier cannot read these gold answers, dropped: 'odd': '?!'") in messages
        assert any(m.startswith(f"{split}: kept 5, golds_unreadable 1") for _, m in messages)


def test_a_long_list_of_unreadable_golds_is_cut_with_its_count(caplog: pytest.LogCaptureFixture) -> None:
    problems = [Problem(f"p{i}", f"a1b{i % 10}", "?" * 500, ("b2",)) for i in range(60)]
    strategy = SimpleNamespace(broadcast=lambda found: found)
    data = ExpertData(Given([*problems, Problem("ok", "a1b1", None, ("b2",))]))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=SimpleNamespace(
            codec=ChatCodec(character_tokenizer(ARITHMETIC_TOKENS)),
            max_prompt_tokens=20,
            max_response_tokens=60,
            verifier=PlainGolds(),
        ),
        strategy=strategy,
        is_global_zero=True,
    )
    data.setup("fit")
    (listed,) = [r.getMessage() for r in caplog.records if "cannot read" in r.getMessage()]
    assert listed.count("'p") == 50
    assert listed.endswith("; and 10 more")
    assert len(listed) < 50 * 115


def test_overlap_of_training_and_held_out_problems_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    train = RunningSums(5, 0).load()
    held_out = Given([*RunningSums(3, 0, split="test").load(), Problem("leaked", train[2].text, "1")])
    attached(ExpertData(Given(train), val=RunningSums(4, 0, split="val"), test=held_out, batch_prompts=2), "fit")
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.getMessage().startswith("test: 1 of 4 are also training problems (first: leaked)")


def test_unusable_training_sets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"train: none of 5 problems is usable \(without_expert 5\)"):
        attached(ExpertData(RunningSums(5, 0, solution=False)), "fit")
    with pytest.raises(ValueError, match=r"none of 5 .*prompts_too_long 5.*raise text\.max_prompt_tokens \(3\)"):
        attached(ExpertData(RunningSums(5, 0)), "fit", max_prompt_tokens=3)
    with pytest.raises(ValueError, match="batch_prompts 16 exceeds the 5 usable training prompts; lower it"):
        attached(ExpertData(RunningSums(5, 0)), "fit").train_dataloader()
    with pytest.raises(ValueError, match="SimpleNamespace has no `codec`"):
        attached(ExpertData(RunningSums(5, 0)), "fit", codec=None)
    with pytest.raises(ValueError, match="has no trainer"):
        ExpertData(RunningSums(5, 0)).setup("fit")
    for bad in ({"batch_prompts": 0}, {"eval_batch_prompts": -1}, {"max_experts": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            ExpertData(RunningSums(5, 0), **bad)


def test_several_sets_by_name_are_one_loop_and_each_prompt_knows_its_set() -> None:
    sets = {"short": RunningSums(3, 0, min_steps=2, max_steps=2), "long": RunningSums(2, 1, min_steps=6, max_steps=6)}
    for data in (EvalData(val=sets, eval_batch_prompts=4), ExpertData(Given([]), val=sets, eval_batch_prompts=4)):
        batches = list(attached(data, "validate").val_dataloader())
        assert [prompt.dataset for batch in batches for prompt in batch] == ["short"] * 3 + ["long"] * 2
        assert all(not prompt.experts for batch in batches for prompt in batch)
    (batch,) = attached(EvalData(val=sets["long"]), "validate").val_dataloader()
    assert [prompt.dataset for prompt in batch] == ["", ""]


def test_each_set_may_have_an_instruction_in_place_of_the_model_s() -> None:
    codec = ChatCodec(character_tokenizer(ARITHMETIC_TOKENS), instruction="k1")
    two = [Problem("p", "a1"), Problem("q", "a2")]
    sets = {
        "told": EvalSet(Given(two), instruction="k2"),
        "bare": EvalSet(Given(two), instruction=""),
        "usual": Given(two),
    }
    data = attached(EvalData(predict=sets), "predict", codec=codec)
    (batch,) = data.predict_dataloader()
    read = {f"{p.dataset}/{p.problem.id}": codec.decode(p.token_ids) for p in batch}
    assert read == {
        "told/p": "a1k2\n",
        "told/q": "a2k2\n",
        "bare/p": "a1\n",
        "bare/q": "a2\n",
        "usual/p": "a1k1\n",
        "usual/q": "a2k1\n",
    }


def test_an_instruction_that_the_template_refuses_is_named_with_its_set() -> None:
    codec = ChatCodec(character_tokenizer(ARITHMETIC_TOKENS), prompt_format="{problem}\n")
    sets: Any = {"told": EvalSet(RunningSums(1, 0, split="val"), instruction="k2")}
    with pytest.raises(ValueError, match=r"val told: instruction 'k2': prompt_format .* has no place"):
        attached(EvalData(val=sets), "validate", codec=codec)


def test_a_set_that_an_overlay_takes_away_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    sums = RunningSums(3, 0)
    with caplog.at_level(logging.INFO, "repirl.data"):
        (batch,) = attached(EvalData(val={"here": sums, "elsewhere": None}), "validate").val_dataloader()
    assert {prompt.dataset for prompt in batch} == {"here"}
    # Evaluation has no use for the solutions of its problems, and counts none of them.
    assert [record.getMessage() for record in caplog.records] == ["val here: kept 3 of 3 problems"]
    with pytest.raises(ValueError, match="EvalData has no `val` source"):
        attached(EvalData(val={"elsewhere": None}), "validate")


@pytest.mark.parametrize("name", ["", "a/b", "average"])
def test_a_name_that_metrics_cannot_carry_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a data set is named"):
        EvalData(val={name: RunningSums(1, 0)})


def test_guarded_sets_are_compared_with_the_training_problems(caplog: pytest.LogCaptureFixture) -> None:
    train = RunningSums(6, 0).load()
    guard = {"same": Given(train[4:]), "other": RunningSums(3, 0, split="test")}
    val = {"v": Given([Problem("leaked", train[0].text, "1")])}
    with caplog.at_level(logging.INFO, "repirl.data"):
        data = attached(ExpertData(Given(train), val=val, guard=guard, batch_prompts=2), "fit")
    assert list(data.overlaps) == ["val v", "guard same", "guard other"]
    assert [found.equal for found in data.overlaps.values()] == [("leaked",), (train[4].id, train[5].id), ()]
    levels = {r.getMessage().partition(":")[0]: r.levelname for r in caplog.records}
    assert (levels["guard same"], levels["guard other"]) == ("WARNING", "INFO")
    # Other ranks do not repeat it, and nothing is compared without training.
    assert attached(ExpertData(Given(train), guard=guard, batch_prompts=2), "fit", 1, 2).overlaps == {}
    assert attached(ExpertData(Given(train), val=val, guard=guard), "validate").overlaps == {}


def test_the_policy_reads_the_usual_prompt_where_there_is_one(arithmetic: PreTrainedTokenizerBase) -> None:
    codec = ChatCodec(arithmetic)
    limits = {"max_prompt_tokens": 20, "max_response_tokens": 20, "max_experts": 1, "report": PreparationReport()}
    asked = encode_problem(Problem("p", "a1b1", prompt="a1b1c1"), codec, **limits)
    assert asked is not None
    assert asked.token_ids == codec.encode_prompt("a1b1c1")


def test_data_modules_come_from_yaml(tmp_path: Path) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    path = tmp_path / "data.yaml"
    path.write_text(
        """
data:
  class_path: repirl.data.expert.ExpertData
  init_args:
    train:
      class_path: repirl.data.sources.Table
      init_args: {path: train.jsonl, columns: {problem: question}, format: gsm8k, limit: 5}
    val: {class_path: repirl.data.sources.Sample, init_args: {limit: 8}}
    test: {class_path: repirl.data.arithmetic.RunningSums, init_args: {count: 3, seed: 1, split: test}}
    predict:
      told: {source: {class_path: repirl.data.sources.Sample}, instruction: "Think."}
      plain: {class_path: repirl.data.sources.Sample}
      gone: null
    batch_prompts: 8
    sampler: {class_path: repirl.data.prompts.CurriculumSampler, init_args: {target: 0.4}}
"""
    )
    data = parser.instantiate(parser.parse_path(path)).data
    assert isinstance(data, ExpertData)
    assert isinstance(data.train, Table)
    assert data.train.columns == {"problem": "question"}
    assert isinstance(data.sets["test"][""].source, RunningSums)
    assert len(data.sets["val"][""].source.load()) == 8
    assert {name: one.instruction for name, one in data.sets["predict"].items()} == {"told": "Think.", "plain": None}
    assert isinstance(data.sampler, CurriculumSampler)
    assert data.sampler.target == 0.4
    path.write_text(
        "data: {class_path: repirl.data.evaluation.EvalData, init_args: {test: repirl.data.sources.Sample}}"
    )
    assert isinstance(parser.instantiate(parser.parse_path(path)).data, EvalData)
