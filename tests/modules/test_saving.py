"""What checkpoints say of their weights, and what is refused before a weight is copied."""

from __future__ import annotations

import csv
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from repirl import checkpoints
from repirl.callbacks.checkpoint import Checkpoint
from repirl.learning.prm_objectives import IRL, Discriminator, Prime, PRMObjective, StepCrossEntropy
from repirl.learning.prompt_filter import PromptFilter
from repirl.models.prm import PRM
from repirl.modules.sft import SFT
from repirl.structs import Problem, Verdict, Verifier
from tests.modules.tiny import ADAM, SGD, TEXT, EvenDigits, make_data, make_module, make_policy, problems, run


def saved(folder: Path, **options: Any) -> Path:
    """The checkpoint of one iteration."""
    done = run(make_module(**options))
    done.trainer.save_checkpoint(folder / "saved.ckpt")
    return folder / "saved.ckpt"


def prm(kind: Any = "implicit", **options: Any) -> PRM:
    return PRM(kind=kind, **options)


DIFFERENT = [
    (prm(), prm("logit_difference"), "kind 'implicit', this one 'logit_difference'"),
    (prm("logit_difference"), prm(), "kind 'logit_difference', this one 'implicit'"),
    (prm(beta=0.05), prm(beta=1.0), r"beta 0\.05, this one 1\.0"),
    (prm("q_head", granularity="step"), prm("q_head"), "granularity 'step', this one 'token'"),
]


@pytest.mark.parametrize(("there", "here", "message"), DIFFERENT)
def test_weights_of_another_meaning_are_refused(tmp_path: Path, there: PRM, here: PRM, message: str) -> None:
    """Where names and shapes fit: by checkpoint and by prm.weights."""
    path = saved(tmp_path, prm=there)
    with pytest.raises(ValueError, match=message):
        run(make_module(prm=here), steps=2, ckpt_path=path)
    own = PRM(kind=here.kind, beta=here.beta, granularity=here.granularity, weights=str(path))
    with pytest.raises(ValueError, match=message):
        own.build(make_policy().load())


def test_the_same_meaning_is_taken(tmp_path: Path) -> None:
    path = saved(tmp_path, prm=prm(beta=0.05))
    assert run(make_module(prm=prm(beta=0.05)), steps=2, ckpt_path=path).trainer.global_step == 2
    PRM(kind="implicit", beta=0.05, weights=str(path)).build(make_policy().load())
    meaning = {"kind": "implicit", "granularity": "token", "beta": 0.05}
    assert meaning.items() <= checkpoints.read(path)["repirl"]["prm"].items()


def test_another_base_measure_is_refused_in_training_only(tmp_path: Path) -> None:
    path = saved(tmp_path, objective=IRL(base_measure="uniform"))
    other = make_module(objective=IRL(base_measure="reference"))
    with pytest.raises(ValueError, match="base_measure 'uniform', this run has 'reference'"):
        run(other, steps=2, ckpt_path=path)
    with pytest.raises(
        ValueError, match=r"prm\.weights: .*saved\.ckpt: .* base_measure 'uniform', this run has 'reference'"
    ):
        run(make_module(prm=PRM(weights=str(path)), objective=IRL(base_measure="reference")))
    run(make_module(prm=PRM(weights=str(path)), objective=IRL(base_measure="uniform")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prm": None}, "the checkpoint has a PRM and this configuration has none"),
        ({"prm": prm("linear")}, "kind 'q_head', this one 'linear'"),
        ({"prm": prm("q_head", rank=2)}, "have another shape|are missing in it"),
        (
            {"policy": make_policy(lora={"r": 4, "target_modules": ["q_proj"]})},
            "does not fit: .* weights are missing in it",
        ),
    ],
)
def test_weights_that_do_not_fit_take_one_sentence(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = saved(tmp_path)
    verified = {"verifier": Even()} if options.get("prm", 0) is None else {}
    with pytest.raises(ValueError, match=message) as error:
        run(make_module(**options, **verified), steps=2, ckpt_path=path)
    assert len(str(error.value)) < 400
    assert "saved.ckpt" in str(error.value)


def test_another_lora_rank_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, policy=make_policy(lora={"r": 4, "target_modules": ["q_proj"]}))
    with pytest.raises(ValueError, match=r"lora.*\[4, 16\] in it, \[8, 16\] here\) \(another LoRA rank\)"):
        run(make_module(policy=make_policy(lora={"r": 8, "target_modules": ["q_proj"]})), steps=2, ckpt_path=path)


def test_a_run_does_not_go_on_from_weights_alone(tmp_path: Path) -> None:
    folder = str(tmp_path)
    run(make_module(), callbacks=[Checkpoint(folder, save_weights_only=True)], enable_checkpointing=True)
    with pytest.raises(ValueError, match=r"last.ckpt' holds weights alone .*`fit` cannot go on from it"):
        run(make_module(), steps=2, ckpt_path=tmp_path / "last.ckpt")


@pytest.mark.parametrize("rate", [1e30, 1e20])
def test_no_checkpoint_is_written_of_weights_that_no_longer_work(tmp_path: Path, rate: float) -> None:
    """At such rates all weights are finite numbers after the first iteration, and what they say is not."""
    huge = partial(torch.optim.AdamW, lr=rate, weight_decay=0.0)
    options: dict[str, Any] = {
        "callbacks": [Checkpoint(str(tmp_path), every_n_iterations=1)],
        "enable_checkpointing": True,
    }
    with pytest.raises(FloatingPointError, match=r"NaN or infinite.*no checkpoint was written") as error:
        run(make_module(policy_optimizer=huge), steps=3, **options)
    assert "good" not in str(error.value)
    assert not list(tmp_path.glob("*.ckpt"))


@pytest.mark.parametrize("part", ["policy", "prm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_checkpoint_is_written_of_a_weight_that_is_not_finite(tmp_path: Path, part: str, value: float) -> None:
    done = run(make_module())
    torch.nn.init.constant_(next(p for p in getattr(done.module, part).parameters() if p.requires_grad), value)
    with pytest.raises(FloatingPointError, match="no checkpoint was written"):
        done.trainer.save_checkpoint(tmp_path / "x.ckpt")
    assert not (tmp_path / "x.ckpt").exists()


def test_the_end_is_saved_whatever_the_number_of_iterations(tmp_path: Path) -> None:
    saving = Checkpoint(str(tmp_path), filename="{step}", every_n_iterations=2, keep_all=True)
    run(make_module(), steps=5, callbacks=[saving], enable_checkpointing=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step=2.ckpt", "step=4.ckpt", "step=5.ckpt"]


@pytest.mark.parametrize("bad", [{"every_n_iterations": 0}, {"keep_all": True}, {"keep_all": True, "filename": "last"}])
def test_settings_that_would_lose_files_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Checkpoint: "):
        Checkpoint(**bad)


# ---- figures ----


class Even(Verifier):
    """Right are responses with an even number of digits."""

    def verify(self, problems: Any, responses: Any) -> list[Verdict]:
        right = [sum(c.isdigit() for c in text) % 2 == 0 for text in responses]
        return [Verdict(r, "equal" if r else "not_equal") for r in right]

    def close(self) -> None:
        """Nothing to end."""


class RightAtFirst(Even):
    """Written solutions are right; rollouts are judged as by `Even` in the first iteration, and wrong in later ones."""

    def __init__(self) -> None:
        self.iterations = 0

    def verify(self, problems: Any, responses: Any) -> list[Verdict]:
        written = [text in problem.solutions for problem, text in zip(problems, responses, strict=True)]
        self.iterations += not all(written)
        verdicts = super().verify(problems, responses)
        wrong = Verdict(False, "not_equal")
        return [
            Verdict(True, "equal") if expert else verdict if self.iterations == 1 else wrong
            for expert, verdict in zip(written, verdicts, strict=True)
        ]


@pytest.mark.parametrize(
    "options",
    [{"prompt_filter": PromptFilter(kind="strict")}, {"prompt_filter": PromptFilter(kind="reorder_half")}, {}],
)
def test_a_figure_that_an_iteration_does_not_measure_is_an_empty_cell(tmp_path: Path, options: dict[str, Any]) -> None:
    """From the second iteration on no rollout is right: a strict filter then keeps no prompt."""
    logger = CSVLogger(tmp_path, name=None, version="", flush_logs_every_n_steps=1)
    module = make_module(verifier=RightAtFirst(), policy_optimizer=ADAM, prm_optimizer=ADAM, **options)
    run(module, make_data(problems(64), batch_prompts=8), steps=4, logger=logger)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        first, *later = csv.DictReader(file)
    assert len(later) == 3  # all in one epoch
    assert first["prm/auroc_correct_failed"]
    assert first["prm/reward_correct"]
    for row in later:
        measured = {name for name, cell in row.items() if cell}
        assert not {"prm/auroc_correct_failed", "prm/reward_correct"} & measured
        if options and options["prompt_filter"].kind == "strict":
            assert {name for name in measured if name.startswith(("prm/", "policy/"))} <= {
                "prm/prompts_used",
                "prm/prompts_skipped",
                "prm/lr",
                "policy/lr",
            }
            assert row["prompts/kept"] == "0.0"
        else:
            assert {"prm/loss", "policy/loss"} <= measured
    assert [row["rollout/accuracy"] for row in later] == ["0.0"] * 3


# ---- the data of a resume ----


def changed(what: str) -> list[Problem]:
    found = problems(8)
    one = found[3]
    make = {
        "one text": lambda: Problem(one.id, one.text.replace("a", "b", 1), one.answer, one.solutions),
        "one answer": lambda: Problem(one.id, one.text, "77", one.solutions),
        "one solution": lambda: Problem(one.id, one.text, one.answer, (one.solutions[0].replace("}", "a0}"),)),
        "one id": lambda: Problem("other", one.text, one.answer, one.solutions),
    }
    if what == "order":
        return found[::-1]
    if what == "all answers":
        return [Problem(p.id, p.text, str(n), p.solutions) for n, p in enumerate(found)]
    if what == "one left out":
        return found[:-1]
    return [*found[:3], make[what](), *found[4:]]


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("one text", "problem texts"),
        ("one answer", "answers"),
        ("all answers", "answers"),
        ("one solution", "solutions"),
        ("one id", "ids"),
        ("order", "order differ"),
        ("one left out", "prompts, ids"),
    ],
)
def test_a_run_is_not_resumed_over_other_data(tmp_path: Path, what: str, named: str) -> None:
    path = saved(tmp_path)
    assert run(make_module(), make_data(problems(8)), steps=2, ckpt_path=path).trainer.global_step == 2
    with pytest.raises(ValueError, match=rf"over other training data: .*{named}"):
        run(make_module(), make_data(changed(what)), steps=2, ckpt_path=path)


@pytest.mark.parametrize(
    ("objective", "measure"),
    [
        (IRL(), "reference"),
        (IRL(base_measure="uniform"), "uniform"),
        (Discriminator(), "uniform"),
        (Discriminator(logit="gail"), None),
        (Prime(), None),
        (StepCrossEntropy(), None),
    ],
)
def test_every_objective_s_checkpoint_says_what_its_rewards_are_relative_to(
    tmp_path: Path, objective: PRMObjective, measure: str | None
) -> None:
    path = saved(tmp_path, objective=objective, verifier=EvenDigits())
    assert checkpoints.read(path)["repirl"]["base_measure"] == measure
    assert (
        run(make_module(objective=objective, verifier=EvenDigits()), steps=2, ckpt_path=path).trainer.global_step == 2
    )


def test_sft_checkpoints_are_checked_too(tmp_path: Path) -> None:
    done = run(SFT(policy=make_policy(), policy_optimizer=SGD, text=TEXT))
    done.trainer.save_checkpoint(tmp_path / "sft.ckpt")
    with pytest.raises(ValueError, match="this configuration has a PRM and the checkpoint has none"):
        run(make_module(), steps=2, ckpt_path=tmp_path / "sft.ckpt")
    data = bytearray((tmp_path / "sft.ckpt").read_bytes())
    data[random.Random(1).randrange(len(data) // 3, len(data) // 2)] ^= 1
    (tmp_path / "sft.ckpt").write_bytes(data)
    with pytest.raises(ValueError, match=r"sft.ckpt' is damaged"):
        run(SFT(policy=make_policy(), policy_optimizer=SGD, text=TEXT), steps=2, ckpt_path=tmp_path / "sft.ckpt")
