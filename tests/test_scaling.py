"""What docs/scaling.md has on paper: its tables are the benchmark's, whose parts are those of models and runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.scaling import GPUS, MODELS, RANK, Model, Passes, batch, passes, peak, sharded_traffic, table
from benchmarks.workloads import LLAMA

from repirl.applications.plan import GIB
from repirl.applications.shallow import read
from repirl.models.footprint import weights_in
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from tests.distributed.launch import saved_by
from tests.modules.tiny import TOKENS, make_module

PAGE = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text()
SMALL = Model(layers=3, hidden=128, intermediate=352, heads_width=64, vocabulary=len(TOKENS), tied=True)
CONFIG = LLAMA | {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3}
CONFIG |= {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize("adapters", [False, True])
def test_the_page_has_the_tables(adapters: bool) -> None:
    assert table(adapters=adapters) in PAGE, "python benchmarks/scaling.py prints what belongs there"


@pytest.mark.parametrize("lora", [None, {"r": RANK, "target_modules": "all-linear"}])
def test_weights_and_activations_are_those_of_a_model(lora: Any) -> None:
    """Small models read by `repirl plan`: weights to 1 %, what a pass keeps to 15 %."""
    module = make_module(policy=Policy(config=CONFIG, tokens=TOKENS, lora=lora), prm=PRM(kind="linear"))
    figures = read(module.alternation)
    vocabulary = module.policy.load().vocabulary_size
    model = replace(SMALL, vocabulary=vocabulary)
    expected = model.weights + (model.adapters if lora else 0)
    assert weights_in(module.policy)[0] == pytest.approx(expected, rel=0.01)
    assert figures.policy_kept == pytest.approx(4 * model.kept(checkpointing=False), rel=0.15)


def test_the_papers_batch_by_hand() -> None:
    """Two prompts a process on 64: 2 (1,535 + 4 x 3,000) = 27,070 tokens of rollouts, 33,070 with an expert each."""
    of = batch(64)
    assert (of.tokens(), of.tokens(1)) == (27_070, 33_070)
    # Three passes of 16,384 tokens with experts, two without; four mini-batches make at least four.
    assert passes(of) == Passes(policy_evaluations=3, prm_evaluations=2, policy_training=4, prm_training=4)
    assert passes(batch(1)).policy_training == -(-128 * 13_535 // 16_384)


def test_more_gpus_never_need_more_memory_each() -> None:
    for model in MODELS.values():
        for adapters in (False, True):
            peaks = [peak(model, n, adapters=adapters) for n in GPUS]
            assert peaks == sorted(peaks, reverse=True)
    assert peak(MODELS["3 B"], 1, adapters=True) > MODELS["3 B"].weights * 2 + GIB


@pytest.mark.parametrize("steps", [1, 2])
def test_what_a_run_receives_is_what_is_on_paper(tmp_path: Path, steps: int) -> None:
    """One iteration of two processes, a pass a mini-batch. To 3 %: the PRM's head, and padding to equal parts.

    The objective asks for the reference's log-probabilities too: one evaluation more than the paper's run has.
    """
    found = saved_by("tests.distributed.sharded_traffic", tmp_path / "out.pt", str(steps))
    of = Passes(policy_evaluations=2, prm_evaluations=1, policy_training=steps, prm_training=steps)
    expected = sharded_traffic(found["layers"], found["rest"], of, 2, width=4)
    assert found["gradients"] == pytest.approx((found["layers"] + found["rest"]) * 2 * steps * 4 / 2, rel=0.03)
    assert found["weights"] + found["gradients"] == pytest.approx(expected, rel=0.03)
