"""`repirl generate-experts`: rows that training reads, counts worked by hand, nothing lost and nothing asked twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from repirl.__main__ import main
from repirl.applications import experts
from repirl.applications.experts_report import cost_of, outcomes_of
from repirl.config import ConfigError
from repirl.data.expert import ExpertData
from repirl.data.sources import Table
from repirl.models.prm import PRM
from tests.applications.test_scoring import trained
from tests.data.attaching import attached
from tests.endpoints import HANG, KEY, Reply, Request, Served, completion, refusal, serving
from tests.processes import limited, wait_for
from tests.test_runs import ROOT

EXACT = {"class_path": "repirl.verifiers.exact.ExactVerifier"}
ROWS = [
    {"id": "p0", "problem": "a3b5", "answer": "b8"},
    {"id": "p1", "problem": "a1b1", "answer": "b2"},
    {"id": "p2", "problem": "c9d9", "answer": "d8"},
]
RIGHT = {row["problem"]: f"\\boxed{{{row['answer']}}}" for row in ROWS}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Request], Reply]], Served]]:
    open_ones = []

    def start(behave: Callable[[Request], Reply]) -> Served:
        context = serving(behave)
        open_ones.append(context)
        return context.__enter__()

    yield start
    for context in open_ones:
        context.__exit__(None, None, None)


def table(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"class_path": "repirl.data.sources.Table", "init_args": {"path": str(path)}}


def settings_of(tmp_path: Path, url: str, rows: list[dict[str, Any]] = ROWS, **changes: Any) -> list[str]:
    content = {
        "output": str(tmp_path / "out"),
        "problems": table(tmp_path / "problems.jsonl", rows),
        "verifier": EXACT,
        "base_url": url,
        "model": "asked-model",
        "n": 2,
        "concurrent": 1,
        "retries": 0,
        **changes,
    }
    path = tmp_path / "experts.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not ...}), encoding="utf-8")
    return ["-c", str(path)]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def by_number(request: Request) -> Reply:
    """Right answers, each spelled in its own way."""
    return completion(f"{request.number}c{RIGHT[request.asked]}")


def of_problem(served: Served) -> Counter[str]:
    return Counter(request.asked for request in served.requests)


# ---- the whole command


def test_counts_cost_and_rows(
    serve: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """p0: right, cut, the same but for case and space, wrong. p1: right twice. p2: empty, wrong, filtered, cut."""
    script = {
        "a3b5": [
            completion(" \\boxed{b8}\n", prompt=10, answer=100),
            completion("\\boxed{b8} b", "length", prompt=10, answer=50),
            completion("\\BOXED{b8}  ", prompt=10, answer=7),
            completion("\\boxed{b9}", prompt=10, answer=3),
        ],
        "a1b1": [completion("a1\\boxed{b2}", prompt=20, answer=1), completion("\\boxed{b2}", prompt=20, answer=1)] * 2,
        "c9d9": [
            completion(None, prompt=30, answer=8),
            completion("d9", prompt=30, answer=8),
            completion("\\boxed{d8}", "content_filter", prompt=30, answer=8),
            completion("\\boxed{d8}", "length", prompt=30, answer=8),
        ],
    }
    taken: Counter[str] = Counter()

    def behave(request: Request) -> Reply:
        problem = request.asked.removesuffix("!")
        taken[problem] += 1
        return script[problem][taken[problem] - 1]

    served = serve(behave)
    prices = {"price_prompt": 1.5, "price_completion": 10}
    monkeypatch.setenv("REPIRL_TRACEBACK", "1")
    given = settings_of(tmp_path, served.url, n=4, text={"instruction": "!", "max_response_tokens": 99}, **prices)
    main(["generate-experts", *given, "--system=Sums.", "--top_p=0.9"])
    assert served.requests[0].body == {
        "model": "asked-model",
        "temperature": 1.0,
        "top_p": 0.9,
        "max_tokens": 99,
        "messages": [{"role": "system", "content": "Sums."}, {"role": "user", "content": "a3b5!"}],
    }
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"experts.jsonl", "answers.jsonl", "summary.json"}
    rows = read(out / "experts.jsonl")
    assert [(row["id"], row["solution"]) for row in rows] == [
        ("p0", "\\boxed{b8}"), ("p1", "a1\\boxed{b2}"), ("p1", "\\boxed{b2}")]  # fmt: skip
    assert (rows[0]["problem"], rows[0]["answer"], rows[0]["right"]) == ("a3b5", "b8", True)
    provenance = rows[0]["provenance"]
    assert provenance.pop("time").endswith("+00:00")
    assert provenance == {
        "model": "served-model",
        "host": served.url.removeprefix("http://").removesuffix("/v1"),
        "settings": {
            "system": "Sums.", "temperature": 1.0, "top_p": 0.9, "max_tokens": 99, "max_tokens_field": "max_tokens",
            "extra": {}, "instruction": "!"},
        "sample": 0,
        "status": "equal",
        "finish_reason": "stop",
        "prompt_tokens": 10,
        "completion_tokens": 100,
        "attempts": 1,
    }  # fmt: skip
    answers = read(out / "answers.jsonl")
    assert [one["outcome"] for one in answers] == [
        *("expert", "unfinished", "duplicate", "wrong"),
        *("expert", "expert", "duplicate", "duplicate"),
        *("empty", "wrong", "unfinished", "unfinished"),
    ]
    assert answers[1]["right"] is None  # a cut answer is not even verified
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["problems"]["with_expert"], summary["problems"]["without_expert"]) == (2, ["p2"])
    counts = {name: summary["answers"][name] for name in ("asked", "received", "expert", "unfinished", "duplicate")}
    assert counts == {"asked": 12, "received": 12, "expert": 3, "unfinished": 3, "duplicate": 3}
    assert (summary["answers"]["wrong"], summary["answers"]["empty"], summary["answers"]["missing"]) == (2, 1, [])
    # 4 (10 + 20 + 30) = 240 and 100 + 50 + 7 + 3 + 4 * 1 + 4 * 8 = 196 tokens: (240 * 1.5 + 196 * 10) / 1e6
    tokens = summary["tokens"]
    assert (tokens["prompt_tokens"], tokens["completion_tokens"]) == (240, 196)
    assert tokens["cost"] == pytest.approx(2320e-6)
    assert tokens["cost_per_expert"] == pytest.approx(2320e-6 / 3)
    shown = capsys.readouterr()
    assert "3 experts of 2 problems, from 12 answers of 3 (2 wrong, 3 unfinished, 3 duplicate, 1 empty)" in shown.out
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in written + shown.out + shown.err
    assert served.requests[0].headers["Authorization"].endswith(KEY)


def test_training_reads_the_rows_as_they_are(serve: Any, tmp_path: Path) -> None:
    main(["generate-experts", *settings_of(tmp_path, serve(by_number).url)])
    path = tmp_path / "out" / "experts.jsonl"
    assert [(p.id, p.answer, len(p.solutions)) for p in Table(str(path)).load()] == [
        ("p0", "b8", 2), ("p1", "b2", 2), ("p2", "d8", 2)]  # fmt: skip
    data = attached(ExpertData(Table(str(path)), batch_prompts=3), "fit")
    (batch,) = list(data.train_dataloader())
    assert {prompt.problem.id for prompt in batch} == {"p0", "p1", "p2"}
    assert all(len(prompt.experts) == 2 for prompt in batch)
    assert all(RIGHT[p.problem.text] in expert.text for p in batch for expert in p.experts)


def test_tests_of_programs_are_kept(serve: Any, tmp_path: Path) -> None:
    rows = [
        {"problem": "Read a number and double it.", "tests": [{"input": "2\n", "output": "4\n"}]},
        {"problem": "Write f.", "tests": "assert f() == 1", "setup": "import math", "prefix": "def f():\n"},
        {"problem": "Write g.", "tests": [{"input": "[1]", "output": "2"}], "entry_point": "g"},
    ]
    given = settings_of(tmp_path, serve(lambda r: completion(f"{r.number}")).url, rows, keep="all", verifier=...)
    everything = {"class_path": "tests.modules.tiny.EvenDigits"}
    main(["generate-experts", *given, f"--verifier={everything['class_path']}"])
    before, after = Table(str(tmp_path / "problems.jsonl")), Table(str(tmp_path / "out" / "experts.jsonl"))
    assert [p.tests for p in after.load()] == [p.tests for p in before.load()]


def test_all_that_is_finished_is_kept_and_marked(serve: Any, tmp_path: Path) -> None:
    rows = [*ROWS[:1], {"id": "open", "problem": "a7"}]
    script = [
        completion("\\boxed{b8}"),
        completion("\\boxed{b7}"),
        completion("\\boxed{a7}"),
        completion("a", "length"),
    ]
    given = settings_of(tmp_path, serve(lambda request: script[request.number]).url, rows)
    with pytest.raises(ConfigError, match="1 problems have neither answer nor tests, the first is 'open'"):
        experts.main(given)
    experts.main([*given, "--keep=all"])
    kept = [(row["id"], row["right"]) for row in read(tmp_path / "out" / "experts.jsonl")]
    assert kept == [("p0", True), ("p0", False), ("open", None)]


def test_problems_of_evaluation_sets_are_left_out_or_marked(serve: Any, tmp_path: Path) -> None:
    served = serve(by_number)
    guard = {"held_out": table(tmp_path / "held_out.jsonl", [{"id": "t9", "problem": "C9 d9?"}, {"problem": "other"}])}
    repeated = [*ROWS, {"id": "again", "problem": "a3b5", "answer": "b8"}]  # Table merges it
    given = settings_of(tmp_path, served.url, repeated, guard=guard)
    experts.main(given)
    assert of_problem(served) == {"a3b5": 2, "a1b1": 2}  # what is left out is not paid for
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["problems"]["contaminated"] == {"held_out": {"p2": "t9"}}
    experts.main([*given, "--contaminated=mark", f"--output={tmp_path / 'marked'}"])
    marked = read(tmp_path / "marked" / "experts.jsonl")
    assert [row["id"] for row in marked if row.get("contaminated") == {"held_out": "t9"}] == ["p2", "p2"]
    assert ["contaminated" in row for row in marked] == [False] * 4 + [True] * 2


def test_a_gold_that_cannot_be_read_is_not_asked_for(serve: Any, tmp_path: Path) -> None:
    rows = [{"problem": "1 + 1", "answer": "2"}, {"problem": "what?", "answer": "\\frac{"}]
    served = serve(lambda request: completion("\\boxed{2.0}"))
    experts.main(settings_of(tmp_path, served.url, rows, verifier=..., n=1))
    assert of_problem(served) == {"1 + 1": 1}
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["problems"]["golds_unreadable"] == ["problems/2"]


# ---- what goes wrong on the way


def test_a_killed_program_goes_on(serve: Any, tmp_path: Path) -> None:
    """The answers that had come are not asked for again; each is there once in the end."""
    rows = [{"id": f"p{i}", "problem": f"a{i}", "answer": f"a{i}"} for i in range(8)]
    state = {"hangs": True}

    def behave(request: Request) -> Reply:
        if state["hangs"] and request.number >= 11:
            return HANG
        return completion(f"{request.number} \\boxed{{{request.asked}}}")

    served, part = serve(behave), tmp_path / "out" / ".answers.jsonl.part"
    given = settings_of(tmp_path, served.url, rows, n=3, concurrent=4)
    command = [sys.executable, "-m", "repirl", "generate-experts", *given]
    with limited(subprocess.Popen(command)) as killed:
        assert wait_for(lambda: part.exists() and part.read_bytes().count(b"\n") == 12 and len(served.requests) == 15)
        os.kill(killed.pid, signal.SIGKILL)
    before = [one["text"] for one in read(part)[1:]]
    assert len(before) == 11
    with part.open("ab") as file:
        file.write(b'{"id": "p7", "sam')  # what a kill leaves of a line
    state["hangs"] = False
    served.hang.set()
    with pytest.raises(ConfigError, match=r"was begun with another temperature\n"):
        experts.main([*given, "--temperature=0.5"])
    with pytest.raises(ConfigError, match=r"was begun with another n and problems\n"):
        experts.main([*given, "--n=4", "--problems.init_args.limit=5"])
    assert len(served.requests) == 15
    experts.main([*given, "--concurrent=2", "--retries=3"])  # what no answer depends on may differ
    assert len(served.requests) == 15 + 13  # 24 answers, 11 were there
    answers = read(tmp_path / "out" / "answers.jsonl")
    assert [(one["id"], one["sample"]) for one in answers] == [(f"p{i}", k) for i in range(8) for k in range(3)]
    assert set(before) <= {one["text"] for one in answers}
    assert len(read(tmp_path / "out" / "experts.jsonl")) == 24
    assert not part.exists()
    with pytest.raises(ConfigError, match="exists"):
        experts.main(given)


def test_a_signal_ends_it_though_the_endpoint_hangs(serve: Any, tmp_path: Path) -> None:
    served = serve(lambda request: HANG)
    command = [sys.executable, "-m", "repirl", "generate-experts", *settings_of(tmp_path, served.url, concurrent=3)]
    with limited(subprocess.Popen(command)) as process:
        assert wait_for(lambda: len(served.requests) == 3)
        process.terminate()
        assert process.wait(50) == 143  # the endpoint hangs for longer


def test_a_refusal_ends_it_at_once_and_loses_nothing(serve: Any, tmp_path: Path) -> None:
    refused = {"now": True}
    served = serve(lambda r: refusal(401, f"bad {KEY}") if r.number >= 2 and refused["now"] else by_number(r))
    given = settings_of(tmp_path, served.url)
    with pytest.raises(
        ConfigError, match=r"problem 'p1': .* OPENAI_API_KEY holds a key that is not admitted"
    ) as raised:
        experts.main(given)
    assert len(str(raised.value).splitlines()) == 2
    assert KEY not in str(raised.value)
    assert len(served.requests) == 3
    refused["now"] = False
    experts.main(given)
    assert len(served.requests) == 3 + 4
    assert len(read(tmp_path / "out" / "experts.jsonl")) == 6


def test_answers_that_do_not_come(serve: Any, tmp_path: Path) -> None:
    """One problem's are refused: the others are asked for all the same; then they come, or are done without."""
    served = serve(lambda r: refusal(500, "broken") if r.asked == "a1b1" else by_number(r))
    given = settings_of(tmp_path, served.url)
    message = (
        r"2 of 6 answers are missing, the first of problem 'p1': .* after 1 attempts, the last: HTTP 500, 'broken'"
    )
    for asked in (6, 6 + 2):  # what is missing is asked for again, and nothing else
        with pytest.raises(ConfigError, match=message):
            experts.main(given)
        assert len(served.requests) == asked
    experts.main([*given, "--missing=accept"])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [(one["id"], one["sample"]) for one in summary["answers"]["missing"]] == [("p1", 0), ("p1", 1)]
    assert summary["problems"]["without_expert"] == ["p1"]
    assert len(read(tmp_path / "out" / "experts.jsonl")) == 4


@pytest.mark.parametrize(("missing", "requests"), [("refuse", 1), ("accept", 6)])
def test_a_request_that_is_refused_alone(serve: Any, tmp_path: Path, missing: str, requests: int) -> None:
    served = serve(lambda r: refusal(400, "too long") if r.asked == "a3b5" else by_number(r))
    given = settings_of(tmp_path, served.url, missing=missing)
    if missing == "refuse":
        with pytest.raises(ConfigError, match=r"problem 'p0': .*HTTP 400, 'too long'"):
            experts.main(given)
    else:
        experts.main(given)
        assert len(read(tmp_path / "out" / "experts.jsonl")) == 4
    assert len(served.requests) == requests


def test_an_endpoint_that_is_gone_is_given_up(serve: Any, tmp_path: Path) -> None:
    rows = [{"problem": f"a{i}", "answer": f"a{i}"} for i in range(9)]
    served = serve(lambda request: refusal(503))
    with pytest.raises(ConfigError, match=r"problem 'problems/5': .*HTTP 503"):
        experts.main(settings_of(tmp_path, served.url, rows, n=1, missing="accept"))
    assert len(served.requests) == 5


def test_verification_that_fails_costs_no_answer(serve: Any, tmp_path: Path) -> None:
    served = serve(by_number)
    given = settings_of(tmp_path, served.url, verifier={"class_path": "tests.applications.test_experts.Breaking"})
    Breaking.breaks = True
    with pytest.raises(RuntimeError, match="the machine failed"):
        experts.main(given)
    Breaking.breaks = False
    experts.main(given)
    assert len(served.requests) == 6
    assert len(read(tmp_path / "out" / "experts.jsonl")) == 6


class Breaking(experts.Verifier):
    """Right is all, where it does not break."""

    breaks = False

    def verify(self, problems: Any, responses: Any) -> Any:
        from repirl.structs import Verdict

        if any(responses) and self.breaks:
            raise RuntimeError("the machine failed")
        return [Verdict(True, "equal")] * len(problems)

    def close(self) -> None:
        """Nothing to end."""


# ---- in this process


def test_a_checkpoint_answers_and_goes_on(tmp_path: Path) -> None:
    trained(tmp_path / "run.ckpt", prm=PRM("q_head"))
    of_process = {
        "base_url": ...,
        "model": ...,
        "concurrent": ...,
        "retries": ...,
        "checkpoint": str(tmp_path / "run.ckpt"),
    }
    options = {
        "verifier": {"class_path": "tests.modules.tiny.EvenDigits"},
        "temperature": 4.0,
        "n": 5,
        "problems_at_once": 1,
    }
    given = settings_of(tmp_path, "", **of_process, **options)
    experts.main(given)
    answers = read(tmp_path / "out" / "answers.jsonl")
    assert Counter(one["id"] for one in answers) == {"p0": 5, "p1": 5, "p2": 5}
    assert all(one["outcome"] == "unfinished" for one in answers if one["finish_reason"] == "length")
    rows = read(tmp_path / "out" / "experts.jsonl")
    assert rows
    assert all(sum(c.isdigit() for c in row["solution"]) % 2 == 0 for row in rows)
    assert rows[0]["provenance"]["host"] is None
    assert rows[0]["provenance"]["settings"]["max_tokens"] == 10
    # What a kill after the first problem and a part of the second leaves; and two problems at once.
    other = tmp_path / "other"
    other.mkdir()
    begun = experts.Journal(other / "answers.jsonl", _described(given))
    begun.append([{k: v for k, v in one.items() if k not in ("right", "status", "outcome")} for one in answers[:7]])
    experts.main([*given, f"--output={other}", "--problems_at_once=2"])
    texts = [(one["id"], one["sample"], one["text"]) for one in read(other / "answers.jsonl")]
    assert texts == [(one["id"], one["sample"], one["text"]) for one in answers]


def _described(given: list[str]) -> dict[str, Any]:
    asked, mapping = experts.settings_of(experts._parser(), experts.Experts, given, classes=experts.CLASSES)
    return experts._description(asked, mapping, asked.problems.load())


@pytest.mark.parametrize(("name", "trains"), [("paper_math", "math"), ("paper_code", "overlays/code")])
def test_the_shipped_settings_go_together(name: str, trains: str) -> None:
    """And ask as the training does that reads the rows."""
    configs = ROOT / "configs"
    words = ["-c", str(configs / "experts" / f"{name}.yaml"), "--base_url=http://127.0.0.1:1/v1", "--model=m"]
    asked, _ = experts.settings_of(experts._parser(), experts.Experts, words, classes=experts.CLASSES)
    asked.check()
    assert asked.guard
    assert asked.text is not None
    training = yaml.safe_load((configs / "paper" / f"{trains}.yaml").read_text())["model"]["init_args"]
    assert asked.text.instruction == training["text"]["instruction"]
    assert type(asked.verifier).__name__ == training["verifier"]["class_path"].rpartition(".")[2]


# ---- figures, mistakes


def test_outcomes_need_words_a_whole_answer_and_a_verdict() -> None:
    def answer(text: str, reason: str | None = "stop", sample: int = 0) -> dict[str, Any]:
        return {"id": "p", "sample": sample, "text": text, "finish_reason": reason}

    answers = [
        answer("A b", sample=0),
        answer("c", None, 1),
        answer(" \n", sample=2),
        answer("a  B", sample=3),
        answer("d", sample=4),
    ]
    verdicts = {("p", 0): {"right": True}, ("p", 3): {"right": True}, ("p", 4): {"right": None}}
    assert outcomes_of(answers, verdicts, "right") == ["expert", "unfinished", "empty", "duplicate", "undecided"]
    assert outcomes_of(answers, verdicts, "all") == ["expert", "unfinished", "empty", "duplicate", "expert"]


def test_a_cost_without_a_price_is_unknown() -> None:
    answers = [{"prompt_tokens": 3, "completion_tokens": None}, {"prompt_tokens": 4, "completion_tokens": 5}]
    known = cost_of(answers, 0, price_prompt=1.0, price_completion=2.0)
    assert (known["cost"], known["answers_without_count"], known["cost_per_expert"]) == (17e-6, 1, None)
    assert cost_of(answers, 1, price_prompt=1.0, price_completion=None)["cost"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_url": ...}, "answers come from one of base_url, policy and checkpoint, and there is none"),
        ({"policy": "folder"}, "there is base_url and policy"),
        ({"base_url": ..., "policy": "folder"}, "model: it belongs to an endpoint"),
        ({"model": ...}, "model: there is none"),
        ({"device": "cuda"}, "device: it belongs to a policy in this process, and an endpoint answers"),
        ({"text": {"template": "plain"}}, "text.template: the endpoint has a template of its own"),
        ({"extra": {"n": 4}}, "extra: 'n' is set by this program"),
        ({"n": 0}, "n: 0 is below 1"),
        ({"retries": -1}, "retries: -1 is below 0"),
        ({"timeout_s": 0}, "timeout_s: 0"),
        ({"requests_per_minute": -1}, "requests_per_minute: -1"),
        ({"price_prompt": -1}, "price_prompt: -1"),
        ({"temperature": 0}, "temperature: 0 gives one answer again and again, and n is 2"),
        ({"keep": "best"}, "best"),
        ({"base_url": f"http://u:{KEY}@h/v1"}, "base_url holds a user, a password or a query"),
        ({"api_key_env": KEY}, "api_key_env: give the name of an environment variable"),
        ({"extra": {"key": KEY}}, "the key in OPENAI_API_KEY stands in"),
        (
            {"problems": {"class_path": "repirl.data.sources.Table", "init_args": {"path": "none.jsonl"}}},
            "none.jsonl: no such file",
        ),
        ({"verifier": {"class_path": "repirl.verifiers.code.CodeVerifier"}}, "'p0' has no tests to verify against"),
        ({"modle": "x"}, "modle"),
    ],
)
def test_mistakes_are_told_in_two_lines(serve: Any, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    served = serve(by_number)
    with pytest.raises(ConfigError, match=message) as raised:
        experts.main(settings_of(tmp_path, served.url, **changes))
    assert len(str(raised.value).splitlines()) == 2
    assert KEY not in str(raised.value)
    assert served.requests == []
