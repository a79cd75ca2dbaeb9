"""benchmarks/worth: the task in hand-worked cases, and the study in a reduced form."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from benchmarks.worth.measure import WorthMeasures
from benchmarks.worth.report import RANKING, UNPLANNED, contrasts, read, remedies, table_of_contrasts, tables
from benchmarks.worth.stories import WordProblems
from benchmarks.worth.study import CHOSEN, HERE, RESULTS, RL_ARMS, RL_RATES, SFT_RATES
from benchmarks.worth.task import DialProblems, fact_table, judge, tokens

from repirl.models.tokenizers import character_tokenizer

ROOT = Path(__file__).parents[1]
PROBLEM = "The hand of a dial points at 7. Turn it 5 right. Turn it 4 left."


@pytest.mark.parametrize(
    ("response", "verdicts"),
    [
        ("7 + 5 = 0\n0 - 4 = 8\n\\boxed{0, 8}", [True, True, True]),
        ("From 7, 5 right is 0.\nNow it points at 8.\n\\boxed{0, 8}", [True, True, True]),
        ("7 + 5 = 1\n1 - 4 = 9\n\\boxed{1, 9}", [False, True, True]),  # an error counts once
        ("7 + 5 = 0\n1 - 4 = 8\n\\boxed{0, 8}", [True, False, True]),  # another mark than was written
        ("7 - 5 = 0\n0 - 4 = 8\n\\boxed{0, 8}", [False, True, True]),
        ("From 7, 5 left is 0.\nFrom 0, 3 left is 8.\n\\boxed{0, 8}", [False, False, True]),
        ("7 + 5 = 0\n\\boxed{0}", [True, False]),  # a turn is missing
        ("7 + 5 = 0\n0 - 4 = 8\nNow it points at 8.\n\\boxed{0, 8}", [True, True, False, True]),
        ("7 + 5 = 0\n0 - 4 = 8\n\\boxed{8}", [True, True, False]),
        ("7 + 5 = 0\n\nso", [True, False, False]),
    ],
)
def test_a_line_is_judged_given_the_lines_before_it(response: str, verdicts: list[bool]) -> None:
    assert judge(PROBLEM, response, marks=12) == verdicts


def test_solutions_are_right_where_the_facts_are() -> None:
    right = DialProblems(200, seed=3).load()
    tokenizer = character_tokenizer(tokens(12))
    for problem in right:
        assert all(judge(problem.text, problem.solutions[0], 12))
        assert problem.solutions[0].endswith(f"\\boxed{{{problem.answer}}}")
        assert (
            tokenizer.decode(tokenizer(problem.text + problem.solutions[0])["input_ids"])
            == problem.text + problem.solutions[0]
        )
    wrong = DialProblems(200, seed=3, wrong_share=0.5).load()
    lines = [verdict for problem in wrong for verdict in judge(problem.text, problem.solutions[0], 12)[:-1]]
    assert 0.4 < sum(lines) / len(lines) < 0.6
    assert [problem.answer for problem in wrong] == [problem.answer for problem in right]
    swapped = DialProblems(200, seed=3, with_solutions=50, swapped=True).load()
    assert [p.solutions for p in swapped[:50]] == [p.solutions for p in right[1:50] + right[:1]]
    assert not any(all(judge(p.text, s, 12)) for p in swapped for s in p.solutions)
    assert [p.text for p in swapped] == [p.text for p in right]
    assert [bool(p.solutions) for p in DialProblems(3, seed=3, with_solutions=1).load()] == [True, False, False]


def test_the_second_half_of_the_experts_is_that_of_the_whole() -> None:
    """So that the PRM of a remedy learns from experts that SFT has not seen, and from the study's own."""
    whole, first = (DialProblems(40, seed=3, with_solutions=count).load() for count in (20, 10))
    second = DialProblems(40, seed=3, with_solutions=20, skip_solutions=10).load()
    assert [p.solutions for p in first[:10]] == [p.solutions for p in whole[:10]]
    assert [p.solutions for p in second] == [(), *[()] * 9, *[p.solutions for p in whole[10:]]]


def test_twins_have_one_wrong_step_and_a_wrong_answer() -> None:
    plain, twins = (DialProblems(50, seed=3, twins=count).load() for count in (0, 2))
    for one, other in zip(plain, twins, strict=True):
        assert (one.text, one.solutions, one.answer) == (other.text, other.solutions[:1], other.answer)
        assert len(other.solutions) == 3
        for flawed in other.solutions[1:]:
            assert judge(other.text, flawed, 12).count(False) == 1
            assert not flawed.endswith(f"\\boxed{{{other.answer}}}")
    one_wording = DialProblems(50, seed=3, twins=1, wording=1).load()
    lines = [line for p in one_wording for text in p.solutions for line in text.split("\n")[:-1]]
    assert lines
    assert all(line.startswith("From ") for line in lines)


STORY = "Mia has 46 stamps. Then she gets 27 more. Then she gives 18 away. How many stamps has she now?"


@pytest.mark.parametrize(
    ("response", "verdicts"),
    [
        ("46 + 27 = 73\n73 - 18 = 55\n\\boxed{55}", [True, True, True]),
        ("46 plus 27 is 73.\n73 minus 18 is 55.\n\\boxed{55}", [True, True, True]),
        ("46 + 27 = 63\n63 - 18 = 45\n\\boxed{45}", [False, True, True]),  # an error counts once
        ("46 + 27 = 73\n63 - 18 = 45\n\\boxed{45}", [True, False, True]),
        ("46 - 27 = 73\n73 - 18 = 55\n\\boxed{55}", [False, True, True]),
        ("46 + 27 = 73\n\\boxed{73}", [True, False]),  # a change is missing
        ("46 + 27 = 73\n73 - 18 = 55\n55 + 1 = 56\n\\boxed{56}", [True, True, False, False]),
    ],
)
def test_a_line_of_a_story_is_judged_given_the_lines_before_it(response: str, verdicts: list[bool]) -> None:
    assert WordProblems(1, seed=0).judge(STORY, response) == verdicts


def test_stories_are_solved_in_the_wording_that_is_asked_for() -> None:
    for share in (0.0, 0.8, 1.0):
        problems = WordProblems(200, seed=2, symbols=share).load()
        source = WordProblems(1, seed=0)
        assert all(all(source.judge(p.text, p.solutions[0])) for p in problems)
        assert all(p.solutions[0].endswith(f"\\boxed{{{p.answer}}}") and int(p.answer or -1) >= 0 for p in problems)
        lines = [line for p in problems for line in p.solutions[0].split("\n")[:-1]]
        assert sum("=" in line for line in lines) / len(lines) == pytest.approx(share, abs=0.06)
    assert [bool(p.solutions) for p in WordProblems(3, seed=2, with_solutions=1).load()] == [True, False, False]


def test_a_share_of_the_facts_is_wrong() -> None:
    table = fact_table(12, 5, 0.6, seed=1)
    assert len(table) == 120
    assert sum(result != (mark + turn) % 12 for (mark, turn), result in table.items()) == 72
    assert table != fact_table(12, 5, 0.6, seed=2)


def study(output: Path, *words: str) -> None:
    command = [
        sys.executable,
        str(HERE / "study.py"),
        *words,
        "--output",
        str(output),
        "--seeds",
        "0",
        "--iterations",
        "1",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_start_sft_and_reinforcement_arms(tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in HERE.glob("results/*")}
    study(tmp_path, "start")
    study(tmp_path, "sft", "--cells", "few_experts")
    study(tmp_path, "rl", "--cells", "few_experts", "--arms", "rloo_and_prm,rloo_and_frozen")
    with (tmp_path / "rl" / "results.csv").open(newline="") as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"few_experts-rloo_and_prm", "few_experts-rloo_and_frozen"}
    learned, frozen = (rows[f"few_experts-rloo_and_{kind}"] for kind in ("prm", "frozen"))
    assert 0 <= float(learned["worth/prm/first_error_accuracy"]) <= 1
    # Both score rollouts of one policy; the frozen reward is SFT's own log-ratio.
    assert learned["worth/random"] == frozen["worth/random"]
    with (tmp_path / "sft" / "results.csv").open(newline="") as file:
        sft = next(csv.DictReader(file))
    of_frozen, of_sft = (
        [float(row[f"worth/{source}/{name}"]) for name in RANKING]
        for row, source in ((frozen, "prm"), (sft, "policy_over_start"))
    )
    assert of_frozen == pytest.approx(of_sft, nan_ok=True)  # where no step is right there is no AUROC
    assert of_frozen[1] > 0
    assert {path: path.read_bytes() for path in HERE.glob("results/*")} == before


def test_contrasts_are_paired_by_seed_and_corrected_for_their_number() -> None:
    def runs(values: dict[int, float]) -> dict[int, dict[str, str]]:
        return {seed: {"worth/sampled": str(value)} for seed, value in values.items()}

    values = {
        ("few_experts", "prm_only"): runs({30: 0.7, 31: 0.8, 32: 0.6, 33: 0.9}),
        ("few_experts", "sft"): runs({30: 0.5, 31: 0.4, 32: 0.4}),  # differences .2 .4 .2; the fourth has no partner
        ("many_experts", "rloo_and_prm"): runs({30: 0.9, 31: 0.8}),
        ("many_experts", "rloo"): runs({30: 0.8, 31: 0.9}),
        ("many_experts", "rloo_and_frozen"): runs({30: 0.9}),
    }
    first, second = contrasts(values)
    assert (first.cell, first.name, first.n) == ("few_experts", "prm_only - sft", 3)
    assert first.mean == pytest.approx(0.8 / 3)
    # standard error sqrt(.0133 / 3) = .0667, t = 4.303 at 2 degrees of freedom
    assert (first.low, first.high) == pytest.approx((0.8 / 3 - 4.3027 / 15, 0.8 / 3 + 4.3027 / 15), abs=1e-4)
    assert (first.p, first.holm) == pytest.approx((0.25, 0.5))
    assert (second.name, second.n, second.mean) == ("rloo_and_prm - rloo", 2, pytest.approx(0))
    assert (second.p, second.holm) == pytest.approx((1, 1))
    table = table_of_contrasts([first, second])
    assert "| `few_experts` | `prm_only - sft` | 3 | +0.267 | -0.020 to +0.554 | 0.250 | 0.500 |" in table


def test_remedies_are_means_and_ranges_over_seeds_beside_sft(tmp_path: Path) -> None:
    names = "run,seed,worth/sampled,worth/prm/wrong_step_auroc,worth/prm/expert_correct_auroc_sum"
    rows = [
        "few_experts-prm_only,10,0.1,0.5,",
        "few_experts-prm_only,11,0.3,0.6,0.9",
        "few_experts-styled_half,10,0.2,,",
    ]
    (tmp_path / "remedies.csv").write_text("\n".join([names, *rows]) + "\n")
    names = "run,seed,worth/sampled,worth/policy_over_start/expert_correct_auroc_sum"
    rows = ["first_half,10,0.1,0.8", "first_half,12,0.9,0.9", "many_experts,10,0.9,0.9"]  # the last two do not belong
    (tmp_path / "sft.csv").write_text("\n".join([names, *rows]) + "\n")
    first, second, sft = remedies(tmp_path).splitlines()[2:]
    assert first.startswith(
        "| `prm_only` | 2 | 0.200 (0.100 to 0.300) | 0.550 (0.500 to 0.600) | - | 0.900 (0.900 to 0.900) |"
    )
    assert second == "| `styled_half` | 1 | 0.200 (0.200 to 0.200) | - | - | - | - |"
    assert sft == "| `SFT, first_half` | 1 | 0.100 (0.100 to 0.100) | - | - | 0.800 (0.800 to 0.800) | - |"


def test_experts_are_written_in_the_style_of_the_training_experts() -> None:
    dial, stories = DialProblems(30, seed=3, split="val", with_solutions=0), WordProblems(30, seed=3, with_solutions=0)
    for source, other in (
        (dial, DialProblems(5, seed=1, wording=1, with_solutions=1, twins=2)),
        (stories, WordProblems(5, seed=1, symbols=1.0)),
    ):
        written = source.written_like(other).load()
        assert [(p.text, p.answer) for p in written] == [(p.text, p.answer) for p in source.load()]
        lines = [line for p in written for line in p.solutions[0].split("\n")[:-1]]
        assert all(line.startswith("From ") if source is dial else " = " in line for line in lines)
        assert all(len(p.solutions) == 1 and all(source.judge(p.text, p.solutions[0])) for p in written)


def test_rates_are_those_that_tuning_gives() -> None:
    """chosen.yaml and the plan's table, from the results of the tuning's seed."""
    chosen = yaml.safe_load(CHOSEN.read_text())
    figures = {"sft": "worth/expert_log_prob"} | dict.fromkeys(RL_ARMS, "worth/sampled")
    tuned: dict[str, dict[float, dict[str, str]]] = {}
    for stage in ("sft", "rl"):
        with (RESULTS / f"{stage}.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                name = re.fullmatch(r"few_experts(?:-([a-z_]+))?-([\de.-]+)", row["run"])
                if name and row["seed"] == "10":
                    tuned.setdefault(name[1] or "sft", {})[float(name[2])] = row
    assert set(tuned) == {"sft", "rloo", "prm_only", "rloo_from_start", "rloo_and_prm", "rloo_and_frozen"}
    table = (HERE / "plan.md").read_text().partition("## What tuning showed")[2].splitlines()
    for arm, by_rate in tuned.items():
        assert set(by_rate) == set(RL_RATES) == set(SFT_RATES["few_experts"])
        best = max(by_rate, key=lambda rate, by_rate=by_rate, arm=arm: float(by_rate[rate][figures[arm]]))
        assert chosen["few_experts"][arm] == best
        assert arm == "sft" or chosen["many_experts"][arm] == best
        line = next(line for line in table if line.startswith("| SFT (" if arm == "sft" else f"| `{arm}`"))
        printed = [float(cell.split()[0]) for cell in line.split("|")[2:5]]
        assert printed == [pytest.approx(float(by_rate[rate]["worth/sampled"]), abs=6e-4) for rate in sorted(by_rate)]
    for follower, arm in (
        ("prm_only_swapped", "prm_only"),
        ("rloo_and_kl", "rloo_and_prm"),
        ("rloo_and_prm_no_kl", "rloo_and_prm"),
        ("rloo_and_prm_slow", "rloo_and_prm"),
    ):
        assert all(of_cell[follower] == of_cell[arm] for of_cell in chosen.values())


def test_style_is_told_from_right_rollouts_alone() -> None:
    measures = WorthMeasures("start", *[DialProblems(1, seed=0)] * 3)
    problem = SimpleNamespace(problem=SimpleNamespace(answer="8"))
    texts = [r"\boxed{8}", r"\boxed{8}", r"\boxed{7}"]
    measures.held_out = [(problem, SimpleNamespace(text=text)) for text in texts]  # type: ignore[misc]
    rewards = torch.tensor([[0.5, 0.5], [2.0, 1.0], [9.0, 0.0]])  # sums 1 and 3 are of right ones
    for of_experts, expected in (([[2.0]], 0.5), ([[4.0]], 1.0), ([[4.0], [0.0]], 0.5), ([[1.0]], 0.25)):
        found = measures.style(rewards, torch.tensor(of_experts))
        assert found == {"expert_correct_auroc_sum": pytest.approx(expected)}


def test_the_committed_tables_are_those_of_the_committed_results() -> None:
    confirmed = read()
    assert tables(confirmed) == (HERE / "tables.md").read_text()
    report = (HERE / "report.md").read_text()
    assert table_of_contrasts(contrasts(confirmed)) in report
    assert table_of_contrasts(contrasts(confirmed, UNPLANNED)) in report
