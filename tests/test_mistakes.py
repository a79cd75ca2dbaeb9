"""Mistakes of a first hour, and the two lines that answer them; docs/mistakes.md is made of this table.

`python -m tests.test_mistakes` writes the page anew.
"""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from repirl.__main__ import main
from tests.test_recipes import folder  # noqa: F401  a working folder with a tiny model and data

PAGE = Path(__file__).parents[1] / "docs" / "mistakes.md"
HEAD = """# Mistakes, and what is said

A mistake ends with two lines and status 2: what is wrong and where, then what to do. Set
`REPIRL_TRACEBACK=1` for the traceback. The folder has `my.yaml` of [recipes.md](recipes.md), a
model in `my_model`, and `train.jsonl`. `tests/test_mistakes.py` makes each of these mistakes and
compares the lines; this page is made from it.
"""
SHOWN = " (REPIRL_TRACEBACK=1 shows where it was found)"
Prepare = Callable[[], object]


@dataclass(frozen=True)
class Mistake:
    """title: what was done. words: after `repirl fit -c my.yaml`. lines: what is said. prepare: makes the files."""

    title: str
    words: Sequence[str]
    lines: tuple[str, str]
    prepare: Prepare = lambda: None


def rows(name: str, **changed: object) -> Prepare:
    """Writes a table whose rows have these fields changed; None = without it."""

    def write() -> None:
        made = ({"problem": f"{n} + 1 = ?", "solution": f"\\boxed{{{n + 1}}}", "answer": str(n + 1)} for n in range(4))
        kept = ({key: value for key, value in (row | changed).items() if value is not None} for row in made)
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in kept))

    return write


def text(name: str, content: str) -> Prepare:
    return lambda: Path(name).write_text(content)


def run_before(*words: str) -> Prepare:
    return lambda: main(["fit", "-c", "my.yaml", "-c", "small.yaml", *words])


def without_tokenizer() -> None:
    shutil.copytree("my_model", "bare_model")
    for file in Path("bare_model").glob("tokenizer*"):
        file.unlink()


MISTAKES = [
    Mistake(
        "a model folder that does not exist",
        ["--model.policy.path=my_modle"],
        ("fit stopped: model 'my_modle': no such folder or file", f"did you mean 'my_model'?{SHOWN}"),
    ),
    Mistake(
        "a model folder without a tokenizer",
        ["--model.policy.path=bare_model"],
        (
            "fit stopped: model folder 'bare_model' has no tokenizer: none of tokenizer.json, tokenizer.model, "
            "tokenizer_config.json, vocab.json, vocab.txt, spiece.model",
            f"save the tokenizer there too, by tokenizer.save_pretrained(folder){SHOWN}",
        ),
        without_tokenizer,
    ),
    Mistake(
        "a checkpoint of weights alone, to go on from",
        ["--ckpt_path=outputs/my_run/checkpoints/last.ckpt"],
        (
            "fit stopped: checkpoint 'outputs/my_run/checkpoints/last.ckpt' holds weights alone (save_weights_only): "
            "`fit` cannot go on from it",
            f"Give one that holds everything, or start a new run from the weights{SHOWN}",
        ),
        run_before(
            "--trainer.callbacks=repirl.callbacks.checkpoint.Checkpoint",
            "--trainer.callbacks.dirpath={output}/checkpoints",
            "--trainer.callbacks.save_weights_only=true",
        ),
    ),
    Mistake(
        "a checkpoint with adapters of another rank",
        ["-c", "rank8.yaml", "--ckpt_path=outputs/my_run/checkpoints/last.ckpt"],
        (
            "fit stopped: checkpoint 'outputs/my_run/checkpoints/last.ckpt' does not fit: 28 weights have another shape, "
            "the first is 'policy.model.model.layers.0.self_attn.q_proj.lora_A.default.weight' ([16, 16] in it, [8, 16] "
            "here) (another LoRA rank)",
            f"Give the model, LoRA and PRM settings with which it was saved{SHOWN}",
        ),
        lambda: (
            run_before("-c", "lora.yaml")(),
            text("rank8.yaml", Path("lora.yaml").read_text().replace("r: 16", "r: 8"))(),
        ),
    ),
    Mistake(
        "a checkpoint that does not exist",
        ["--ckpt_path=outputs/lost.ckpt"],
        (
            "--ckpt_path: 'outputs/lost.ckpt' does not exist",
            "give an existing checkpoint, or one of best, last, hpc, registry, or leave --ckpt_path out",
        ),
    ),
    Mistake(
        "Lightning's gradient clipping",
        ["--trainer.gradient_clip_val=1.0"],
        (
            "trainer.gradient_clip_val=1.0 has no effect: policy and PRM have optimisers of their own",
            "set model.policy_clip_norm and model.prm_clip_norm, the largest gradient norm of each model",
        ),
    ),
    Mistake(
        "Lightning's gradient accumulation",
        ["--trainer.accumulate_grad_batches=4"],
        (
            "trainer.accumulate_grad_batches=4 has no effect: policy and PRM have optimisers of their own",
            "an iteration's gradient is of all its prompts: set data.batch_prompts, their number, and "
            "model.micro_batch_tokens, which bounds memory and changes no result",
        ),
    ),
    Mistake(
        "Lightning's half precision",
        ["--trainer.precision=bf16-true"],
        (
            "fit stopped: trainer.precision 'bf16-true' would turn rewards, advantages and rotary frequencies into that "
            "type too",
            f"leave it at 32-true, and give the weights their type by policy.dtype: bfloat16{SHOWN}",
        ),
    ),
    Mistake(
        "Lightning's FSDP",
        ["--trainer.strategy=fsdp"],
        (
            "trainer.strategy 'fsdp' fails where two models have optimisers of their own",
            "set it to repirl.modules.strategies.ShardedStrategy",
        ),
    ),
    Mistake(
        "a monitored figure that nobody logs",
        ["--trainer.callbacks=lightning.pytorch.callbacks.EarlyStopping", "--trainer.callbacks.monitor=val/accuracy"],
        (
            "fit stopped: a callback monitors 'val/accuracy', which is not logged",
            "did you mean 'val/greedy_accuracy'? there is val/greedy_accuracy, val/greedy_accuracy_high, "
            "val/greedy_accuracy_low, val/greedy_tokens, val/greedy_truncated, val/greedy_unparsable, "
            "val/sampled_accuracy, val/sampled_accuracy_high, val/sampled_accuracy_low, val/sampled_tokens, "
            f"val/sampled_truncated, val/sampled_unparsable{SHOWN}",
        ),
    ),
    Mistake(
        "a device that is not there",
        ["--trainer.accelerator=mps"],
        (
            "cannot build what the configuration describes: `MPSAccelerator` can not run on your system since the "
            "accelerator is not available. The following accelerator(s) is available and can be passed into "
            "`accelerator` argument of `Trainer`: ['cpu'].",
            "this machine has no such device: set trainer.accelerator to cpu, or to auto, and trainer.devices to 1 or more "
            "(REPIRL_TRACEBACK=1 shows where it was refused)",
        ),
    ),
    Mistake(
        "no end",
        ["--trainer.max_steps=-1"],
        (
            "nothing ends the run: neither trainer.max_steps nor trainer.max_epochs is set",
            "give trainer.max_steps, the number of iterations, or trainer.max_epochs, passes over the prompts; -1 is no end",
        ),
    ),
    Mistake(
        "rows without a solution",
        ["--data.train.path=bare.jsonl"],
        (
            "fit stopped: train: none of 4 problems is usable (without_expert 4)",
            "no row has a solution; name its field, as columns={'solution': ...}; to train on problems without experts set "
            f"expert_share to 0, or require_experts to false{SHOWN}",
        ),
        rows("bare.jsonl", solution=None),
    ),
    Mistake(
        "rows without an answer",
        ["--data.train.path=bare.jsonl"],
        (
            "fit stopped: train: 4 of 4 problems have no gold answer, the first is 'bare/1'",
            "name its field by columns={'answer': ...}, drop the rows, or set model.verifier to null, which needs "
            f"none{SHOWN}",
        ),
        rows("bare.jsonl", answer=None),
    ),
    Mistake(
        "a field of another name",
        ["--data.train.path=other.jsonl"],
        (
            "fit stopped: other.jsonl, line 1: no field 'problem'",
            "there is 'solution', 'answer', 'question'. Name the right one with columns={'problem': ...}" + SHOWN,
        ),
        rows("other.jsonl", problem=None, question="1 + 1 = ?"),
    ),
    Mistake(
        "a line that is not JSON",
        ["--data.train.path=broken.jsonl"],
        (
            "fit stopped: broken.jsonl, line 1: not JSON, Expecting property name enclosed in double quotes at character 2",
            f"one object a line{SHOWN}",
        ),
        text("broken.jsonl", "{problem\n"),
    ),
    Mistake(
        "solutions longer than responses may be",
        ["--model.text.max_response_tokens=3"],
        (
            "fit stopped: train: none of 4 problems is usable (without_expert 4, experts_too_long 4)",
            f"raise text.max_response_tokens (3), which solutions must fit into{SHOWN}",
        ),
    ),
    Mistake(
        "lengths beyond the model's context",
        ["--model.text.max_response_tokens=4000"],
        (
            "fit stopped: text: max_prompt_tokens 40 and max_response_tokens 4000 together exceed the model's context of "
            "1024 tokens",
            f"lower one of them{SHOWN}",
        ),
    ),
    Mistake(
        "a class path that nearly exists",
        ["--model.verifier=repirl.verifier.MathVerifyer"],
        (
            "unknown class path 'repirl.verifier.MathVerifyer' for 'model.init_args.verifier.class_path' (command line): "
            "module 'repirl' has no attribute 'verifier'; it has IRL, PRM, Policy, RePIRL, SupervisedPRM, load, load_prm",
            "did you mean 'repirl.verifiers.math.MathVerifier'?",
        ),
    ),
    Mistake(
        "an optimiser that nearly exists",
        ["--model.policy_optimizer=torch.optim.Adamw"],
        (
            "unknown class path 'torch.optim.Adamw' for 'model.init_args.policy_optimizer' (command line)",
            "did you mean 'torch.optim.AdamW'?",
        ),
    ),
    Mistake(
        "a key that nearly exists",
        ["--model.text.max_prompt_token=40"],
        (
            "unknown key 'model.init_args.text.max_prompt_token' (command line): repirl.RePIRL.text has no "
            "'max_prompt_token'",
            "did you mean 'max_prompt_tokens'? valid keys: instruction, max_prompt_tokens, max_response_tokens, "
            "prompt_format, template, template_options",
        ),
    ),
    Mistake(
        "a value of the wrong type",
        ["-c", "bad.yaml"],
        ("wrong type: 'model.init_args.samples' is many (bad.yaml:1)", "expected int"),
        text("bad.yaml", "model: {init_args: {samples: many}}\n"),
    ),
    Mistake(
        "a file that does not exist",
        ["-c", "loras.yaml"],
        ("configuration file 'loras.yaml' does not exist", "did you mean 'lora.yaml'?"),
    ),
]


def fit(*words: str) -> None:
    main(["fit", "-c", "my.yaml", "-c", "small.yaml", *words])


@pytest.fixture(autouse=True)
def small(folder: Path) -> None:  # noqa: F811
    Path("small.yaml").write_text(
        "model: {init_args: {text: {max_prompt_tokens: 40, max_response_tokens: 12}}}\n"
        "data: {init_args: {batch_prompts: 2}}\n"
        "trainer: {accelerator: cpu, devices: 1, max_steps: 1, enable_progress_bar: false, enable_model_summary: false}\n"
    )


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.title)
def test_a_mistake_is_answered_in_two_lines(mistake: Mistake, capfd: pytest.CaptureFixture[str]) -> None:
    mistake.prepare()
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        fit(*mistake.words)
    assert ended.value.code == 2
    assert tuple(capfd.readouterr().err.splitlines()[-2:]) == mistake.lines


def test_what_the_command_line_replaces_is_not_read(capfd: pytest.CaptureFixture[str]) -> None:
    """A bad value in a file, and adapters that null takes away again."""
    Path("bad.yaml").write_text("model: {init_args: {samples: many}}\n")
    fit("-c", "bad.yaml", "--model.samples=2")
    fit("-c", "lora.yaml", "--model.policy.lora=null", "--model.prm.lora=null", "--output=outputs/whole")
    saved = Path("outputs/whole/csv/version_0/config.yaml").read_text()
    assert "lora: null" in saved
    assert "lora_alpha" not in saved


@pytest.mark.parametrize("kind", ["RuntimeError", "KeyError", "ValueError"])
def test_a_fault_of_other_code_says_from_where_to_go_on(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The traceback follows: what is no mistake of the user's is not hidden."""
    lines = Path("my_objective.py").read_text().replace("class MeanDifference", "CALLS = []\n\n\nclass Breaking")
    first = "        expert = batch"
    broken = f"        CALLS.append(0)\n        if len(CALLS) > 2:\n            raise {kind}('broken')\n{first}"
    Path(f"breaking_{kind}.py").write_text(lines.replace(first, broken, 1))
    saves = ["--trainer.callbacks=repirl.callbacks.checkpoint.Checkpoint", "--trainer.callbacks.every_n_iterations=1"]
    words = [f"--model.objective=breaking_{kind}.Breaking", *saves, "--trainer.callbacks.dirpath={output}/checkpoints"]
    with pytest.raises(getattr(builtins, kind), match="broken"):
        fit(*words, "--trainer.max_steps=3")  # two updates of the PRM an iteration: the second breaks
    said = capfd.readouterr().err
    last = Path("outputs/my_run/checkpoints/last.ckpt").resolve()
    assert f"the newest checkpoint is {last}: go on from it with --ckpt_path\n" in said


def test_ddp_by_name_is_replication() -> None:
    fit("--trainer.strategy=ddp")
    assert "ReplicatedStrategy" not in Path("my.yaml").read_text()
    assert Path("outputs/my_run/checkpoints/last.ckpt").is_file()


def page() -> str:
    """docs/mistakes.md."""
    parts = [HEAD]
    for mistake in MISTAKES:
        what, todo = mistake.lines
        command = " ".join(f"'{word}'" if "{" in word else word for word in mistake.words)
        parts.append(f"## {mistake.title[0].upper()}{mistake.title[1:]}\n\n    {command}\n\n> {what}\n>\n> {todo}\n")
    return "\n".join(parts)


def test_the_page_shows_these_mistakes() -> None:
    assert PAGE.read_text() == page(), "python -m tests.test_mistakes writes it anew"
    assert len(MISTAKES) >= 20


if __name__ == "__main__":
    PAGE.write_text(page())
