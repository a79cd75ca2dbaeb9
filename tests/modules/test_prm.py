"""A PRM learned from labels of steps: loss and gradient by hand, any micro-batches, resumed exactly, used as any other."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import repirl
from repirl.__main__ import main
from repirl.applications.export import export
from repirl.applications.scoring import TokenScorer
from repirl.data.step_data import StepLabelData
from repirl.data.step_labelled import LabelledSolution
from repirl.data.step_sources import LabelledSums, StepSource
from repirl.learning.schedule import Schedule
from repirl.learning.settings import Text
from repirl.models.prm import PRM
from repirl.modules.prm import SupervisedPRM
from repirl.structs import WrittenSolution
from tests.modules.tiny import ADAM, DRAWN_LINEAR, SUMS_TEXT, EvenDigits, distance, make_module, make_sums_model, run

KINDS = ("q_head", "logit_difference", "implicit", "head", "linear")
SOLUTION = WrittenSolution("a1b2", ("b3\n", "c4\n", "d5"))


class Given(StepSource):
    """The given solutions."""

    def __init__(self, *solutions: LabelledSolution) -> None:
        self.solutions = list(solutions)

    def load(self) -> list[LabelledSolution]:
        return self.solutions


def make_prm(kind: str = "linear", **options: Any) -> SupervisedPRM:
    prm = options.pop("prm", None) or PRM(kind, backbone=make_sums_model())
    return SupervisedPRM(prm, **({"prm_optimizer": ADAM, "text": SUMS_TEXT} | options))


def sums(count: int = 16, split: Any = "train") -> LabelledSums:
    return LabelledSums(count, 1, error_rate=0.4, min_steps=1, max_steps=4, split=split)


def make_data(**options: Any) -> StepLabelData:
    return StepLabelData(**({"train": sums(), "batch_solutions": 8} | options))


def of_plain_steps(**options: Any) -> SupervisedPRM:
    """A linear PRM whose rewards are all its bias, 0 at the start; a step, of rate 1, subtracts the gradient."""
    return make_prm(prm_optimizer=partial(torch.optim.SGD, lr=1.0), prm_clip_norm=math.inf, **options)


@pytest.mark.parametrize(
    ("given", "targets", "gradient", "loss"),
    [
        # sigma(0) = 1/2; three tokens a step (two and a newline, two and the end): of the bias
        # (3 (1/2 - 1) + 3 (1/2 - 0) + 3 (1/2 - 1)) / 3 = -1/2. The loss is -log 1/2 for any label.
        (LabelledSolution.of_labels("s", SOLUTION, [True, False, True]), "hard", -0.5, math.log(2)),
        # Two steps have a label: (3 (1/2 - 1) + 3 (1/2 - 0)) / 2 = 0
        (LabelledSolution("s", SOLUTION, (1,), only_first=True), "hard", 0.0, math.log(2)),
        # (3 (1/2 - 3/4) + 3 (1/2 - 1/8) + 3 (1/2 - 1)) / 3 = -3/8
        (LabelledSolution("s", SOLUTION, (), soft_labels=(0.75, 0.125, 1.0)), "soft", -0.375, math.log(2)),
    ],
)
def test_loss_and_gradient_by_hand(given: LabelledSolution, targets: Any, gradient: float, loss: float) -> None:
    module = of_plain_steps()
    done = run(module, StepLabelData(Given(given), targets=targets, batch_solutions=1))
    head: Any = module.prm.head
    assert head.score.bias.item() == pytest.approx(-gradient, abs=1e-6)
    assert done.figures[0]["prm/loss"] == pytest.approx(loss, abs=1e-6)


def test_the_mean_is_over_steps_not_over_solutions() -> None:
    """A solution of one right step (three tokens) beside one of three wrong ones: (-3/2 + 3 x 3/2) / 4 = 3/4."""
    short = LabelledSolution.of_labels("short", WrittenSolution("a1b2", ("b3",)), [True])
    long = LabelledSolution.of_labels("long", SOLUTION, [False, False, False])
    module = of_plain_steps(micro_batch_tokens=1)
    done = run(module, StepLabelData(Given(short, long), batch_solutions=2))
    head: Any = module.prm.head
    assert head.score.bias.item() == pytest.approx(-0.75, abs=1e-6)
    assert done.figures[0]["prm/wrong_steps"] == pytest.approx(0.75)


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_learns_and_micro_batches_change_nothing(kind: str) -> None:
    moved = []
    for budget in (10**6, 30):
        done = run(
            make_prm(kind, micro_batch_tokens=budget, prm_optimizer=partial(torch.optim.SGD, lr=0.1)), make_data()
        )
        moved.append(done.weights)
    assert distance(*moved) < 1e-6
    assert done.figures[0]["prm/gradient_norm"] > 1e-3


@pytest.mark.parametrize("granularity", ["token", "step"])
def test_a_step_is_what_the_data_say_and_its_reward_that_of_scoring(granularity: Any) -> None:
    """Steps that end no line: -log sigma(s_1) and -log sigma(-s_2) of the step rewards that `repirl score` gives."""
    solution = WrittenSolution("a1b2", ("b3", "c4\nd5"))
    data = StepLabelData(Given(LabelledSolution.of_labels("s", solution, [True, False])), batch_solutions=1)
    prm = PRM(DRAWN_LINEAR, backbone=make_sums_model(), granularity=granularity)
    module = make_prm(prm=prm, prm_optimizer=partial(torch.optim.SGD, lr=0.0))
    loss = run(module, data).figures[0]["prm/loss"]
    first, second = TokenScorer.of(prm, module.codec).step_rewards([solution])[0]
    assert abs(first - second) > 0.1
    assert loss == pytest.approx((math.log1p(math.exp(-first)) + math.log1p(math.exp(second))) / 2, rel=1e-5)


def test_a_linear_prm_learns_to_tell_wrong_sums() -> None:
    """Modulo 2, on held-out problems, half of whose solutions are right: a box, always right, is known at once, then sums."""
    settings: dict[str, Any] = {"base": 2, "min_steps": 3, "max_steps": 6}
    backbone = make_sums_model(hidden_size=32, intermediate_size=96, num_attention_heads=4, initializer_range=0.2)
    module = make_prm(
        prm=PRM("linear", backbone=backbone),
        prm_optimizer=partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.0),
        text=Text(max_prompt_tokens=18, max_response_tokens=46),
    )
    data = StepLabelData(
        LabelledSums(110, 1, error_rate=0.5, **settings),
        LabelledSums(40, 2, error_rate=0.2, split="val", **settings),
        batch_solutions=32,
        seed=1,
    )
    done = run(module, data, 120, limit_val_batches=1.0, val_check_interval=3, check_val_every_n_epoch=None)
    measured = [figures for figures in done.figures if "val/wrong_step_auroc" in figures]
    assert measured[0]["val/wrong_step_auroc"] < 0.7
    assert measured[-1]["val/wrong_step_auroc"] > 0.9
    assert measured[-1]["val/f1"] > 0.7
    assert measured[-1]["val/loss"] < 0.4 < measured[0]["val/loss"]


def test_the_command_trains_and_resumes_exactly_and_its_prm_is_used_like_any_other(tmp_path: Path) -> None:
    config = Path(__file__).parents[2] / "configs" / "prm" / "step_labels.yaml"
    small = ["--data.train.count=60", "--data.val.count=20", "--trainer.enable_progress_bar=false"]

    def fit(folder: Path, *words: str) -> None:
        saving = {"dirpath": str(folder / "c"), "filename": "{step}", "every_n_iterations": 2, "keep_all": True}
        callback = {"class_path": "repirl.callbacks.checkpoint.Checkpoint", "init_args": saving}
        here = [f"--trainer.callbacks={json.dumps([callback])}", f"--trainer.default_root_dir={folder}"]
        main(["fit", "-c", str(config), *small, *here, *words])

    fit(tmp_path / "whole", "--trainer.max_steps=4")
    fit(tmp_path / "part", "--trainer.max_steps=2")
    fit(tmp_path / "part", "--trainer.max_steps=4", f"--ckpt_path={tmp_path / 'part' / 'c' / 'step=2.ckpt'}")
    ends = [torch.load(tmp_path / name / "c" / "step=4.ckpt", weights_only=True) for name in ("whole", "part")]
    assert distance(ends[0]["state_dict"], ends[1]["state_dict"]) == 0
    with pytest.raises(SystemExit):  # other data
        fit(tmp_path / "part", "--trainer.max_steps=6", "--data.train.seed=9",
            f"--ckpt_path={tmp_path / 'part' / 'c' / 'step=4.ckpt'}")  # fmt: skip

    path = tmp_path / "whole" / "c" / "step=4.ckpt"
    scorer = repirl.load_prm(path)
    assert repirl.PRM.load(path).score("a1b2", "b1+2=0\nc0+1=1\n\\boxed{1}").step_rewards
    with pytest.raises(ValueError, match="holds no policy"):
        repirl.load(path)
    rows = tmp_path / "in.jsonl"
    rows.write_text(json.dumps({"problem": "a1b2", "steps": ["b1+2=0", "\\boxed{0}"], "first_error": -1}) + "\n")
    main(["score", "--prm", str(path), "--input", str(rows), "--output", str(tmp_path / "out.jsonl")])
    (scored,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    expected = scorer.score("a1b2", "b1+2=0\n\\boxed{0}").step_rewards
    assert scored["step_rewards"] == pytest.approx(expected, abs=1e-5)
    export(path, tmp_path / "folder", part="prm")
    assert "cross-entropy of labels of steps" in (tmp_path / "folder" / "README.md").read_text()
    exported = repirl.load_prm(tmp_path / "folder").score("a1b2", "b1+2=0\n\\boxed{0}").step_rewards
    assert exported == pytest.approx(expected, abs=1e-5)
    report = tmp_path / "report.json"
    main(["evaluate-prm", "--prm", str(path), "--set", "labelled", "--path", f"mine={rows}", "--domain", "arithmetic",
          "--threshold", "0", "--output", str(report)])  # fmt: skip
    assert json.loads(report.read_text())["sets"]["mine"]["solutions"] == 1
    search = {
        "policy": str(_policy_folder(tmp_path)),
        "prm": str(path),
        "text": {"max_prompt_tokens": 16, "max_response_tokens": 24},
        "problems": {
            "class_path": "repirl.data.arithmetic.RunningSums",
            "init_args": {"count": 2, "seed": 1, "min_steps": 1, "max_steps": 2, "split": "test"},
        },
        "verifier": {"class_path": "repirl.verifiers.exact.ExactVerifier"},
        "methods": ["best_of_n"],
        "n": [1, 2],
    }
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(search))
    main(["search", "-c", str(tmp_path / "search.yaml"), "--output", str(tmp_path / "search")])
    assert (tmp_path / "search" / "curves.csv").is_file()


def _policy_folder(folder: Path) -> Path:
    """A policy with the config's tokens, exported."""
    path = folder / "policy.ckpt"
    policy = make_sums_model()
    run(make_module(policy=policy, prm=None, verifier=EvenDigits())).trainer.save_checkpoint(path)
    export(path, folder / "policy", part="policy")
    return folder / "policy"


def test_weights_of_an_earlier_run_continue_it(tmp_path: Path) -> None:
    done = run(make_prm(), make_data())
    done.trainer.save_checkpoint(tmp_path / "one.ckpt")
    weights = str(tmp_path / "one.ckpt")
    again = make_prm(prm=PRM("linear", backbone=make_sums_model(), weights=weights))
    again.configure_model()
    state = done.module.prm.state_dict()
    assert distance(again.prm.state_dict(), state) == 0
    # So does a run of rePIRL in which it is a frozen PRM.
    frozen = make_module(
        policy=make_sums_model(),
        prm=PRM("linear", backbone=make_sums_model(), weights=weights),
        schedule=Schedule(prm_updates=0),
    )
    assert distance(run(frozen).module.prm.state_dict(), state) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prm": PRM("linear")}, r"prm\.backbone: without a policy"),
        ({"prm_clip_norm": 0.0}, "prm_clip_norm must be above 0"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_prm(**settings)


def test_data_that_cannot_be() -> None:
    long = LabelledSolution.of_labels("l", WrittenSolution("a1b2", ("b3" * 30,)), [True])
    with pytest.raises(ValueError, match="batch_solutions 32 exceeds the 16 usable solutions"):
        run(make_prm(), make_data(batch_solutions=32))
    with pytest.raises(ValueError, match="train: none of 1 solutions is usable"):
        run(make_prm(), StepLabelData(Given(long), batch_solutions=1))
    with pytest.raises(ValueError, match="together exceed the model's context of 64"):
        run(make_prm(text=Text()), make_data())


def test_a_reward_that_is_not_finite_stops_the_run() -> None:
    module = make_prm()
    module.configure_model()
    head: Any = module.prm.head
    torch.nn.init.constant_(head.score.bias, math.nan)
    with pytest.raises(FloatingPointError, match="iteration 0: the loss is not finite for solution 'sums/"):
        run(module, make_data())
