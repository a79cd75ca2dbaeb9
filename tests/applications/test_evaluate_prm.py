"""`repirl evaluate-prm`: hand-worked figures, controls that see through style, a report that is whole."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import repirl
from repirl.__main__ import main
from repirl.applications import evaluate_prm
from repirl.applications.journal import Journal
from repirl.applications.prm_report import (
    by_length,
    controls,
    expert_controls,
    f1_interval,
    figures,
    plain,
    scored,
    threshold_of,
)
from repirl.applications.prms import load_prm
from repirl.applications.scoring import Scorer
from repirl.data.step_labelled import LabelledSolution
from repirl.data.steps import join_steps
from repirl.models.prm import PRM
from repirl.structs import WrittenSolution
from tests.applications.test_scoring import trained
from tests.models.hub.test_hub import implicit_pair


def labelled(name: str, steps: Sequence[str], first_error: int) -> LabelledSolution:
    wrong = () if first_error < 0 else (first_error,)
    return LabelledSolution(name, WrittenSolution("How many?", tuple(steps)), wrong, only_first=True)


FOUR = [
    labelled("right", ["a\n", "bb\n", "cc"], -1),
    labelled("second", ["a\n", "b\n", "cccc"], 1),
    labelled("first", ["aaaa\n", "b"], 0),
    labelled("also right", ["a\n", "b"], -1),
]
REWARDS = [(0.9, 0.8, 0.7), (0.9, 0.2, 0.1), (0.6, 0.9), (0.9, 0.4)]


def test_the_figures_of_four_solutions() -> None:
    """At .5 the second is found, the first is missed (its step has .6), `also right` is blamed for its .4."""
    found = figures(scored(FOUR, REWARDS), 0.5)
    assert found["accuracy_erroneous"] == 1 / 2
    assert found["accuracy_correct"] == 1 / 2
    assert found["f1"] == 1 / 2
    # Labelled steps: right .9 .8 .7 .9 .9 .4, wrong .2 .6; wrong is lower in 6 + 5 of 12 pairs.
    assert found["wrong_step_auroc"] == pytest.approx(11 / 12)
    assert (
        found["first_error_accuracy"] == 1 / 2
    )  # of `second` the third step is the lowest, and no step of `first` but it
    # Lowest steps: right .7 .4, erroneous .1 .6; .7 is above both, .4 above one.
    assert found["correct_solution_auroc"] == 3 / 4
    without = figures(scored(FOUR, REWARDS), None)
    assert "f1" not in without
    assert without["wrong_step_auroc"] == found["wrong_step_auroc"]


def test_the_threshold_is_the_best_on_its_set() -> None:
    """From .2 to .4 `second` is found and nobody is blamed; above .6 both, and `also right` is: 2/3 each, and .3 is taken."""
    given = scored(FOUR, REWARDS)
    assert threshold_of(given) == pytest.approx(0.3)
    assert figures(given, threshold_of(given))["f1"] == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert figures(by_length(given), -4.0)["accuracy_correct"] == 1  # no step of theirs is longer than four characters


def test_the_interval_holds_the_figure_and_depends_on_the_seed_alone() -> None:
    many = scored(FOUR * 50, REWARDS * 50)
    low, high = f1_interval(many, 0.5, seed=1)
    assert low < 0.5 < high
    assert high - low == pytest.approx(2 * 1.96 * 0.5 * (1 / 100 / 2) ** 0.5, rel=0.2)  # of a mean of two shares of 100
    assert (low, high) == f1_interval(many, 0.5, seed=1)
    assert math.isnan(f1_interval(scored(FOUR[1:3], REWARDS[1:3]), 0.5)[0])


class By:
    """A PRM that says of each step what a function does."""

    def __init__(self, reward: Callable[[str], float]) -> None:
        self.reward = reward

    def step_rewards(self, solutions: Sequence[WrittenSolution]) -> list[tuple[float, ...]]:
        return [tuple(map(self.reward, solution.steps)) for solution in solutions]


def holds(step: str) -> float:
    """1 where the step's equation is true."""
    a, sign, b, result = re.fullmatch(r"\D*(\d+) ([-+*/]) (\d+) = (\d+)\D*", step).groups()  # type: ignore[union-attr]
    value = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b), "/": int(a) / int(b)}[sign]
    return float(value == int(result))


def test_twins_tell_what_is_right_from_what_looks_alike() -> None:
    sums = [
        labelled(f"p{n}", [f"So {n} + 3 = {n + 3}.\n", f"Then {n + 3} * 2 = {2 * n + 6}."], -1) for n in range(2, 30)
    ]
    knows, style = By(holds), By(lambda step: float(len(step)))
    found = controls(knows, sums, knows.step_rewards([one.solution for one in sums]))
    assert found["twins"] == found["right_solutions"] == 28
    assert found["twin_step_wins"] == found["twin_solution_wins"] == 1
    assert found["hollow_wins"] == 0.5  # the first equation said twice is true twice: a tie
    found = controls(style, sums, style.step_rewards([one.solution for one in sums]), limit=20)
    assert found["right_solutions"] == 20
    assert found["twin_step_wins"] == 0.5  # a digit or a sign for another: as long
    assert math.isnan(controls(knows, FOUR[1:3], [(1.0,) * 3, (1.0,) * 2])["twin_step_wins"])


def solution(problem: str, *steps: str) -> WrittenSolution:
    return WrittenSolution(problem, steps)


EXPERTS = [
    solution("How  many?\n", "So a"),  # the same words
    solution("How many?", "b\n", "So c"),
    solution("How long?", "So d"),  # whose only solution is wrong
    solution("How far?", "So e"),  # of no set
]
OF_TWO = [
    LabelledSolution("half", solution("How many?", "So f\n", "g"), ()),
    LabelledSolution("none", solution("How many?", "h"), ()),
    LabelledSolution("wrong", solution("How many?", "i"), (0,)),
    LabelledSolution("long", solution("How long?", "j"), (0,)),
]


@pytest.mark.parametrize(("scorer", "wins"), [
    (By(lambda step: float(step.startswith("So"))), 3.5 / 4),  # 1 and 1/2 against 1/2 and 0: a tie of the second pair
    (By(lambda step: -float(step.startswith("So"))), 0.5 / 4),
    (By(lambda step: 7.0), 1 / 2),  # of both kinds alike: style is not told
])  # fmt: skip
def test_experts_against_right_solutions_of_their_problem(scorer: By, wins: float) -> None:
    rewards = scorer.step_rewards([one.solution for one in OF_TWO])
    found = expert_controls(scorer, OF_TWO, rewards, EXPERTS)
    assert found == {"expert_wins": wins, "expert_pairs": 4, "expert_problems": 1}
    first = expert_controls(scorer, OF_TWO, rewards, EXPERTS, too_long=lambda texts: [1])
    assert (first["expert_pairs"], first["expert_problems"]) == (2, 1)
    none = expert_controls(scorer, OF_TWO, rewards, EXPERTS[2:])
    assert (math.isnan(none["expert_wins"]), none["expert_pairs"], none["expert_problems"]) == (True, 0, 0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("run") / "run.ckpt"
    trained(path, prm=PRM("q_head"))
    return str(path)


def table(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


ROWS = [
    {"id": "p", "problem": "1a2", "steps": ["a3", "b4"], "label": -1},
    {"id": "q", "problem": "1a2", "steps": ["a3", "b5"], "label": 1},
    {"id": "r", "problem": "3c2", "steps": ["c7"], "label": 0},
    {"id": "s", "problem": "3c2", "steps": ["c5"], "label": -1},
]


PRM_BENCH = [
    {"idx": str(n), "classification": kind, "modified_question": "1a2", "modified_process": steps, "error_steps": wrong}
    for n, (kind, steps, wrong) in enumerate(
        [
            ("circular", ["a3", "b4"], [2]),
            ("circular", ["a3", "b5"], [1, 2]),
            ("multi_solutions", ["a3", "b4"], []),
            ("correct", ["a3"], []),
        ]
    )
]


def test_a_report_of_prm_bench(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Held for right throughout, three of six steps are: F1 of right steps 2/3, of wrong ones 0; unmodified ones are out."""
    output = tmp_path / "report.json"
    words = ["--prm", checkpoint, "--set", "prmbench", "--path", f"all={table(tmp_path / 'p.jsonl', PRM_BENCH)}"]
    main(["evaluate-prm", *words, "--output", str(output), "--threshold=-99", "--domain", "arithmetic"])
    written = json.loads(output.read_text())
    assert {name: one["solutions"] for name, one in written["sets"].items()} == {"circular": 2, "multi_solutions": 1}
    assert written["prmbench"] == written["prmbench_all_right"]
    assert written["prmbench"]["f1"] == pytest.approx(2 / 3)
    assert written["prmbench"]["score"] == pytest.approx(1 / 3)
    assert written["prmbench"]["circular/score"] == pytest.approx(0.5 * 2 / 5)  # one of four right: 2 / (2 + 3)
    assert written["prmbench"]["sensitivity/score"] == written["prmbench"]["multi_solutions/score"] == 1
    shown = [line for line in capsys.readouterr().out.splitlines() if "circular" in line]
    assert "0.200" in shown[0]
    with pytest.raises(SystemExit):
        main(["evaluate-prm", *words, "--output", str(output)])
    assert "--set prmbench needs a threshold" in capsys.readouterr().err
    wrong = table(tmp_path / "w.jsonl", [PRM_BENCH[0] | {"classification": "circles"}])
    with pytest.raises(SystemExit):
        main(
            [
                "evaluate-prm",
                "--prm",
                checkpoint,
                "--set=prmbench",
                f"--path=a={wrong}",
                f"--output={output}",
                "--threshold=0",
            ]
        )
    assert "circles_0: unknown classification 'circles'" in capsys.readouterr().err


def test_a_report_of_two_parts(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [f"{name}={table(tmp_path / f'{name}.jsonl', ROWS)}" for name in ("gsm8k", "math")]
    output = tmp_path / "report.json"
    words = ["--prm", checkpoint, "--path", *paths, "--output", str(output), "--domain", "arithmetic"]
    main(["evaluate-prm", *words])
    written = json.loads(output.read_text())
    assert written["threshold_chosen_on"] == "gsm8k"
    assert written["sets"].keys() == {"gsm8k", "math"}
    one = written["sets"]["gsm8k"]
    assert one["solutions"] == 4
    assert one["erroneous"] == 2
    assert one["all_right"]["accuracy_correct"] == 1
    assert one["all_right"]["f1"] == 0
    assert one["prm"] == written["sets"]["math"]["prm"]
    assert written["mean_f1_prm"] == one["prm"]["f1"]
    assert written["controls"]["math"]["twins"] == 2
    assert one["calibration"]["steps"] == 6
    assert one["calibration"]["right_steps"] == pytest.approx(4 / 6)
    assert sum(row["count"] for row in one["calibration"]["mapped"]["reliability"]) == 6
    assert written["probability"]["fitted_on"] == "gsm8k"
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    records = [json.loads(line) for line in (tmp_path / "report.gsm8k.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == ["p", "q", "r", "s"]
    assert [len(record["step_rewards"]) for record in records] == [2, 2, 1, 1]
    said = capsys.readouterr().out
    assert "chosen on gsm8k" in said
    main(["evaluate-prm", *words, "--threshold", "0.5", "--limit", "2"])
    again = json.loads(output.read_text())
    assert (again["threshold"], again["threshold_chosen_on"], again["limit"]) == (0.5, None, 2)


def test_a_part_of_one_kind_alone_has_no_f1(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The harmonic mean of two accuracies needs both; the mean is that of the other parts."""
    both, right = table(tmp_path / "both.jsonl", ROWS), table(tmp_path / "right.jsonl", [ROWS[0], ROWS[3]])
    words = ["evaluate-prm", "--prm", checkpoint, "--domain", "arithmetic", "--output", str(tmp_path / "r.json")]
    main([*words, "--path", f"gsm8k={both}", f"math={right}"])
    text = (tmp_path / "r.json").read_text()
    written = json.loads(text)
    assert "NaN" not in text
    assert written["sets"]["math"]["prm"]["f1"] is None
    assert written["sets"]["math"]["prm"]["accuracy_correct"] is not None
    assert written["mean_f1_prm"] == written["sets"]["gsm8k"]["prm"]["f1"]
    assert written["mean_f1_length_alone"] == written["sets"]["gsm8k"]["length_alone"]["f1"]
    shown = capsys.readouterr().out
    (row,) = [line for line in shown.splitlines() if "math" in line]
    assert "nan" not in shown
    assert [cell.strip() for cell in row.split("│")[3:6]] == ["-", "-", "-"]
    main([*words, "--path", f"math={right}", "--threshold", "0"])
    assert json.loads((tmp_path / "r.json").read_text())["mean_f1_prm"] is None
    assert "threshold 0, given; no F1" in capsys.readouterr().out


def test_no_number_that_json_has_not_is_written() -> None:
    given = {"a": [1.0, math.nan, {"b": math.inf}], "c": ("d", -math.inf), "e": 2}
    assert plain(given) == {"a": [1.0, None, {"b": None}], "c": ["d", None], "e": 2}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("report.json", '{"model": "mine"}', "report.json' is no report of evaluate-prm"),
        ("report.json", "[1", "report.json' is no report of evaluate-prm"),
        ("report.own.jsonl", "mine", "report.own.jsonl', which goes with it, exists, and no report beside it"),
        ("report.png", "mine", "report.png', which goes with it, exists, and no report beside it"),
    ],
)
def test_what_it_has_not_written_is_left_as_it_is(
    name: str, content: str, message: str, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = table(tmp_path / "rows.jsonl", [{"problem": "1a2", "steps": ["a3", "b4"], "first_error": -1}])
    (tmp_path / "report.own.jsonl").write_text("mine")
    (tmp_path / name).write_text(content)
    if name == "report.png":
        (tmp_path / "report.own.jsonl").unlink()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SystemExit):
        main(["evaluate-prm", "--prm", checkpoint, "--set=labelled", f"--path=own={rows}",
              "--output", str(tmp_path / "report.json")])  # fmt: skip
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if not path.name.endswith(".lock")} == before


def test_solutions_of_ones_own_need_no_threshold(checkpoint: str, tmp_path: Path) -> None:
    rows = [{"problem": "1a2", "steps": ["a3", "b5"], "labels": [True, False]}, ROWS[0] | {"labels": [True, True]}]
    path = table(tmp_path / "own.jsonl", [{k: v for k, v in row.items() if k != "label"} for row in rows])
    output = tmp_path / "report.json"
    words = ["--prm", checkpoint, "--set", "labelled", "--path", f"own={path}", "--output", str(output)]
    main(["evaluate-prm", *words, "--domain", "arithmetic"])
    found = json.loads(output.read_text())["sets"]["own"]["prm"]
    assert found["wrong_step_auroc"] is not None
    assert "f1" not in found


def test_experts_of_a_file(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two sets the second has no right solution of the experts' problem, which is no mistake."""
    paths = [f"gsm8k={table(tmp_path / 'a.jsonl', ROWS)}", f"other={table(tmp_path / 'b.jsonl', ROWS[2:])}"]
    written = ["a1\na2", "b3\nb4"]
    experts = table(tmp_path / "experts.jsonl", [{"problem": "1a2", "solution": text} for text in written])
    output = tmp_path / "report.json"
    words = ["evaluate-prm", "--prm", checkpoint, "--path", *paths, "--output", str(output), "--domain", "arithmetic"]
    main([*words, "--experts", experts])
    report = json.loads(output.read_text())
    assert report["experts"] == experts
    # By hand: the only right solution of 1a2 is that of row p.
    texts = [solution("1a2", "a3\n", "b4"), *(solution("1a2", *text.splitlines(keepends=True)) for text in written)]
    right, *of_experts = (sum(one) / len(one) for one in load_prm(checkpoint).step_rewards(texts))
    control = report["controls"]["gsm8k"]
    assert control["expert_wins"] == sum(one > right for one in of_experts) / 2
    assert (control["expert_pairs"], control["expert_problems"]) == (2, 1)
    assert (report["controls"]["other"]["expert_wins"], report["controls"]["other"]["expert_pairs"]) == (None, 0)
    assert "expert wins" in " ".join(capsys.readouterr().out.split())
    main(words)
    assert "expert_wins" not in json.loads(output.read_text())["controls"]["gsm8k"]
    assert "expert" not in capsys.readouterr().out


def test_a_prm_of_two_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuned, start = implicit_pair(tmp_path)
    steps = ["2 + 3 = 5", "5 + 1 = 7"]
    path = table(tmp_path / "own.jsonl", [{"problem": "2 + 3 + 1?", "steps": steps, "labels": [True, False]}])
    words = ["evaluate-prm", "--prm", tuned, "--set=labelled", f"--path=own={path}", "--controls=0"]
    words += ["--output", str(tmp_path / "report.json")]
    two = ["--kind", "implicit", "--reference", start]
    for more, message in [
        (two[:2], "is two models, and no other is: give `reference`"),
        (["--kind", "rlhflow", "--beta", "2"], "beta 2 is of a PRM of kind 'implicit'"),
    ]:
        with pytest.raises(SystemExit):
            main([*words, *more])
        assert message in capsys.readouterr().err
    expected = repirl.load_prm(tuned, "implicit", reference=start).score("2 + 3 + 1?", join_steps(steps)).step_rewards
    for more, beta in (([], 1), (["--beta", "0.05"], 0.05)):
        main([*words, *two, *more])
        (record,) = [json.loads(line) for line in (tmp_path / "report.own.jsonl").read_text().splitlines()]
        assert record["step_rewards"] == pytest.approx([beta * value for value in expected], abs=1e-5)
    written = json.loads((tmp_path / "report.json").read_text())
    assert (written["kind"], written["reference"], written["beta"]) == ("implicit", start, 0.05)


@pytest.mark.parametrize("changed", ["--beta=0.5", "weights"])
def test_two_prms_do_not_share_a_journal(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned, start = implicit_pair(tmp_path)
    path = table(tmp_path / "own.jsonl", [{"problem": "2 + 3?", "steps": ["5"], "first_error": -1}])
    words = ["evaluate-prm", "--prm", tuned, "--kind=implicit", "--reference", start, "--set=labelled"]
    words += [f"--path=own={path}", "--controls=0", "--output", str(tmp_path / "report.json")]
    with monkeypatch.context() as patch:
        patch.setattr(evaluate_prm, "draw_reliability", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(words)
    if changed == "weights":
        (Path(start) / "model.safetensors").write_bytes((Path(tuned) / "model.safetensors").read_bytes())
    with pytest.raises(SystemExit):
        main([*words, changed] if changed.startswith("--") else words)
    assert "was begun with another " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--path", "gsm8k={file}", "--experts", "{folder}/none.jsonl"],
            "--experts: {folder}/none.jsonl: no such file",
        ),
        (
            ["--path", "gsm8k={file}", "--experts", "{others}"],
            "--experts: none of its 1 solutions is of a problem that has",
        ),
        (
            ["--path", "gsm8k={file}", "--experts", "{own}", "--output", "{folder}/own.json"],
            "own.gsm8k.jsonl' is where step rewards go",
        ),
        (["--path", "math={file}"], "no threshold, and no part 'gsm8k' to choose it on"),
        (["--path", "{file}"], "is not NAME=FILE"),
        (["--set", "labelled"], "--set labelled needs files"),
        (["--path", "gsm8k={folder}/none.jsonl"], "none.jsonl: no such file"),
        (["--path", "gsm8k={file}", "--output", "report.txt"], "is no .json file"),
        (["--path", "gsm8k={file}", "--prm", "none.ckpt"], "--prm: PRM 'none.ckpt'"),
        (["--path", "gsm8k={file}", "--limit", "0"], "--limit: 0 is below 1"),
        (["--path", "gsm8k={file}", "--controls=-1"], "--controls: -1 is below 0"),
        (["--path", "gsm8k={file}", "--threshold", "nan"], "--threshold: nan is no finite number"),
        (["--path", "gsm8k={file}", "gsm8k={file}"], "two files have the same name"),
        (["--path", "gsm8k/a={file}"], "is not NAME=FILE"),
        (["--path", "gsm8k={file}", "--output", "{folder}.json"], "is no .json file"),
        (["--path", "gsm8k={file}", "--limit", "1"], "'gsm8k' has 0 erroneous solutions of 1"),
        (["--path", "gsm8k={long}", "--domain", "arithmetic"], "gsm8k: 1 of 5 solutions are longer than the 64 tokens"),
        (["--path", "gsm8k={own}", "--output", "{folder}/own.json"], "own.gsm8k.jsonl' is where step rewards go"),
        (["--path", "gsm8k={file}", "--device", "abacus"], "device 'abacus' is not to be had here"),
    ],
)
def test_mistakes_are_told_in_two_lines(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    file = table(tmp_path / "rows.jsonl", ROWS)
    long = table(tmp_path / "long.jsonl", [*ROWS, ROWS[0] | {"id": "t", "steps": ["a" * 64]}])
    (folder := tmp_path / "folder").mkdir()
    (tmp_path / "folder.json").mkdir()
    own = table(folder / "own.gsm8k.jsonl", ROWS)
    others = table(tmp_path / "others.jsonl", [{"problem": "4d4", "solution": "d8"}])
    named = {"file": file, "long": long, "own": own, "folder": folder, "others": others}
    given = [word.format(**named) for word in words]
    with pytest.raises(SystemExit):
        main(["evaluate-prm", "--prm", checkpoint, "--output", str(tmp_path / "r.json"), *given])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert message.format(**named) in lines[0]


def test_controls_that_do_not_fit_are_left_out(checkpoint: str, tmp_path: Path) -> None:
    """The first of three steps said three times is longer than the model's context; the solution itself is not."""
    path = table(tmp_path / "own.jsonl", [{"problem": "1a2", "steps": ["a" * 25, "b4", "c5"], "first_error": -1}])
    output = tmp_path / "report.json"
    words = ["--prm", checkpoint, "--set", "labelled", "--path", f"own={path}", "--output", str(output)]
    main(["evaluate-prm", *words, "--domain", "arithmetic"])
    control = json.loads(output.read_text())["controls"]["own"]
    assert (control["right_solutions"], control["twins"], control["hollow_wins"]) == (1, 1, None)


def test_rewards_of_an_ended_run_are_those_of_the_same_texts(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows without an id are numbered, so that a repaired file has the ids of the one before."""
    rows = [
        {"problem": "1a2", "steps": ["a3", "b4"], "first_error": -1},
        {"problem": "1a2", "steps": ["a9"], "first_error": 0},
    ]
    output = tmp_path / "report.json"
    words = ["evaluate-prm", "--prm", checkpoint, "--set=labelled", f"--path=own={tmp_path / 'own.jsonl'}"]
    words += ["--output", str(output), "--domain=arithmetic"]
    table(tmp_path / "own.jsonl", rows)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", lambda journal, lines: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(words)
    table(tmp_path / "own.jsonl", [rows[0], rows[1] | {"steps": ["a3"]}])
    with pytest.raises(SystemExit):
        main(words)
    table(tmp_path / "own.jsonl", rows[:1])
    with pytest.raises(SystemExit):
        main(words)
    assert capsys.readouterr().err.count("was begun with other solutions: its 'row-1' is not that of own") == 2
    kept = (tmp_path / ".report.own.jsonl.part").read_text().splitlines()[1:]
    table(tmp_path / "own.jsonl", [*rows, {"problem": "1a2", "steps": ["a3"], "first_error": -1}])  # what comes after
    main(words)
    assert json.loads(output.read_text())["sets"]["own"]["solutions"] == 3
    lines = [json.loads(line) for line in (tmp_path / "report.own.jsonl").read_text().splitlines()]
    assert [line["step_rewards"] for line in lines[:2]] == [json.loads(line)["step_rewards"] for line in kept]
    assert all(set(line) == {"id", "step_rewards"} for line in lines)


def test_a_set_is_scored_once_whenever_the_run_is_ended(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended in the second set, and again when all is scored but not written."""
    rows = [{"problem": "1a2", "steps": ["a3", "b4"], "first_error": place} for place in (-1, 1)]
    words = ["evaluate-prm", "--prm", checkpoint, "--set=labelled", "--controls=0"]
    words += ["--output", str(tmp_path / "report.json")]
    words += ["--path", *(f"{name}={table(tmp_path / f'{name}.jsonl', rows)}" for name in ("one", "two"))]
    read: list[int] = []
    step_rewards = Scorer.step_rewards

    def counted(scorer: Scorer, solutions: Sequence[WrittenSolution]) -> list[tuple[float, ...]]:
        if len(read) == ended_after:
            raise KeyboardInterrupt
        read.extend([len(solutions)] * bool(solutions))  # no control has a solution
        return step_rewards(scorer, solutions)

    monkeypatch.setattr(Scorer, "step_rewards", counted)
    ended_after = 1
    with pytest.raises(SystemExit, match="130"):
        main(words)
    ended_after = -1
    with monkeypatch.context() as patch:
        patch.setattr(evaluate_prm, "draw_reliability", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(words)
    main(words)
    assert read == [2, 2]
    assert len((tmp_path / "report.one.jsonl").read_text().splitlines()) == 2
    main(words)
    assert read == [2, 2, 2, 2]  # a report that is there is made anew
