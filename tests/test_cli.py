"""The command line, driven as a user drives it."""

import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch  # noqa: F401 (its log goes to the stream of its import, which no test must read)
import pytest
import yaml

ROOT = Path(__file__).parents[1]

BASE = """\
seed_everything: 1
trainer:
  accelerator: cpu
  max_epochs: 1
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
model:
  class_path: tests.toy_cli.ToyModel
  init_args:
    samples: 4
    baseline:
      class_path: tests.toy_cli.Baseline
      init_args: {decay: 0.25, scale: 3.0}
data:
  class_path: tests.toy_cli.ToyData
"""
OVERLAY = """\
trainer: {max_epochs: 2}
model:
  init_args:
    baseline:
      class_path: tests.toy_cli.Other
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with base.yaml and overlay.yaml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["repirl"])
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "overlay.yaml").write_text(OVERLAY)
    return tmp_path


@pytest.fixture
def repirl(capsys):
    """Runs `repirl` in this process; gives back its status and what it printed."""
    from repirl.__main__ import main

    def run(*argv: str) -> tuple[int, str, str]:
        status = 0
        try:
            main(argv)
        except SystemExit as error:
            status = int(error.code or 0)
        return status, *capsys.readouterr()

    return run


def spawn(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs `python -m repirl` in a process of its own."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, "-m", "repirl", *argv]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)


# ------------------------------------------------------------------------------------------------------- own process


def test_help_lists_every_subcommand_in_a_line(tmp_path):
    from repirl.__main__ import EXTRA, LIGHTNING

    done = spawn("--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    shown = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    for name, text in (LIGHTNING | {name: text for name, (_, text) in EXTRA.items()}).items():
        assert [name, text] in shown


def test_the_package_and_its_help_import_neither_torch_nor_lightning(tmp_path):
    """What takes seconds to import: `benchmarks/startup.py` measures what is left."""
    code = "import sys; from repirl.__main__ import main; main(['--help']); main(['--version']); import repirl; " + (
        "print({'torch', 'lightning', 'transformers', 'jsonargparse', 'datasets'} & set(sys.modules))"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


def test_an_unknown_subcommand_names_its_neighbour(tmp_path):
    done = spawn("fti", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "unknown subcommand 'fti'\ndid you mean 'fit'?\n"


def test_an_unknown_key_takes_two_lines_and_status_2(folder):
    (folder / "overlay.yaml").write_text("model:\n  init_args:\n    baseline:\n      init_args: {scael: 1}\n")
    done = spawn("fit", "--config", "base.yaml", "--config=overlay.yaml", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "unknown key 'model.init_args.baseline.init_args.scael' (overlay.yaml:4): "
        "tests.toy_cli.Baseline has no 'scael'",
        "did you mean 'scale'? valid keys: decay, scale",
    ]


# ------------------------------------------------------------------------------------------------------ this process


def test_fit_with_an_overlay_before_the_subcommand_and_an_override(folder, repirl):
    argv = ["--config", "base.yaml", "fit", "-c", "overlay.yaml", "--model.init_args.samples=7"]
    status, out, err = repirl(*argv, f"--trainer.default_root_dir={folder}")
    assert status == 0, err
    assert "fit: Other scale=2.0 samples=7" in out  # 2.0 is Other's own default: the 3.0 of Baseline did not leak
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["model"]["init_args"]["samples"] == 7
    assert saved["model"]["init_args"]["baseline"]["init_args"] == {"scale": 2.0}
    assert saved["trainer"]["max_epochs"] == 2
    assert saved["seed_everything"] == 1
    status, out, err = repirl("fit", "--config", "config.yaml")  # what was saved can be run again, over itself
    assert status == 0, err
    assert "fit: Other scale=2.0 samples=7" in out


@pytest.mark.parametrize(
    "flag", ["--model.init_args.baseline=", "--model.init_args.baseline.class_path=", "--model.baseline="]
)
def test_a_class_changed_on_the_command_line_does_not_leak_either(folder, repirl, flag):
    status, out, err = repirl("fit", "--config=base.yaml", f"{flag}tests.toy_cli.Other", "--print_config")
    assert status == 0, err
    assert yaml.safe_load(out)["model"]["init_args"]["baseline"] == {
        "class_path": "tests.toy_cli.Other",
        "init_args": {"scale": 2.0},
    }


def test_the_hyper_parameters_of_a_checkpoint_do_not_override_the_command_line(folder, repirl):
    status, _, err = repirl("fit", "--config=base.yaml", "--trainer.enable_checkpointing=true")
    assert status == 0, err
    (checkpoint,) = folder.rglob("*.ckpt")
    import torch

    assert torch.load(checkpoint, weights_only=True)["hyper_parameters"]["samples"] == 4
    status, out, err = repirl("validate", "--config=base.yaml", f"--ckpt_path={checkpoint}", "--model.samples=9")
    assert status == 0, err
    assert "validate: samples=9" in out


def test_every_iteration_is_logged_unless_it_is_said(folder, repirl):
    status, out, err = repirl("fit", "--config=base.yaml", "--print_config")
    assert status == 0, err
    assert yaml.safe_load(out)["trainer"]["log_every_n_steps"] == 1
    status, out, err = repirl("fit", "--config=base.yaml", "--trainer.log_every_n_steps=7", "--print_config")
    assert yaml.safe_load(out)["trainer"]["log_every_n_steps"] == 7


def test_a_run_without_an_end_is_refused(folder, repirl):
    text = yaml.safe_load((folder / "base.yaml").read_text())
    ends = {"max_epochs", "max_steps", "max_time", "fast_dev_run"} & text["trainer"].keys()
    for name in ends:
        del text["trainer"][name]
    (folder / "endless.yaml").write_text(yaml.safe_dump(text))
    status, _, err = repirl("fit", "--config=endless.yaml")
    assert status == 2
    what, todo = err.strip().split("\n")
    assert what == "nothing ends the run: neither trainer.max_steps nor trainer.max_epochs is set"
    assert todo.startswith("give trainer.max_steps, the number of iterations")
    for end in (
        "--trainer.max_steps=1",
        "--trainer.max_epochs=1",
        "--trainer.max_time=00:00:00:02",
        "--trainer.fast_dev_run=1",
    ):
        status, _, err = repirl("fit", "--config=endless.yaml", end)
        assert status == 0, err
    assert ends


@pytest.mark.parametrize(
    ("argv", "what", "todo"),
    [
        (["--ckpt_path=no.ckpt"], "--ckpt_path: 'no.ckpt' does not exist", "give an existing checkpoint"),
        (["--config=bas.yaml"], "configuration file 'bas.yaml' does not exist", "did you mean 'base.yaml'?"),
        (
            ["--model.init_args.sample=3"],
            "unknown key 'model.init_args.sample' (command line)",
            "did you mean 'samples'?",
        ),
        (["--model.sample=3"], "unknown key 'model.init_args.sample' (command line)", "did you mean 'samples'?"),
        (
            ["--trainer.max_step=3"],
            "unknown key 'trainer.max_step' (command line)",
            "did you mean 'trainer.max_steps'?",
        ),
        (["--model.samples", "x"], "wrong type: 'model.init_args.samples' is x (command line)", "expected int"),
        (["--seed_everything=x"], "wrong type: 'seed_everything' is x (command line)", "expected bool, int"),
        (["--model.samples=0"], "cannot build what the configuration describes: samples must be at least 1", "correct"),
        (
            ["--model.baseline.class_path=tests.toy_cli.Otter"],
            "unknown class path 'tests.toy_cli.Otter' for 'model.init_args.baseline.class_path' (command line)",
            "did you mean 'tests.toy_cli.Other'?",
        ),
        (
            ["--model.baseline=tests.toy_cli.ToyData"],
            "a class of the wrong kind 'tests.toy_cli.ToyData' for 'model.init_args.baseline.class_path'",
            "give a Baseline",
        ),
        (
            ["--model.settings.clpi=1"],
            "unknown key 'model.init_args.settings.clpi' (command line): tests.toy_cli.ToyModel.settings has no 'clpi'",
            "did you mean 'clip'?",
        ),
        (
            ["--model.settings.clip=x"],
            "wrong type: 'model.init_args.settings.clip' is x (command line)",
            "expected float, int",
        ),
        (["--model.settings.clip=-1"], "cannot build what the configuration describes: clip must not be", "correct"),
        (
            ["--trainer.callbacks.0.init_args.every_s=1"],
            "unknown key 'trainer.callbacks.0.init_args.every_s' (command line): 'trainer.callbacks' is a list",
            "give the whole of trainer.callbacks in a file",
        ),
        (["stray"], "unexpected argument 'stray'", "options look like"),
    ],
)
def test_a_mistake_takes_two_lines(folder, repirl, argv, what, todo):
    status, out, err = repirl("fit", "--config=base.yaml", *argv)
    assert (status, out) == (2, "")
    lines = [line for line in err.splitlines() if line != "Seed set to 1"]
    assert len(lines) == 2
    assert lines[0].startswith(what)
    assert lines[1].startswith(todo)


@pytest.mark.parametrize(
    ("old", "new", "what", "todo"),
    [
        ("samples: 4", "samples: many", "wrong type: 'model.init_args.samples' is many (base.yaml:12)", "expected int"),
        ("samples: 4", "sampels: 4", "unknown key 'model.init_args.sampels' (base.yaml:12)", "did you mean 'samples'?"),
        (
            "scale: 3.0",
            "scale: [3]",
            "wrong type: 'model.init_args.baseline.init_args.scale' is [3] (base.yaml:15)",
            "expected float",
        ),
        (
            "ToyModel",
            "ToyMode",
            "unknown class path 'tests.toy_cli.ToyMode' for 'model.class_path' (base.yaml:10)",
            "did you mean 'tests.toy_cli.ToyModel'?",
        ),
        (
            "tests.toy_cli.ToyData",
            "nowhere.Data",
            "unknown class path 'nowhere.Data' for 'data.class_path' (base.yaml:17)",
            "give the full path",
        ),
        (
            "seed_everything",
            "seed_everythin",
            "unknown key 'seed_everythin' (base.yaml:1)",
            "did you mean 'seed_everything'?",
        ),
        (
            "seed_everything",
            "zzz",
            "unknown key 'zzz' (base.yaml:1)",
            "valid top-level keys: ckpt_path, config, data, ",
        ),
    ],
)
def test_a_mistake_in_a_file_is_reported_with_file_and_line(folder, repirl, old, new, what, todo):
    (folder / "base.yaml").write_text(BASE.replace(old, new))
    status, out, err = repirl("fit", "--config=base.yaml")
    assert (status, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(what)
    assert lines[1].startswith(todo)


def test_a_bug_in_a_constructor_keeps_its_traceback(folder):
    from repirl.__main__ import main

    (folder / "base.yaml").write_text(BASE.replace("toy_cli.ToyData", "toy_cli.BrokenData"))
    with pytest.raises(ZeroDivisionError):
        main(["fit", "--config=base.yaml"])


def test_missing_parts_are_named(folder, repirl):
    assert repirl("fit")[2].splitlines()[0] == "missing 'data', 'model'"
    (folder / "base.yaml").write_text(BASE[: BASE.index("    baseline")] + BASE[BASE.index("data:") :])
    assert repirl("fit", "--config=base.yaml")[2].splitlines() == [
        "missing 'model.init_args.baseline' (base.yaml:9): tests.toy_cli.ToyModel needs it",
        "add it; it has no default",
    ]
