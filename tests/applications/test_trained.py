"""`repirl.load`: the rewards of a solution in words are those of training, token for token."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import repirl
from repirl import checkpoints
from repirl.applications.trained import load
from repirl.learning.settings import Text
from repirl.models.prm import PRM
from repirl.modules.sft import SFT
from repirl.structs import Problem, Prompt, Response
from tests.modules.tiny import ADAM, SGD, TEXT, make_module, make_policy, run

ROOT = Path(__file__).parents[2]
PROBLEM, SOLUTION = "1a2", "a3\nb4c\n"
LONG = Text(instruction="d", prompt_format="{problem}{instruction}b", max_prompt_tokens=16, max_response_tokens=10)


def saved(path: Path, **options: Any) -> Any:
    done = run(make_module(**{"policy_optimizer": ADAM, "prm_optimizer": ADAM} | options), steps=2)
    done.trainer.save_checkpoint(path)
    return done.module


def rewards_of(module: Any) -> list[float]:
    """As predictions and validations of the module have them."""
    ids = module.codec.encode_response(SOLUTION)
    prompt = Prompt(Problem("one", PROBLEM), module.codec.encode_prompt(PROBLEM))
    return module.token_rewards([prompt], [Response(ids, SOLUTION, finished=True)])[0]


@pytest.mark.parametrize("text", [TEXT, LONG])
@pytest.mark.parametrize("granularity", ["token", "step"])
def test_a_score_is_the_module_s(granularity: Any, text: Text, tmp_path: Path) -> None:
    module = saved(tmp_path / "two.ckpt", prm=PRM(granularity=granularity), text=text)
    trained = repirl.load(tmp_path / "two.ckpt")
    assert trained.text == text
    score = trained.score(PROBLEM, SOLUTION)
    r = rewards_of(module)
    assert score.token_rewards == tuple(r)
    # "a", "3", newline | "b", "4", "c", newline, the end token, which is no step of its own
    assert score.tokens == ("a", "3", "\n", "b", "4", "c", "\n", "<eos>")
    assert score.steps == ("a3\n", "b4c\n")
    assert score.step_rewards == pytest.approx((sum(r[:3]), sum(r[3:])))
    if granularity == "step":
        assert [place for place, value in enumerate(r) if value] == [2, 7]
    assert max(map(abs, r)) > 1e-3


def test_the_prompt_counts(tmp_path: Path) -> None:
    saved(tmp_path / "two.ckpt")
    trained = repirl.load(str(tmp_path / "two.ckpt"))
    assert trained.score("1a2", SOLUTION) != trained.score("3c2", SOLUTION)


def test_how_problems_become_prompts_is_found(tmp_path: Path) -> None:
    """In the checkpoint; in older ones in their configuration; else it must be given."""
    path = tmp_path / "two.ckpt"
    module = saved(path, text=LONG)
    content = checkpoints.read(path)
    described = content["repirl"]
    assert described["text"] == asdict(LONG)
    yaml = "model: {init_args: {text: {instruction: d, prompt_format: '{problem}{instruction}b'}}}"
    checkpoints.write(content | {"repirl": described | {"text": None, "configuration": yaml}}, path)
    assert repirl.load(path).score(PROBLEM, SOLUTION).token_rewards == tuple(rewards_of(module))
    checkpoints.write(content | {"repirl": described | {"text": None, "configuration": None}}, path)
    with pytest.raises(ValueError, match="does not say how problems become prompts: give `text`"):
        repirl.load(path)
    assert repirl.load(path, text=LONG).score(PROBLEM, SOLUTION).token_rewards == tuple(rewards_of(module))
    assert load(path, {"instruction": "e"}).text == Text(instruction="e")
    checkpoints.write(content, path)
    assert load(path, {"max_response_tokens": 7}).text == replace(LONG, max_response_tokens=7)


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "two.ckpt")
    with pytest.raises(ValueError, match="device 'cuda:99' is not to be had here"):
        repirl.load_prm(tmp_path / "two.ckpt", device="cuda:99")
    assert repirl.load_prm(tmp_path / "two.ckpt", device="cpu").score(PROBLEM, SOLUTION).steps


def test_a_run_without_a_prm_has_a_policy_alone(tmp_path: Path) -> None:
    done = run(SFT(policy=make_policy(), policy_optimizer=SGD, text=TEXT))
    done.trainer.save_checkpoint(tmp_path / "sft.ckpt")
    trained = repirl.load(tmp_path / "sft.ckpt")
    assert trained.prm is None
    weights = trained.policy.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in done.module.policy.state_dict().items())
    with pytest.raises(ValueError, match="this checkpoint holds no PRM"):
        trained.score(PROBLEM, SOLUTION)
    with pytest.raises(ValueError, match="no such file"):
        repirl.load(tmp_path / "other.ckpt")


def test_lightning_is_not_imported(tmp_path: Path) -> None:
    saved(tmp_path / "two.ckpt")
    code = "import sys, repirl; repirl.load(sys.argv[1]).score('1a2', 'a3'); assert 'lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "two.ckpt")], check=True)


def test_the_example_of_the_readme(tmp_path: Path) -> None:
    saved(tmp_path / "two.ckpt")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(import repirl\n.*?)```", text, flags=re.DOTALL)
    code, changed = re.subn(r'"outputs/[^"]*\.ckpt"', lambda _: repr(str(tmp_path / "two.ckpt")), example)
    assert changed == 1
    code, changed = re.subn(r"score\(.*\)", lambda _: f"score({PROBLEM!r}, {SOLUTION!r})", code)
    assert changed == 1
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["score"].steps == ("a3\n", "b4c\n")
