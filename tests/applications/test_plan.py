"""What a run will need: batch numbers and memory by hand, and figures of shallow models against those of deep ones."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from repirl.__main__ import main
from repirl.applications.plan import Batch, advice, batch_of, memory, sentence
from repirl.applications.shallow import Figures, read
from repirl.learning.prm_objectives import IRL
from repirl.learning.schedule import Schedule
from repirl.models.footprint import Linear, Shape, rows_of_lengths, saved_bytes, weights_in
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.modules.repirl import RePIRL
from tests.modules.tiny import LLAMA, TEXT, TOKENS, make_module

LORA = {"r": 2, "target_modules": "all-linear"}
DEEP = LLAMA | {"num_hidden_layers": 3}
BATCH = Batch(
    prompts=10,
    processes=4,
    samples=2,
    prompt_tokens=30,
    response_tokens=50,
    micro_batch_tokens=200,
    rows=128,
    prm_steps=2,
    policy_steps=4,
)
FIGURES = Figures(
    shape=Shape(layers=2, hidden=8, vocabulary=100, intermediate=16, kv_width=4, tied=True),
    held=3000.0,
    policy_held=1000.0,
    policy_trained=900.0,
    prm_trained=500.0,
    policy_kept=70.0,
    prm_kept=60.0,
    policy_forward=0.0,
    policy_backward=0.0,
    prm_forward=0.0,
    prm_backward=0.0,
    decode=0.0,
)


def test_batch_numbers() -> None:
    assert BATCH.own_prompts == 3  # of 10 on 4 processes
    assert BATCH.tokens() == 3 * (30 + 2 * 50)
    assert BATCH.tokens(experts=1) == 3 * (30 + 3 * 50)
    assert BATCH.pass_tokens() == 200
    assert sentence(BATCH).startswith(
        "an iteration: 10 prompts x 2 rollouts = 20, 3 prompts a process; 2 optimiser steps"
    )


def test_memory_of_a_phase_is_the_sum_of_its_parts() -> None:
    parts = memory(FIGURES, BATCH, half=False, base=5.0, on_cpu=False)
    held = {"weights": 3000 * 4, "optimiser": 1400 * 8, "program": 5}
    layer = (2 * 16 + 4 * 8) * 4  # bytes a token
    # 6 rows of 30 + 50 tokens, 2 layers, 4 numbers of 4 bytes; logits 6 x 100, four times in float32
    assert parts["rollout"] == held | {"cache": 6 * 80 * 2 * 4 * 4, "logits": 6 * 100 * 4 * 4}
    assert parts["log-probs"] == held | {"activations": 200 * layer, "logits": 2 * 200 * 100 * 4}
    assert parts["PRM update"] == held | {"gradients": 500 * 4, "activations": 200 * (60 + layer)}
    assert parts["policy update"] == held | {
        "gradients": 900 * 4,
        "activations": 200 * (70 + layer),
        "logits": 3 * 200 * 100 * 4 + 100 * 8 * 4,  # and the gradient of the output layer, once more
    }
    on_cpu = memory(FIGURES, BATCH, half=False, base=5.0)
    assert on_cpu["PRM update"]["cache"] == parts["rollout"]["cache"]


def test_half_weights_have_masters_and_shards_are_gathered() -> None:
    whole, parts = (memory(FIGURES, BATCH, half=True, base=0.0, shards=n, on_cpu=False) for n in (1, 4))
    assert whole["PRM update"]["weights"] == 3000 * 2
    assert whole["PRM update"]["optimiser"] == 1400 * 12
    # A quarter of 1,600 frozen weights of 2 bytes and 1,400 trained ones of 4, which are their own masters.
    assert parts["PRM update"]["weights"] == (1600 * 2 + 1400 * 4) / 4
    assert parts["PRM update"]["optimiser"] == 1400 * 8 / 4
    assert parts["PRM update"]["gradients"] == whole["PRM update"]["gradients"] / 4
    # The other three quarters: of the policy for rollouts; of a vocabulary of 800 and two layers of 100 meanwhile.
    assert parts["rollout"]["gathered weights"] == 1000 * 2 * 3 / 4
    assert parts["PRM update"]["gathered weights"] == (800 + 2 * 100) * 2 * 3 / 4
    assert "gathered weights" not in whole["rollout"]


def test_advice_names_what_helps_most_first() -> None:
    parts = memory(FIGURES, BATCH, half=False, base=0.0, on_cpu=False)
    assert advice(parts, 1e9, checkpointing=False, lora=False, shared=False) == []
    told = advice(parts, 1e3, checkpointing=False, lora=False, shared=False)
    assert "policy update needs" in told[0]
    assert "micro_batch_tokens" in told[1]  # 200 tokens' logits are its largest part
    assert not any("lora.yaml" in line for line in advice(parts, 1e3, checkpointing=False, lora=True, shared=True))


def deep(**options: Any) -> RePIRL:
    lora = options.pop("lora", None)
    return make_module(policy=Policy(config=DEEP, tokens=TOKENS, lora=lora), **options)


@pytest.mark.parametrize(
    ("options", "lora"),
    [
        ({"prm": PRM("q_head")}, None),
        ({"prm": PRM("head")}, None),
        ({"prm": PRM("implicit"), "objective": IRL(base_measure="uniform")}, None),
        ({"prm": PRM("linear", freeze_backbone=True)}, None),
        ({"prm": PRM("q_head", rank=3)}, LORA),
        ({"prm": PRM("q_head", lora=LORA)}, LORA),
    ],
)
def test_weights_of_deep_models_are_those_of_shallow_ones(options: dict[str, Any], lora: Any) -> None:
    module = deep(lora=lora, **options)
    figures = read(module.alternation)
    module.configure_model()
    assert figures.held == pytest.approx(weights_in(module)[0], abs=0.5)
    assert figures.policy_trained == pytest.approx(weights_in(module.policy)[1], abs=0.5)
    assert figures.prm_trained == pytest.approx(weights_in(module.prm)[1], abs=0.5)


def test_what_passes_keep_is_linear_in_layers_and_tokens() -> None:
    config = {**LLAMA, "hidden_size": 64, "intermediate_size": 128}

    def kept(layers: int, prompts: int) -> float:
        policy = Policy(config=config | {"num_hidden_layers": layers}, tokens=TOKENS).load()
        return float(saved_bytes(policy, rows_like(prompts)))

    through = Linear.through(kept(1, 1), kept(2, 1))
    assert kept(4, 1) == pytest.approx(through.at(4), rel=0.01)
    assert kept(2, 4) == pytest.approx(4 * kept(2, 1), rel=0.02)


def rows_like(prompts: int) -> Any:
    rows = rows_of_lengths(prompts, 4, 12, 20)
    for ids in (rows.prompt_ids, rows.response_ids):
        ids.remainder_(len(TOKENS))
    return rows


def test_batch_of_a_module() -> None:
    module = deep(schedule=Schedule(prm_updates=2, policy_mini_batches=3), samples=5)
    batch = batch_of(module.alternation, 8, 2)
    assert (batch.own_prompts, batch.samples, batch.prm_steps, batch.policy_steps) == (4, 5, 2, 3)
    assert (batch.prompt_tokens, batch.response_tokens) == (TEXT.max_prompt_tokens, TEXT.max_response_tokens)
    assert batch.rows == 125  # whole prompts of at most 128 rows


def test_the_peak_is_of_this_process_alone() -> None:
    """A parent that has taken 2 GB."""
    child = "from repirl.applications.plan import resident; print(resident())"
    parent = (
        f"import subprocess, sys; taken = b'x' * 2**31; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    said = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True).stdout
    assert 1e7 < float(said) < 1.5e9


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
    with pytest.raises(SystemExit):  # its start policy is not there yet
        main(["plan", "--config", str(start)])
    what, todo = capsys.readouterr().err.strip().split("\n")
    assert "outputs/quickstart/seed-1/start" in what
    assert todo
    Policy(config=LLAMA, tokens=TOKENS).load().save_pretrained(tmp_path / "start")
    words = ["plan", "--config", str(start), "--model.policy.path=start"]
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    # in a process of its own: what this one has taken so far, for other tests, would count
    said = subprocess.run([sys.executable, "-m", "repirl", *words], capture_output=True, text=True, check=True).stdout
    assert ("MALLOC_MMAP_THRESHOLD_=1048576" in said) == (platform.libc_ver()[0] == "glibc")
    assert "an iteration: 16 prompts x 8 rollouts = 128; 2 optimiser steps of the PRM, 4 of the policy" in said
    assert "peak: 0." in said
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1048576")
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--memory", "0.1"])
    assert stopped.value.code == 1
    said = capsys.readouterr().out
    assert "GiB more than there is" in said
    assert "glibc" not in said
