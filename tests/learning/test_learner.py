"""What learners share: passes over micro-batches, steps by PyTorch alone, and the whole algorithm without Lightning."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from repirl.data.collate import collate_rows
from repirl.learning.alternation import Alternation
from repirl.learning.learner import Learner, TorchEngine, over_micro_batches, run
from repirl.learning.recorder import Recorder
from repirl.learning.schedule import Schedule
from repirl.models.prm import PRM
from repirl.structs import Prompt, Rows
from tests.modules.tiny import (
    DRAWN_LINEAR,
    SGD,
    EvenDigits,
    distance,
    make_data,
    make_module,
    start_weights,
    with_experts,
)
from tests.modules.tiny import (
    run as fit,
)

ROWS = collate_rows([[1], [1, 2], [3]], [[4], [5, 6, 7], [8, 9]], pad_id=0)


class Scaled(nn.Module):
    """Each response token's id times a weight."""

    packs = False

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, rows: Rows) -> Tensor:
        return self.weight * rows.response_ids * rows.response_mask


def test_micro_batches_fill_rows_of_unequal_width() -> None:
    model = Scaled()
    values = over_micro_batches(ROWS, [torch.tensor([2, 0]), torch.tensor([1])], model)
    assert values.tolist() == [[4, 0, 0], [5, 6, 7], [8, 9, 0]]
    assert not values.requires_grad


def test_an_empty_micro_batch_runs_the_model_and_gives_no_row_and_a_gradient_of_zero() -> None:
    model, seen = Scaled(), []
    model.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    values = run(model, ROWS, torch.zeros(0, dtype=torch.long))
    assert seen == [(1, 1)]
    assert values.shape[0] == 0
    (values * torch.zeros(0, 3)[:, :1]).sum().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.tolist() == [0.0]


def test_a_step_by_pytorch_alone_clips_the_norm_and_clears_the_gradient() -> None:
    model, recorder = Scaled(), Recorder()
    learner = Learner("prm", model, micro_batch_tokens=4, clip_norm=2.0, recorder=recorder)
    learner.engine = TorchEngine(learner, torch.optim.SGD(model.parameters(), lr=0.5))
    for index in learner.micro_batches(ROWS):
        learner.engine.backward(run(model, ROWS, index).sum())
    learner.engine.step()
    # the gradient is the sum of all ids, 4 + 5 + 6 + 7 + 8 + 9 = 39, clipped to 2; 1 - .5 x 2 = 0
    assert recorder.take()["prm/gradient_norm"] == pytest.approx(39)
    assert model.weight.item() == pytest.approx(0, abs=1e-5)
    assert model.weight.grad is None


def test_an_infinite_gradient_is_refused_with_its_place() -> None:
    model, recorder = Scaled(), Recorder()
    recorder.iteration = 7
    learner = Learner("prm", model, micro_batch_tokens=4, clip_norm=2.0, recorder=recorder)
    learner.engine = TorchEngine(learner, torch.optim.SGD(model.parameters(), lr=0.5))
    learner.engine.backward(run(model, ROWS, [0]).sum() * float("inf"))
    with pytest.raises(FloatingPointError, match="iteration 7, prm: the gradient norm"):
        learner.engine.step()
    assert model.weight.item() == 1


def alternation_of(module: Any) -> Alternation:
    """A module's algorithm, with PyTorch's own passes and steps."""
    learning: Alternation = module.alternation
    for learner in learning.learners:
        learner.engine = TorchEngine(learner, SGD(learner.model.parameters()))
    return learning


class Batches(Callback):
    """Keeps the batches that a trainer gives."""

    def __init__(self) -> None:
        self.seen: list[list[Prompt]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch)


def test_a_plain_loop_learns_what_the_trainer_does() -> None:
    options: dict[str, Any] = {
        "verifier": EvenDigits(),
        "prm": PRM(kind=DRAWN_LINEAR),
        "policy_optimizer": SGD,
        "prm_optimizer": SGD,
        "schedule": Schedule(prm_updates=2, policy_mini_batches=2),
    }
    batches = Batches()
    trained = make_module(**{**options, "prm": PRM(kind=DRAWN_LINEAR)})
    by_trainer = fit(trained, make_data(with_experts()), 2, callbacks=[batches])
    module = make_module(**options)
    start = start_weights(module)
    learning = alternation_of(module)
    for iteration, prompts in enumerate(batches.seen):
        learning.begin(iteration)
        sampled = learning.roll_out(prompts)
        assert sampled is not None
        batch = learning.collect(sampled)
        batch = learning.with_log_probs(learning.keep(batch))
        learning.update_prm(batch)
        learning.update_policy(learning.with_advantages(batch))
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    assert distance(weights, start, "policy.") > 1e-4
    assert distance(weights, start, "prm.") > 1e-4
    assert distance(weights, by_trainer.weights) == 0


def test_the_algorithm_needs_no_lightning() -> None:
    names = ["alternation", "imitation", "shaping", "evaluation", "learning_rate", "optimizers"]
    imports = "; ".join(f"import repirl.learning.{name}" for name in names)
    check = "import sys; assert not [m for m in sys.modules if m.split('.')[0] in ('lightning', 'pytorch_lightning')]"
    done = subprocess.run([sys.executable, "-c", f"{imports}; {check}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
