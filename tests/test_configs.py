"""Every YAML under configs/ parses as it stands and builds on one CPU, through the real command line class."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from repirl import config
from repirl.cli import RepirlCLI

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"

# Deltas, not whole configurations. Their first line names what they go on: `# overlay on: configs/repirl.yaml`, or
# several files, comma-separated, left to right.
OVERLAYS = ("ablations", "scale", "toy/overlays", "paper/overlays", "ttt")
WHOLE = (CONFIGS / "ttt" / "base.yaml",)  # among overlays, what they go on

ONE_CPU = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.num_nodes=1",
    "--trainer.precision=32-true",
]


class Parse(RepirlCLI):
    """Stops after parsing."""

    def instantiate_classes(self) -> None:
        """Builds nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs nothing."""


class Build(RepirlCLI):
    """Stops before running."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs nothing."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_overlay(path: Path) -> bool:
    return path not in WHOLE and any((CONFIGS / folder) in path.parents for folder in OVERLAYS)


def files_of(path: Path) -> list[Path]:
    """The files to give for one configuration: itself, and before it what it is an overlay on."""
    if not is_overlay(path):
        return [path]
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# overlay on: "), f"{name(path)}: the first line must be '# overlay on: configs/x.yaml'"
    return [*(ROOT / base.strip() for base in first.removeprefix("# overlay on: ").split(",")), path]


def scalars(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return [value for item in node.values() for value in scalars(item)]
    return [value for item in node for value in scalars(item)] if isinstance(node, list) else [node]


def arguments(path: Path) -> list[str]:
    command = "validate" if CONFIGS / "eval" in path.parents else "fit"
    return [command, *(f"--config={file}" for file in files_of(path))]


OTHERS = [CONFIGS / "search", CONFIGS / "experts"]  # of other commands: test_search.py and test_experts.py build them
FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if not set(OTHERS) & set(path.parents))
every_config = pytest.mark.parametrize("path", FILES, ids=name)


def test_every_file_is_a_yaml_file_or_starts_a_run():
    files = [path for path in CONFIGS.rglob("*") if path.is_file() and path.suffix not in (".yaml", ".md")]
    assert sorted(map(name, files)) == [f"configs/scale/multinode/{file}" for file in ("slurm.sbatch", "torchrun.sh")]


@every_config
def test_it_parses_as_it_stands(path):
    Parse(arguments(path))


@every_config
def test_it_builds_on_one_cpu(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # building reads nothing relative to the working folder
    cli = Build([*arguments(path), *ONE_CPU, f"--trainer.default_root_dir={tmp_path}"])
    assert cli.model is not None
    assert cli.datamodule is not None


@every_config
def test_it_names_no_place_on_a_machine(path):
    paths = [value for value in scalars(config.load([path])) if isinstance(value, str) and value.startswith(("/", "~"))]
    assert paths == []


@pytest.mark.parametrize("path", [path for path in FILES if is_overlay(path)], ids=name)
def test_an_overlay_changes_its_base(path):
    *bases, _ = files_of(path)
    assert config.load([*bases, path]) != config.load(bases), "the overlay repeats its base"


def test_the_parser_accepts_its_own_dump(tmp_path):
    """Guards the harness itself while it is being trusted: a built toy configuration prints as YAML."""
    (tmp_path / "toy.yaml").write_text(
        "model: {class_path: tests.toy_cli.ToyModel, init_args: {baseline: tests.toy_cli.Baseline}}\n"
        "data: {class_path: tests.toy_cli.ToyData}\n"
    )
    cli = Build(["fit", f"--config={tmp_path / 'toy.yaml'}", *ONE_CPU, f"--trainer.default_root_dir={tmp_path}"])
    assert type(cli.model).__name__ == "ToyModel"
    assert yaml.safe_load(cli.parser.dump(cli.config))["fit"]["data"]["init_args"] == {"rows": 4}


@pytest.mark.parametrize(
    ("base", "overlays"),
    [
        ("gsm8k_smollm2", ["shared_base", "ahead", "ddp"]),
        ("gsm8k_smollm2", ["lora", "vllm", "fsdp"]),
        ("paper/math", ["fsdp", "ahead"]),
        ("paper/math", ["shared_base", "vllm", "ddp"]),
        ("quickstart", ["ahead", "fsdp"]),
    ],
)
def test_overlays_for_scale_compose_with_any_experiment(base, overlays, tmp_path):
    files = [CONFIGS / f"{base}.yaml", *(CONFIGS / "scale" / f"{name}.yaml" for name in overlays)]
    cli = Build(["fit", *(f"--config={file}" for file in files), f"--trainer.default_root_dir={tmp_path}"])
    strategy = "ShardedStrategy" if "fsdp" in overlays else "ReplicatedStrategy"
    assert type(cli.trainer.strategy).__name__ == strategy
    assert cli.model.alternation.schedule.rollouts_ahead == ("ahead" in overlays)
    assert (cli.model.policy.lora is not None) == bool({"lora", "shared_base"} & set(overlays))
    assert cli.datamodule.batch_prompts == config.load(files)["data"]["init_args"]["batch_prompts"]
