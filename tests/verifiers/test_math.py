r"""The mathematics verifier, with real processes: what is equal, what cannot hang it, what a dead worker costs."""

import contextlib
import copy
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jsonargparse import ArgumentError, ArgumentParser

from repirl.structs import Problem, Verdict, Verifier
from repirl.verifiers import math_pool
from repirl.verifiers.guards import oversized
from repirl.verifiers.math import MathVerifier, equal, extract_answer, normalise
from repirl.verifiers.math_pool import Clock, Worker, WorkerPool
from repirl.verifiers.quick import decide
from tests.processes import alive, limited, wait_for

# No guard sees its size, and it takes minutes: 7**(10**9). Only a time-out ends it.
HEAVY = r"7^{1000\cdot 1000\cdot 1000}"


@pytest.fixture(scope="module")
def shared() -> Iterator[MathVerifier]:
    verifier = MathVerifier()
    yield verifier
    verifier.close()


@pytest.fixture
def quick_to_kill() -> Iterator[MathVerifier]:
    verifier = MathVerifier(soft_timeout_s=0.5, hard_timeout_s=1.5)
    yield verifier
    verifier.close()


def ask(verifier: MathVerifier, gold: str, *answers: str) -> list[str]:
    problems = [Problem(id=f"p{i}", text="?", answer=gold) for i in range(len(answers))]
    return [verdict.status for verdict in verifier.verify(problems, [rf"So \boxed{{{a}}}." for a in answers])]


# What is an answer, and its normal form. What is equal: test_math_cases.py ---------------------------------------


@pytest.mark.parametrize(("text", "expected"), [
    (r"\left( 3, \dfrac{\pi}{2} \right)", r"(3, \frac{\pi}{2})"),
    (r"$\$32,\!348$", "32348"),
    ("100,200", "100200"),
    ("(100,200)", "(100, 200)"),
    (r"\frac 3 8", r"\frac{3}{8}"),
    (r"x \text{ or } y", "x, y"),
    (r"\pi r", r"\pi r"),
    ("ｘ²", "x^2"),
    (r"\text{ (C) }", "C"),
    ("+5.", "5"),
    ("120^{\\circ}", "120^\\circ"),
])  # fmt: skip
def test_normal_form(text: str, expected: str) -> None:
    assert normalise(text) == expected
    assert normalise(expected) == normalise(normalise(expected))


@pytest.mark.parametrize(("response", "expected"), [
    (r"\boxed{1} then \boxed{2}", "2"),
    (r"\boxed{\boxed{3}}", "3"),
    (r"\boxed{\frac{1}{2}} and \boxed{cut", r"\frac{1}{2}"),
    (r"\boxed{\{1, 2)}", r"\{1, 2)"),
    ("so\n#### 18\n", "18"),
    ("#### 18\nno: " + r"\boxed{19}", "19"),
    (r"\boxed{1}" + " " * 20_000, None),
    ("18", None),
    ("####", None),
])  # fmt: skip
def test_the_last_readable_answer_is_taken(response: str, expected: str | None) -> None:
    assert extract_answer(response) == expected


def test_extraction_is_a_choice_and_an_order() -> None:
    assert extract_answer("Answer: 7", extraction=["Answer:"]) == "7"
    assert extract_answer("#### 7", extraction=["box"]) is None
    both = "#### 7\n" + r"\boxed{8}"
    assert extract_answer(both, extraction=["box", "####"]) == "8"
    assert extract_answer(both, extraction=["####", "box"]) == "7"
    verifier = MathVerifier(extraction=["answer is", "box"])
    problem = Problem(id="a", text="?", answer="7")
    responses = ["so the answer is 7\nDone.", r"\boxed{7}", "#### 7", r"\boxed{7}, or the answer is 8"]
    assert [v.status for v in verifier.verify([problem] * 4, responses)] == ["equal", "equal", "no_answer", "not_equal"]
    assert copy.deepcopy(verifier).verify([problem], responses[:1])[0].status == "equal"
    for wrong in ("box", [], ["box", " "]):
        with pytest.raises(ValueError, match="must be a list"):
            MathVerifier(extraction=wrong)


def test_extraction_is_read_from_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Verifier, "verifier")
    settings = {"class_path": "repirl.verifiers.math.MathVerifier", "init_args": {"extraction": ["box", "answer is"]}}
    verifier = parser.instantiate(parser.parse_string(json.dumps({"verifier": settings}))).verifier
    assert verifier.verify([Problem(id="a", text="?", answer="7")], ["The answer is 7"])[0].status == "equal"
    with pytest.raises(ArgumentError, match="extraction"):
        parser.parse_string(json.dumps({"verifier": settings | {"init_args": {"extraction": 7}}}))


def test_golds_that_cannot_be_read_are_found(shared: MathVerifier) -> None:
    golds = {
        "plain": "18", "fraction": r"\frac{1}{2}", "words": r"\text{Evelyn}", "unit": r"15\mbox{ cm}^2", "percent": "62.5%",
        "gsm8k": "so 6 x 3 = 18\n#### 18", "algebra": "x^2+1", "interval": r"(-\infty, 2) \cup (3, \infty)", "letter": "C",
        "matrix": r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
        "empty": " ", "cut": r"\frac{1}{", "huge": "9^{9^9}", "long": "x" * 3_000, "no value": r"\frac{1}{0}", "marks": "???",
    }  # fmt: skip
    problems = [Problem(id=name, text="?", answer=gold) for name, gold in golds.items()]
    wrong = ("empty", "cut", "huge", "long", "no value", "marks")
    assert shared.check_golds(problems) == [(name, golds[name]) for name in wrong]
    assert shared.check_golds([]) == []
    with pytest.raises(ValueError, match="1 of 18 problems have no gold answer, the first is 'none'; name its field"):
        shared.check_golds([Problem(id="none", text="?"), *problems, Problem(id="last", text="?", answer="1")])


def test_a_gold_is_not_blamed_for_a_failing_machine(caplog: pytest.LogCaptureFixture) -> None:
    verifier = MathVerifier(memory_mib=256)
    done = threading.Event()

    def kill_on_sight() -> None:
        while not done.is_set():
            for pid in verifier.worker_pids:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    killer = threading.Thread(target=kill_on_sight)
    killer.start()
    try:
        with pytest.raises(RuntimeError, match="died twice on the gold answer 'x\\+1'"):
            verifier.check_golds([Problem(id="a", text="?", answer="x+1")])
    finally:
        done.set()
        killer.join()
        verifier.close()


# The protocol ------------------------------------------------------------------------------------------------------


def test_order_is_kept_and_mixed_outcomes_do_not_disturb_one_another() -> None:
    golds = ["2", "x+1", "2", "", "(1,2)", "3"]
    responses = [r"\boxed{2}", r"\boxed{1+x}", "none", r"\boxed{1}", r"\boxed{(1,\frac{6}{3})}", r"\boxed{9^{9^9}}"]
    verifier = MathVerifier(workers=2)
    assert isinstance(verifier, Verifier)
    try:
        problems = [Problem(id=str(i), text="?", answer=gold) for i, gold in enumerate(golds)]
        verdicts = verifier.verify(problems, responses)
        assert [(v.status, v.correct) for v in verdicts] == [
            ("equal", True),
            ("equal", True),
            ("no_answer", False),
            ("gold_unparsed", None),
            ("equal", True),
            ("not_equal", False),
        ]
        many = [Problem(id=str(i), text="?", answer=f"x+{i}") for i in range(30)]
        found = verifier.verify(many, [rf"\boxed{{{i if i % 3 else i + 1}+x}}" for i in range(30)])
        assert [v.correct for v in found] == [i % 3 != 0 for i in range(30)]
    finally:
        verifier.close()


def test_a_problem_without_a_gold_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'train/7' has no gold answer.*drop it"):
        MathVerifier().verify([Problem(id="train/7", text="?")], ["1"])
    with pytest.raises(ValueError, match="1 problems but 0 responses"):
        MathVerifier().verify([Problem(id="a", text="?", answer="1")], [])
    with pytest.raises(ValueError, match="soft_timeout_s < hard_timeout_s"):
        MathVerifier(soft_timeout_s=6, hard_timeout_s=2)


@pytest.mark.parametrize("gold", ["", "  ", r"\frac", "9^{9^9}", "1" * 5_000, "x" * 3_000, r"\frac{1}{0}", "???"])
def test_an_unreadable_gold_is_the_data_sets_fault(shared: MathVerifier, gold: str) -> None:
    assert ask(shared, gold, "5") == ["gold_unparsed"]


@pytest.mark.parametrize("gold", ["9^{9^9}", "1" * 5_000, r"\frac", r"\text{3:00 until noon}"])
def test_any_gold_equals_itself(shared: MathVerifier, gold: str) -> None:
    assert ask(shared, gold, gold) == ["equal"]


def test_module_function_takes_answers_and_responses() -> None:
    assert equal("1/2", r"so it is \boxed{\frac{2}{4}}.") == Verdict(correct=True, status="equal")
    assert equal("x+1", "1+x").correct is True
    assert equal("#### 18", "17").status == "not_equal"
    assert equal("18", "").status == "no_answer"
    assert equal("18", r"\boxed{18").status == "no_answer"


def test_copies_carry_settings_but_no_processes() -> None:
    verifier = MathVerifier(soft_timeout_s=1.0)
    try:
        assert ask(verifier, "x+1", "1+x") == ["equal"]
        assert len(verifier.worker_pids) == 1
        for twin in (copy.deepcopy(verifier), pickle.loads(pickle.dumps(verifier))):
            assert twin.worker_pids == []
            assert twin.__reduce__() == verifier.__reduce__()
            assert ask(twin, "x+1", "1+x") == ["equal"]
            assert set(twin.worker_pids).isdisjoint(verifier.worker_pids)
            twin.close()
        assert all(alive(pid) for pid in verifier.worker_pids)
    finally:
        verifier.close()


def test_a_known_pair_needs_no_worker() -> None:
    verifier = MathVerifier()
    assert ask(verifier, "x+1", "1+x") == ["equal"]
    verifier.close()
    assert ask(verifier, "x + 1", r"1 + x", "$1+x$") == ["equal", "equal"]  # the same after normalisation
    assert verifier.worker_pids == []
    assert ask(verifier, "x+1", "2+x") == ["not_equal"]
    assert len(verifier.worker_pids) == 1
    verifier.close()


def test_cheap_decisions_start_no_process() -> None:
    verifier = MathVerifier()
    assert ask(verifier, "18", "18.0", "17", "", r"\text{none}"[:0], "100000000!") == [
        "equal", "not_equal", "no_answer", "no_answer", "not_equal",
    ]  # fmt: skip
    assert verifier.worker_pids == []


# Hostile input -----------------------------------------------------------------------------------------------------

HOSTILE = [
    "9^{9^9}",
    "9^9^9",
    "9**9**9",
    "(9^9)^{(9!)!}",
    "100000000!",
    "(10!)!",
    "2^{(10^{10})}",
    "7" * 5_000,
    "7" * 900 + ".5",
    "{" * 1_500,
    r"\frac{" * 300,
    "(" * 400 + "1" + ")" * 400,
    "9!" * 900,
    "(9!)" * 400,
    "5" + " " * 1_900 + "x",
    r"5\," * 600,
    "1,000," * 300,
    "\u00b2" * 1_900,
    "a " * 900,
    "\x00\ud800",
    "__import__('os')._exit(0)",
    r"\input{/etc/passwd}",
    HEAVY,
    r"\binom{10^9}{500000000}",
    r"\sum_{k=1}^{10^9} k^k",
    "y" * 1_000_000,
]


def test_hostile_answers_neither_freeze_the_caller_nor_earn_anything(quick_to_kill: MathVerifier) -> None:
    statuses: list[str] = []
    thread = threading.Thread(target=lambda: statuses.extend(ask(quick_to_kill, "3", *HOSTILE)))
    gaps, last = [0.0], time.monotonic()
    thread.start()
    while thread.is_alive():
        time.sleep(0.005)
        now = time.monotonic()
        gaps.append(now - last)
        last = now
    thread.join()
    assert len(statuses) == len(HOSTILE)
    assert set(statuses) <= {"not_equal", "answer_timeout", "no_answer"}
    assert max(gaps) < 1.5
    assert ask(quick_to_kill, "x+1", "1+x") == ["equal"]


def test_a_megabyte_of_open_boxes_is_read_in_no_time(shared: MathVerifier) -> None:
    problem = Problem(id="a", text="?", answer="5")
    started = time.monotonic()
    verdicts = shared.verify([problem] * 3, [r"\boxed{" * 150_000, "x" * 1_000_000 + r"\boxed{5}", "{" * 1_000_000])
    assert [v.status for v in verdicts] == ["no_answer", "equal", "no_answer"]
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize("text", ["9^{9^9}", "9^9^9", "9**9**9", "(10!)!", "9^{9!}", "3^{10001}", "5001!", "2^{(9^9)}"])
def test_oversized(text: str) -> None:
    assert oversized(text)
    assert decide("1", text) == Verdict(correct=False, status="not_equal")


@pytest.mark.parametrize("text", ["2^{4950}", r"\frac{1}{2004!}", "2^{2^{10}}", r"9!9", "10^{-7}", "e^{x^2}", "3!^2"])
def test_not_oversized(text: str) -> None:
    assert not oversized(text)


def test_a_soft_time_out_leaves_the_worker_alive(quick_to_kill: MathVerifier) -> None:
    assert ask(quick_to_kill, "x", "x+0") == ["equal"]
    before = quick_to_kill.worker_pids
    assert ask(quick_to_kill, "3", HEAVY) == ["answer_timeout"]
    assert quick_to_kill.worker_pids == before


# Stand-ins for the worker's program: deaf to alarms, as inside C code; asleep, as nothing in an answer can make it.
STAND_IN = """
import json, sys, time
print(json.dumps({{"ready": True}}), flush=True)
for line in sys.stdin:
    if {gold_first}:
        print(json.dumps({{"stage": "gold"}}), flush=True)
    {busy}
"""


@pytest.mark.parametrize(("gold_first", "outcome"), [(True, "answer_timeout"), (False, "gold_unparsed")])
def test_a_worker_deaf_to_alarms_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gold_first: bool, outcome: str
) -> None:
    script = tmp_path / "deaf.py"
    script.write_text(STAND_IN.format(gold_first=gold_first, busy="while True: pass"))
    monkeypatch.setattr(math_pool, "_SCRIPT", script)
    worker = Worker(soft_timeout_s=0.5, hard_timeout_s=2.0, memory_mib=256)
    assert worker.judge("3", "x") == outcome
    assert worker.pid is None


def test_a_worker_that_sleeps_without_being_stopped_gives_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "asleep.py"
    script.write_text(STAND_IN.format(gold_first=True, busy="time.sleep(1000)"))
    monkeypatch.setattr(math_pool, "_SCRIPT", script)
    pool = WorkerPool(1, soft_timeout_s=0.5, hard_timeout_s=1.0, memory_mib=256)
    assert pool.judge("3", "x") == "infra_error"
    pool.close()


@pytest.mark.parametrize("answer", ["1+x", HEAVY])
def test_a_worker_stopped_once_costs_a_few_seconds_and_no_verdict(
    answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    verifier = MathVerifier(soft_timeout_s=4.0, hard_timeout_s=10_000.0)
    try:
        assert ask(verifier, "x", "x+0") == ["equal"]
        (pid,) = verifier.worker_pids
        if answer == HEAVY:  # in the middle of the computation
            threading.Timer(0.5, os.kill, (pid, signal.SIGSTOP)).start()
        else:  # before the question
            os.kill(pid, signal.SIGSTOP)
        assert ask(verifier, "x+1", answer) == ["answer_timeout" if answer == HEAVY else "equal"]
        assert not alive(pid)
        assert "stopped for 2 s" in caplog.text
        assert "try 1 of 2" in caplog.text
    finally:
        verifier.close()


def test_a_worker_that_is_always_stopped_is_an_infrastructure_error_and_not_remembered() -> None:
    verifier = MathVerifier(soft_timeout_s=2.0, hard_timeout_s=60.0)
    done = threading.Event()

    def stop_on_sight() -> None:
        while not done.is_set():
            for pid in verifier.worker_pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            time.sleep(0.01)

    stopper = threading.Thread(target=stop_on_sight)
    stopper.start()
    try:
        assert ask(verifier, "x+1", "1+x") == ["infra_error"]
    finally:
        done.set()
        stopper.join()
    try:
        assert ask(verifier, "x+1", "1+x") == ["equal"]
    finally:
        verifier.close()


def test_a_worker_stopped_and_continued_goes_on() -> None:
    verifier = MathVerifier(soft_timeout_s=2.0, hard_timeout_s=60.0)
    try:
        assert ask(verifier, "x", "x+0") == ["equal"]
        (pid,) = verifier.worker_pids
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (pid, signal.SIGCONT)).start()
        assert ask(verifier, "x+1", "1+x") == ["equal"]
        assert verifier.worker_pids == [pid]
    finally:
        verifier.close()


SPIN = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nprint(flush=True)\nwhile True: pass"


def test_the_time_of_a_process_that_gets_no_processor_does_not_run_out() -> None:
    processor = str(min(os.sched_getaffinity(0)))
    spin = [sys.executable, "-c", SPIN, processor]
    with (
        limited(subprocess.Popen(spin, stdout=subprocess.PIPE)) as occupier,
        limited(subprocess.Popen(spin, stdout=subprocess.PIPE)) as starved,
        limited(subprocess.Popen(["sleep", "1000"])) as asleep,
    ):
        for spinning in (occupier, starved):
            assert spinning.stdout is not None
            spinning.stdout.readline()
        os.sched_setscheduler(starved.pid, os.SCHED_IDLE, os.sched_param(0))  # a thousandth beside the other
        clocks = [Clock(process.pid, 0.5) for process in (occupier, starved, asleep)]
        assert all(0 < clock.left_s() <= 0.5 for clock in clocks)
        assert wait_for(lambda: clocks[0].left_s() <= 0)  # it ran for half a second
        assert [clock.left_s() > 0 for clock in clocks] == [False, True, False]


def test_a_busy_worker_ends_itself_when_nobody_is_left_to_kill_it() -> None:
    script = Path(math_pool.__file__).with_name("math_worker.py")
    soft_s, guard_s, memory_mib = "100", "0.5", "2048"
    command = [sys.executable, "-P", str(script), soft_s, guard_s, memory_mib, str(os.getpid())]
    with limited(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)) as worker:
        assert worker.stdin is not None
        worker.stdin.write(json.dumps({"gold": "3", "answer": HEAVY}).encode() + b"\n")
        worker.stdin.flush()
        assert worker.wait(30) == -signal.SIGVTALRM


# Death of workers --------------------------------------------------------------------------------------------------


def test_a_worker_killed_between_calls_is_replaced(quick_to_kill: MathVerifier) -> None:
    assert ask(quick_to_kill, "x+1", "1+x") == ["equal"]
    (pid,) = quick_to_kill.worker_pids
    os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: not alive(pid))
    assert ask(quick_to_kill, "x+2", "2+x", "3+x") == ["equal", "not_equal"]
    assert quick_to_kill.worker_pids != [pid]


def test_a_worker_killed_once_in_a_call_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    verifier = MathVerifier(soft_timeout_s=2.0, hard_timeout_s=20.0)
    try:
        assert ask(verifier, "x", "x+0") == ["equal"]
        (pid,) = verifier.worker_pids
        os.kill(pid, signal.SIGSTOP)  # so that the call is surely under way
        statuses: list[str] = []
        thread = threading.Thread(target=lambda: statuses.extend(ask(verifier, "x+1", "1+x")))
        thread.start()
        time.sleep(0.3)
        assert thread.is_alive()
        os.kill(pid, signal.SIGKILL)
        thread.join(30)
        assert statuses == ["equal"]
        assert "try 1 of 2" in caplog.text
    finally:
        verifier.close()


def test_a_pair_that_always_loses_its_worker_is_masked_and_not_cached(caplog: pytest.LogCaptureFixture) -> None:
    verifier = MathVerifier(soft_timeout_s=2.0, hard_timeout_s=20.0)
    done = threading.Event()

    def kill_on_sight() -> None:
        while not done.is_set():
            for pid in verifier.worker_pids:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    killer = threading.Thread(target=kill_on_sight)
    killer.start()
    try:
        problem = Problem(id="a", text="?", answer="x+1")
        assert verifier.verify([problem], [r"\boxed{1+x}"]) == [Verdict(correct=None, status="infra_error")]
        assert "try 2 of 2" in caplog.text
        done.set()
        killer.join()
        assert ask(verifier, "x+1", "1+x") == ["equal"]
    finally:
        done.set()
        killer.join()
        verifier.close()


def test_a_worker_is_confined_in_memory() -> None:
    verifier = MathVerifier(memory_mib=256)
    try:
        assert ask(verifier, "x+1", "1+x") == ["equal"]
        limits = Path(f"/proc/{verifier.worker_pids[0]}/limits").read_text()
        assert re.search(rf"Max address space +{256 << 20} +{256 << 20} ", limits)
        assert re.search(r"Max core file size +0 +0 ", limits)
    finally:
        verifier.close()


def test_several_threads_share_the_workers() -> None:
    verifier = MathVerifier(workers=2)
    found: dict[int, list[str]] = {}

    def judge(n: int) -> None:
        found[n] = ask(verifier, f"x+{n}", *(f"{m}+x" for m in range(6)))

    threads = [threading.Thread(target=judge, args=(n,)) for n in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert found == {n: ["equal" if m == n else "not_equal" for m in range(6)] for n in range(4)}
        assert len(verifier.worker_pids) == 2
    finally:
        verifier.close()


def test_close_leaves_no_process_and_no_descriptor(quick_to_kill: MathVerifier) -> None:
    ask(quick_to_kill, "x", "x+0")
    quick_to_kill.close()
    before = sorted(os.listdir("/proc/self/fd"))
    pids: list[int] = []
    for n in range(3):
        assert ask(quick_to_kill, "3", HEAVY.replace("7", str(7 + 4 * n))) == ["answer_timeout"]
        ask(quick_to_kill, "x", f"x+{n + 1}")
        pids += quick_to_kill.worker_pids
        quick_to_kill.close()
        quick_to_kill.close()
    assert len(set(pids)) == 3
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)  # neither running nor zombie
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_forgotten_verifier_ends_its_workers() -> None:
    verifier = MathVerifier()
    ask(verifier, "x+1", "1+x")
    (pid,) = verifier.worker_pids
    del verifier
    assert wait_for(lambda: not Path(f"/proc/{pid}").exists())


@pytest.mark.parametrize("busy", [False, True])
def test_workers_die_with_a_parent_that_was_killed(busy: bool) -> None:
    script = f"""
        import threading, time
        from repirl.structs import Problem
        from repirl.verifiers.math import MathVerifier
        v = MathVerifier(soft_timeout_s=0.5, hard_timeout_s=2)
        v.verify([Problem("a", "?", "x+1")], [r"\\boxed{{1+x}}"])
        if {busy}:
            threading.Thread(target=v.verify, args=([Problem("a", "?", "3")], [r"\\boxed{{{HEAVY}}}"])).start()
            time.sleep(0.5)
        print(v.worker_pids[0], flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with limited(subprocess.Popen(command, stdout=subprocess.PIPE)) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    assert wait_for(lambda: not alive(pid))


def test_a_forked_child_starts_its_own_workers_and_spares_the_parents() -> None:
    script = r"""
        import os
        from repirl.structs import Problem
        from repirl.verifiers.math import MathVerifier
        v = MathVerifier()
        ask = lambda n: v.verify([Problem("a", "?", f"x+{n}")], [rf"\boxed{{{n}+x}}"])[0].status
        assert ask(1) == "equal"
        pids = v.worker_pids
        child = os.fork()
        if child == 0:
            ok = ask(2) == "equal" and v.worker_pids != pids
            v.close()
            os._exit(0 if ok else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert ask(3) == "equal" and v.worker_pids == pids
        print("held")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "held\n", done.stderr


def test_workers_import_no_torch_and_start_from_a_clean_program(shared: MathVerifier) -> None:
    ask(shared, "x+1", "1+x")
    (pid,) = shared.worker_pids
    assert "torch" not in Path(f"/proc/{pid}/maps").read_text()
    assert b"math_worker.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
