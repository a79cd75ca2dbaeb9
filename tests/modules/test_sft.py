"""Supervised fine-tuning: the loss is that of the experts' tokens, and falls."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from repirl.modules.sft import SFT
from tests.modules.tiny import (
    ADAM,
    TEXT,
    EvenDigits,
    Problems,
    Run,
    distance,
    make_data,
    make_policy,
    problems,
    run,
    with_experts,
)


def make_sft(**options: Any) -> SFT:
    return SFT(**({"policy": make_policy(), "policy_optimizer": ADAM, "text": TEXT} | options))


def test_the_loss_is_the_mean_nll_of_response_tokens() -> None:
    train = with_experts(4)
    module = make_sft(policy_optimizer=partial(torch.optim.SGD, lr=0.0))
    first = run(module, make_data(train)).figures[0]
    nll, entropy, tokens = 0.0, 0.0, 0
    for problem in train:  # all four are in the batch; each expert alone, by one plain forward
        for text in problem.solutions:
            prompt, response = module.codec.encode_prompt(problem.text), module.codec.encode_response(text)
            with torch.no_grad():
                logits = module.policy.model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
            at = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            nll -= float(at[torch.arange(len(response)), torch.tensor(response)].sum())
            entropy -= float((at.exp() * at).sum())
            tokens += len(response)
    assert sum(len(p.solutions) for p in train) == 7  # one, two, three and one experts
    assert first["sft/loss"] == pytest.approx(nll / tokens, rel=1e-5)
    assert first["sft/entropy"] == pytest.approx(entropy / tokens, rel=1e-5)


def test_the_loss_falls_on_a_fixed_set() -> None:
    done = run(make_sft(), make_data(problems(4)), steps=20)
    losses = [figures["sft/loss"] for figures in done.figures]
    assert len(losses) == done.trainer.global_step == 20
    assert losses[-1] < 0.7 * losses[0]
    assert all(later < earlier for earlier, later in zip(losses[:-5:5], losses[5::5], strict=True))


@pytest.mark.parametrize("budget", [1, 30, 77])
def test_micro_batches_do_not_change_the_step(budget: int) -> None:
    def trained(budget: int) -> Run:
        # one, two or three experts a prompt, of different lengths; two steps, the second from other weights
        module = make_sft(
            policy_optimizer=partial(torch.optim.SGD, lr=0.5), policy_clip_norm=1e9, micro_batch_tokens=budget
        )
        return run(module, make_data(with_experts()), steps=2)

    whole, parts = trained(10**6), trained(budget)
    assert distance(parts.weights, whole.weights) < 1e-6
    for got, expected in zip(parts.figures, whole.figures, strict=True):
        assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert whole.figures[1]["sft/loss"] < whole.figures[0]["sft/loss"] - 0.01


@pytest.mark.parametrize("budget", [1, 10**6])
def test_a_loss_that_is_not_finite_names_its_prompt_in_any_micro_batch(budget: int) -> None:
    train = problems(4)
    module = make_sft(micro_batch_tokens=budget)
    module.configure_model()
    first = module.codec.encode_prompt(train[2].text)
    seen = module.policy.forward

    def spoiled(rows: Any) -> Any:
        log_probs, entropy = seen(rows)
        pairs = zip(rows.prompt_ids, rows.prompt_mask, strict=True)
        bad = torch.tensor([row[mask].tolist() == list(first) for row, mask in pairs])
        return torch.where(bad[:, None] & rows.response_mask, log_probs * float("nan"), log_probs), entropy

    module.policy.forward = spoiled  # type: ignore[method-assign]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(FloatingPointError, match=f"iteration 0: the loss is not finite for prompt '{train[2].id}'$"):
        run(module, make_data(train))
    assert distance(module.state_dict(), before) == 0


def test_one_seed_gives_one_run_and_resuming_goes_on(tmp_path: Any) -> None:
    whole = run(make_sft(), steps=3)
    first = run(make_sft(), steps=2)
    first.trainer.save_checkpoint(tmp_path / "some.ckpt")
    second = run(make_sft(), steps=3, seed=9, ckpt_path=tmp_path / "some.ckpt")
    assert distance(second.weights, whole.weights) == 0
    assert first.figures + second.figures == whole.figures


def test_nan_stops_the_run_and_names_a_prompt() -> None:
    module = make_sft()
    module.configure_model()
    with torch.no_grad():
        module.policy.head_weight[:] = float("nan")
    with pytest.raises(FloatingPointError, match=r"iteration 0: the loss is not finite for prompt 'running-sums/"):
        run(module)


def test_evaluation_and_prediction() -> None:
    wanted = [replace(p, solutions=()) for p in problems(3, "test")]
    module = make_sft(verifier=EvenDigits(), eval_samples=2)
    data = make_data(val=Problems(wanted), test=Problems(wanted), predict=Problems(wanted))
    trainer = run(module, data, limit_val_batches=1.0).trainer
    found = trainer.validate(module, data, verbose=False)[0]
    assert 0 <= found["val/greedy_accuracy"] <= 1
    assert round(6 * found["val/sampled_accuracy"], 5) % 1 == 0  # three problems, two samples each
    tested = trainer.test(module, data, verbose=False)[0]
    assert {name.replace("test/", "val/"): value for name, value in tested.items()} == found
    records = [record for batch in trainer.predict(module, data) for record in batch]
    assert [record["id"] for record in records] == [p.id for p in wanted]
    assert all(record["prm_token_rewards"] is None for record in records)
