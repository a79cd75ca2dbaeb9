"""Model cards say what checkpoint and run's folder say, and their code makes the tokens of training."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from repirl.applications.card import prompt_lines, read_figures, response_lines
from repirl.applications.export import export
from repirl.data.codec import ChatCodec
from repirl.learning.schedule import Schedule
from repirl.models.prm import PRM
from tests.data.tokenizers_of_kinds import KINDS, byte_level, llama
from tests.modules.tiny import RIGHT, make_module, run

CONFIGURATION = """
model: {class_path: repirl.RePIRL, init_args: {objective: {class_path: repirl.IRL}, schedule: {prm_updates: %d}}}
data: {init_args: {train: {path: own.jsonl}}}
"""


def saved(path: Path, updates: int = 1, **options: Any) -> Path:
    """The checkpoint of two iterations, whose configuration says so."""
    done = run(make_module(schedule=Schedule(prm_updates=updates), **options), steps=2)
    done.module.configuration = CONFIGURATION % updates
    done.trainer.save_checkpoint(path, weights_only=True)
    return path


def test_a_card_says_what_checkpoint_and_folder_say(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "run" / "checkpoints" / "last.ckpt", prm=PRM("linear"))
    metrics = "epoch,step,prm/loss,val/greedy_accuracy\n0,1,.5,\n0,1,,.25\n0,2,,.75\n0,3,,.9\n"
    (checkpoint.parents[1] / "metrics.csv").write_text(metrics)
    export(checkpoint, tmp_path / "reward", part="prm")
    card = (tmp_path / "reward" / "README.md").read_text(encoding="utf-8")
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "token-classification",
        "tags": ["repirl"],
    }
    assert "# license: yours to choose" in front
    assert "| `val/greedy_accuracy` | 0.75 |" in body  # of iteration 2, where the checkpoint is
    assert "prm/loss" not in body
    for said in (
        "arXiv 2602.07832",
        "| kind | `linear` |",
        "| iterations | 2 |",
        "8 training prompts",
        "path: own.jsonl",
    ):
        assert said in body
    assert len(re.findall(r"(?m)^```", body)) % 2 == 0


@pytest.mark.parametrize(
    ("updates", "options", "said"),
    [
        (1, {}, "rePIRL (arXiv 2602.07832)"),
        (0, {}, "policy gradient with a process reward model that is not trained"),
        (1, {"prm": None, "verifier": RIGHT}, "policy gradient on outcomes alone, without a process reward model"),
    ],
)
def test_a_card_names_the_method_that_was_run(updates: int, options: Any, said: str, tmp_path: Path) -> None:
    export(saved(tmp_path / "two.ckpt", updates, **options), tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert f"| method | {said}" in card
    assert ("PRM objective" in card) == ("prm" not in options)


def test_figures_are_the_last_ones_of_their_name(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,val/a,test/b,c\n1,.1,,7\n2,,.2,\n3,.3,,\n4,.4,,\n")
    assert read_figures(tmp_path / "metrics.csv", 3) == {"val/a": ".3", "test/b": ".2"}


def tokens_by_card(codec: ChatCodec, problem: str, solution: str) -> list[int]:
    names: dict[str, Any] = {"tokenizer": codec.tokenizer, "problem": problem, "solution": solution}
    exec("\n".join([*prompt_lines(codec), *response_lines(codec)]), names)
    return names["prompt"] + names["response"]


@pytest.mark.parametrize("form", ["{problem}{instruction}\n", "Q: {problem}{instruction}\nA:"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_card_writes_the_tokens_of_training(kind: str, form: str) -> None:
    codec = ChatCodec(KINDS[kind](), instruction=" Think.", prompt_format=form)
    problem, solution = "What is 2 + 3?", "The answer is\n5."
    assert tokens_by_card(codec, problem, solution) == [*codec.encode_prompt(problem), *codec.encode_response(solution)]


@pytest.mark.parametrize("tokenizer", [llama, byte_level])
def test_a_card_uses_the_chat_template(tokenizer: Any) -> None:
    made = tokenizer()
    made.chat_template = (
        "{% for m in messages %}{{ m['role'] + mark + m['content'] + ('</s>' if m['role'] == 'assistant' else '') + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant' + mark }}{% endif %}"
    )
    codec = ChatCodec(made, instruction=" Think.", template_options={"mark": ":\n"})
    assert codec.template == "chat"
    problem, solution = "What is 2 + 3?", "The answer is\n5."
    assert tokens_by_card(codec, problem, solution) == [*codec.encode_prompt(problem), *codec.encode_response(solution)]
