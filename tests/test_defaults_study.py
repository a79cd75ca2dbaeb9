"""benchmarks/defaults in a reduced form: start policy, two arms, their measures; and the committed tables."""

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from benchmarks.defaults.contrasts import CONTRASTS, INTERACTION, table_of_contrasts
from benchmarks.defaults.measure import HeldOut
from benchmarks.defaults.report import HERE, STAGES, read, tables
from benchmarks.defaults.reused import figures, gaps
from benchmarks.defaults.study import ARMS, DEFAULT, experts, overlays, taught

from repirl import config
from repirl.learning.prm_objectives import IRL
from repirl.learning.schedule import Schedule
from repirl.learning.settings import Advantage, Surrogate
from repirl.structs import Rows

ROOT = Path(__file__).parents[1]


def study(output: Path, *words: str) -> None:
    command = [sys.executable, str(HERE / "study.py"), *words, "--output", str(output), "--jobs", "1", "--seeds", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_arms_from_a_start_policy_of_two_steps(tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in HERE.glob("results/*")}
    study(tmp_path, "start", "--iterations", "2")
    study(tmp_path, "screen", "--tasks", "any_order", "--only", "head,outcome_only,sft", "--iterations", "2")
    with (tmp_path / "screen" / "any_order" / "results.csv").open(newline="") as file:
        rows = {row["arm"].split("+")[-1]: row for row in csv.DictReader(file)}
    assert set(rows) == {"head", "outcome_only", "sft"}
    for row in rows.values():
        assert 0 <= float(row["study/sampled"]) <= 1
        assert float(row["study/start_sampled"]) == float(rows["head"]["study/start_sampled"])  # one start for all
        assert float(row["step"]) == 2
        assert 0 <= float(row["study/policy_log_ratio/wrong_step_auroc"]) <= 1  # a policy is a PRM too
        assert float(row["study/random"]) == float(rows["head"]["study/random"])  # one set of rollouts for all
    assert 0 <= float(rows["head"]["study/best_of_16"]) <= 1
    for arm in ("outcome_only", "sft"):
        assert not rows[arm]["study/best_of_16"]  # it has no PRM
    assert not rows["sft"]["rollout/accuracy"]  # it samples nothing
    assert {path: path.read_bytes() for path in HERE.glob("results/*")} == before


def test_gaps_of_reused_rollouts_are_compared_by_length() -> None:
    # The fresh ones' median length is 4: of the reused R = 1 is shorter and 5 longer, of the fresh 2 and 2, and 8.
    reused, fresh = torch.tensor([1.0, 5.0]), torch.tensor([2.0, 2.0, 8.0])
    found = gaps(reused, torch.tensor([4, 5]), fresh, torch.tensor([3, 4, 9]))
    assert {name: float(value) for name, value in found.items()} == {
        "gap": -1.0,
        "gap_shorter": -1.0,
        "gap_longer": -3.0,
    }
    # All of one length: none is longer.
    assert set(gaps(reused, torch.tensor([4, 4]), fresh, torch.tensor([4, 4, 4]))) == {"gap", "gap_shorter"}


def test_gaps_are_means_of_the_iterations_of_a_window() -> None:
    measured = {"study/sampled": "", "study/greedy": "", "study/wrong_step_auroc": "", "rollout/reward": ""}
    iterations = [measured | {"rollout/reward": "1", "reused/gap": str(n)} for n in range(1, 13)]
    iterations[11]["reused/gap_longer"] = "7"
    last = measured | {"study/sampled": "0.5", "study/greedy": "0.6", "study/wrong_step_auroc": "0.7"}
    found = figures([measured, *iterations, last])
    assert found == {
        "study/sampled": 0.5,
        "study/greedy": 0.6,
        "study/wrong_step_auroc": 0.7,
        "gap_1_to_10": 5.5,
        "gap_11_to_50": 11.5,
        "gap_longer_11_to_50": 7.0,
    }


def test_what_rewards_are_worth_as_judges_of_lines_and_responses() -> None:
    # Two rollouts of one problem. The first is right, its lines have the rewards 1 + 2 = 3 and 3. The second failed: its
    # first line is wrong and has 1 - 2 = -1, its second is right and has 4 - 6 = -2.
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    ends = torch.tensor([[False, True, True, False], [False, True, False, True]])
    wrong = torch.tensor([[False] * 4, [False, True, False, False]])
    ids = torch.zeros(2, 4, dtype=torch.long)
    rows = Rows(ids[:, :1], torch.ones(2, 1, dtype=torch.bool), ids, mask)
    held_out = HeldOut(rows, ends, wrong, torch.tensor([True, False]), ["3", None], 2, torch.zeros(2, 4))
    figures = held_out.judged_by(torch.tensor([[1.0, 2.0, 3.0, 99.0], [1.0, -2.0, 4.0, -6.0]]))
    assert figures["wrong_step_auroc"] == pytest.approx(2 / 3)  # -1 is below 3 and 3, not below -2
    assert figures["first_error_accuracy"] == 0  # the lowest line of the second is its second
    assert figures["auroc_correct_failed"] == 1  # means of 2 and -3/4
    assert figures["best_of_16"] == 1
    assert held_out.figures() == {"majority": 1, "random": 0.5, "pass_at_16": 1}


def test_shared_starts_differ_by_the_order_of_the_data_alone_and_own_ones_by_everything(tmp_path: Path) -> None:
    assert not taught(tmp_path, 10)
    assert not experts(tmp_path, "confirm", 20)
    (path,) = taught(tmp_path, 20)
    start = yaml.safe_load(Path(path).read_text())
    assert start["model"]["init_args"]["policy"]["init_args"] == {"init_seed": 20}
    assert start["data"]["init_args"]["train"]["init_args"] == {"seed": 20, "facts_seed": 20}
    (path,) = experts(tmp_path, "own", 20)
    assert yaml.safe_load(Path(path).read_text())["data"]["init_args"]["train"]["init_args"] == {"seed": 120}


def test_sft_starts_where_the_others_do_with_their_rate(tmp_path: Path) -> None:
    sft, default = (
        config.load([HERE / "base.yaml", *map(Path, word.split("+"))])["model"]
        for word in overlays(tmp_path, "confirm", "any_order", 11, ["sft", DEFAULT])
    )
    assert sft["class_path"] == "repirl.modules.sft.SFT"
    for name, value in sft["init_args"].items():
        assert value == default["init_args"][name]
    assert set(sft["init_args"]) == {"policy", "policy_optimizer", "policy_scheduler", "text"}
    assert sft["init_args"]["policy"]["init_args"]["path"].endswith("start/any_order/seed-10/policy")


def test_a_contrast_compares_seed_by_seed_those_that_all_its_arms_have() -> None:
    def rows(values: dict[str, float]) -> list[dict[str, str]]:
        return [{"seed": seed, "study/sampled": str(value)} for seed, value in values.items()]

    arms = {
        "maxent_sequence_rloo": rows({"10": 0.7, "11": 0.8}),
        "maxent_sequence_uniform": rows({"11": 0.1, "10": 0.0, "12": 0.5}),
        "sequence_reference_rloo": rows({"10": 0.2, "11": 0.3}),
        "sequence_rloo": rows({"10": 0.3, "11": 0.2}),
    }
    (interaction,) = (contrast for contrast in CONTRASTS if contrast.terms == INTERACTION)
    assert interaction.values(arms).tolist() == pytest.approx([0.7 - 0.0 + 0.3 - 0.2, 0.8 - 0.1 + 0.2 - 0.3])
    assert table_of_contrasts(arms) == []  # two seeds are too few


def test_the_committed_tables_are_those_of_the_committed_results() -> None:
    assert tables({stage: found for stage in STAGES if (found := read(stage))}) == (HERE / "tables.md").read_text()


def test_the_measured_joint_arm_has_the_shipped_rewards_and_objective() -> None:
    """Rates, rollouts a prompt and mini-batches are the study's own."""
    base = yaml.safe_load((HERE / "base.yaml").read_text())["model"]["init_args"]
    arm = config.merge(base, ARMS["joint_unscaled"])
    assert Advantage(**arm["advantage"]) == replace(Advantage(), maxent_coef=1.0)  # None stands for 1 with IRL
    assert vars(IRL(**arm["objective"]["init_args"])) == vars(IRL())
    assert Schedule(**arm["schedule"]) == replace(Schedule(), policy_mini_batches=2)
    assert Surrogate(**arm["surrogate"]) == Surrogate()
