"""What a run says of itself: in a pipe, in a terminal, by two processes, and at its end."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from repirl.callbacks.progress import Progress, expert_tokens, time_allowed, total_iterations
from repirl.data.loaders import EvalLoader
from repirl.structs import Expert, Problem, Prompt
from tests import test_runs
from tests.progress.screen import in_terminal, on_screen
from tests.test_runs import TWO, command, environment
from tests.toy_cli import Baseline, ToyData, ToyModel

fit = test_runs.fit
QUIET = "enable_progress_bar: false, "
SAVING = "init_args: {dirpath: out/saved, every_n_iterations: 2}}"
OFTEN = f"{SAVING}, {{class_path: repirl.callbacks.progress.Progress, init_args: {{every_s: 0}}}}"
VALIDATED = [
    "--trainer.limit_val_batches=3",
    "--trainer.val_check_interval=2",
    *("--data.val=repirl.data.arithmetic.RunningSums", "--data.val.count=20", "--data.val.seed=9"),
    *("--data.val.split=val", "--data.val.min_steps=2", "--data.val.max_steps=3", "--data.eval_batch_prompts=6"),
]
PHASES = ["rollout", "verify", "log_probs", "prm_update", "prm_update", "score", "policy_update", ""]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With base.yaml, whose runs show progress as they do by default, and often.yaml, whose runs show every event."""
    (tmp_path / "base.yaml").write_text(test_runs.BASE.replace(QUIET, ""))
    (tmp_path / "often.yaml").write_text(test_runs.BASE.replace(QUIET, "").replace(SAVING, OFTEN))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["repirl"])
    return tmp_path


def piped(folder: Path, *words: str) -> list[str]:
    """Lines that a run wrote to a pipe."""
    done = subprocess.run(
        command(*words), cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300
    )
    assert done.returncode == 0, done.stdout.decode()[-3000:]
    assert b"\x1b" not in done.stdout
    assert b"\r" not in done.stdout
    return done.stdout.decode().splitlines()


def progress(lines: list[str], verb: str = "fit") -> list[list[str]]:
    """The parts of each line of progress."""
    return [line.split("  ") for line in lines if re.match(rf"{verb} \d", line)]


def test_a_piped_fit_says_iteration_phase_validation_speed_and_time_left(folder: Path) -> None:
    lines = piped(folder, "-c", "often.yaml", "--trainer.max_steps=4", *VALIDATED)
    shown = progress(lines)
    begun = [rest[0] for count, *rest in shown if count == "fit 0/4" and rest[0].startswith("validate")]
    assert begun == ["validate 0/15", "validate 5/15", "validate 10/15", "validate 15/15"]  # the start policy
    phases = [phase for iteration in range(4) for phase in [(f"fit {iteration}/4", one) for one in PHASES[:-1]]]
    assert [(count, rest[0]) for count, *rest in shown if rest and rest[0] in PHASES] == phases
    validation = [rest[0] for count, *rest in shown if count == "fit 2/4" and rest[0].startswith("validate")]
    assert validation == ["validate 0/15", "validate 5/15", "validate 10/15", "validate 15/15"]
    assert all(any(part.endswith(" tokens/s") for part in parts) for parts in shown if parts[0] == "fit 3/4")
    assert all(parts[-1].endswith(" left") for parts in shown if parts[0] == "fit 3/4")
    second = [part for count, *rest in shown if count == "fit 1/4" for part in rest]
    assert any(re.fullmatch(r"\d+ % right", part) for part in second)  # of the rollouts of the first iteration
    assert lines[-1].startswith("fit 4/4  ")
    assert re.fullmatch(r"took \d+:\d\d", shown[-1][-1])
    assert shown[-2][0] == "fit 4/4"
    assert not shown[-2][-1].startswith("took")


def test_the_validation_at_the_end_is_in_the_last_line(folder: Path) -> None:
    """The third iteration has no validation of the trainer's own: another callback makes it when training ends."""
    lines = piped(folder, "-c", "often.yaml", "--trainer.max_steps=3", *VALIDATED)
    shown = progress(lines)
    assert [rest[0] for count, *rest in shown if count == "fit 3/3" and rest[0].startswith("validate")]
    assert not any("sanity" in part for parts in shown for part in parts)
    assert lines[-1].startswith("fit 3/3  ")
    assert shown[-1][-1].startswith("took")


def test_two_processes_speak_once(folder: Path) -> None:
    shown = progress(piped(folder, "-c", "often.yaml", "--trainer.max_steps=1", *TWO))
    assert [parts[1] for parts in shown if parts[0] == "fit 0/1"] == PHASES[:-1]
    assert [parts[-1][:4] for parts in shown if parts[0] == "fit 1/1"][-1] == "took"


def test_a_resumed_run_counts_from_where_it_was(folder: Path, fit: Callable[..., tuple[int, str]]) -> None:
    assert fit("-c", "often.yaml", "--trainer.max_steps=2")[0] == 0
    status, said = fit("-c", "often.yaml", "--trainer.max_steps=4", "--ckpt_path=out/saved/last.ckpt")
    assert status == 0, said
    shown = progress(said.splitlines())
    assert shown[0] == ["fit 2/4", "rollout"]
    assert {count for count, *_ in shown} == {"fit 2/4", "fit 3/4", "fit 4/4"}


def test_it_is_shown_by_default_and_can_be_turned_off(folder: Path, fit: Callable[..., tuple[int, str]]) -> None:
    status, said = fit("--trainer.max_steps=1")
    assert status == 0, said
    first, *_, last = progress(said.splitlines())
    assert first == ["fit 0/1", "rollout"]
    assert last[0] == "fit 1/1"
    assert said.splitlines()[-1] == "  ".join(last)
    for more in ([], ["-c", "often.yaml"]):
        status, said = fit(*more, "--trainer.max_steps=1", "--trainer.enable_progress_bar=false")
        assert status == 0, said
        assert progress(said.splitlines()) == []


def test_what_ends_a_run_has_the_last_word(folder: Path, fit: Callable[..., tuple[int, str]]) -> None:
    rates = ["--model.policy_optimizer.lr=1e30", "--model.prm_optimizer.lr=1e30"]
    status, said = fit("-c", "often.yaml", "--trainer.max_steps=9", *rates)
    assert status == 2
    assert progress(said.splitlines())
    what, _ = said.splitlines()[-2:]
    assert what.startswith("fit stopped: iteration ")


def test_a_fit_in_a_terminal_leaves_one_line(folder: Path) -> None:
    # A terminal's line is drawn ten times a second: validation has to last longer than that on a fast machine too.
    longer = ["--data.val.count=600", "--trainer.limit_val_batches=100"]
    words = command("--trainer.max_steps=3", *VALIDATED, *longer)
    status, written = in_terminal(words, cwd=folder, env=environment())
    assert status == 0, written
    shown = on_screen(written)
    assert [line for line in shown if "fit " in line] == [shown[-2]]
    assert re.fullmatch(r"fit 3/3  .*took \d+:\d\d", shown[-2])
    assert shown[-1] == ""
    assert "`Trainer.fit` stopped: `max_steps=3` reached." in shown  # Lightning's log stands whole, above the line
    for drawn in ("fit 0/3  rollout", "fit 0/3  policy_update", "fit 2/3  validate "):  # how far depends on its speed
        assert f"\r\x1b[K{drawn}" in written
    assert max(map(len, re.findall(r"\x1b\[K(fit [^\r\n]*)", written))) <= 79


def test_a_signal_in_a_terminal_leaves_its_words_alone(folder: Path) -> None:
    sent: list[bool] = []

    def stop(process: subprocess.Popen[bytes], written: str) -> None:
        if not sent and re.search(r"fit [1-9]\d*/", written):  # which iterations are drawn depends on their speed
            process.send_signal(signal.SIGTERM)
            sent.append(True)

    status, written = in_terminal(command(), cwd=folder, env=environment(), watch=stop)
    assert status == 143
    shown = on_screen(written)
    asked, what, todo, end = shown[-4:]
    assert asked == "SIGTERM: stopping at the end of this iteration or batch; once more ends the process now"
    assert what.startswith("stopped by SIGTERM after iteration ")
    assert todo.startswith("go on with the same command and --ckpt_path ")
    assert end == ""
    assert not [line for line in shown if line.startswith("fit ")]


@pytest.mark.parametrize("verb", ["validate", "predict"])
def test_evaluations_count_problems(folder: Path, verb: str) -> None:
    words = [word.replace("--data.val", f"--data.{'predict' if verb == 'predict' else 'val'}") for word in VALIDATED]
    limit = f"--trainer.limit_{'predict' if verb == 'predict' else 'val'}_batches=3"
    run = [*command()[:3], verb, "-c", "often.yaml", *words, limit]
    done = subprocess.run(run, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *shown, last = progress(done.stderr.splitlines(), verb)
    assert [parts[0] for parts in shown] == [f"{verb} {count}/15" for count in (0, 5, 10, 15)]
    assert all(parts[-1].endswith(" left") and parts[-2].endswith(" tokens/s") for parts in shown[1:])
    assert last[0] == f"{verb} 15/15"
    assert last[-1].startswith("took ")
    assert any(part.startswith("greedy ") for part in last) == (verb == "validate")


def test_other_modules_are_counted_by_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=2, callbacks=[Progress(every_s=0)], num_sanity_val_steps=0, **options)
    trainer.fit(ToyModel(Baseline()), datamodule=ToyData(rows=3))
    counts = [parts[0] for parts in progress(capsys.readouterr().err.splitlines())]
    assert list(dict.fromkeys(counts)) == [f"fit {n}/6" for n in range(1, 7)]


class TwoSets(ToyData):
    """Two validation sets, under names."""

    def val_dataloader(self) -> dict[str, DataLoader[Tensor]]:  # type: ignore[override]
        return {"first": self.train_dataloader(), "second": self.train_dataloader()}


class TwoSetsModel(ToyModel):
    """A model that validates on both."""

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)


def test_several_validation_sets_are_counted_on(capsys: pytest.CaptureFixture[str]) -> None:
    options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(callbacks=[Progress(every_s=0)], **options)
    trainer.validate(TwoSetsModel(Baseline()), datamodule=TwoSets(rows=3), verbose=False)
    counts = [parts[0] for parts in progress(capsys.readouterr().err.splitlines(), "validate")]
    assert counts == [f"validate {n}/6" for n in (0, 1, 2, 3, 4, 5, 6, 6)]


def test_the_end_is_what_comes_first_of_steps_and_epochs() -> None:
    class Limits:
        max_steps, max_epochs, num_training_batches, accumulate_grad_batches = 50, 3, 7, 2

    limits = Limits()
    assert total_iterations(limits) == 12  # 3 x ceil(7 / 2)
    limits.max_steps = 10
    assert total_iterations(limits) == 10
    limits.max_steps, limits.num_training_batches = -1, float("inf")
    assert total_iterations(limits) is None
    limits.max_epochs = -1
    assert total_iterations(limits) is None


def test_the_time_that_is_allowed_is_the_timers() -> None:
    options = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    assert time_allowed(Trainer(max_time="00:00:10:00", **options)) == 600.0
    assert time_allowed(Trainer(**options)) is None


def test_tokens_of_experts_and_problems_of_batches() -> None:
    problem = Problem(id="p", text="1+1", answer="2")
    experts = [Expert(text="2", token_ids=(5, 6)), Expert(text="two", token_ids=(7, 8, 9))]
    prompt = Prompt(problem=problem, token_ids=(1, 2), experts=experts)
    assert expert_tokens([prompt, prompt]) == 10
    assert expert_tokens("no prompts") == expert_tokens([1, 2]) == 0
    loader = EvalLoader([prompt] * 20, batch_prompts=6, rank=1, world_size=2)
    assert [loader.problems_in(batches) for batches in range(6)] == [0, 5, 10, 15, 20, 20]
    assert [len(batch) for batch in loader] == [2, 2, 2, 2]  # of five each, the second of two processes gets two
    assert EvalLoader([], batch_prompts=6, rank=0, world_size=1).problems_in(1) == 0


def test_a_wrong_interval_is_refused() -> None:
    with pytest.raises(ValueError, match=r"every_s must not be negative, not -1"):
        Progress(every_s=-1)
