"""A client of chat endpoints, against servers on this machine that misbehave on purpose."""

from __future__ import annotations

import email.utils
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from repirl.rollout.endpoint import NoAnswer, Refused, Stopped, Turns, backoff_s, host_of
from repirl.rollout.openai import ChatEndpoint
from tests.endpoints import DRIP, HANG, KEY, RESET, Reply, Request, completion, refusal, said, serving

MESSAGES = [{"role": "user", "content": "1 + 1?"}]


class Clock:
    """Time that passes by waiting alone."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []

    def read(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


class SharedClock:
    """Time of so many threads, which passes where all of them wait."""

    def __init__(self, threads: int) -> None:
        self.now, self._running = 0.0, threads
        self._ends: list[float] = []  # of waits
        self._passed = threading.Condition()

    def read(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        with self._passed:
            end = self.now + seconds
            self._ends.append(end)
            self._pass()
            while self.now < end:
                self._passed.wait()

    def leave(self) -> None:
        """The thread that calls it waits no more."""
        with self._passed:
            self._running -= 1
            self._pass()

    def _pass(self) -> None:
        if self._ends and len(self._ends) == self._running:
            self.now = min(self._ends)
            self._ends = [end for end in self._ends if end > self.now]
            self._passed.notify_all()


def endpoint_at(url: str, **settings: Any) -> tuple[ChatEndpoint, Clock]:
    """With waits between attempts that take no time."""
    made, clock = ChatEndpoint(url, "asked-model", **settings), Clock()
    made.turns = Turns(made.requests_per_minute, clock.read, clock.wait)
    return made, clock


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")  # as `$(cat file)` in some shells leaves it
    return KEY


def test_what_is_sent_and_what_comes_back(key: str) -> None:
    reply = completion("So \\boxed{2}", prompt=7, answer=9, reasoning_content="1, 2")
    with serving(lambda request: reply) as served:
        asked, _ = endpoint_at(f"{served.url}/", temperature=0.5, max_tokens=64, extra={"seed": 3})
        answer = asked.ask(MESSAGES)
        other, _ = endpoint_at(f"{served.url}/chat/completions", max_tokens=8, max_tokens_field="max_completion_tokens")
        other.ask(MESSAGES)
    first, second = served.requests
    assert first.path == second.path == "/v1/chat/completions"
    assert first.headers["Authorization"] == f"Bearer {key}"
    assert first.body == {
        "model": "asked-model", "temperature": 0.5, "max_tokens": 64, "seed": 3, "messages": MESSAGES
    }  # fmt: skip
    assert second.body == {"model": "asked-model", "max_completion_tokens": 8, "messages": MESSAGES}
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("So \\boxed{2}", "1, 2", "stop")
    assert (answer.model, answer.prompt_tokens, answer.completion_tokens, answer.attempts) == ("served-model", 7, 9, 1)


def test_without_a_key_none_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(lambda request: completion("2")) as served:
        endpoint_at(served.url)[0].ask(MESSAGES)
    assert "Authorization" not in served.requests[0].headers


@pytest.mark.parametrize(
    ("bad", "said_of_it"),
    [
        (refusal(429), "HTTP 429, 'no'"),
        (refusal(408), "HTTP 408"),
        (refusal(500, "out of memory"), "HTTP 500, 'out of memory'"),
        (Reply(502, b"<html>bad gateway</html>"), "HTTP 502, '<html>bad gateway</html>'"),
        (refusal(529, "overloaded"), "HTTP 529"),
        (Reply(200, b"<html>garbage"), "not JSON: <html>garbage"),
        (Reply(200, b"[" * 100_000), "not JSON"),
        (Reply(200, b'{"choices": [{"mess', promised=500), "cut after 19 of 500 bytes"),
        (RESET, "the connection failed"),
        (HANG, "timed out after 0.3 s"),
        (DRIP, "timed out after 0.3 s"),
        (said({"choices": []}), "no choice with a message"),
        (said({"error": "busy"}), "no choice with a message"),
        (said([1]), "no choice with a message"),
        (said({"choices": [{"message": {"content": [1]}}]}), "content is a list, not a text"),
    ],
)
def test_failures_that_may_pass_are_asked_again(bad: Reply, said_of_it: str) -> None:
    def behave(request: Request) -> Reply:
        return bad if request.number % 3 < 2 else completion("2")

    with serving(behave) as served:
        asked, clock = endpoint_at(served.url, timeout_s=0.3, retries=2)
        answer = asked.ask(MESSAGES)
        assert (answer.text, answer.attempts) == ("2", 3)
        assert said_of_it in str(asked.last_failure)
        assert 0.5 <= clock.waits[0] <= 1 <= clock.waits[1] <= 2  # twice as long, by chance up to half of it less
        asked, _ = endpoint_at(served.url, timeout_s=0.3, retries=1)
        with pytest.raises(NoAnswer, match="no answer after 2 attempts, the last: ") as raised:
            asked.ask(MESSAGES)
    assert said_of_it in str(raised.value)


def test_nobody_answers_there() -> None:
    with serving(lambda request: completion("2")) as served:
        pass
    asked, clock = endpoint_at(served.url, retries=3)
    with pytest.raises(NoAnswer, match=r"after 4 attempts, .*ConnectionRefusedError"):
        asked.ask(MESSAGES)
    assert len(clock.waits) == 3


def test_backoff_doubles_to_a_minute() -> None:
    assert all(2 <= backoff_s(3) <= 4 for _ in range(50))
    assert all(30 <= backoff_s(30) <= 60 for _ in range(50))


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured_by_all_requests(status: int) -> None:
    with serving(lambda r: completion("2") if r.number else refusal(status, Retry_After="7")) as served:
        asked, clock = endpoint_at(served.url)
        assert asked.ask(MESSAGES).attempts == 2
    assert clock.waits == [pytest.approx(7)]


def test_retry_after_may_be_a_date() -> None:
    later = email.utils.formatdate(time.time() + 100, usegmt=True)
    with serving(lambda r: completion("2") if r.number else refusal(429, Retry_After=later)) as served:
        asked, clock = endpoint_at(served.url)
        asked.ask(MESSAGES)
    assert sum(clock.waits) == pytest.approx(100, abs=60)


def test_an_endpoint_that_asks_to_come_back_tomorrow_is_told() -> None:
    with serving(lambda r: refusal(429, "daily limit", Retry_After="86400")) as served:
        with pytest.raises(Refused, match="HTTP 429, 'daily limit', and asks to wait 86400 s") as raised:
            endpoint_at(served.url)[0].ask(MESSAGES)
        assert not raised.value.of_one_request
    assert len(served.requests) == 1


def test_turns_come_at_even_distances_and_not_in_a_pause() -> None:
    clock = Clock()
    turns = Turns(30, clock.read, clock.wait)  # one in 2 s
    for _ in range(3):
        turns.take()
    assert clock.waits == [2, 2]
    turns.pause(9)
    turns.take()
    assert clock.waits == [2, 2, 9]
    turns.take()  # at 115
    assert clock.waits == [2, 2, 9, 2]
    turns.take(after_s=5)
    assert clock.waits == [2, 2, 9, 2, 5]


def test_turns_that_fell_into_a_pause_come_after_it_one_by_one() -> None:
    """One in .5 s; the first is told at .25 to wait 3 s, when the others have turns at .5, 1, 1.5, 2 and 2.5."""
    clock = SharedClock(6)
    sent: list[float] = []
    turns = Turns(120, clock.read, clock.wait)

    def send() -> None:
        turns.take()
        sent.append(clock.read())
        if clock.read() == 0:
            clock.wait(0.25)
            turns.pause(3)
        clock.leave()

    threads = [threading.Thread(target=send, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sent == [0, 3.25, 3.75, 4.25, 4.75, 5.25]


def test_a_program_that_ends_waits_for_no_turn() -> None:
    with serving(lambda request: refusal(500)) as served:
        asked = ChatEndpoint(served.url, "m")
        asked.stop.set()
        with pytest.raises(Stopped):
            asked.ask(MESSAGES)
    assert served.requests == []


@pytest.mark.parametrize(
    ("reply", "message", "of_one_request"),
    [
        (refusal(401), "HTTP 401, 'no': the environment variable OPENAI_API_KEY is not set", False),
        (refusal(403), "the environment variable OPENAI_API_KEY is not set", False),
        (refusal(404, "no such model"), "'no such model': check base_url .* and model 'asked-model'", False),
        (refusal(302, Location="http://127.0.0.1:9/"), "redirects elsewhere", False),
        (refusal(307, Location="http://127.0.0.1:9/"), "redirects elsewhere", False),
        (refusal(400, "context of 96 tokens"), "HTTP 400, 'context of 96 tokens'", True),
        (said({"detail": "too much"}, 422), "HTTP 422, 'too much'", True),
        (Reply(413, b""), "HTTP 413$", True),
    ],
)
def test_refusals_are_told_at_once(
    reply: Reply, message: str, of_one_request: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(lambda request: reply) as served:
        with pytest.raises(Refused, match=message) as raised:
            endpoint_at(served.url)[0].ask(MESSAGES)
        assert raised.value.of_one_request is of_one_request
    assert len(served.requests) == 1


def test_the_key_is_in_no_message(key: str) -> None:
    """Though the endpoint says it."""
    replies = [refusal(401, f"wrong key {KEY}"), Reply(200, f"garbage {KEY}".encode()), Reply(400, KEY.encode())]
    with serving(lambda request: replies[request.number % 3]) as served:
        asked, _ = endpoint_at(served.url, retries=0)
        for message in (
            "wrong key \\*\\*\\*': .* holds a key that is not admitted",
            "garbage \\*\\*\\*",
            "400, '\\*\\*\\*'",
        ):
            with pytest.raises(ValueError, match=message) as raised:
                asked.ask(MESSAGES)
            assert KEY not in str(raised.value)
        assert KEY not in repr(asked)
        assert KEY not in str(asked.last_failure)


def test_a_redirect_takes_the_key_nowhere(key: str) -> None:
    with serving(lambda request: completion("2")) as other:
        with serving(lambda request: refusal(302, Location=other.url)) as served, pytest.raises(Refused):
            endpoint_at(served.url)[0].ask(MESSAGES)
        assert other.requests == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": f"https://me:{KEY}@host/v1"}, "base_url holds a user, a password or a query"),
        ({"base_url": f"https://host/v1?api-key={KEY}"}, "base_url holds a user, a password or a query"),
        ({"base_url": f"https://host/{KEY}"}, "the key in OPENAI_API_KEY stands in base_url, model or extra too"),
        ({"extra": {"key": KEY}}, "stands in base_url, model or extra too"),
        ({"api_key_env": KEY}, "api_key_env: give the name of an environment variable"),
        ({"api_key_env": "BAD_KEY"}, "the environment variable BAD_KEY holds characters that no key has"),
        ({"base_url": "host/v1"}, "give an address such as"),
        ({"base_url": "ftp://host/v1"}, "give an address such as"),
        ({"base_url": "http://host:port/v1"}, "base_url 'http://host:port/v1'"),
    ],
)
def test_settings_that_would_give_the_key_away(
    settings: dict[str, Any], message: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAD_KEY", f"{KEY}\n{KEY}")
    with pytest.raises(ValueError, match=message) as raised:
        ChatEndpoint(**{"base_url": "http://host/v1", "model": "m", **settings})
    assert KEY not in str(raised.value)


def test_the_host_has_no_path() -> None:
    assert host_of("https://api.example.org/v1") == "api.example.org"
    assert host_of("http://127.0.0.1:8000/v1") == "127.0.0.1:8000"


def test_half_a_pair_of_surrogates_can_be_written(tmp_path: Path) -> None:
    body = completion("x").body.replace(b'"x"', b'"a\\ud83d b \\ud83d\\ude00"')
    with serving(lambda request: Reply(200, body)) as served:
        text = endpoint_at(served.url)[0].ask(MESSAGES).text
    assert text == "a\ufffd b \U0001f600"
    (tmp_path / "text").write_text(json.dumps(text, ensure_ascii=False), encoding="utf-8")


def test_a_missing_count_is_unknown_and_not_zero() -> None:
    with serving(lambda request: said({"choices": [{"message": {"content": None}}], "usage": None})) as served:
        answer = endpoint_at(served.url)[0].ask(MESSAGES)
    assert (answer.text, answer.finish_reason, answer.prompt_tokens, answer.completion_tokens) == ("", None, None, None)
