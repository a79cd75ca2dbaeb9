"""`repirl score --server` against a server on this machine that answers, or misbehaves, as each test says."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForTokenClassification

import repirl
from repirl.applications import evaluate_prm, search
from repirl.applications import score as command
from repirl.applications.export import export
from repirl.config import ConfigError
from repirl.models.hub import KINDS
from repirl.models.prm import PRM
from repirl.rollout import endpoint
from tests.applications.test_scoring import trained
from tests.endpoints import DRIP, HANG, RESET, Reply, Request, Served, refusal, said, serving
from tests.models.hub.test_hub import as_read, chat_tokenizer, config_of, made, with_head

NEWLINE = 18  # of the tiny tokenizer: "0" is 2, "a" is 12, "\n" 18, the end token 1
ROWS = [
    {"problem": "1a2", "solution": "a3\nb4", "id": "one"},
    {"problem": "3c2b1", "solution": "c5", "id": "two"},
    {"problem": "1a2", "solution": "a9\n\nb", "id": "three"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported PRM that vLLM can serve."""
    path = tmp_path_factory.mktemp("run")
    trained(path / "run.ckpt", prm=PRM("linear"))
    export(path / "run.ckpt", path / "folder", part="prm")
    return path / "folder"


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "backoff_s", lambda attempt: 0.01)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


def value(token: int, place: int) -> float:
    """What a token is worth here: a tenth of its id, and ten times its place."""
    return token / 10 + 10 * place


def pooled(texts: list[list[Any]], **changes: Any) -> Reply:
    """As vLLM answers: a list of numbers for each value of each text."""
    data = [{"index": i, "object": "pooling", "data": values} for i, values in enumerate(texts)]
    return said({"object": "list", "model": "served", "data": data, "usage": {}} | changes)


def right(request: Request) -> Reply:
    return pooled([[[value(token, place)] for place, token in enumerate(ids)] for ids in request.body["input"]])


def models(*names: str, length: int | None = 64) -> Callable[[Request], Reply]:
    cards = [{"id": name, "object": "model", "root": name, "max_model_len": length} for name in names]
    return lambda request: said({"object": "list", "data": cards})


@contextlib.contextmanager
def pooling(
    behave: Callable[[Request], Reply] = right, got: Callable[[Request], Reply] | None = None
) -> Iterator[tuple[Served, str]]:
    """The server, and its address as a user gives it."""
    with serving(behave, got or models("served")) as served:
        yield served, served.url.removesuffix("/v1")


def table(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def given(folder: Path, tmp_path: Path, url: str, *words: str, rows: list[dict[str, Any]] = ROWS) -> list[str]:
    source = table(tmp_path / "in.jsonl", rows)
    return ["--prm", str(folder), "--input", source, "--output", str(tmp_path / "out.jsonl"), "--server", url, *words]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def posted(served: Served) -> list[Request]:
    return [request for request in served.requests if request.path == "/pooling"]


def asked(served: Served) -> Counter[tuple[int, ...]]:
    """How often each text came."""
    return Counter(tuple(ids) for request in posted(served) for ids in request.body["input"])


# ---- numbers by hand


def test_rewards_of_tokens_and_steps(folder: Path, tmp_path: Path) -> None:
    """ "1a2\\n" is 3 12 4 18, at 0 to 3; a 3 \\n is 12 5 18 at 4 to 6; b 4 and the end are 13 6 1 at 7 to 9."""
    with pooling() as (served, url):
        command.main(given(folder, tmp_path, f"{url}/", "--tokens", rows=ROWS[:1]))
    first, second = served.requests
    assert first.path == "/v1/models"
    assert second.path == "/pooling"
    assert second.body == {
        "model": "served",
        "task": "token_classify",
        "input": [[3, 12, 4, 18, 12, 5, 18, 13, 6, 1]],
        "use_activation": False,
        "encoding_format": "float",
        "add_special_tokens": False,
    }
    assert "Authorization" not in second.headers
    (record,) = read(tmp_path / "out.jsonl")
    assert record["token_rewards"] == pytest.approx([41.2, 50.5, 61.8, 71.3, 80.6, 90.1])
    assert record["step_rewards"] == pytest.approx([153.5, 242.0])  # 3.5 + 10 * 15, 2.0 + 10 * 24
    assert record["mean"] == pytest.approx(197.75)
    assert record["token_mean"] == pytest.approx(395.5 / 6)


def test_one_number_a_token_without_a_list_of_its_own(folder: Path, tmp_path: Path) -> None:
    def behave(request: Request) -> Reply:
        return pooled([[value(token, place) for place, token in enumerate(ids)] for ids in request.body["input"]])

    with pooling(behave) as (_, url):
        command.main(given(folder, tmp_path, url, rows=ROWS[:1]))
    assert read(tmp_path / "out.jsonl")[0]["step_rewards"] == pytest.approx([153.5, 242.0])


@pytest.mark.parametrize(
    ("kind", "by_step", "expected"),
    [
        ("trl", False, [0.75, 0.25]),  # softmax of (0, ln 3): 3 / (1 + 3); of (0, -ln 3): (1/3) / (4/3)
        ("pure", False, [0.5, -0.5]),
        ("qwen_math", False, [0.75, 0.25]),
        ("qwen_math", True, [0.75, 0.25]),
    ],
)
def test_others_prms(kind: str, by_step: bool, expected: list[float], tmp_path: Path) -> None:
    """At the first separator the outputs are 0 and ln 3, at the second 0 and -ln 3, elsewhere 5 and -5."""
    tokenizer = chat_tokenizer()
    prm = tmp_path / "prm"
    if kind == "qwen_math":
        with_head(prm, made(AutoModel, config_of("qwen2", tokenizer)), {}, "Qwen2ForProcessRewardModel")
    else:
        made(AutoModelForTokenClassification, config_of("qwen2", tokenizer, num_labels=2)).save_pretrained(prm)
    tokenizer = as_read(tokenizer, prm)
    (separator,) = tokenizer("<extra_0>" if kind == "qwen_math" else "\n", add_special_tokens=False)["input_ids"]

    def behave(request: Request) -> Reply:
        (ids,) = request.body["input"]
        at = iter([[0.0, math.log(3)], [0.0, -math.log(3)]])
        every = [next(at) if token == separator else [5.0, -5.0] for token in ids]
        return pooled([[one for one in every if one[0] == 0.0] if by_step else every])

    (prm / "model.safetensors").unlink()  # no weights are read
    with pooling(behave, models("served", length=None)) as (served, url):
        rows = [{"problem": "2 + 3?", "solution": "2 + 3 = 5\nSo 5."}]
        command.main(given(prm, tmp_path, url, "--kind", kind, "--tokens", rows=rows))
    (record,) = read(tmp_path / "out.jsonl")
    assert record["step_rewards"] == pytest.approx(expected)
    assert (record["tokens"], record["token_mean"]) == ([], None)
    (request,) = posted(served)
    assert tokenizer.decode(request.body["input"][0]).count("2 + 3 = 5") == 1


# ---- what fails and passes


BAD: list[tuple[Reply, str]] = [
    (refusal(429, "slow down"), "HTTP 429, 'slow down'"),
    (refusal(500, "out of memory"), "HTTP 500, 'out of memory'"),
    (Reply(503, b"<html>starting</html>"), "HTTP 503"),
    (Reply(200, b"<html>garbage"), "not JSON: <html>garbage"),
    (Reply(200, b'{"data": [{"ind', promised=500), "cut after 15 of 500 bytes"),
    (RESET, "the connection failed"),
    (HANG, "timed out after 0.3 s"),
    (DRIP, "timed out after 0.3 s"),
    (said([1]), "the answer has no values for each of 3 texts"),
    (pooled([[1.0]]), "no values for each of 3 texts"),  # of one text of three
    (said({"data": [{"index": 0, "data": "AAAA"}] * 3}), "no values for each of 3 texts"),
    (said({"data": [{"index": [], "data": [1.0]}] * 3}), "no values for each of 3 texts"),
]


@pytest.mark.parametrize(("bad", "told"), BAD)
def test_failures_that_may_pass(bad: Reply, told: str, folder: Path, tmp_path: Path) -> None:
    """Once: the output is as without them. Always: it is told after six attempts, and nothing is lost."""
    state = {"fails": 7}  # the first run's six, and one of the second's

    def behave(request: Request) -> Reply:
        state["fails"] -= 1
        return bad if state["fails"] >= 0 else right(request)

    with pooling(behave) as (served, url):
        words = given(folder, tmp_path, url, "--timeout-s", "0.3")
        with pytest.raises(ConfigError) as raised:
            command.main(words)
        assert len(posted(served)) == 6
        assert told in str(raised.value)
        for part in (
            "in.jsonl, line 1 and after: 127.0.0.1:",
            "no answer after 6 attempts",
            "see that vLLM runs there",
        ):
            assert part in str(raised.value)
        assert not (tmp_path / "out.jsonl").exists()
        command.main(words)
        assert len(posted(served)) == 8
    with pooling() as (_, url):
        (tmp_path / "whole").mkdir()
        command.main(given(folder, tmp_path / "whole", url))
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole" / "out.jsonl").read_bytes()


def test_a_run_that_failed_in_the_midst_goes_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No solution is asked for twice once it is written, no row is missing or twice; another address is no other PRM."""
    rows = [{"problem": "1a2", "solution": f"a{n % 10}\nb{n // 10}", "id": n} for n in range(60)]
    words = ["--batch-tokens", "20"]  # two solutions of ten tokens a request, eight requests between two writes
    with pooling() as (_, url):
        (tmp_path / "whole").mkdir()
        command.main(given(folder, tmp_path / "whole", url, *words, rows=rows))
    with pooling(lambda r: right(r) if r.number < 20 else refusal(500)) as (served, url):
        with pytest.raises(ConfigError, match=r"line 33 and after: .*HTTP 500"):
            command.main(given(folder, tmp_path, url, *words, rows=rows))
        written = read(tmp_path / ".out.jsonl.part")[1:]
        assert [record["id"] for record in written] == list(range(32))
    capsys.readouterr()
    with pytest.raises(ConfigError, match="was begun with another server"):
        command.main(
            [word for word in given(folder, tmp_path, url, *words, rows=rows) if word not in ("--server", url)]
        )
    with pooling() as (served, url):
        command.main(given(folder, tmp_path, url, *words, rows=rows))
        assert set(asked(served).values()) == {1}
        assert sum(asked(served).values()) == 28
    assert "60 solutions, 32 of them scored by an earlier run" in capsys.readouterr().out
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole" / "out.jsonl").read_bytes()
    assert [record["id"] for record in read(tmp_path / "out.jsonl")] == list(range(60))


def test_a_server_that_asks_to_wait_is_waited_for(folder: Path, tmp_path: Path) -> None:
    times = []

    def behave(request: Request) -> Reply:
        times.append(time.monotonic())
        return right(request) if len(times) > 1 else refusal(429, Retry_After="0.7")

    with pooling(behave) as (_, url):
        command.main(given(folder, tmp_path, url))
    assert times[1] - times[0] > 0.69
    with pooling(lambda request: refusal(429, "tomorrow", Retry_After="86400")) as (served, url):
        (tmp_path / "later").mkdir()
        with pytest.raises(ConfigError, match="HTTP 429, 'tomorrow', and asks to wait 86400 s; try again then"):
            command.main(given(folder, tmp_path / "later", url))
        assert len(posted(served)) == 1


# ---- what is another model


def of_first(change: Callable[[list[Any]], list[Any]]) -> Callable[[Request], Reply]:
    def behave(request: Request) -> Reply:
        texts = [[[value(token, place)] for place, token in enumerate(ids)] for ids in request.body["input"]]
        return pooled([change(texts[0]), *texts[1:]])

    return behave


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda values: values[:-1], r"gives \d+ values for \d+ tokens: another model is served there"),
        (lambda values: [], "gives 0 values for"),
        (lambda values: [*values, [1.0]], r"gives \d+ values for \d+ tokens"),
        (lambda values: [[1.0, 2.0] for _ in values], "gives 2 numbers a token, and the folder's has 1: another model"),
        (
            lambda values: [*values[:-1], [float("nan")]],
            "gives something else than finite numbers: serve it with --dtype",
        ),
        (lambda values: [*values[:-1], [float("inf")]], "gives something else than finite numbers"),
        (lambda values: [*values[:-1], [None]], "gives something else than finite numbers"),
        (lambda values: [*values[:-1], [1e300]], "gives something else than finite numbers"),  # inf in float32
        (lambda values: [*values[:-1], [10**400]], "gives something else than finite numbers"),
        (lambda values: [*values[:-1], ["1.0"]], "gives something else than finite numbers"),
    ],
)
def test_answers_of_another_model_are_refused_at_once(
    change: Callable[[list[Any]], list[Any]], told: str, folder: Path, tmp_path: Path
) -> None:
    with pooling(of_first(change)) as (served, url):
        with pytest.raises(ConfigError, match=rf"line 1 and after: 127\.0\.0\.1:\d+: model 'served' {told}"):
            command.main(given(folder, tmp_path, url))
        assert len(posted(served)) == 1


def test_nothing_more_is_asked_after_an_answer_of_another_model(folder: Path, tmp_path: Path) -> None:
    with pooling(of_first(lambda values: [[None] for _ in values])) as (served, url):
        with pytest.raises(ConfigError, match="something else than finite numbers"):
            command.main(given(folder, tmp_path, url, "--batch-tokens", "10", "--concurrency", "1"))
        assert len(posted(served)) == 1


@pytest.mark.parametrize(
    ("got", "words", "told"),
    [
        (lambda request: refusal(404), [], "HTTP 404, 'no': see that vLLM serves this PRM there, with"),
        (lambda request: Reply(200, b"<html>"), [], "no answer after 3 attempts, the last: the answer is not JSON"),
        (lambda request: said({"models": []}), [], "the answer has no list of models"),
        (lambda request: refusal(401), [], "HTTP 401, 'no': the environment variable VLLM_API_KEY is not set"),
        (lambda request: HANG, ["--timeout-s", "0.3"], "timed out after 0.3 s; see that vLLM runs there"),
        (models(), [], r"serves several models or none \(none\): give server_model"),
        (models("a", "b"), [], r"serves several models or none \('a', 'b'\): give server_model, the name of the PRM"),
        (
            models("a", "b"),
            ["--server-model", "c"],
            "serves no model 'c' but 'a', 'b': give server_model as it is there",
        ),
        (models("a"), ["--concurrency", "0"], "concurrency must be above 0, not 0"),
        (models("a"), ["--batch-tokens", "0"], "batch_tokens must be above 0, not 0"),
        (models("a"), ["--timeout-s", "-1"], "timeout_s must be above 0, not -1"),
    ],
)
def test_a_server_that_is_not_the_prm_s_is_told_before_it_gets_a_text(
    got: Callable[[Request], Reply], words: list[str], told: str, folder: Path, tmp_path: Path
) -> None:
    with pooling(got=got) as (served, url):
        with pytest.raises(ConfigError, match=told):
            command.main(given(folder, tmp_path, url, *words))
        assert posted(served) == []


def test_addresses_where_nothing_is(folder: Path, tmp_path: Path) -> None:
    with pooling() as (_, url):
        pass
    with pytest.raises(ConfigError, match=r"after 3 attempts, .*ConnectionRefusedError.*; see that vLLM runs there"):
        command.main(given(folder, tmp_path, url))
    for address, told in [
        ("127.0.0.1:8000", "server '127.0.0.1:8000': give an address"),
        ("http://a:b@c", "server holds"),
    ]:
        with pytest.raises(ConfigError, match=told):
            command.main(given(folder, tmp_path, address))
    with pooling(lambda request: refusal(404, "The model `b` does not exist.")) as (served, url):
        with pytest.raises(
            ConfigError, match=r"HTTP 404, 'The model `b` does not exist\.': see that vLLM serves this PRM there"
        ):
            command.main(given(folder, tmp_path, url))
        assert len(posted(served)) == 1


def test_a_model_by_name_and_a_key(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sk-of-the-server")
    with pooling(got=models("a", "b")) as (served, url):
        command.main(given(folder, tmp_path, f"{url}/v1", "--server-model", "b"))
    assert posted(served)[0].body["model"] == "b"
    assert {request.headers["Authorization"] for request in served.requests} == {"Bearer sk-of-the-server"}


# ---- what is not asked


def test_what_vllm_cannot_serve_is_told_before_anything_is_asked(tmp_path: Path) -> None:
    trained(tmp_path / "run.ckpt", prm=PRM("q_head"))
    export(tmp_path / "run.ckpt", tmp_path / "q_head", part="prm")
    trained(tmp_path / "step.ckpt", prm=PRM("linear", granularity="step"))
    export(tmp_path / "step.ckpt", tmp_path / "step", part="prm")
    tokenizer = chat_tokenizer()
    made(AutoModelForTokenClassification, config_of("qwen2", tokenizer, num_labels=3)).save_pretrained(
        tmp_path / "three"
    )
    as_read(tokenizer, tmp_path / "three")
    served_kinds = (
        "vLLM serves exported PRMs of kind linear with granularity token, and others' of the kinds qwen_math, trl, pure"
    )
    with pooling() as (served, url):
        for name, words, told in [
            ("run.ckpt", [], "is a checkpoint: "),
            ("q_head", [], "is of kind q_head with granularity token and a class of its own, which vLLM cannot serve: "),
            ("step", [], "is of kind linear with granularity step and a class of its own"),
            *(("three", ["--kind", kind], f"is of kind {kind}, which vLLM cannot serve: ")
              for kind in KINDS if kind not in ("qwen_math", "trl", "pure")),
            ("three", ["--kind", "implicit", "--reference", "x"], "is two models: "),
        ]:  # fmt: skip
            with pytest.raises(ConfigError) as raised:
                command.main(given(tmp_path / name, tmp_path, url, *words))
            assert told in str(raised.value)
            assert served_kinds in str(raised.value)
        with pytest.raises(ConfigError, match="has 3 classes: a PRM of this kind has 2"):
            command.main(given(tmp_path / "three", tmp_path, url))
        assert served.requests == []
        with pytest.raises(ConfigError, match="device 'cuda': a model that is served is where the server has it"):
            command.main(given(tmp_path / "q_head", tmp_path, url, "--device", "cuda"))
    for alone in ({"server_model": "a"}, {"timeout_s": 1.0}, {"concurrency": 2}):
        with pytest.raises(ValueError, match="are those of a server: give `server` too"):
            repirl.load_prm(tmp_path / "q_head", **alone)  # type: ignore[arg-type]


@pytest.mark.parametrize(("length", "limit"), [(12, 12), (None, 64), (900, 64)])  # the folder's model reads 64
def test_solutions_longer_than_either_context_are_not_asked_for(
    length: int | None, limit: int, folder: Path, tmp_path: Path
) -> None:
    rows = [*ROWS, {"problem": "1a2", "solution": "a" * (limit - 4)}]  # with prompt and end token one too many
    with pooling(got=models("served", length=length)) as (served, url):
        with pytest.raises(
            ConfigError, match=f"line 4: {limit + 1} tokens with the problem, and the PRM reads {limit}"
        ):
            command.main(given(folder, tmp_path, url, rows=rows))
        assert posted(served) == []
        command.main(given(folder, tmp_path, url, "--too-long", "skip", rows=rows))
    records = read(tmp_path / "out.jsonl")
    assert [record["mean"] is None for record in records] == [False, False, False, True]


# ---- several at a time


def test_answers_in_any_order_keep_the_rows_in_theirs(folder: Path, tmp_path: Path) -> None:
    """Three at a time, and no more; the later a request, the sooner its answer."""
    running, most, lock = 0, 0, threading.Lock()

    def behave(request: Request) -> Reply:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05 + 0.2 / request.number)
        with lock:
            running -= 1
        return right(request)

    rows = [{"problem": "1a2", "solution": f"a{n}\nb{n}", "id": n} for n in range(10)]
    with pooling(behave) as (served, url):
        command.main(given(folder, tmp_path, url, "--batch-tokens", "10", "--concurrency", "3", rows=rows))
    assert most == 3
    assert len(posted(served)) == 10
    # a n \n is 12, 2 + n, 18 at 4 to 6; b n and the end are 13, 2 + n, 1 at 7 to 9
    assert [record["step_rewards"] for record in read(tmp_path / "out.jsonl")] == [
        pytest.approx([3.2 + n / 10 + 150, 1.6 + n / 10 + 240]) for n in range(10)
    ]


def test_a_scorer_asks_again_after_a_failure(folder: Path) -> None:
    state = {"right": False}
    with pooling(lambda request: right(request) if state["right"] else refusal(400, "bad")) as (_, url):
        scorer = repirl.load_prm(folder, server=url)
        with pytest.raises(ValueError, match="HTTP 400, 'bad'"):
            scorer.score("1a2", "a3\nb4")
        state["right"] = True
        assert scorer.score("1a2", "a3\nb4").step_rewards == pytest.approx((153.5, 242.0))
        assert scorer.scores([]) == []
    assert scorer.parameters == repirl.load_prm(folder).parameters


# ---- other commands


def test_evaluate_prm(folder: Path, tmp_path: Path) -> None:
    rows = [{"problem": "1a2", "steps": ["a3", "b4"], "labels": [1, 0], "id": str(n)} for n in range(3)]
    source = table(tmp_path / "labelled.jsonl", rows)
    words = ["--prm", str(folder), "--set", "labelled", "--path", f"mine={source}", "--threshold", "200"]
    with pooling() as (served, url):
        evaluate_prm.main([*words, "--output", str(tmp_path / "r.json"), "--server", url])
    assert read(tmp_path / "r.mine.jsonl")[0]["step_rewards"] == pytest.approx([153.5, 242.0])
    assert posted(served)


def test_search(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    rows = [{"problem": "1a2", "solutions": ["a3\nb4", "a3"], "gold": "3", "id": "p0"}]
    with pooling() as (served, url):
        source = table(tmp_path / "in.jsonl", rows)
        common = ["--input", source, "--n=[1,2]", "--methods=[best_of_n]"]
        common += ["--verifier", "repirl.verifiers.exact.ExactVerifier"]
        with pytest.raises(ConfigError, match="server: it serves a PRM, and there is none"):
            search.main([*common, "--output", str(tmp_path / "none"), "--server", url])
        search.main([*common, "--prm", str(folder), "--output", str(tmp_path / "out"), "--server", url])
    lines = read(tmp_path / "out" / "samples.jsonl")
    assert lines[0]["step_rewards"] == pytest.approx([153.5, 242.0])
    assert posted(served)
