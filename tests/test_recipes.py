"""What docs/recipes.md shows, run as it stands with a tiny model."""

from __future__ import annotations

import csv
import json
import re
import string
import sys
from pathlib import Path
from typing import Any

import pytest

from repirl.__main__ import main
from repirl.models.policy import Policy
from repirl.structs import Problem
from tests.test_paper import LLAMA

DOCS = Path(__file__).parents[1] / "docs" / "recipes.md"
BLOCKS = {name: text for name, text in re.findall(r"```\w+\n# (\S+)\n(.*?)```", DOCS.read_text(), re.DOTALL)}
SMALL = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]
SMALL += ["--model.text.max_prompt_tokens=40", "--model.text.max_response_tokens=12", "--data.batch_prompts=2"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files of the recipes, a tiny model and data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # `repirl` adds the working folder itself
    for name, text in BLOCKS.items():
        Path(name).write_text(text)
    for name in ("train", "val"):
        rows = [{"problem": f"{n} + 1 = ?", "solution": f"\\boxed{{{n + 1}}}", "answer": str(n + 1)} for n in range(4)]
        if name == "val":
            rows = [row | {"problem": f"Add 1 to {n}."} for n, row in enumerate(rows)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Policy(config=LLAMA, tokens=list(string.printable)).load().save_pretrained("my_model")
    return tmp_path


def fit(*words: str, steps: int = 2) -> list[dict[str, str]]:
    """The figures of the run."""
    main(["fit", "-c", "my.yaml", *words, *SMALL, f"--trainer.max_steps={steps}"])
    tables = sorted(Path("outputs").rglob("metrics.csv"), key=lambda path: path.stat().st_mtime)
    with tables[-1].open(newline="") as file:
        return list(csv.DictReader(file))


def logged(rows: list[dict[str, str]], name: str) -> list[str]:
    return [row[name] for row in rows if row.get(name)]


def test_the_smallest_configuration() -> None:
    rows = fit()
    assert len(logged(rows, "prm/ranking_loss")) == len(logged(rows, "rollout/accuracy")) == 2
    assert list(Path("outputs/my_run").rglob("last.ckpt"))


def test_validation_the_best_checkpoint_and_how_a_run_goes_on() -> None:
    assert BLOCKS["validate.yaml"].count("20") == 1
    for name in ("validate.yaml", "best.yaml"):
        Path(name).write_text(Path(name).read_text().replace("20", "1"))
    assert len(logged(fit("-c", "validate.yaml"), "val/greedy_accuracy")) == 3  # the start, iterations 1 and 2
    rows = fit("-c", "best.yaml", steps=3)
    assert logged(rows, "val/greedy_accuracy")
    assert Path("outputs/my_run/best/best.ckpt").is_file()
    last = Path("outputs/my_run/checkpoints/last.ckpt")
    rows = fit("-c", "best.yaml", f"--ckpt_path={last}", steps=4)
    assert len(logged(rows, "prm/ranking_loss")) == 1
    main(["export", "--checkpoint", str(last), "--part", "policy", "--output", "my_policy"])
    rows = fit("--output=outputs/second", "--model.policy.path=my_policy", f"--model.prm.weights={last}")
    assert len(logged(rows, "prm/ranking_loss")) == 2


def test_overlays_of_rates_and_adapters() -> None:
    rates = [float(rate) for rate in logged(fit("-c", "rates.yaml", steps=12), "policy/lr")]
    assert rates == pytest.approx([1e-7 * (n + 1) for n in range(10)] + [1e-6] * 2)
    rates = [float(rate) for rate in logged(fit("-c", "lora.yaml", "--output=outputs/lora"), "prm/lr")]
    assert rates == pytest.approx([1e-4, 1e-4])


def test_an_own_objective_source_callback_verifier_and_head(capsys: pytest.CaptureFixture[str]) -> None:
    rows = fit("--model.objective=my_objective.MeanDifference")
    assert all(float(row) for row in logged(rows, "prm/gradient_norm"))
    capsys.readouterr()
    fit("--data.train=my_source.Doubling", "--data.train.count=16", "-c", "callback.yaml")
    assert re.search(r"iteration 1: 0\.\d\d\niteration 2: 0\.\d\d", capsys.readouterr().out)
    rows = fit("--model.verifier=my_verifier.LastWord", "--output=outputs/verifier")
    assert all(0 <= float(row) <= 1 for row in logged(rows, "rollout/accuracy"))
    rows = fit("--model.prm.kind=my_head.Gated", "--output=outputs/head")
    assert all(float(row) for row in logged(rows, "prm/gradient_norm"))
    # A checkpoint of it scores; what cannot go out says so.
    checkpoint = Path("outputs/head/checkpoints/last.ckpt")
    Path("in.jsonl").write_text('{"problem": "1 + 1 = ?", "solution": "\\\\boxed{2}"}\n')
    main(["score", "--prm", str(checkpoint), "--input", "in.jsonl", "--output", "out.jsonl", "--tokens"])
    assert any(json.loads(Path("out.jsonl").read_text())["token_rewards"])
    with pytest.raises(SystemExit):
        main(["export", "--checkpoint", str(checkpoint), "--part", "prm", "--output", "my_prm"])
    assert "kind 'my_head.Gated' is none of q_head" in capsys.readouterr().err
    for module in ("my_objective", "my_source", "my_callback", "my_verifier", "my_head"):
        sys.modules.pop(module)


def test_a_last_word_is_judged_as_the_recipe_says() -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS["my_verifier.py"], names)
    problems = [Problem("a", "1 + 1 = ?", answer) for answer in ("2", "2", "2", None)]
    verdicts = names["LastWord"]().verify(problems, ["It is 2", "2 it is", " ", "2"])
    assert [verdict.correct for verdict in verdicts] == [True, False, False, None]


def test_every_file_of_the_recipes_is_run() -> None:
    here = Path(__file__).read_text()
    assert {name for name in BLOCKS if name not in here and f'"{Path(name).stem}"' not in here} == set()
    assert len(BLOCKS) == 11
